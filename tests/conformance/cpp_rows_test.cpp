// rows.hpp: passes of rows against the definition of attention, with everything that kvc::Rows has; what moves rows, and views of
// whole layers; errors by their type.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <kvc/hybrid.hpp>
#include <vector>

#include "support/host_view.hpp"
#include "support/plain_attention.hpp"

namespace {

constexpr int32_t batch = 2, layers = 2, kv_heads = 2, q_heads = 4, dim = 8;
constexpr size_t kv_width = kv_heads * dim, q_width = q_heads * dim;

kvc::CacheDesc geometry(int32_t capacity = 12, uint32_t dtype = KVC_F32) {
  kvc::CacheDesc desc;
  desc.n_layers = layers, desc.n_kv_heads = kv_heads, desc.head_dim_k = dim;
  desc.dtype_k = desc.dtype_v = dtype;
  desc.max_sequences = batch, desc.capacity = capacity, desc.max_batch = batch * 5;
  desc.max_q_heads = q_heads;
  return desc;
}

/// A transformer cache beside all that its rows were given.
class CppRows : public testing::Test {
 protected:
  using Sees = std::function<bool(size_t, int32_t, int32_t)>;  // row, positions of query and key

  /// A pass whose outputs are what the definition says, over keys that `sees` lets through.
  void run(kvc::Cache& cache, const kvc::Rows& rows, const Sees& sees) {
    const kvc::RowPlaces places = cache.rows_query();
    const auto n = static_cast<size_t>(rows.q_len);
    const std::vector<float> k = numbers(batch * n * kv_width), v = numbers(batch * n * kv_width),
                             q = numbers(batch * n * q_width);
    std::vector<float> out(q.size(), 9);
    const auto valid = [&](size_t row) {
      return rows.valid.empty() ? n : static_cast<size_t>(rows.valid[row]);
    };
    ASSERT_TRUE(cache.fits_rows(rows));
    kvc::Pass pass(cache, rows);
    for (int32_t layer = 0; layer < layers; ++layer) {
      cache.put(layer, {k, {batch, rows.q_len, kv_heads, dim}},
                {v, {batch, rows.q_len, kv_heads, dim}});
      cache.attention(layer, {q, {batch, rows.q_len, q_heads, dim}},
                      {out, {batch, rows.q_len, q_heads, dim}});
    }
    pass.commit();
    for (size_t row = 0; row < batch; ++row) {
      const auto first = static_cast<size_t>(places.index[row]);
      keys_[row].resize(first * kv_width), values_[row].resize(first * kv_width);
      const auto add = [&](std::vector<float>& to, const std::vector<float>& from) {
        const float* begin = &from[row * n * kv_width];
        to.insert(to.end(), begin, begin + valid(row) * kv_width);
      };
      add(keys_[row], k), add(values_[row], v);
      const support::PlainSizes sizes = {valid(row), first + valid(row), q_heads, kv_heads, dim};
      const std::vector<float> wanted = support::plain_attention(
          sizes, &q[row * n * q_width], keys_[row].data(), values_[row].data(),
          [&](size_t i, size_t j) {
            return sees(row, static_cast<int32_t>(first + i), static_cast<int32_t>(j));
          },
          1 / std::sqrt(double{dim}));
      for (size_t i = 0; i < n * q_width; ++i)
        EXPECT_NEAR(out[row * n * q_width + i], i < wanted.size() ? wanted[i] : 0, 1e-5)
            << "row " << row << ", element " << i;
      EXPECT_EQ(cache.rows_query().index[row], static_cast<int32_t>(first + valid(row)));
    }
  }
  std::vector<float> numbers(size_t n) { return support::sines(n, phase_ += 0.3f); }

