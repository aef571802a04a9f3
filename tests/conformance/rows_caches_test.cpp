// Transformer caches beside others: wrapped, inserted through wrappers, called from several threads; and what only some of them
// have: freed columns that become zeros, heads of V of their own, codes, reserve passes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "kvc/lightning.h"
#include "kvc/storage.h"
#include "kvc/wrapper.h"
#include "support/host_view.hpp"
#include "support/rows_rig.hpp"

namespace {

using support::RowsRig;
constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

/// Numbers of a tensor [a, b, heads, dim].
struct Numbers {
  Numbers(std::initializer_list<int64_t> shape, uint64_t seed = 1) {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    support::Random random(seed);
    values.resize(static_cast<size_t>(n));
    for (float& value : values) value = random.value();
    tensor = support::dense(values.data(), KVC_F32, shape);
  }
  std::vector<float> values;
  kvc_tensor tensor{};
};

class RowsCachesTest : public testing::Test {
 protected:
  static constexpr int32_t rows = 2, heads = 2, dim = 32;

  void create(support::Cache& cache, uint32_t flags = 0, int32_t length = 12,
              uint32_t dtype = KVC_F32, uint64_t cache_flags = 0, int32_t value_heads = 0) {
    kvc_cache_desc desc = support::cache_desc(2, heads, dim, dim);
    desc.kind = KVC_TRANSFORMER;
    desc.max_sequences = rows;
    desc.capacity = length;
    desc.max_batch = rows * 4;
    desc.dtype_k = desc.dtype_v = dtype;
    desc.flags = cache_flags;
    kvc_transformer_desc transformer = KVC_TRANSFORMER_DESC_INIT;
    transformer.flags = flags;
    transformer.value_heads = value_heads;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &transformer, &cache.handle), KVC_OK)
        << support::last_message();
  }
  /// A pass of q_len tokens in every row.
  void pass(kvc_cache* cache, int32_t q_len, int32_t n_layers = 2, int32_t value_heads = heads) {
    ASSERT_EQ(kvc_begin_rows(cache, q_len, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK)
        << support::last_message();
    put(cache, q_len, n_layers, value_heads);
    ASSERT_EQ(kvc_commit(cache), KVC_OK) << support::last_message();
  }
  void put(kvc_cache* cache, int32_t q_len, int32_t n_layers = 2, int32_t value_heads = heads) {
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      const Numbers k({rows, q_len, heads, dim}, ++seed_);
      const Numbers v({rows, q_len, value_heads, dim}, ++seed_);
      ASSERT_EQ(kvc_put(cache, layer, &k.tensor, &v.tensor), KVC_OK) << support::last_message();
    }
  }
  static std::vector<int32_t> index(const kvc_cache* cache) {
    std::vector<int32_t> result(rows, -1);
    EXPECT_EQ(kvc_rows_query(cache, 0, rows, result.data(), nullptr), KVC_OK);
    return result;
  }

  support::Device device_;
  uint64_t seed_ = 0;
};

