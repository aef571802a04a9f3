// Every tensor of every function in every wrong form: shape, strides, type, device, flags, memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iostream>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;
using support::Specimen;

struct Fault {
  std::string what;
  std::function<void(kvc_tensor&)> spoil;
  kvc_status expected;
};

void add(std::vector<Fault>& list, const std::string& what, kvc_status expected,
         const std::function<void(kvc_tensor&)>& spoil) {
  list.push_back({what, spoil, expected});
}

/// What can be wrong with any tensor of `ndim` dimensions.
std::vector<Fault> faults(int32_t ndim, bool written) {
  std::vector<Fault> list;
  for (const int32_t n : {INT32_MIN, -1, 0, 1, ndim - 1, ndim + 1, 8, 9, INT32_MAX})
    if (n != ndim)
      add(list, "ndim " + std::to_string(n), KVC_E_SHAPE, [n](auto& t) { t.ndim = n; });
  for (int32_t d = 0; d < ndim; ++d) {
    for (const int64_t delta : {-1, 1})
      add(list, "extent", KVC_E_SHAPE, [d, delta](auto& t) { t.shape[d] += delta; });
    for (const int64_t extent : {INT64_MIN, int64_t{-1}, int64_t{0}, INT64_MAX})
      add(list, "extent " + std::to_string(extent), KVC_E_SHAPE,
          [d, extent](auto& t) { t.shape[d] = extent; });
    for (const int64_t stride : {INT64_MIN, int64_t{-1}})
      add(list, "stride " + std::to_string(stride), KVC_E_SHAPE,
          [d, stride](auto& t) { t.strides[d] = stride; });
    for (const int64_t stride : {int64_t{1} << 61, INT64_MAX})
      add(list, "stride " + std::to_string(stride), KVC_E_OVERFLOW,
          [d, stride](auto& t) { t.strides[d] = stride; });
    if (written)  // two indexes would name one element
      add(list, "stride 0", KVC_E_SHAPE, [d](auto& t) { t.strides[d] = 0; });
  }
  for (const uint32_t dtype : {0u, 1u, uint32_t{KVC_I32}, 2u | 64u << 8 | 1u << 16, UINT32_MAX})
    add(list, "dtype", KVC_E_DTYPE, [dtype](auto& t) { t.dtype = dtype; });
  for (const int32_t device : {INT32_MIN, -1, 0, int32_t{KVC_CUDA}, INT32_MAX})
    add(list, "device_type", KVC_E_DEVICE_MISMATCH, [device](auto& t) { t.device_type = device; });
  for (const int32_t id : {INT32_MIN, -1, 1, INT32_MAX})
    add(list, "device_id", KVC_E_DEVICE_MISMATCH, [id](auto& t) { t.device_id = id; });
  for (const uint32_t flags : {2u, 3u, 1u << 31, UINT32_MAX})
    add(list, "flags", KVC_E_INVALID_ARGUMENT, [flags](auto& t) { t.flags = flags; });
  add(list, "reserved", KVC_E_INVALID_ARGUMENT, [](auto& t) { t.reserved = 1; });
  for (const uint64_t offset : {uint64_t{1}, uint64_t{2}, uint64_t{3}})
    add(list, "not aligned", KVC_E_INVALID_ARGUMENT, [offset](auto& t) { t.byte_offset = offset; });
  add(list, "byte_offset", KVC_E_OVERFLOW, [](auto& t) { t.byte_offset = UINT64_MAX - 7; });
  return list;
}

/// A function and one of its tensors, which is spoilt in every way.
struct Argument {
  std::string name;
  kvc_tensor Specimen::*tensor;
  bool written;
  bool optional;
  std::function<kvc_status(kvc_tensor*)> call;  // with this tensor in the argument's place
};