  const kvc::Device device_{"cpu"};
  std::vector<float> keys_[batch], values_[batch];  // by position
  float phase_ = 0;
};

bool causal(size_t /*row*/, int32_t p, int32_t j) { return j <= p; }

TEST_F(CppRows, PromptsOfDifferentLengthsThenOneTokenEach) {
  kvc::Cache cache(device_, geometry(), kvc::TransformerDesc());
  EXPECT_EQ(kvc::Cache::memory_bytes(device_, geometry(), kvc::TransformerDesc()),
            cache.stats().bytes);
  kvc::Rows rows;
  rows.q_len = 5, rows.valid = {5, 3};
  run(cache, rows, causal);
  run(cache, {}, causal);  // one token each
  rows.q_len = 2, rows.valid = {0, 2};
  run(cache, rows, causal);
  EXPECT_EQ(cache.sequence(1).next, 6);
  rows.q_len = 3, rows.flags = KVC_ROWS_NOT_CAUSAL, rows.valid.clear();
  run(cache, rows, [](size_t, int32_t, int32_t) { return true; });
}

TEST_F(CppRows, WhatIsPaddingMaskedOrOfOneType) {
  kvc::TransformerDesc desc;
  desc.reach = 4;
  kvc::Cache cache(device_, geometry(), desc);
  cache.rows_set(0, {}, {2, 0});
  EXPECT_EQ(cache.rows_query(0, 2).starts, (std::vector<int32_t>{2, 0}));
  kvc::Rows rows;
  rows.q_len = 4;
  rows.token_types = {0, 0, 1, 1, 7, 7, 0, 7};
  const auto seen = [&](size_t row, int32_t p, int32_t j) {
    const int32_t *types = &rows.token_types[row * 4], in_pass = 4;
    const bool same = j < in_pass && types[p] != 0 && types[p] == types[j];
    return j >= (row == 0 ? 2 : 0) && (same || (j <= p && j >= p - 4));
  };
  run(cache, rows, seen);
  const bool shown[batch * 5] = {true, true, true, false, true, true, false, true, true, true};
  kvc::Rows masked;
  masked.attention_mask = kvc::ConstTensor(shown, {batch, 5});
  run(cache, masked, [&](size_t row, int32_t p, int32_t j) {
    return j >= (row == 0 ? 2 : 0) && j >= p - 4 && shown[row * 5 + static_cast<size_t>(j)];
  });
}

TEST_F(CppRows, LengthsAreReadOffTheMask) {
  kvc::Cache cache(device_, geometry(), kvc::TransformerDesc());
  const std::vector<int32_t> mask = {1, 1, 1, 0, 1, 0, 0, 0};
  kvc::Rows rows;
  rows.q_len = 4, rows.flags = KVC_ROWS_POSTPADDED;
  rows.attention_mask = kvc::ConstTensor(mask, KVC_I32, {batch, 4});
  EXPECT_TRUE(cache.fits_rows(rows));
  cache.begin_rows(rows);
  cache.abort();
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{0, 0}));
  cache.begin_rows(rows);
  cache.commit();
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{3, 1}));
  cache.rows_set(0, {1});
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{1, 1}));
  kvc::Rows reserve;
  reserve.q_len = 5, reserve.flags = KVC_ROWS_RESERVE;
  cache.begin_rows(reserve);
  EXPECT_EQ(cache.copy_shapes(0).k.shape[1], 12);
}

TEST_F(CppRows, ARingKeepsItsLastPositions) {
  kvc::TransformerDesc ring;
  ring.flags = KVC_TRANSFORMER_RING;
  kvc::Cache cache(device_, geometry(6), ring);
  kvc::Rows rows;
  rows.q_len = 5;
  for (int32_t step = 0; step < 4; ++step)
    run(cache, rows, [](size_t, int32_t p, int32_t j) { return j <= p && j >= p - 5; });
  EXPECT_EQ(cache.sequence(0).first, 14);
  EXPECT_THROW(cache.rows_set(0, {15}), kvc::WindowLost);
}

