// Descriptors of kinds: which struct a pointer to one names. Their sizes, and those of operators' structs.
#include <gtest/gtest.h>

#include "kvc/lightning.h"
#include "kvc/operators.h"
#include "kvc/transformer.h"
#include "support/bad_input.hpp"

namespace {

using support::BadInput, support::expect_struct_sizes;

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

TEST(KindDescriptors, Sizes) {
  const support::Device device(1);
  BadInput bad(nullptr);
  uint64_t bytes = 0;
  kvc_cache_desc cache = support::cache_desc(1, 2, 4, 4);
  const auto measure = [&](const void* desc) {
    return kvc_cache_memory_bytes(device, &cache, desc, &bytes);
  };
  cache.kind = KVC_TRANSFORMER;
  expect_struct_sizes<kvc_transformer_desc>(bad, "transformer", KVC_TRANSFORMER_DESC_INIT, measure);
  cache.kind = KVC_LIGHTNING;
  cache.capacity = 0;
  expect_struct_sizes<kvc_lightning_desc>(bad, "lightning", KVC_LIGHTNING_DESC_INIT, measure);
}

TEST(KindDescriptors, SizesOfOperators) {
  const support::Device device(1);
  BadInput bad(nullptr);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = desc.max_q_len = desc.max_kv_len = desc.n_kv_heads = desc.head_dim_k = 1;
  kvc_operator* op = nullptr;
  expect_struct_sizes<kvc_operator_desc>(bad, "operator", desc, [&](const kvc_operator_desc* d) {
    EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
    return kvc_operator_create(device, "flash", d, &op);
  });
  float number = 1, result = 0;
  const kvc_tensor one = support::dense(&number, KVC_F32, {1, 1, 1, 1});
  kvc_tensor out = support::dense(&result, KVC_F32, {1, 1, 1, 1});
  expect_struct_sizes<kvc_forward_desc>(
      bad, "forward", KVC_FORWARD_DESC_INIT, [&](const kvc_forward_desc* d) {
        return kvc_operator_forward(op, d, &one, &one, &one, nullptr, nullptr, nullptr, &out);
      });
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
  kvc_operator_needs needs = KVC_OPERATOR_NEEDS_INIT;
  needs.mode = KVC_MODE_PREFILL;
  expect_struct_sizes<kvc_operator_needs>(bad, "needs", needs, [&](const kvc_operator_needs* n) {
    return kvc_operator_supports(device, "flash", n, nullptr);
  });
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.modes = KVC_MODE_ALL;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = [](void*, const kvc_operator_call*) -> kvc_status { return KVC_OK; };
  const auto add = [&](const kvc_operator_info* of, const kvc_operator_functions* with) {
    return kvc_operator_register(device, "mine", KVC_OPERATOR_REPLACE, of, with, nullptr);
  };
  expect_struct_sizes<kvc_operator_info>(
      bad, "info", info, [&](const kvc_operator_info* of) { return add(of, &functions); });
  expect_struct_sizes<kvc_operator_functions>(
      bad, "functions", functions,
      [&](const kvc_operator_functions* with) { return add(&info, with); });
}

}  // namespace
