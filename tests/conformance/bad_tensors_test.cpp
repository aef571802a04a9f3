// Every tensor of every function in every wrong form: shape, strides, type, device, flags, memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <utility>
#include <vector>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;
using support::Fault;
using support::faults;
using support::Specimen;

/// A function and one of its tensors, which is spoilt in every way.
struct Argument {
  std::string name;
  kvc_tensor Specimen::*tensor;
  Fault::Use use;
  bool optional;
  std::function<kvc_status(kvc_tensor*)> call;  // with this tensor in the argument's place
};

void expect_faults(BadInput& bad, Specimen& s, const std::vector<Argument>& arguments) {
  for (const Argument& argument : arguments) {
    const kvc_tensor good = s.*argument.tensor;
    if (!argument.optional)
      bad.expect(KVC_E_INVALID_ARGUMENT, argument.name + " null",
                 [&] { return argument.call(nullptr); });
    for (const Fault& fault : faults(good, argument.use)) {
      kvc_tensor spoilt = good;
      fault.spoil(spoilt);
      const kvc_tensor before = spoilt;
      bad.expect(fault.expected, argument.name + " " + fault.what,
                 [&] { return argument.call(&spoilt); });
      EXPECT_EQ(std::memcmp(&spoilt, &before, sizeof before), 0) << "the struct was written to";
    }
    kvc_tensor no_data = good;
    no_data.data = nullptr;
    bad.expect(KVC_E_INVALID_ARGUMENT, argument.name + " without data",
               [&] { return argument.call(&no_data); });
  }
}

bool all_zero(const float* data, size_t n) {
  return std::all_of(data, data + n, [](float value) { return value == 0; });
}

::testing::AssertionResult untouched(const Specimen& s) {
  if (all_zero(s.out_data, std::size(s.out_data)) && all_zero(s.lse_data, std::size(s.lse_data)) &&
      all_zero(s.weights_data, std::size(s.weights_data)))
    return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "a failed call wrote its output";
}

/// Each tensor of put, attention and put_attention, in a pass and in one that reserves.
void expect_bad_tensors(Specimen& s) {
  kvc_cache* c = s.cache;
  const std::vector<Argument> arguments = {
      {"put k", &Specimen::k, Fault::read, false,
       [&](kvc_tensor* t) { return kvc_put(c, 0, t, &s.v); }},
      {"put v", &Specimen::v, Fault::read, false,
       [&](kvc_tensor* t) { return kvc_put(c, 0, &s.k, t); }},
      {"attention q", &Specimen::q, Fault::read, false,
       [&](kvc_tensor* t) { return support::attention(c, 0, t, &s.out, &s.lse); }},
      {"attention out", &Specimen::out, Fault::written, false,
       [&](kvc_tensor* t) { return support::attention(c, 0, &s.q, t, &s.lse); }},
      {"attention lse", &Specimen::lse, Fault::written, true,
       [&](kvc_tensor* t) { return support::attention(c, 0, &s.q, &s.out, t); }},
      {"put_attention k", &Specimen::k, Fault::read, false,
       [&](kvc_tensor* t) { return support::put_attention(c, 1, t, &s.v, &s.q, &s.out, &s.lse); }},
      {"put_attention v", &Specimen::v, Fault::read, false,
       [&](kvc_tensor* t) { return support::put_attention(c, 1, &s.k, t, &s.q, &s.out, &s.lse); }},
      {"put_attention q", &Specimen::q, Fault::read, false,
       [&](kvc_tensor* t) { return support::put_attention(c, 1, &s.k, &s.v, t, &s.out, &s.lse); }},
      {"put_attention out", &Specimen::out, Fault::written, false,
       [&](kvc_tensor* t) { return support::put_attention(c, 1, &s.k, &s.v, &s.q, t, &s.lse); }},
      {"put_attention lse", &Specimen::lse, Fault::written, true,
       [&](kvc_tensor* t) { return support::put_attention(c, 1, &s.k, &s.v, &s.q, &s.out, t); }},
  };
  BadInput bad(s.cache);
  expect_faults(bad, s, arguments);
  EXPECT_TRUE(untouched(s));
  std::cout << bad.calls() << " calls" << std::endl;
  EXPECT_GE(bad.calls(), 400);
}