TEST_F(RowsCachesTest, AWrapperMovesRowsOfAllChildren) {
  support::Cache full, ring, wrapper;
  create(full);
  create(ring, KVC_TRANSFORMER_RING, 5);
  kvc_cache* const children[] = {full, ring};
  const int32_t child[] = {0, 1, 1, 0}, layer[] = {0, 0, 1, 1};
  ASSERT_EQ(kvc_cache_wrap(children, 2, child, layer, 4, &wrapper.handle), KVC_OK)
      << support::last_message();
  pass(wrapper, 4, 4);
  pass(wrapper, 4, 4);
  EXPECT_EQ(index(wrapper), (std::vector<int32_t>{8, 8}));
  EXPECT_EQ(index(full), index(ring));
  EXPECT_EQ(kvc_begin_rows(ring, 1, 0, nullptr, nullptr, nullptr, nullptr), KVC_E_BAD_STATE);
  EXPECT_EQ(kvc_insert(ring, full, 0), KVC_E_BAD_STATE);
  const int32_t starts[] = {1, 2}, lost[] = {8, 4}, kept[] = {8, 7};
  EXPECT_EQ(kvc_rows_set(full, 0, 2, nullptr, starts), KVC_E_BAD_STATE);
  // The ring cannot go back as far as the full cache.
  const support::Digest before = support::digest(wrapper);
  EXPECT_EQ(kvc_rows_set(wrapper, 0, 2, lost, starts), KVC_E_WINDOW_LOST);
  EXPECT_EQ(support::digest(wrapper), before);
  ASSERT_EQ(kvc_rows_set(wrapper, 0, 2, kept, starts), KVC_OK) << support::last_message();
  EXPECT_EQ(index(full), (std::vector<int32_t>{8, 7}));
  EXPECT_EQ(index(ring), (std::vector<int32_t>{8, 7}));
  int32_t of_wrapper[2], of_ring[2];
  ASSERT_EQ(kvc_rows_query(wrapper, 0, 2, nullptr, of_wrapper), KVC_OK);
  ASSERT_EQ(kvc_rows_query(ring, 0, 2, nullptr, of_ring), KVC_OK);
  EXPECT_EQ(std::vector<int32_t>(of_wrapper, of_wrapper + 2), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(std::vector<int32_t>(of_ring, of_ring + 2), (std::vector<int32_t>{1, 2}));
  // The full child is the first to be full, and no child begins.
  pass(wrapper, 4, 4);
  EXPECT_EQ(kvc_fits_rows(wrapper, 1, 0, nullptr, nullptr, nullptr), KVC_E_CACHE_FULL);
  const int32_t valid[] = {0, 1};
  EXPECT_EQ(kvc_fits_rows(wrapper, 1, 0, valid, nullptr, nullptr), KVC_OK);
  EXPECT_EQ(kvc_check(wrapper), KVC_OK) << support::last_message();
}

TEST_F(RowsCachesTest, AWrapperTakesRowsOfAnother) {
  support::Cache child[4], wrapper[2];
  for (size_t i = 0; i < 2; ++i) {
    create(child[2 * i], 0, i == 0 ? 12 : 9);
    create(child[2 * i + 1], KVC_TRANSFORMER_RING, 5);
    kvc_cache* const children[] = {child[2 * i], child[2 * i + 1]};
    const int32_t of[] = {0, 0, 1, 1}, layer[] = {0, 1, 0, 1};
    ASSERT_EQ(kvc_cache_wrap(children, 2, of, layer, 4, &wrapper[i].handle), KVC_OK);
  }
  pass(wrapper[1], 4, 4);
  pass(wrapper[1], 3, 4);
  pass(wrapper[0], 2, 4);
  ASSERT_EQ(kvc_insert(wrapper[0], wrapper[1], 0), KVC_OK) << support::last_message();
  EXPECT_EQ(support::digest(child[0]), support::digest(child[2]));
  EXPECT_EQ(support::digest(child[1]), support::digest(child[3]));
  EXPECT_EQ(kvc_insert(wrapper[0], child[2], 0), invalid);
  EXPECT_EQ(kvc_insert(child[2], wrapper[0], 0), KVC_E_BAD_STATE);  // wrapped
  support::Cache alone;
  create(alone);
  EXPECT_EQ(kvc_insert(alone, wrapper[0], 0), invalid);
  // A child that is too long for its twin stops all.
  pass(wrapper[0], 4, 4);
  const support::Digest before = support::digest(wrapper[1]);
  EXPECT_EQ(kvc_insert(wrapper[1], wrapper[0], 0), KVC_E_CACHE_FULL) << support::last_message();
  EXPECT_EQ(support::digest(wrapper[1]), before);
}

TEST_F(RowsCachesTest, WhatHasNoPassInCommonIsNotWrapped) {
  support::Cache full, other_batch, causal, lightning, wrapper;
  create(full);
  kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &causal.handle), KVC_OK);
  desc.kind = KVC_TRANSFORMER;
  desc.max_sequences = 3;
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &other_batch.handle), KVC_OK);
  for (kvc_cache* other : {causal.handle, other_batch.handle}) {
    kvc_cache* const children[] = {full, other};
    EXPECT_EQ(kvc_cache_wrap(children, 2, nullptr, nullptr, 0, &wrapper.handle), KVC_E_NOT_SUPPORTED)
        << support::last_message();
  }
  desc.kind = KVC_LIGHTNING;
  desc.max_sequences = rows;
  desc.capacity = 0;
  desc.dtype_k = desc.dtype_v = 0;
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &lightning.handle), KVC_OK)
      << support::last_message();
  const float slope = 0.5f;
  ASSERT_EQ(kvc_bind_decay(lightning, 0, 1, &slope), KVC_OK);
  kvc_cache* const children[] = {lightning, full};
  const int32_t of[] = {1, 1}, layer[] = {0, 1};
  ASSERT_EQ(kvc_cache_wrap(children, 2, of, layer, 2, &wrapper.handle), KVC_OK)
      << support::last_message();
  // Starts are for the child that has them.
  const int32_t starts[] = {3, 0};
  ASSERT_EQ(kvc_rows_set(wrapper, 0, 2, nullptr, starts), KVC_OK) << support::last_message();
  int32_t of_wrapper[2], of_lightning[2];
  ASSERT_EQ(kvc_rows_query(wrapper, 0, 2, nullptr, of_wrapper), KVC_OK);
  ASSERT_EQ(kvc_rows_query(lightning, 0, 2, nullptr, of_lightning), KVC_OK);
  EXPECT_EQ(of_wrapper[0], 3);
  EXPECT_EQ(of_lightning[0], 0);
  const int32_t position = 0, sequence = 0;
  EXPECT_EQ(kvc_begin(wrapper, 1, &position, &sequence, nullptr, 0, nullptr), KVC_E_NOT_SUPPORTED);
}