void expect_faults(BadInput& bad, Specimen& s, const std::vector<Argument>& arguments) {
  for (const Argument& argument : arguments) {
    const kvc_tensor good = s.*argument.tensor;
    if (!argument.optional)
      bad.expect(KVC_E_INVALID_ARGUMENT, argument.name + " null",
                 [&] { return argument.call(nullptr); });
    for (const Fault& fault : faults(good.ndim, argument.written)) {
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

TEST(BadTensors, Passes) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  kvc_cache* c = s.cache;
  const std::vector<Argument> arguments = {
      {"put k", &Specimen::k, false, false, [&](kvc_tensor* t) { return kvc_put(c, 0, t, &s.v); }},
      {"put v", &Specimen::v, false, false, [&](kvc_tensor* t) { return kvc_put(c, 0, &s.k, t); }},
      {"attention q", &Specimen::q, false, false,
       [&](kvc_tensor* t) { return kvc_attention(c, 0, t, &s.out, &s.lse); }},
      {"attention out", &Specimen::out, true, false,
       [&](kvc_tensor* t) { return kvc_attention(c, 0, &s.q, t, &s.lse); }},
      {"attention lse", &Specimen::lse, true, true,
       [&](kvc_tensor* t) { return kvc_attention(c, 0, &s.q, &s.out, t); }},
      {"put_attention k", &Specimen::k, false, false,
       [&](kvc_tensor* t) { return kvc_put_attention(c, 1, t, &s.v, &s.q, &s.out, &s.lse); }},
      {"put_attention v", &Specimen::v, false, false,
       [&](kvc_tensor* t) { return kvc_put_attention(c, 1, &s.k, t, &s.q, &s.out, &s.lse); }},
      {"put_attention q", &Specimen::q, false, false,
       [&](kvc_tensor* t) { return kvc_put_attention(c, 1, &s.k, &s.v, t, &s.out, &s.lse); }},
      {"put_attention out", &Specimen::out, true, false,
       [&](kvc_tensor* t) { return kvc_put_attention(c, 1, &s.k, &s.v, &s.q, t, &s.lse); }},
      {"put_attention lse", &Specimen::lse, true, true,
       [&](kvc_tensor* t) { return kvc_put_attention(c, 1, &s.k, &s.v, &s.q, &s.out, t); }},
  };
  BadInput bad(s.cache);
  expect_faults(bad, s, arguments);
  EXPECT_TRUE(all_zero(s.out_data, std::size(s.out_data))) << "a failed call wrote its output";
  EXPECT_TRUE(all_zero(s.lse_data, std::size(s.lse_data)));
  std::cout << bad.calls() << " calls" << std::endl;
  EXPECT_GE(bad.calls(), 400);
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
    bad.expect(KVC_E_DTYPE, "a 16-bit lse", [&] { return kvc_attention(c, 0, &s.q, &s.out, &lse); });
  }
  kvc_tensor over_q = s.out, over_out = s.lse, lse_over_q = s.lse;
  over_q.data = s.q_data;
  over_out.data = s.out_data + 1;
  lse_over_q.data = s.q_data + 5;
  bad.expect(KVC_E_INVALID_ARGUMENT, "out over q",
             [&] { return kvc_attention(c, 0, &s.q, &over_q, nullptr); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "lse over out",
             [&] { return kvc_attention(c, 0, &s.q, &s.out, &over_out); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "lse over q",
             [&] { return kvc_attention(c, 0, &s.q, &s.out, &lse_over_q); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "put_attention: out over q",
             [&] { return kvc_put_attention(c, 0, &s.k, &s.v, &s.q, &over_q, nullptr); });
}

TEST(BadTensors, Mask) {
  const support::Device device(1);
  Specimen s(device);
  s.open(2);
  BadInput bad(s.cache);
  kvc_tensor size{};
  ASSERT_EQ(kvc_mask(s.cache, &size), KVC_OK);
  std::vector<float> data(static_cast<size_t>(size.shape[0] * size.shape[1]), 9);
  const kvc_tensor good = support::dense(data.data(), KVC_F32, {size.shape[0], size.shape[1]});
  bad.expect(KVC_E_INVALID_ARGUMENT, "mask into null", [&] { return kvc_mask(s.cache, nullptr); });
  for (const Fault& fault : faults(2, true)) {
    kvc_tensor spoilt = good;
    fault.spoil(spoilt);
    bad.expect(fault.expected, "mask " + fault.what, [&] { return kvc_mask(s.cache, &spoilt); });
  }
  kvc_tensor bf16 = good;
  bf16.dtype = KVC_BF16;
  bad.expect(KVC_E_DTYPE, "a bf16 mask", [&] { return kvc_mask(s.cache, &bf16); });
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
    for (const Fault& fault : faults(3, true)) {
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
  for (const uint32_t dtype : {0u, 7u, UINT32_MAX})
    bad.expect(KVC_E_DTYPE, "dtype", [&] { return kvc_tensor_dense(nullptr, dtype, 2, shape, &out); });
  bad.expect(KVC_E_OVERFLOW, "2^64 elements",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 2, large, &out); });
  bad.expect(KVC_E_OVERFLOW, "2^90 elements",
             [&] { return kvc_tensor_dense(nullptr, KVC_F32, 3, larger, &out); });
}

}  // namespace
