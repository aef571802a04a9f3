// Storage types at the edges: vectors of V far longer than those of K, empty tensors of huge extents, layers of a wrapper with
// different heads, and calls that fail after a look at shared cells.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "support/abi.hpp"

namespace {

using support::Cache;
using support::dense;
using support::Device;

constexpr int32_t n_tokens = 8;

std::vector<float> numbers(int64_t n) {
  std::vector<float> all(static_cast<size_t>(n));
  for (size_t i = 0; i < all.size(); ++i) all[i] = std::sin(0.7f * static_cast<float>(i));
  return all;
}

void begin(kvc_cache* cache, std::vector<int32_t> position, std::vector<int32_t> sequence) {
  ASSERT_EQ(kvc_begin(cache, static_cast<int32_t>(position.size()), position.data(),
                      sequence.data(), nullptr, 0, nullptr),
            KVC_OK)
      << support::last_message();
}

void put(kvc_cache* cache, int32_t n, int32_t dim_k, int32_t dim_v) {
  std::vector<float> k = numbers(int64_t{n} * dim_k), v = numbers(int64_t{n} * dim_v);
  const kvc_tensor of_k = dense(k.data(), KVC_F32, {n, 1, dim_k}),
                   of_v = dense(v.data(), KVC_F32, {n, 1, dim_v});
  ASSERT_EQ(kvc_put(cache, 0, &of_k, &of_v), KVC_OK) << support::last_message();
}

void bind_rope(kvc_cache* cache) {
  const kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  ASSERT_EQ(kvc_bind_rope(cache, 0, 1, &rope, nullptr), KVC_OK) << support::last_message();
}

/// Keys that owe a rotation, as kvc_gather() copies them together with V.
std::vector<float> turned_keys(uint32_t dtype_v, int32_t dim_k, int32_t dim_v) {
  const Device device;
  kvc_cache_desc desc = support::cache_desc(1, 1, dim_k, dim_v);
  desc.dtype_v = dtype_v;
  desc.max_q_heads = 1;
  const Cache cache(device, desc);
  EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
  bind_rope(cache);
  begin(cache, {0, 1, 2, 3, 4, 5, 6, 7}, std::vector<int32_t>(n_tokens, 0));
  put(cache, n_tokens, dim_k, dim_v);
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(kvc_remove(cache, 0, 1, 2), KVC_OK) << support::last_message();
  std::vector<float> k(static_cast<size_t>(n_tokens - 1) * static_cast<size_t>(dim_k)),
      v(static_cast<size_t>(n_tokens - 1) * static_cast<size_t>(dim_v));
  kvc_tensor to_k = dense(k.data(), KVC_F32, {n_tokens - 1, 1, dim_k}),
             to_v = dense(v.data(), KVC_F32, {n_tokens - 1, 1, dim_v});
  EXPECT_EQ(kvc_gather(cache, 0, 0, &to_k, &to_v), KVC_OK) << support::last_message();
  return k;
}

TEST(StorageLimits, KeysTurnTheSameBesideMuchLongerValues) {
  for (const int32_t dim_v : {8192, 65536})
    EXPECT_EQ(turned_keys(KVC_INT8, 16, dim_v), turned_keys(KVC_F32, 16, dim_v)) << dim_v;
}

TEST(StorageLimits, EmptyTensorsOfHugeExtentsAreEncodedToNothing) {
  constexpr int64_t huge = int64_t{1} << 62;
  const auto empty = [](uint32_t dtype, int64_t last) {
    kvc_tensor tensor = dense(nullptr, dtype, {1, 1, 0, last});
    tensor.shape[0] = tensor.shape[1] = huge;
    std::fill_n(tensor.strides, 3, 64);
    return tensor;
  };
  kvc_codec_desc codec = KVC_CODEC_DESC_INIT;
  codec.dtype = KVC_Q8_0;
  kvc_tensor values = empty(KVC_F32, 64), codes = empty(KVC_I8, 64), scales = empty(KVC_F16, 2);
  EXPECT_EQ(kvc_encode(&codec, &values, &codes, &scales), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_decode(&codec, &codes, &scales, &values), KVC_OK) << support::last_message();
}

// Vectors of more than 4096 numbers have room on the heap, and so have codes and scales that do not lie side by side.
TEST(StorageLimits, LongVectorsAreCodedAsTheirBlocksAre) {
  constexpr int64_t n = 8192, n_codes = n / 2, n_scales = n / 32;
  kvc_codec_desc codec = KVC_CODEC_DESC_INIT;
  codec.dtype = KVC_Q4_0;
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(std::sin(static_cast<float>(i)));
  std::vector<uint8_t> wanted(n_codes), codes(2 * n_codes, 0xab);
  std::vector<uint16_t> wanted_scales(n_scales), scales(3 * n_scales, 0xabcd);
  std::vector<float> wanted_back(n), back(n);

  const kvc_tensor short_x = dense(x.data(), KVC_F32, {2, n / 2});
  kvc_tensor short_codes = dense(wanted.data(), KVC_U8, {2, n_codes / 2}),
             short_scales = dense(wanted_scales.data(), KVC_F16, {2, n_scales / 2}),
             short_back = dense(wanted_back.data(), KVC_F32, {2, n / 2});
  ASSERT_EQ(kvc_encode(&codec, &short_x, &short_codes, &short_scales), KVC_OK);
  ASSERT_EQ(kvc_decode(&codec, &short_codes, &short_scales, &short_back), KVC_OK);

  const kvc_tensor long_x = dense(x.data(), KVC_F32, {n});
  kvc_tensor long_codes = dense(codes.data(), KVC_U8, {n_codes}),
             long_scales = dense(scales.data(), KVC_F16, {n_scales}),
             long_back = dense(back.data(), KVC_F32, {n});
  long_codes.strides[0] = 2;
  long_scales.strides[0] = 3;
  ASSERT_EQ(kvc_encode(&codec, &long_x, &long_codes, &long_scales), KVC_OK)
      << support::last_message();
  ASSERT_EQ(kvc_decode(&codec, &long_codes, &long_scales, &long_back), KVC_OK)
      << support::last_message();
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_EQ(codes[2 * i], wanted[i]) << i;
    ASSERT_EQ(codes[2 * i + 1], 0xab) << i;
  }
  for (size_t i = 0; i < wanted_scales.size(); ++i) {
    ASSERT_EQ(scales[3 * i], wanted_scales[i]) << i;
    ASSERT_EQ(scales[3 * i + 1], 0xabcd) << i;
  }
  EXPECT_EQ(back, wanted_back);
}