/// Every byte of a column that holds no position.
void expect_free_columns_are_zeros(const kvc_cache* cache) {
  for (int32_t layer = 0; layer < 2; ++layer) {
    kvc_tensor part[4];
    ASSERT_EQ(kvc_rows_view(cache, layer, &part[0], &part[1], &part[2], &part[3]), KVC_OK);
    for (const kvc_tensor& lent : part) {
      if (lent.data == nullptr) continue;
      const kvc_tensor view = support::on_host(lent);
      const int64_t bytes = (view.dtype >> 8 & 255) / 8;
      for (int32_t row = 0; row < view.shape[0]; ++row) {
        std::vector<bool> held(static_cast<size_t>(view.shape[1]), false);
        for (const support::Place& place : support::places(cache, row))
          held[static_cast<size_t>(place.cell - row * view.shape[1])] = true;
        for (int64_t column = 0; column < view.shape[1]; ++column) {
          if (held[static_cast<size_t>(column)]) continue;
          for (int64_t h = 0; h < view.shape[2]; ++h) {
            const auto* data = static_cast<const char*>(view.data) +
                               bytes * (row * view.strides[0] + column * view.strides[1] +
                                        h * view.strides[2]);
            ASSERT_TRUE(std::all_of(data, data + bytes * view.shape[3], [](char c) { return c == 0; }))
                << "row " << row << ", column " << column;
          }
        }
      }
    }
  }
}

