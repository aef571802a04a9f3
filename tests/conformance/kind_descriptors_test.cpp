// Descriptors of kinds: which struct a pointer to one names.
#include <gtest/gtest.h>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

/// A descriptor of another kind is told by its kind, whatever its size and its fields are.
TEST(KindDescriptors, AnotherKindIsToldByItsKind) {
  const support::Device device(1);
  BadInput bad(nullptr);
  const kvc_cache_desc good = support::cache_desc(1, 2, 4, 4);
  uint64_t bytes = 0;
  for (const uint32_t size : {8u, 20u, 36u, 56u, 4096u}) {
    std::vector<uint32_t> words(1024, 7);
    words[0] = size;
    words[1] = KVC_RECURRENT;
    bad.expect(invalid, "a recurrent descriptor of " + std::to_string(size) + " bytes",
               [&] { return kvc_cache_memory_bytes(device, &good, words.data(), &bytes); });
    const std::string message = support::last_message();
    EXPECT_NE(message.find("recurrent"), std::string::npos) << message;
    EXPECT_NE(message.find("causal"), std::string::npos) << message;
  }
}

}  // namespace