// One array cannot hold the scales of both, and kvc_bind_scales() would read beyond the shorter one.
TEST(StorageLimits, ScalesOfLayersWithDifferentHeadsAreBoundApart) {
  const Device device;
  kvc_cache_desc desc = support::cache_desc(1, 2, 8, 8);
  desc.dtype_k = KVC_F8_E4M3;
  const Cache few(device, desc);
  desc.n_kv_heads = 4;
  const Cache many(device, desc);
  kvc_cache* const children[] = {few, many};
  const int32_t child[] = {0, 1}, layer[] = {0, 0};
  kvc_cache* wrapper = nullptr;
  ASSERT_EQ(kvc_cache_wrap(children, 2, child, layer, 2, &wrapper), KVC_OK)
      << support::last_message();
  const std::vector<float> scales = {0.5f, 2, 4, 8};
  EXPECT_EQ(kvc_bind_scales(wrapper, 0, 2, scales.data(), nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_bind_scales(wrapper, 0, 1, scales.data(), nullptr), KVC_OK)
      << support::last_message();
  EXPECT_EQ(kvc_bind_scales(wrapper, 1, 2, scales.data(), nullptr), KVC_OK)
      << support::last_message();
  kvc_cache_destroy(wrapper);
}

// Two sequences share cells whose keys owe them different rotations: kvc_get_copy() copies those cells, but not for a call that
// cannot succeed.
TEST(StorageLimits, GetCopyWithABadTensorCopiesNoCell) {
  constexpr int32_t dim = 32;
  const Device device;
  kvc_cache_desc desc = support::cache_desc(1, 1, dim, dim);
  desc.dtype_k = desc.dtype_v = KVC_Q8_0;
  desc.max_sequences = 2;
  const Cache cache(device, desc);
  bind_rope(cache);
  begin(cache, {0, 1, 2, 3, 4, 5, 6, 7}, std::vector<int32_t>(n_tokens, 0));
  put(cache, n_tokens, dim, dim);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(kvc_copy_prefix(cache, 0, 1, n_tokens, nullptr), KVC_OK);
  ASSERT_EQ(kvc_remove(cache, 1, 0, 2), KVC_OK);
  begin(cache, {n_tokens, n_tokens - 2}, {0, 1});
  put(cache, 2, dim, dim);
  const uint64_t used = support::stats(cache).cells_used;

  int32_t first = 0, history = 0;
  ASSERT_EQ(kvc_history(cache, 0, &first, &history), KVC_OK);
  std::vector<float> room(static_cast<size_t>(2 * history * dim));
  const auto tensor = [&](int64_t head_dim) {
    return dense(room.data(), KVC_F32, {history, 1, head_dim});
  };
  kvc_tensor k = tensor(dim), v = tensor(dim);
  EXPECT_EQ(kvc_get_copy(cache, 0, &k, &v), KVC_E_INVALID_ARGUMENT);  // they overlap
  k = tensor(dim);
  k.dtype = KVC_I32;
  EXPECT_EQ(kvc_get_copy(cache, 0, &k, nullptr), KVC_E_DTYPE);
  k = tensor(dim / 2);
  EXPECT_EQ(kvc_get_copy(cache, 0, &k, nullptr), KVC_E_SHAPE);
  kvc_tensor unsized = {};
  k = tensor(dim);
  k.device_id = 7;
  EXPECT_EQ(kvc_get_copy(cache, 0, &unsized, &k), KVC_E_DEVICE_MISMATCH);
  EXPECT_EQ(unsized.ndim, 0);  // nothing is filled in either
  EXPECT_EQ(support::stats(cache).cells_used, used);

  EXPECT_EQ(kvc_get_copy(cache, 0, &unsized, nullptr), KVC_OK) << support::last_message();
  EXPECT_EQ(support::stats(cache).cells_used, used + n_tokens - 2);
}

}  // namespace