TEST_F(RowsCachesTest, FreedColumnsBecomeZeros) {
  for (const uint32_t flags : {0u, uint32_t{KVC_TRANSFORMER_RING}}) {
    support::Cache cache, other;
    create(cache, flags, 12, KVC_Q8_0, KVC_CACHE_ZERO_ON_FREE);
    create(other, flags, 12, KVC_Q8_0);
    pass(cache, 4);
    pass(cache, 4);
    expect_free_columns_are_zeros(cache);
    if (flags != 0) {
      for (int32_t i = 0; i < 4; ++i) pass(cache, 3);
      expect_free_columns_are_zeros(cache);
    }
    ASSERT_EQ(kvc_begin_rows(cache, 4, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK);
    put(cache, 4);
    ASSERT_EQ(kvc_abort(cache), KVC_OK);
    expect_free_columns_are_zeros(cache);
    ASSERT_EQ(kvc_begin_rows(cache, 4, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK);
    put(cache, 4);
    const int32_t row = 1, keep = 2;
    ASSERT_EQ(kvc_commit_prefix(cache, 1, &row, &keep), KVC_OK);
    expect_free_columns_are_zeros(cache);
    pass(other, 3);
    const int32_t dst[] = {0, 1}, src[] = {1, 0};
    ASSERT_EQ(kvc_reorder(cache, 2, dst, src), KVC_OK);
    expect_free_columns_are_zeros(cache);
    ASSERT_EQ(kvc_resume(cache, 0, 0, nullptr), KVC_OK);
    expect_free_columns_are_zeros(cache);
    ASSERT_EQ(kvc_copy_prefix(cache, 0, 1, 5, nullptr), KVC_OK);
    expect_free_columns_are_zeros(cache);
    pass(cache, 4);
    ASSERT_EQ(kvc_insert(cache, other, 0), KVC_OK);
    expect_free_columns_are_zeros(cache);
    const int32_t back[] = {1, 3};
    ASSERT_EQ(kvc_rows_set(cache, 0, 2, back, nullptr), KVC_OK);
    expect_free_columns_are_zeros(cache);
    EXPECT_EQ(kvc_check(cache), KVC_OK);
  }
}

TEST_F(RowsCachesTest, HeadsOfVOfTheirOwn) {
  for (const int32_t value_heads : {1, 3}) {
    support::Cache cache, other;
    for (support::Cache* made : {&cache, &other})
      create(*made, 0, 12, KVC_INT8, KVC_CACHE_ZERO_ON_FREE | KVC_CACHE_ROTATE_V, value_heads);
    pass(cache, 3, 2, value_heads);
    ASSERT_EQ(kvc_insert(other, cache, 0), KVC_OK) << support::last_message();
    EXPECT_EQ(support::digest(other), support::digest(cache));
    const int32_t dst[] = {0, 1}, src[] = {1, 0};
    ASSERT_EQ(kvc_reorder(other, 2, dst, src), KVC_OK);
    EXPECT_NE(support::digest(other), support::digest(cache));
    ASSERT_EQ(kvc_reorder(other, 2, dst, src), KVC_OK);
    EXPECT_EQ(support::digest(other), support::digest(cache));
    Numbers to({3, value_heads, dim});
    ASSERT_EQ(kvc_gather(cache, 1, 1, nullptr, &to.tensor), KVC_OK) << support::last_message();
    const Numbers v({rows, 3, value_heads, dim}, seed_);  // of layer 1
    for (size_t i = 0; i < to.values.size(); ++i)
      ASSERT_NEAR(to.values[i], v.values[to.values.size() + i], 0.05);
    ASSERT_EQ(kvc_begin_rows(cache, 1, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK);
    put(cache, 1, 2, value_heads);
    kvc_tensor k{}, of_v{}, k_scales{}, v_scales{};
    ASSERT_EQ(kvc_get_codes(cache, 0, &k, &k_scales, &of_v, &v_scales), KVC_OK);
    EXPECT_EQ(of_v.shape[2], value_heads);
    EXPECT_EQ(v_scales.shape[2], value_heads);
    Numbers q({rows, 1, 2, dim}), out({rows, 1, 2, dim});
    EXPECT_EQ(kvc_attention(cache, 0, &q.tensor, &out.tensor, nullptr), KVC_E_NOT_SUPPORTED);
    ASSERT_EQ(kvc_abort(cache), KVC_OK);
    ASSERT_EQ(kvc_resume(cache, 0, 0, nullptr), KVC_OK);
    expect_free_columns_are_zeros(cache);
  }
  kvc_cache_desc desc = support::cache_desc(1, 2, 4, 4);
  desc.kind = KVC_TRANSFORMER;
  desc.flags = KVC_CACHE_INTERLEAVED;
  kvc_transformer_desc transformer = KVC_TRANSFORMER_DESC_INIT;
  transformer.value_heads = 1;
  support::Cache refused;
  EXPECT_EQ(kvc_cache_create(device_, &desc, &transformer, &refused.handle), invalid);
}

TEST_F(RowsCachesTest, CodesAndCopiesOfTheColumnsThatAreSeen) {
  support::Cache cache, twin;
  for (support::Cache* made : {&cache, &twin})
    create(*made, KVC_TRANSFORMER_RING, 6, KVC_Q4_0, KVC_CACHE_ROTATE_K);
  for (int32_t i = 0; i < 3; ++i) {
    ASSERT_EQ(kvc_begin_rows(cache, 3, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK);
    put(cache, 3);
    ASSERT_EQ(kvc_begin_rows(twin, 3, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK);
    for (int32_t layer = 0; layer < 2; ++layer) {
      kvc_tensor part[4];
      ASSERT_EQ(kvc_get_codes(cache, layer, &part[0], &part[1], &part[2], &part[3]), KVC_OK);
      // The columns of this pass are [batch, 3, …], in the ring perhaps in two pieces.
      std::vector<char> taken[4];
      kvc_tensor put_in[4];
      for (size_t p = 0; p < 4; ++p) {
        const kvc_tensor view = support::on_host(part[p]);
        const auto bytes = static_cast<size_t>((view.dtype >> 8 & 255) / 8 * view.shape[3]);
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t t = 0; t < 3; ++t) {
            const int64_t column = (3 * i + t) % view.shape[1];
            for (int64_t h = 0; h < heads; ++h) {
              const auto* data = static_cast<const char*>(view.data) +
                                 (view.dtype >> 8 & 255) / 8 *
                                     (row * view.strides[0] + column * view.strides[1] +
                                      h * view.strides[2]);
              taken[p].insert(taken[p].end(), data, data + bytes);
            }
          }
        }
        put_in[p] = support::dense(taken[p].data(), view.dtype, {rows, 3, heads, view.shape[3]});
      }
      ASSERT_EQ(kvc_put_codes(twin, layer, &put_in[0], &put_in[1], &put_in[2], &put_in[3]), KVC_OK)
          << support::last_message();
    }
    ASSERT_EQ(kvc_commit(twin), KVC_OK);
    if (i < 2) {
      ASSERT_EQ(kvc_commit(cache), KVC_OK);
    }
  }
  kvc_tensor k{}, v{};
  EXPECT_EQ(kvc_get(cache, 0, &k, &v), KVC_E_NOT_SUPPORTED);
  // Copies fill in their shape, and show what some token of the row sees.
  k = v = {};
  ASSERT_EQ(kvc_get_copy(cache, 0, &k, &v), KVC_OK) << support::last_message();
  ASSERT_EQ(k.ndim, 4);
  EXPECT_EQ(std::vector<int64_t>(k.shape, k.shape + 4), (std::vector<int64_t>{rows, 10, heads, dim}));
  Numbers copy({rows, 10, heads, dim});
  // Heads before columns in memory.
  copy.tensor.strides[1] = dim;
  copy.tensor.strides[2] = 10 * dim;
  ASSERT_EQ(kvc_get_copy(cache, 0, &copy.tensor, nullptr), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(support::digest(cache), support::digest(twin));
  Numbers gathered({6, heads, dim});  // positions 3 to 8
  ASSERT_EQ(kvc_gather(cache, 0, 1, &gathered.tensor, nullptr), KVC_OK);
  for (int64_t column = 0; column < 10; ++column) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < dim; ++d) {
        const float copied = copy.values[static_cast<size_t>(((1 * heads + h) * 10 + column) * dim + d)];
        const bool seen = column >= 1 &&
                          column <= 8;  // the first token of the pass, at 6, sees from 1 on
        if (!seen) {
          ASSERT_EQ(copied, 0) << "column " << column;
        } else if (column >= 3) {
          const auto at = static_cast<size_t>(((column - 3) * heads + h) * dim + d);
          ASSERT_EQ(copied, gathered.values[at]) << "column " << column;
        }
      }
    }
  }
}

TEST_F(RowsCachesTest, ReservePasses) {
  support::Cache cache;
  create(cache);
  pass(cache, 2);
  const support::Digest before = support::digest(cache);
  ASSERT_EQ(kvc_fits_rows(cache, 4, KVC_ROWS_RESERVE, nullptr, nullptr, nullptr), KVC_OK);
  ASSERT_EQ(kvc_begin_rows(cache, 4, KVC_ROWS_RESERVE, nullptr, nullptr, nullptr, nullptr), KVC_OK)
      << support::last_message();
  kvc_tensor mask{};
  ASSERT_EQ(kvc_mask(cache, 0, &mask), KVC_OK) << support::last_message();
  EXPECT_EQ(std::vector<int64_t>(mask.shape, mask.shape + 4), (std::vector<int64_t>{rows, 1, 4, 12}));
  put(cache, 4);
  Numbers q({rows, 4, 4, dim}), out({rows, 4, 4, dim});
  const std::vector<float> untouched = out.values;
  ASSERT_EQ(kvc_attention(cache, 0, &q.tensor, &out.tensor, nullptr), KVC_OK);
  EXPECT_EQ(out.values, untouched);
  EXPECT_EQ(index(cache), (std::vector<int32_t>{2, 2}));
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(support::digest(cache), before);
  EXPECT_EQ(kvc_begin_rows(cache, 5, KVC_ROWS_RESERVE, nullptr, nullptr, nullptr, nullptr), invalid);
}

/// A mask and a bias of the call hide and add beside the mask of the pass; weights are theirs together.
TEST_F(RowsCachesTest, ExtrasHaveAColumnPerPosition) {
  support::Cache cache;
  create(cache);
  pass(cache, 3);
  std::vector<uint8_t> shown = {1, 0, 1, 1, 1, 1, 1, 0, 1, 1};
  kvc_tensor attention_mask = support::dense(shown.data(), KVC_BOOL, {rows, 5});
  ASSERT_EQ(kvc_begin_rows(cache, 2, 0, nullptr, &attention_mask, nullptr, nullptr), KVC_OK);
  put(cache, 2);
  constexpr int64_t columns = 12, n_q_heads = 4;
  Numbers q({rows, 2, n_q_heads, dim}, 9), out({rows, 2, n_q_heads, dim});
  Numbers bias({rows, 1, 2, columns}, 10), weights({rows, n_q_heads, 2, columns});
  std::vector<uint8_t> hidden(columns, 1);
  hidden[0] = 0;
  kvc_tensor mask = support::dense(hidden.data(), KVC_BOOL, {columns});
  kvc_attention_extra extra = support::extra(&bias.tensor, &mask, &weights.tensor);
  ASSERT_EQ(kvc_attention(cache, 1, &q.tensor, &out.tensor, &extra), KVC_OK)
      << support::last_message();
  kvc_tensor k{}, v{};
  ASSERT_EQ(kvc_get(cache, 1, &k, &v), KVC_OK);
  const auto at = [](const kvc_tensor& lent, int64_t row, int64_t column, int64_t h, int64_t d) {
    const kvc_tensor view = support::on_host(lent);
    return static_cast<const float*>(
        view.data)[row * view.strides[0] + column * view.strides[1] + h * view.strides[2] + d];
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t t = 0; t < 2; ++t) {
      for (int64_t h = 0; h < n_q_heads; ++h) {
        std::vector<double> weight(columns, 0.0);
        double sum = 0;
        for (int64_t c = 1; c <= 3 + t; ++c) {
          if (shown[static_cast<size_t>(row * 5 + c)] == 0) continue;
          double score = 0;
          for (int64_t d = 0; d < dim; ++d)
            score += double{q.values[static_cast<size_t>(((row * 2 + t) * n_q_heads + h) * dim + d)]} *
                     double{at(k, row, c, h / 2, d)};
          score = score / std::sqrt(double{dim}) +
                  double{bias.values[static_cast<size_t>((row * 2 + t) * columns + c)]};
          weight[static_cast<size_t>(c)] = std::exp(score);
          sum += weight[static_cast<size_t>(c)];
        }
        for (int64_t c = 0; c < columns; ++c)
          ASSERT_NEAR(
              weights.values[static_cast<size_t>(((row * n_q_heads + h) * 2 + t) * columns + c)],
              weight[static_cast<size_t>(c)] / sum, 2e-5);
        for (int64_t d = 0; d < dim; ++d) {
          double wanted = 0;
          for (int64_t c = 0; c <= 4; ++c)
            wanted += weight[static_cast<size_t>(c)] / sum * double{at(v, row, c, h / 2, d)};
          ASSERT_NEAR(out.values[static_cast<size_t>(((row * 2 + t) * n_q_heads + h) * dim + d)],
                      wanted, 5e-5);
        }
      }
    }
  }
}