TEST_F(CppRows, RowsOfAnotherCacheAreInserted) {
  kvc::CacheDesc one = geometry();
  one.max_sequences = 1, one.max_batch = 4;
  kvc::Cache cache(device_, geometry(), kvc::TransformerDesc()),
      other(device_, one, kvc::TransformerDesc());
  const std::vector<float> k = numbers(4 * kv_width), v = numbers(4 * kv_width);
  kvc::Rows rows;
  rows.q_len = 4;
  kvc::Pass pass(other, rows);
  for (int32_t layer = 0; layer < layers; ++layer)
    other.put(layer, {k, {1, 4, kv_heads, dim}}, {v, {1, 4, kv_heads, dim}});
  EXPECT_THROW(cache.insert(other, 1), kvc::BadState);
  pass.commit();
  cache.insert(other, 1);
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{0, 4}));
  std::vector<float> found(k.size());
  cache.gather_keys(1, 1, {found, {4, kv_heads, dim}});
  EXPECT_EQ(found, k);
  EXPECT_THROW(cache.insert(other, 2), kvc::InvalidArgument);
  EXPECT_THROW(cache.insert(cache, 0), kvc::InvalidArgument);
}

/// What a view shows, whatever its strides.
std::vector<char> bytes_of(const kvc_tensor& lent) {
  const kvc_tensor t = support::on_host(lent);
  const auto size = static_cast<int64_t>((t.dtype >> 8 & 0xff) / 8);
  const char* data = static_cast<const char*>(t.data) + t.byte_offset;
  std::vector<char> all;
  for (int64_t row = 0; row < t.shape[0]; ++row)
    for (int64_t column = 0; column < t.shape[1]; ++column)
      for (int64_t head = 0; head < t.shape[2]; ++head) {
        const char* at = data +
                         (row * t.strides[0] + column * t.strides[1] + head * t.strides[2]) * size;
        all.insert(all.end(), at, at + t.shape[3] * size);
      }
  return all;
}

TEST_F(CppRows, ViewsOfWholeLayersMakeTheSameCache) {
  for (const uint32_t dtype : {KVC_F32, KVC_INT8}) {
    kvc::Cache cache(device_, geometry(4, dtype), kvc::TransformerDesc()),
        copy(device_, geometry(4, dtype), kvc::TransformerDesc());
    const std::vector<float> k = numbers(batch * 4 * kv_width), v = numbers(batch * 4 * kv_width);
    kvc::Rows rows;
    rows.q_len = 4, rows.valid = {4, 2};
    kvc::Pass pass(cache, rows);
    for (int32_t layer = 0; layer < layers; ++layer)
      cache.put(layer, {k, {batch, 4, kv_heads, dim}}, {v, {batch, 4, kv_heads, dim}});
    pass.commit();
    cache.rows_set(0, {}, {1, 0});
    copy.begin_rows(rows);
    copy.commit();  // zeros
    for (int32_t layer = 0; layer < layers; ++layer) {
      const kvc::CodeViews lent = cache.rows_view(layer);
      ASSERT_EQ(lent.k.shape[1], 4);
      EXPECT_EQ(lent.k_scales.has_value(), dtype == KVC_INT8);
      const std::vector<char> codes_k = bytes_of(lent.k), codes_v = bytes_of(lent.v);
      const uint32_t type = lent.k.dtype;
      const kvc::ConstTensor of_k(codes_k.data(), type, {batch, 4, kv_heads, dim});
      const kvc::ConstTensor of_v(codes_v.data(), type, {batch, 4, kv_heads, dim});
      if (dtype == KVC_F32) {
        copy.rows_fill(layer, 0, batch, of_k, {}, {}, {});
        copy.rows_fill(layer, 0, batch, {}, {}, of_v, {});
        continue;
      }
      const std::vector<char> scales_k = bytes_of(*lent.k_scales),
                              scales_v = bytes_of(*lent.v_scales);
      copy.rows_fill(layer, 0, batch, of_k, {scales_k.data(), KVC_F32, {batch, 4, kv_heads, 1}},
                     of_v, {scales_v.data(), KVC_F32, {batch, 4, kv_heads, 1}});
    }
    copy.rows_set(0, {}, {1, 0});
    EXPECT_EQ(cache.digest(), copy.digest());
  }
}

