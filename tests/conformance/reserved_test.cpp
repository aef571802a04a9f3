// What the header reserves for later versions: NOT_SUPPORTED by name, in its place among the errors.
#include <gtest/gtest.h>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

/// A storage type or flag of a cache: behind everything that is wrong with the descriptors.
TEST(Reserved, DescriptorsComeLast) {
  const support::Device device(1);
  BadInput bad(nullptr);
  uint64_t bytes = 0;
  const auto expect = [&](kvc_status status, const kvc_cache_desc& desc, const std::string& word) {
    kvc_causal_desc causal = support::causal_desc();
    causal.cell_padding = word == "cell_padding" ? -1 : 0;
    bad.expect(status, word, [&] { return kvc_cache_memory_bytes(device, &desc, &causal, &bytes); });
    const std::string message = support::last_message();
    EXPECT_NE(message.find(word), std::string::npos) << message;
  };
  kvc_cache_desc reserved = support::cache_desc(1, 2, 4, 4);
  const auto expect_last = [&](const std::string& word) {
    expect(KVC_E_NOT_SUPPORTED, reserved, word);
    expect(invalid, reserved, "cell_padding");
    kvc_cache_desc desc = reserved;
    desc.n_layers = 0;
    expect(invalid, desc, "n_layers");
    desc = reserved;
    desc.kind = KVC_LIGHTNING + 1;
    expect(invalid, desc, "kind");
    desc = reserved;
    desc.flags |= 128;
    expect(invalid, desc, "flags");
    desc = reserved;
    desc.dtype_v = KVC_I32;
    expect(KVC_E_DTYPE, desc, "i32");
    desc = reserved;
    desc.kind = KVC_ENCODER;
    expect(KVC_E_NOT_SUPPORTED, desc, "causal caches only");
  };
  reserved.dtype_k = KVC_Q4_0;
  expect_last("q4_0");
  reserved.dtype_k = KVC_F16;
  reserved.flags = KVC_CACHE_ROTATE_V | KVC_CACHE_STRICT;
  expect_last("KVC_CACHE_ROTATE_V");
}

}  // namespace