TEST_F(RowsCachesTest, ConstCallsAtTheSameTime) {
  support::Cache cache, one, two;
  create(cache);
  create(one);
  create(two);
  pass(cache, 3);
  std::vector<std::thread> threads;
  std::vector<int32_t> failed(4, 0);
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      kvc_cache* const mine = t == 0 ? one.handle : two.handle;
      for (int32_t i = 0; i < 300; ++i) {
        const int32_t valid[] = {i % 5, 4};
        int32_t best = 0, next[2];
        failed[t] += kvc_fits_rows(cache, 4, 0, valid, nullptr, nullptr) != KVC_OK;
        failed[t] += kvc_rows_query(cache, 0, 2, next, nullptr) != KVC_OK || next[1] != 3;
        failed[t] += kvc_can_resume(cache, 1, 2, &best) != KVC_OK || best != 2;
        kvc_tensor k;
        failed[t] += kvc_rows_view(cache, 1, &k, nullptr, nullptr, nullptr) != KVC_OK;
        if (t < 2)
          failed[t] += kvc_insert(mine, cache, 0) != KVC_OK;  // reads cache beside the others
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, std::vector<int32_t>(4, 0));
  EXPECT_EQ(support::digest(one), support::digest(cache));
  EXPECT_EQ(support::digest(two), support::digest(cache));
}