TEST(BadTensors, Passes) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  expect_bad_tensors(s);
}

// A pass that reserves looks at arguments and does nothing.
TEST(BadTensors, PassesThatReserve) {
  const support::Device device(1);
  Specimen s(device);
  const support::Digest before = support::digest(s.cache);
  ASSERT_EQ(kvc_begin(s.cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  expect_bad_tensors(s);
  EXPECT_EQ(kvc_put(s.cache, 0, &s.k, &s.v), KVC_OK);
  EXPECT_EQ(support::attention(s.cache, 0, &s.q, &s.out, &s.lse), KVC_OK);
  EXPECT_EQ(support::put_attention(s.cache, 1, &s.k, &s.v, &s.q, &s.out, &s.lse), KVC_OK);
  EXPECT_TRUE(untouched(s));
  EXPECT_EQ(kvc_commit(s.cache), KVC_OK);
  EXPECT_EQ(support::digest(s.cache), before);
}

/// Each tensor of the extras of kvc_attention(), in a pass and in one that reserves.
void expect_bad_extras(Specimen& s) {
  kvc_attention_extra extra = support::extra(&s.bias, &s.mask, &s.weights);
  const auto call = [&](const kvc_tensor* q, kvc_tensor* out, kvc_tensor* lse) {
    return support::attention(s.cache, 0, q, out, lse, &extra);
  };
  const auto with = [&](auto kvc_attention_extra::*member, kvc_tensor* t) {
    const auto good = std::exchange(extra.*member, t);
    const kvc_status status = call(&s.q, &s.out, &s.lse);
    extra.*member = good;
    return status;
  };
  const std::vector<Argument> arguments = {
      {"attention_extra q", &Specimen::q, Fault::read, false,
       [&](kvc_tensor* t) { return call(t, &s.out, &s.lse); }},
      {"attention_extra out", &Specimen::out, Fault::written, false,
       [&](kvc_tensor* t) { return call(&s.q, t, &s.lse); }},
      {"attention_extra lse", &Specimen::lse, Fault::written, true,
       [&](kvc_tensor* t) { return call(&s.q, &s.out, t); }},
      {"bias", &Specimen::bias, Fault::broadcast, true,
       [&](kvc_tensor* t) { return with(&kvc_attention_extra::bias, t); }},
      {"mask", &Specimen::mask, Fault::broadcast, true,
       [&](kvc_tensor* t) { return with(&kvc_attention_extra::mask, t); }},
      {"weights", &Specimen::weights, Fault::written, true,
       [&](kvc_tensor* t) { return with(&kvc_attention_extra::weights, t); }},
  };
  BadInput bad(s.cache);
  expect_faults(bad, s, arguments);
  std::cout << bad.calls() << " calls" << std::endl;
  EXPECT_GE(bad.calls(), 250);
  EXPECT_TRUE(untouched(s));
}

TEST(BadTensors, AttentionWith) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  expect_bad_extras(s);
  for (const uint32_t dtype : {KVC_F32, KVC_F16, KVC_BF16}) {
    kvc_tensor wrong = s.mask;
    wrong.dtype = dtype;
    const kvc_attention_extra extra = support::extra(nullptr, &wrong, nullptr);
    BadInput(s.cache).expect(KVC_E_DTYPE, "a mask of numbers",
                             [&] { return kvc_attention(s.cache, 0, &s.q, &s.out, &extra); });
  }
}

// A pass that reserves looks at arguments and does nothing.
TEST(BadTensors, AttentionWithInAReservePass) {
  const support::Device device(1);
  Specimen s(device);
  ASSERT_EQ(kvc_begin(s.cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  s.shape_extras();
  EXPECT_EQ(s.bias.shape[2], Specimen::cells);
  expect_bad_extras(s);
  const kvc_attention_extra extra = support::extra(&s.bias, &s.mask, &s.weights);
  EXPECT_EQ(support::attention(s.cache, 0, &s.q, &s.out, &s.lse, &extra), KVC_OK);
  EXPECT_TRUE(untouched(s));
}

TEST(BadTensors, OverlapsOfWhatOneCallAdds) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  BadInput bad(s.cache);
  const auto over = [](kvc_tensor tensor, void* data) {
    tensor.data = data;
    return tensor;
  };
  const auto expect = [&](const char* what, kvc_tensor bias, kvc_tensor mask, kvc_tensor weights) {
    const kvc_attention_extra extra = support::extra(&bias, &mask, &weights);
    bad.expect(KVC_E_INVALID_ARGUMENT, what,
               [&] { return support::attention(s.cache, 0, &s.q, &s.out, &s.lse, &extra); });
  };
  // Where a tensor ends, too: its last element is the other's first.
  const int64_t last = s.weights.shape[0] * s.weights.shape[1] * s.weights.shape[2] - 1;
  for (float* data : {s.q_data, s.out_data, s.lse_data, s.bias_data}) {
    expect("weights over another", s.bias, s.mask, over(s.weights, data));
    expect("weights that end in another", s.bias, s.mask, over(s.weights, data - last));
  }
  expect("weights over the mask", s.bias, s.mask, over(s.weights, s.mask_data));
  for (float* data : {s.out_data, s.lse_data, s.weights_data}) {
    expect("bias over what is written", over(s.bias, data), s.mask, s.weights);
    expect("mask over what is written", s.bias, over(s.mask, data), s.weights);
  }
  // One row for all: what lies behind it is not its own.
  kvc_tensor row = support::dense(s.weights_data + last, KVC_F32, {s.bias.shape[2]});
  expect("a broadcast bias over the last weight", row, s.mask, s.weights);
  EXPECT_TRUE(untouched(s));
  row.data = s.weights_data + last + 1;
  const kvc_attention_extra beside = support::extra(&row, &s.mask, &s.weights);
  bad.expect(KVC_OK, "a broadcast bias behind the weights",
             [&] { return support::attention(s.cache, 0, &s.q, &s.out, &s.lse, &beside); });
  // What is only read may be the same memory.
  const kvc_tensor mask = over(s.mask, s.bias_data);
  const kvc_attention_extra both = support::extra(&s.bias, &mask, nullptr);
  bad.expect(KVC_OK, "bias and mask over each other",
             [&] { return support::attention(s.cache, 0, &s.q, &s.out, &s.lse, &both); });
}

TEST(BadTensors, HeadsTypesAndOverlaps) {
  const support::Device device(1);
  Specimen s(device);
  s.open(2);
  BadInput bad(s.cache);
  kvc_cache* c = s.cache;
  for (const int64_t heads : {1, 3, 6, 1000}) {  // 2 KV heads, at most 4 query heads
    std::vector<float> room(static_cast<size_t>(2 * heads * Specimen::dk));
    const kvc_tensor q = support::dense(room.data(), KVC_F32, {2, heads, Specimen::dk});
    kvc_tensor out = support::dense(room.data(), KVC_F32, {2, heads, Specimen::dv});
    bad.expect(KVC_E_SHAPE, std::to_string(heads) + " query heads",
               [&] { return kvc_attention(c, 0, &q, &out, nullptr); });
  }
  for (const uint32_t dtype : {KVC_F16, KVC_BF16}) {
    kvc_tensor lse = s.lse;
    lse.dtype = dtype;
    bad.expect(KVC_E_DTYPE, "a 16-bit lse",
               [&] { return support::attention(c, 0, &s.q, &s.out, &lse); });
  }
  kvc_tensor over_q = s.out, over_out = s.lse, lse_over_q = s.lse;
  over_q.data = s.q_data;
  over_out.data = s.out_data + 1;
  lse_over_q.data = s.q_data + 5;
  bad.expect(KVC_E_INVALID_ARGUMENT, "out over q",
             [&] { return kvc_attention(c, 0, &s.q, &over_q, nullptr); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "lse over out",
             [&] { return support::attention(c, 0, &s.q, &s.out, &over_out); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "lse over q",
             [&] { return support::attention(c, 0, &s.q, &s.out, &lse_over_q); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "put_attention: out over q",
             [&] { return kvc_put_attention(c, 0, &s.k, &s.v, &s.q, &over_q, nullptr); });
}

// Kernels that compute K, V and Q into one buffer may have the answers in the place of K and V.
TEST(BadTensors, PutAttentionMayWriteOverKAndV) {
  const support::Device device(1);
  Specimen s(device);
  s.open(0);
  for (int32_t i = 0; i < Specimen::max_batch * Specimen::kv_heads * Specimen::dk; ++i)
    s.k_data[i] = static_cast<float>(i % 7) * 0.5f;
  for (int32_t i = 0; i < Specimen::max_batch * Specimen::kv_heads * Specimen::dv; ++i)
    s.v_data[i] = static_cast<float>(i % 5) - 1.0f;
  for (int32_t i = 0; i < Specimen::max_batch * Specimen::q_heads * Specimen::dk; ++i)
    s.q_data[i] = static_cast<float>(i % 3) - 0.5f;
  ASSERT_EQ(support::put_attention(s.cache, 0, &s.k, &s.v, &s.q, &s.out, &s.lse), KVC_OK)
      << support::last_message();
  const std::vector<float> out(s.out_data, std::end(s.out_data));
  const std::vector<float> lse(s.lse_data, std::end(s.lse_data));

  // K, V, and behind them what the answers need more of: out begins in K, lse in V.
  float both[64] = {};
  constexpr int32_t n_k = 2 * Specimen::kv_heads * Specimen::dk;
  constexpr int32_t n_v = 2 * Specimen::kv_heads * Specimen::dv;
  constexpr int32_t n_out = 2 * Specimen::q_heads * Specimen::dv, n_lse = 2 * Specimen::q_heads;
  constexpr int32_t v_at = n_out, lse_at = v_at + 1;
  static_assert(n_k <= n_out && lse_at + n_lse <= 64 && v_at + n_v <= 64);
  std::copy_n(s.k_data, n_k, both);
  std::copy_n(s.v_data, n_v, both + v_at);
  s.k.data = s.out.data = both;
  s.v.data = both + v_at;
  s.lse.data = both + lse_at;
  ASSERT_EQ(support::put_attention(s.cache, 1, &s.k, &s.v, &s.q, &s.out, &s.lse), KVC_OK)
      << support::last_message();
  EXPECT_TRUE(std::equal(both, both + n_out, out.begin()));
  EXPECT_TRUE(std::equal(both + lse_at, both + lse_at + n_lse, lse.begin()));
}

TEST(BadTensors, Mask) {
  const support::Device device(1);
  Specimen s(device);
  s.open(2);
  BadInput bad(s.cache);
  kvc_tensor size{};
  ASSERT_EQ(kvc_mask(s.cache, 0, &size), KVC_OK);
  std::vector<float> data(static_cast<size_t>(size.shape[0] * size.shape[1]), 9);
  const kvc_tensor good = support::dense(data.data(), KVC_F32, {size.shape[0], size.shape[1]});
  bad.expect(KVC_E_INVALID_ARGUMENT, "mask into null", [&] { return kvc_mask(s.cache, 0, nullptr); });
  for (const Fault& fault : faults(good, Fault::written)) {
    kvc_tensor spoilt = good;
    fault.spoil(spoilt);
    if (spoilt.dtype == KVC_BOOL) continue;  // is a mask, too
    bad.expect(fault.expected, "mask " + fault.what, [&] { return kvc_mask(s.cache, 0, &spoilt); });
  }
  kvc_tensor bf16 = good;
  bf16.dtype = KVC_BF16;
  bad.expect(KVC_E_DTYPE, "a bf16 mask", [&] { return kvc_mask(s.cache, 0, &bf16); });
  EXPECT_TRUE(std::all_of(data.begin(), data.end(), [](float value) { return value == 9; }));
}

TEST(BadTensors, Gather) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  float k_data[3 * 2 * 4] = {}, v_data[3 * 2 * 3] = {};  // sequence 0 holds three tokens
  const kvc_tensor k = support::dense(k_data, KVC_F32, {3, 2, 4});
  const kvc_tensor v = support::dense(v_data, KVC_F32, {3, 2, 3});
  kvc_tensor columns = support::dense(v_data, KVC_F32, {2, 3, 3});
  columns.flags = KVC_TENSOR_TRANSPOSED;
  const auto each = [&](const char* name, const kvc_tensor& good,
                        const std::function<kvc_status(kvc_tensor*)>& call) {
    for (const Fault& fault : faults(good, Fault::written)) {
      kvc_tensor spoilt = good;
      fault.spoil(spoilt);
      bad.expect(fault.expected, std::string(name) + " " + fault.what, [&] { return call(&spoilt); });
    }
    kvc_tensor no_data = good;
    no_data.data = nullptr;
    bad.expect(KVC_E_INVALID_ARGUMENT, std::string(name) + " without data",
               [&] { return call(&no_data); });
  };
  each("gather k", k, [&](kvc_tensor* t) { return kvc_gather(s.cache, 0, 0, t, nullptr); });
  each("gather v", v, [&](kvc_tensor* t) { return kvc_gather(s.cache, 1, 0, nullptr, t); });
  each("gather columns", columns,
       [&](kvc_tensor* t) { return kvc_gather(s.cache, 1, 0, nullptr, t); });
  kvc_tensor turned = k;
  turned.flags = KVC_TENSOR_TRANSPOSED;
  bad.expect(KVC_E_INVALID_ARGUMENT, "keys are not transposed",
             [&] { return kvc_gather(s.cache, 0, 0, &turned, nullptr); });
  kvc_tensor over = v;
  over.data = k_data + 3;
  kvc_tensor into_k = k;
  bad.expect(KVC_E_INVALID_ARGUMENT, "k over v",
             [&] { return kvc_gather(s.cache, 0, 0, &into_k, &over); });
  EXPECT_TRUE(all_zero(k_data, std::size(k_data)) && all_zero(v_data, std::size(v_data)));
  // Of a sequence that holds nothing, into nowhere.
  ASSERT_EQ(kvc_remove(s.cache, 0, 0, KVC_SEQ_END), KVC_OK);
  kvc_tensor nowhere = support::dense(nullptr, KVC_F32, {0, 2, 4});
  nowhere.byte_offset = 4;
  EXPECT_EQ(kvc_gather(s.cache, 0, 0, &nowhere, nullptr), KVC_OK) << support::last_message();
}

TEST(BadTensors, Dense) {
  BadInput bad(nullptr);
  kvc_tensor out{};
  const int64_t shape[] = {2, 3, 4, 5, 6, 7, 8, 9, 10};
  const int64_t negative[] = {2, -1}, large[] = {INT64_MAX, 2},
                larger[] = {1 << 30, 1 << 30, 1 << 30};
  for (const int32_t ndim : {INT32_MIN, -1, 0, 9, INT32_MAX})
    bad.expect(KVC_E_INVALID_ARGUMENT, "ndim",
               [&] { return kvc_tensor_dense(nullptr, KVC_F32, ndim, shape, &out); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "null shape",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 1, nullptr, &out); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "null out",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 1, shape, nullptr); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "a negative extent",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 2, negative, &out); });
  for (const uint32_t dtype : std::initializer_list<uint32_t>{0, 7, UINT32_MAX, KVC_F64, KVC_Q8_0,
                                                              KVC_Q4_0, KVC_INT8, KVC_NF4})
    bad.expect(KVC_E_DTYPE, "dtype", [&] { return kvc_tensor_dense(nullptr, dtype, 2, shape, &out); });
  bad.expect(KVC_E_OVERFLOW, "2^64 elements",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 2, large, &out); });
  bad.expect(KVC_E_OVERFLOW, "2^90 elements",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 3, larger, &out); });
}

TEST(BadTensors, DenseTakesEveryTypeThatAnElementMayHave) {
  const int64_t shape[] = {2, 3};
  for (const uint32_t dtype :
       {KVC_F32, KVC_F16, KVC_BF16, KVC_I32, KVC_BOOL, KVC_I8, KVC_U8, KVC_F8_E4M3, KVC_F8_E5M2}) {
    kvc_tensor out{};
    EXPECT_EQ(kvc_tensor_dense(nullptr, dtype, 2, shape, &out), KVC_OK) << support::last_message();
    EXPECT_EQ(out.dtype, dtype);
    EXPECT_EQ(out.strides[0], 3);
  }
}

}  // namespace
