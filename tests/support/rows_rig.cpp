#include "rows_rig.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace support {
namespace {

size_t at(int64_t index) { return static_cast<size_t>(index); }

}  // namespace

float RowsRig::number(int32_t side, int32_t value, int32_t head, int32_t dim) {
  if (value == 0) return 0;  // of a token that was not put
  uint32_t hash = static_cast<uint32_t>(((side * 1009 + value) * 31 + head) * 257 + dim);
  hash = (hash ^ hash >> 15) * 2246822519u;
  hash = (hash ^ hash >> 13) * 3266489917u;
  return static_cast<float>(hash >> 16) / 32768.0f - 1;
}

void RowsRig::create() {
  ASSERT_EQ(kvc_cache_create(device_, &desc, &transformer, &cache.handle), KVC_OK) << last_message();
  rows.assign(at(batch()), {});
}

kvc_status RowsRig::begin(const Pass& pass) {
  const bool per_token = pass.mask.size() == at(batch()) * at(pass.q_len) && pass.q_len > 1;
  const auto reach = static_cast<int64_t>(pass.mask.empty() ? 0 : pass.mask[0].size());
  std::vector<uint8_t> shown;
  for (const auto& row : pass.mask) shown.insert(shown.end(), row.begin(), row.end());
  kvc_tensor mask = per_token ? dense(shown.data(), KVC_BOOL, {batch(), 1, pass.q_len, reach})
                              : dense(shown.data(), KVC_BOOL, {batch(), reach});
  const kvc_status status = kvc_begin_rows(
      cache, pass.q_len, pass.flags, pass.valid.empty() ? nullptr : pass.valid.data(),
      pass.mask.empty() ? nullptr : &mask, pass.types.empty() ? nullptr : pass.types.data(), nullptr);
  std::fill(shown.begin(), shown.end(), uint8_t{1});  // it was copied
  if (status != KVC_OK) return status;
  before_ = rows;
  pass_ = pass;
  for (int32_t row = 0; row < batch(); ++row) {
    Row& r = rows[at(row)];
    for (int32_t i = 0; i < valid(row); ++i) r.held[r.next++] = next_value_++;
  }
  return status;
}

void RowsRig::put_all() {
  const int64_t n = int64_t{batch()} * pass_.q_len;
  const float nan = std::numeric_limits<float>::quiet_NaN();  // padding is not read
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    std::vector<float> k(at(n * n_kv_heads * dim_k), nan), v(at(n * n_kv_heads * dim_v), nan);
    for (int32_t row = 0; row < batch(); ++row) {
      for (int32_t i = 0; i < valid(row); ++i) {
        const int64_t token = row * pass_.q_len + i;
        const int32_t held = rows[at(row)].held.at(before(row) + i);
        for (int32_t h = 0; h < n_kv_heads; ++h) {
          for (int32_t d = 0; d < dim_k; ++d)
            k[at((token * n_kv_heads + h) * dim_k + d)] = key(layer, held, h, d);
          for (int32_t d = 0; d < dim_v; ++d)
            v[at((token * n_kv_heads + h) * dim_v + d)] = value(layer, held, h, d);
        }
      }
    }
    const kvc_tensor k_in = dense(k.data(), KVC_F32, {batch(), pass_.q_len, n_kv_heads, dim_k});
    const kvc_tensor v_in = dense(v.data(), KVC_F32, {batch(), pass_.q_len, n_kv_heads, dim_v});
    ASSERT_EQ(kvc_put(cache, layer, &k_in, &v_in), KVC_OK) << last_message();
  }
}

void RowsRig::run(const Pass& pass) {
  ASSERT_EQ(begin(pass), KVC_OK) << last_message();
  put_all();
  expect_visible();
  expect_attention(false);
  expect_attention(true);
  ASSERT_EQ(kvc_commit(cache), KVC_OK) << last_message();
  note_committed();
  expect_rows();
}

void RowsRig::note_committed() {
  for (Row& row : rows) {
    if (is_ring()) row.held.erase(row.held.begin(), row.held.lower_bound(row.next - desc.capacity));
  }
}

void RowsRig::note_aborted() { rows = before_; }

/// Straight from semantics §6.
bool RowsRig::sees(int32_t row, int32_t token, int32_t position) const {
  const Row& r = rows[at(row)];
  if (token >= valid(row) || position < r.starts || !r.held.contains(position)) return false;
  if (!pass_.mask.empty()) {
    const bool per_token = pass_.mask.size() == at(batch()) * at(pass_.q_len) && pass_.q_len > 1;
    const auto& shown = pass_.mask[at(per_token ? row * pass_.q_len + token : row)];
    if (at(position) < shown.size() && shown[at(position)] == 0) return false;
  }
  const int32_t own = before(row) + token, other = position - before(row);
  if (other >= 0 && type(row, token) != 0 && type(row, token) == type(row, other)) return true;
  int32_t reach = transformer.reach > 0 ? transformer.reach : INT32_MAX;
  if (is_ring()) reach = std::min(reach, desc.capacity - 1);
  const bool not_causal = (pass_.flags & KVC_ROWS_NOT_CAUSAL) != 0 ||
                          (transformer.flags & KVC_TRANSFORMER_NOT_CAUSAL) != 0;
  return (position <= own || not_causal) && int64_t{position} >= int64_t{own} - reach;
}