TEST_F(RowsCachesTest, MemoryIsToldBeforeAndCounted) {
  kvc_cache_desc desc = support::cache_desc(3, 2, 16, 16);
  desc.kind = KVC_TRANSFORMER;
  desc.max_sequences = 4;
  desc.capacity = 100;
  desc.max_batch = 4 * 28;
  kvc_transformer_desc transformer = KVC_TRANSFORMER_DESC_INIT;
  for (const uint32_t flags : {0u, uint32_t{KVC_TRANSFORMER_RING}}) {
    transformer.flags = flags;
    uint64_t told = 0;
    ASSERT_EQ(kvc_cache_memory_bytes(device_, &desc, &transformer, &told), KVC_OK);
    support::Cache cache;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &transformer, &cache.handle), KVC_OK);
    const kvc_stats stats = support::stats(cache);
    EXPECT_EQ(stats.bytes, told);
    EXPECT_EQ(stats.cells, flags == 0 ? 400u : 512u);
    EXPECT_EQ(stats.cells_used, 0u);
  }
  desc.cells = 400;
  EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, &transformer, nullptr), invalid);
  uint64_t told = 0;
  EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, &transformer, &told), invalid);
  desc.cells = 0;
  desc.max_batch = 3;
  EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, &transformer, &told), invalid);
}

}  // namespace