TEST_F(CppRows, AHybridOfARingAndFullLayers) {
  kvc::CacheDesc desc = geometry();
  desc.n_layers = 0;
  kvc::TransformerDesc full, ring;
  ring.flags = KVC_TRANSFORMER_RING, ring.reach = 3;
  kvc::TransformerDesc full_named = full, longest = ring, longest_named = ring;
  full_named.value_heads = kv_heads, full_named.mask_dtype = KVC_F32;
  longest.reach = 0, longest_named.reach = desc.capacity - 1;
  const std::vector<kvc::Layer> description = {
      {desc, ring}, {desc, full}, {desc, full_named}, {desc, longest}, {desc, longest_named}};
  kvc::Hybrid model(device_, description);
  EXPECT_EQ(kvc::Hybrid::memory_bytes(device_, description), model.stats().bytes);
  ASSERT_EQ(model.children().size(), 3u);
  EXPECT_EQ(model.owner(2).handle, model.children()[1].handle());
  EXPECT_EQ(model.owner(4).handle, model.children()[2].handle());
  kvc::Rows rows;
  rows.q_len = 3, rows.valid = {3, 1};
  model.begin_rows(rows);
  model.commit();
  EXPECT_EQ(model.rows_query().index, (std::vector<int32_t>{3, 1}));
  EXPECT_THROW(model.children()[0].begin_rows(rows), kvc::BadState);
  rows.valid = {3};
  EXPECT_THROW(model.begin_rows(rows), kvc::InvalidArgument);
}

TEST_F(CppRows, WhatDoesNotFitIsThrownByItsType) {
  kvc::Cache cache(device_, geometry(), kvc::TransformerDesc()), list(device_, geometry());
  const auto refused = [&](const kvc::Rows& rows) -> std::string {
    try {
      cache.begin_rows(rows);
    } catch (const kvc::InvalidArgument& error) {
      EXPECT_THROW((void)cache.fits_rows(rows), kvc::InvalidArgument);
      return error.message();
    }
    return "taken";
  };
  kvc::Rows rows;
  rows.valid = {1, 1, 1};
  EXPECT_EQ(refused(rows), "valid has 3 elements, the batch has 2 rows");
  rows.valid = {1, 2};
  EXPECT_NE(refused(rows).find("valid[1]"), std::string::npos);
  rows.valid.clear();
  rows.q_len = 3, rows.token_types = {1, 1};
  EXPECT_EQ(refused(rows), "token_types has 2 elements, the batch has 6 tokens");
  rows.token_types.clear();
  rows.q_len = 0;
  EXPECT_NE(refused(rows).find("q_len"), std::string::npos);
  rows.q_len = 5;
  for (int32_t step = 0; step < 2; ++step) cache.begin_rows(rows), cache.commit();
  EXPECT_FALSE(cache.fits_rows(rows));
  EXPECT_THROW(cache.begin_rows(rows), kvc::CacheFull);
  EXPECT_THROW(kvc::Pass(cache, rows), kvc::CacheFull);
  rows.q_len = 1;
  const std::vector<float> no_mask(batch * 12);
  rows.attention_mask = kvc::ConstTensor(no_mask, {batch, 12});
  EXPECT_THROW(cache.begin_rows(rows), kvc::DtypeError);
  const bool shown[batch] = {true, true};
  rows.attention_mask = kvc::ConstTensor(shown, {batch, 1});
  EXPECT_THROW(cache.begin_rows(rows), kvc::ShapeError);
  EXPECT_THROW((void)cache.rows_query(1, 2), kvc::InvalidArgument);
  EXPECT_THROW((void)cache.rows_query(0, INT32_MAX), kvc::InvalidArgument);
  EXPECT_THROW((void)cache.rows_query(0, -1), kvc::InvalidArgument);
  EXPECT_THROW(cache.rows_set(0, {1, 1}, {0}), kvc::InvalidArgument);
  EXPECT_THROW(cache.rows_set(0, {11}), kvc::InvalidArgument);
  EXPECT_THROW(cache.begin({0}, {0}), kvc::NotSupported);
  EXPECT_THROW(list.begin_rows({}), kvc::NotSupported);
  EXPECT_THROW((void)list.rows_view(0), kvc::NotSupported);
  kvc::TransformerDesc wrong;
  wrong.kind = KVC_CAUSAL;
  EXPECT_THROW(kvc::Cache(device_, geometry(), wrong), kvc::InvalidArgument);
}

}  // namespace
