// What the function of a caller's operator gets: all that a call and the operator's settings say. What it may ask about the call, and
// which of the caller's functions it is.
#include <gtest/gtest.h>

#include <cmath>

#include "kvc/operators.h"
#include "support/array.hpp"
#include "support/bad_input.hpp"

namespace {

using support::Array, support::expect, support::last_message;

/// What the function saw.
struct Seen {
  kvc_operator_call call{};
  std::vector<float> slopes, sinks;
  std::vector<int64_t> bias, weights, lse;  // shapes
  int32_t n_native = 0;
};

std::vector<int64_t> shape_of(const kvc_tensor* tensor) {
  if (tensor == nullptr) return {};
  return {tensor->shape, tensor->shape + tensor->ndim};
}

kvc_status note(void* user, const kvc_operator_call* call) {
  auto& seen = *static_cast<Seen*>(user);
  const auto numbers = [&](const float* of) {
    return of == nullptr ? std::vector<float>() : std::vector<float>(of, of + call->n_q_heads);
  };
  seen.call = *call;
  seen.slopes = numbers(call->slopes);
  seen.sinks = numbers(call->sinks);
  seen.bias = shape_of(call->bias);
  seen.weights = shape_of(call->weights);
  seen.lse = shape_of(call->lse);
  const int64_t columns = call->k->shape[0];
  Array numeric(KVC_F32, {call->n_tokens, columns});
  expect(KVC_OK, "", kvc_call_mask(call, numeric.tensor()));
  for (const uint32_t dtype : {uint32_t{KVC_BOOL}, uint32_t{KVC_F16}}) {
    Array mask(dtype, {call->n_tokens, columns});
    expect(KVC_OK, "", kvc_call_mask(call, mask.tensor()));
    for (int64_t i = 0; i < mask.count(); ++i)
      EXPECT_EQ(mask.get(i), dtype == KVC_F16 ? numeric.get(i) : numeric.get(i) == 0 ? 1.0 : 0.0);
  }
  Array wrong(KVC_BF16, {call->n_tokens, columns}), narrow(KVC_F32, {call->n_tokens, columns - 1});
  expect(KVC_E_DTYPE, "into", kvc_call_mask(call, wrong.tensor()));
  expect(KVC_E_SHAPE, "into", kvc_call_mask(call, narrow.tensor()));
  int32_t position[2] = {7, 7};
  expect(KVC_OK, "", kvc_call_positions(call, 0, 1, position));
  EXPECT_EQ(position[0], 0);
  EXPECT_EQ(position[1], 7);
  expect(KVC_E_INVALID_ARGUMENT, "capacity", kvc_call_positions(call, 0, -1, position));
  expect(KVC_E_INVALID_ARGUMENT, "sequence 1", kvc_call_positions(call, 1, 2, position));
  return KVC_OK;
}

kvc_status native(void* user, const kvc_operator_call*) {
  ++static_cast<Seen*>(user)->n_native;
  return KVC_OK;
}

kvc_operator_info info_of() {
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.modes = KVC_MODE_ALL;
  info.features = KVC_FEATURE_MASK | KVC_FEATURE_BIAS | KVC_FEATURE_SOFTCAP | KVC_FEATURE_ALIBI |
                  KVC_FEATURE_SINKS | KVC_FEATURE_LSE | KVC_FEATURE_WEIGHTS | KVC_FEATURE_DROPOUT |
                  KVC_FEATURE_GROUPED | KVC_FEATURE_BLOCK_Q | KVC_FEATURE_BLOCK_K |
                  KVC_FEATURE_BLOCK_B | KVC_FEATURE_SCAN;
  info.block_q_multiple = 16;
  return info;
}

/// A call has no field for the scales of f8 that a layer has bound: where there are any, the function does not run.
TEST(CallersOperatorCalls, AreRefusedWhereScalesAreBound) {
  const support::Device device(1);
  Seen seen;
  kvc_operator_info info = info_of();
  info.storage = KVC_SET_F8_E4M3;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = native;
  ASSERT_EQ(kvc_operator_register(device, "mine", 0, &info, &functions, &seen), KVC_OK)
      << last_message();
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "mine", nullptr, &op), KVC_OK) << last_message();
  kvc_cache_desc desc = support::cache_desc(2, 1, 8, 8);
  desc.dtype_k = desc.dtype_v = KVC_F8_E4M3;
  const support::Cache cache(device, desc);
  const float scale = 2;
  ASSERT_EQ(kvc_bind_scales(cache, 1, 2, nullptr, &scale), KVC_OK) << last_message();
  ASSERT_EQ(kvc_bind_operator(cache, 0, 2, KVC_MODE_ALL, op), KVC_OK) << last_message();
  const int32_t zero = 0;
  ASSERT_EQ(kvc_begin(cache, 1, &zero, &zero, nullptr, 0, nullptr), KVC_OK);
  Array kv(KVC_F32, {1, 1, 8}), q(KVC_F32, {1, 1, 8}), out(KVC_F32, {1, 1, 8});
  kv.fill(1);
  q.fill(1);
  for (int32_t layer = 0; layer < 2; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, kv.tensor(), kv.tensor()), KVC_OK) << last_message();
  expect(KVC_OK, "", kvc_attention(cache, 0, q.tensor(), out.tensor(), nullptr));
  expect(KVC_E_NOT_SUPPORTED, "kvc_bind_scales",
         kvc_attention(cache, 1, q.tensor(), out.tensor(), nullptr));
  EXPECT_EQ(seen.n_native, 1);
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