void RowsRig::expect_visible() const {
  std::vector<uint8_t> shown(at(int64_t{batch()} * pass_.q_len * columns()), 7);
  kvc_tensor mask = dense(shown.data(), KVC_BOOL, {batch(), 1, pass_.q_len, columns()});
  ASSERT_EQ(kvc_mask(cache, 0, &mask), KVC_OK) << last_message();
  std::vector<uint8_t> wanted(shown.size(), 0);
  for (int32_t row = 0; row < batch(); ++row) {
    for (int32_t token = 0; token < pass_.q_len; ++token) {
      for (const auto& [position, held] : rows[at(row)].held) {
        const int64_t line = int64_t{row} * pass_.q_len + token;
        if (sees(row, token, position)) wanted[at(line * columns() + position % columns())] = 1;
      }
    }
  }
  EXPECT_EQ(shown, wanted);
}

/// Against the formula in double. `apart`: heads before tokens in memory, so that tokens are no evenly spaced list.
void RowsRig::expect_attention(bool apart) const {
  const int32_t q_len = pass_.q_len;
  const int64_t n = int64_t{batch()} * q_len;
  std::vector<float> q(at(n * n_q_heads * dim_k)), out(at(n * n_q_heads * dim_v), 7);
  std::vector<float> lse(at(n * n_q_heads), 7);
  Random random{7};
  for (float& x : q) x = random.value();
  const auto tensor = [&](std::vector<float>& data, int64_t dim) {
    kvc_tensor t = dense(data.data(), KVC_F32, {batch(), q_len, n_q_heads, dim});
    if (apart) {
      t.strides[1] = dim;
      t.strides[2] = q_len * dim;
    }
    return t;
  };
  kvc_tensor q_in = tensor(q, dim_k), out_to = tensor(out, dim_v);
  kvc_tensor lse_to = dense(lse.data(), KVC_F32, {batch(), q_len, n_q_heads});
  const int32_t layer = n_layers - 1;
  ASSERT_EQ(attention(cache, layer, &q_in, &out_to, &lse_to), KVC_OK) << last_message();
  for (int32_t row = 0; row < batch(); ++row) {
    for (int32_t token = 0; token < q_len; ++token) {
      for (int32_t h = 0; h < n_q_heads; ++h) {
        const auto first = [&](const kvc_tensor& t) {
          return row * t.strides[0] + token * t.strides[1] + h * t.strides[2];
        };
        double sum = 0;
        std::vector<double> wanted(dim_v, 0.0);
        for (const auto& [position, held] : rows[at(row)].held) {
          if (!sees(row, token, position)) continue;
          double score = 0;
          for (int32_t d = 0; d < dim_k; ++d)
            score += double{q[at(first(q_in) + d)]} * double{key(layer, held, h / 2, d)};
          const double weight = std::exp(score / std::sqrt(double{dim_k}));
          sum += weight;
          for (int32_t d = 0; d < dim_v; ++d)
            wanted[at(d)] += weight * double{value(layer, held, h / 2, d)};
        }
        for (int32_t d = 0; d < dim_v; ++d)
          ASSERT_NEAR(out[at(first(out_to) + d)], sum == 0 ? 0 : wanted[at(d)] / sum, 2e-5)
              << "row " << row << ", token " << token;
        const float of_row = lse[at((row * q_len + token) * n_q_heads + h)];
        if (sum == 0) {
          ASSERT_EQ(of_row, -std::numeric_limits<float>::infinity());
        } else {
          ASSERT_NEAR(of_row, std::log(sum), 2e-5);
        }
      }
    }
  }
}

void RowsRig::expect_rows() const {
  ASSERT_EQ(kvc_check(cache), KVC_OK) << last_message();
  for (int32_t row = 0; row < batch(); ++row) {
    const Row& r = rows[at(row)];
    int32_t index = -1, starts = -1;
    ASSERT_EQ(kvc_rows_query(cache, row, 1, &index, &starts), KVC_OK) << last_message();
    EXPECT_EQ(index, r.next) << "row " << row;
    EXPECT_EQ(starts, r.starts) << "row " << row;
    const kvc_sequence_info info = sequence_info(cache, row);
    ASSERT_EQ(info.count, static_cast<int32_t>(r.held.size())) << "row " << row;
    EXPECT_EQ(info.first, r.held.empty() ? r.next : r.held.begin()->first);
    const std::vector<Place> all = places(cache, row);
    EXPECT_EQ(all.size(), r.held.size()) << "row " << row;
    for (const Place& place : all) {
      EXPECT_EQ(place.cell, row * columns() + place.position % columns());
      EXPECT_TRUE(r.held.contains(place.position));
    }
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      std::vector<float> k(at(int64_t{info.count} * n_kv_heads * dim_k));
      std::vector<float> v(at(int64_t{info.count} * n_kv_heads * dim_v));
      kvc_tensor k_to = dense(k.data(), KVC_F32, {info.count, n_kv_heads, dim_k});
      kvc_tensor v_to = dense(v.data(), KVC_F32, {info.count, n_kv_heads, dim_v});
      ASSERT_EQ(kvc_gather(cache, layer, row, &k_to, &v_to), KVC_OK) << last_message();
      int64_t i = 0;
      for (const auto& [position, held] : r.held) {
        for (int32_t h = 0; h < n_kv_heads; ++h, ++i) {
          for (int32_t d = 0; d < dim_k; ++d)
            ASSERT_EQ(k[at(i * dim_k + d)], key(layer, held, h, d)) << "position " << position;
          for (int32_t d = 0; d < dim_v; ++d)
            ASSERT_EQ(v[at(i * dim_v + d)], value(layer, held, h, d)) << "position " << position;
        }
      }
    }
  }
}

}  // namespace support
