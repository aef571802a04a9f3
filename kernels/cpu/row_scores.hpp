#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/attention/params.hpp"
#include "core/base/half.hpp"
#include "core/base/thread_pool.hpp"
#include "kernels/cpu/attention_workspace.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/offset_rotations.hpp"
#include "kernels/cpu/score_bias.hpp"

namespace kvc::cpu {

/// Scores of one row of the plan and one query head, a key at a time, for whoever needs no speed. Real is what they are computed
/// in.
template <class Real>
class RowScores {
 public:
  static constexpr Real minus_infinity = -std::numeric_limits<Real>::infinity();

  RowScores(const AttentionParams& params, const ThreadScratch& scratch, const AttentionRow& row,
            int32_t head)
      : params_(params),
        row_(row),
        head_(head),
        kv_head_(head / (params.constants.n_q_heads / params.storage.k.n_heads)),
        first_column_(params.plan.first_column(params.plan.lists[row.list], params.first_column)),
        head_dim_(padded(params.storage.k.head_dim())),
        factor_(static_cast<double>(params.constants.scale) *
                static_cast<double>(params.storage.k.scale_of(kv_head_))),
        query_(scratch.q),
        key_(scratch.q + head_dim_),
        stored_query_(scratch.q + 2 * head_dim_),
        turned_query_(scratch.q_rotated),
        rotations_(scratch.rotations) {
    load_query();
  }

  int32_t kv_head() const { return kv_head_; }
  int32_t column(int32_t cell) const { return cell - first_column_; }

  /// Minus infinity where a bias or a mask hides the key.
  Real score(int32_t cell, int32_t position) {
    const Slab& keys = params_.storage.k;
    const AttentionConstants& constants = params_.constants;
    const float bias = score_bias(params_.tensors, head_, row_.token, column(cell));
    if (bias == -std::numeric_limits<float>::infinity()) return minus_infinity;
    std::fill_n(key_, head_dim_, 0.0f);
    StoredRow key = keys.stored(kv_head_, cell);
    key.scale = 1;  // that of an f8 head is in the factor
    kernels().decode(keys.format, key_, key);
    const bool pending = params_.plan.lists[row_.list].has_pending;
    Real x = dot(query_for(pending ? position - params_.plan.rotated_for[cell] : 0), key_) *
             score_factor();
    const auto softcap = static_cast<Real>(constants.softcap);
    if (constants.softcap != 0) x = softcap * std::tanh(x / softcap);
    if (constants.slopes != nullptr) {
      x -= static_cast<Real>(constants.slopes[head_]) *
           static_cast<Real>(std::abs(int64_t{row_.position} - position));
    }
    return x + static_cast<Real>(bias);
  }

 private:
  static constexpr int32_t parts = 16;  // sums of a dot product: as many as lanes of the widest vectors

  void load_query() {
    const Tensor& q = params_.tensors.q;
    std::fill_n(query_, head_dim_, 0.0f);
    const int64_t first = q.token_offset(row_.token) + head_ * q.stride[1];
    for (int32_t i = 0; i < params_.storage.k.head_dim(); ++i)
      query_[i] = static_cast<float>(load_element(q.data, q.dtype, first + i * q.stride[2]) *
                                     query_factor());
    std::copy_n(query_, head_dim_, stored_query_);
    rotate_as_stored(stored_query_);
  }

  // In f32 the query carries the factor, which products might leave the range without.
  static constexpr bool scales_query = sizeof(Real) == sizeof(float);
  double query_factor() const { return scales_query ? factor_ : 1; }
  Real score_factor() const { return scales_query ? 1 : static_cast<Real>(factor_); }

  void rotate_as_stored(float* query) const {
    const RowFormat& format = params_.storage.k.format;
    if (format.rotation != 0) kernels().rotate(query, format.head_dim, format.rotation);
  }

  /// The query for a key whose pending rotation is `offset`.
  const float* query_for(int32_t offset) {
    const Rope& rope = params_.constants.rope;
    if (offset == 0 || rope.n_dims == 0) return stored_query_;
    if (offset == turned_by_) return turned_query_;
    turned_by_ = offset;
    OffsetRotations(rope, rotations_).turn(one_row(turned_query_, query_, head_dim_), -offset);
    rotate_as_stored(turned_query_);
    return turned_query_;
  }

  Real dot(const float* a, const float* b) const {
    Real sum[parts] = {};
    for (int32_t i = 0; i < head_dim_; i += parts) {
      for (int32_t j = 0; j < parts; ++j)
        sum[j] += static_cast<Real>(a[i + j]) * static_cast<Real>(b[i + j]);
    }
    for (int32_t width = parts / 2; width > 0; width /= 2) {
      for (int32_t j = 0; j < width; ++j) sum[j] += sum[j + width];
    }
    return sum[0];
  }

  const AttentionParams& params_;
  const AttentionRow& row_;
  const int32_t head_, kv_head_, first_column_, head_dim_;
  const double factor_;  // the scale, with that of an f8 head: their product may lie outside f32
  float *query_, *key_, *stored_query_, *turned_query_;  // [head_dim], padded with zeros
  std::byte* rotations_;
  int32_t turned_by_ = 0;
};

/// Calls visit(scratch, row, query head) for all rows of the plan and all query heads, over the threads of the pool.
template <class Visit>
void for_each_row_and_head(const AttentionParams& params, ThreadPool& pool, const Visit& visit) {
  struct Job {
    const AttentionParams& params;
    const Visit& visit;
    Workspace space;
    int32_t first_row;
  };
  Job job{params, visit, {}, 0};
  job.space.place(params, pool.n_threads());
  for (int32_t thread = 0; thread < pool.n_threads(); ++thread)
    OffsetRotations::forget(job.space.scratch_of(thread).rotations);
  const auto run_one = [](void* context, int32_t item, int32_t thread) noexcept {
    const Job& j = *static_cast<const Job*>(context);
    const int32_t n_heads = j.params.constants.n_q_heads;
    j.visit(j.space.scratch_of(thread), j.params.plan.rows[j.first_row + item / n_heads],
            item % n_heads);
  };
  const int32_t n_rows = params.plan.n_rows, n_heads = params.constants.n_q_heads;
  const int32_t rows_at_once = ThreadPool::items_max / n_heads;
  for (; job.first_row < n_rows; job.first_row += rows_at_once)
    pool.run(std::min(rows_at_once, n_rows - job.first_row) * n_heads, run_one, &job);
}

}  // namespace kvc::cpu