TEST(CallersOperatorCalls, BringAllThatIsSaid) {
  const support::Device device(1);
  Seen seen;
  const kvc_operator_info info = info_of();
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = native;
  functions.forward_cpu = note;
  ASSERT_EQ(kvc_operator_register(device, "mine", 0, &info, &functions, &seen), KVC_OK)
      << last_message();
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.dropout_prob = 0.25f;
  desc.block_q = 17, desc.block_k = 3, desc.block_b = 5, desc.stretches = 7;
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "mine", &desc, &op), KVC_OK) << last_message();
  kvc_cache_desc cache_desc = support::cache_desc(1, 1, 8, 8);
  cache_desc.max_q_heads = 2;
  const support::Cache cache(device, cache_desc);
  kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
  constants.n_q_heads = 2;
  constants.scale = 0.5f;
  constants.softcap = 3;
  const std::vector<float> slopes = {0.5f, 0.25f}, sinks = {1, -1};
  ASSERT_EQ(kvc_bind_attention(cache, 0, 1, &constants, slopes.data(), sinks.data()), KVC_OK);
  ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_ALL, op), KVC_OK) << last_message();
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, nullptr), KVC_OK);
  Array kv(KVC_F32, {3, 1, 8}), q(KVC_F32, {3, 2, 8}), out(KVC_F32, {3, 2, 8});
  kv.fill(1);
  q.fill(1);
  ASSERT_EQ(kvc_put(cache, 0, kv.tensor(), kv.tensor()), KVC_OK);
  Array bias(KVC_F32, {3, 3}), mask(KVC_BOOL, {3}), weights(KVC_F32, {2, 3, 3}), lse(KVC_F32, {3, 2});
  bias.fill(1);
  mask.fill(1);
  kvc_attention_extra extra = support::extra(bias.tensor(), mask.tensor(), weights.tensor());
  extra.lse = lse.tensor();
  extra.flags = KVC_EXTRA_DROPOUT | KVC_EXTRA_NO_SINKS;
  extra.dropout_seed = 99;
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), &extra), KVC_OK) << last_message();
  const kvc_operator_call& call = seen.call;
  EXPECT_EQ(call.mode, uint32_t{KVC_MODE_TRAIN});
  EXPECT_EQ(call.scale, 0.5f);
  EXPECT_EQ(call.softcap, 3);
  EXPECT_EQ(call.dropout_prob, 0.25f);
  EXPECT_EQ(call.keep_factor, static_cast<float>(1 / 0.75));
  EXPECT_EQ(call.dropout_seed, 99u);
  EXPECT_EQ(call.block_q, 32);
  EXPECT_EQ(call.block_k, 3);
  EXPECT_EQ(call.block_b, 5);
  EXPECT_EQ(call.stretches, 7);
  EXPECT_EQ(seen.slopes, slopes);
  EXPECT_TRUE(seen.sinks.empty());
  EXPECT_EQ(seen.bias, (std::vector<int64_t>{2, 3, 3}));
  EXPECT_EQ(seen.weights, (std::vector<int64_t>{2, 3, 3}));
  EXPECT_EQ(seen.lse, (std::vector<int64_t>{3, 2}));
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), nullptr), KVC_OK) << last_message();
  EXPECT_EQ(call.mode, uint32_t{KVC_MODE_PREFILL});
  EXPECT_EQ(call.dropout_prob, 0);
  EXPECT_EQ(call.keep_factor, 1);
  EXPECT_EQ(seen.sinks, sinks);
  EXPECT_TRUE(seen.bias.empty() && seen.weights.empty() && seen.lse.empty());
  EXPECT_EQ(seen.n_native, 0);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

TEST(CallersOperatorCalls, HeadDimensionsAreThoseThatItHas) {
  const support::Device device(1);
  kvc_operator_info info = info_of();
  info.head_dim_min = 8, info.head_dim_max = 24, info.head_dim_multiple = 8;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = native;
  Seen seen;
  ASSERT_EQ(kvc_operator_register(device, "mine", 0, &info, &functions, &seen), KVC_OK);
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "mine", nullptr, &op), KVC_OK) << last_message();
  for (const int32_t dim : {4, 12, 32, 8, 24}) {
    const support::Cache cache(device, support::cache_desc(1, 1, dim, dim));
    expect(dim == 8 || dim == 24 ? KVC_OK : KVC_E_NOT_SUPPORTED, "multiples of 8 from 8 to 24",
           kvc_bind_operator(cache, 0, 1, KVC_MODE_ALL, op));
  }
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

}  // namespace
