#include "kernels/cpu/attention_weights.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/attention/visible.hpp"
#include "core/base/half.hpp"
#include "kernels/cpu/attention_workspace.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/offset_rotations.hpp"
#include "kernels/cpu/score_bias.hpp"

/// The weights are as large as a score matrix and serve inspection. A pass of their own over the
/// keys computes them, one row at a time, so that attention itself never holds such a matrix.
namespace kvc::cpu {
namespace {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
constexpr int32_t parts = 16;  // sums of a dot product: as many as lanes of the widest vectors

float dot(const float* a, const float* b, int32_t n) {
  float sum[parts] = {};
  for (int32_t i = 0; i < n; i += parts) {
    for (int32_t j = 0; j < parts; ++j) sum[j] += a[i + j] * b[i + j];
  }
  for (int32_t width = parts / 2; width > 0; width /= 2) {
    for (int32_t j = 0; j < width; ++j) sum[j] += sum[j + width];
  }
  return sum[0];
}

/// One row of the plan and one query head.
class WeightsRow {
 public:
  WeightsRow(const AttentionParams& params, const ThreadScratch& scratch, const AttentionRow& row,
             int32_t head)
      : params_(params),
        scratch_(scratch),
        row_(row),
        head_(head),
        first_column_(params.plan.first_column(params.plan.lists[row.list], params.first_column)) {}

  void run() {
    const Tensor& weights = params_.tensors.weights;
    for (int64_t column = 0; column < weights.shape[2]; ++column) at(column) = 0;
    load_query();
    stored_query_ = scratch_.q + 2 * padded(params_.storage.k.head_dim());
    std::copy_n(scratch_.q, padded(params_.storage.k.head_dim()), stored_query_);
    rotate_as_stored(stored_query_);
    float max = minus_infinity;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t position) {
      const float x = score(cell, position);
      at(cell - first_column_) = x;
      if (x > max) max = x;
    });
    const float shift = max == minus_infinity ? 0.0f : max;
    double total = 0;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t) {
      float& weight = at(cell - first_column_);
      weight = weight == minus_infinity ? 0.0f : std::exp(weight - shift);
      total += static_cast<double>(weight);
    });
    if (total == 0) return;
    if (const float* sinks = params_.constants.sinks)
      total += std::exp(static_cast<double>(sinks[head_] - shift));
    // What a bias or mask hides keeps its 0 beside a NaN, too.
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t) {
      float& weight = at(cell - first_column_);
      if (weight != 0) weight = static_cast<float>(static_cast<double>(weight) / total);
    });
  }

 private:
  float& at(int64_t column) {
    const Tensor& weights = params_.tensors.weights;
    return static_cast<float*>(
        weights.data)[head_ * weights.stride[0] + weights.token_offset(row_.token, 1) +
                      column * weights.stride[2]];
  }

  void load_query() {
    const Tensor& q = params_.tensors.q;
    const int32_t head_dim = params_.storage.k.head_dim();
    std::fill_n(scratch_.q, padded(head_dim), 0.0f);
    const int64_t first = q.token_offset(row_.token) + head_ * q.stride[1];
    for (int32_t i = 0; i < head_dim; ++i)
      scratch_.q[i] = load_element(q.data, q.dtype, first + i * q.stride[2]) * params_.constants.scale;
  }

  /// Rotates a query as its keys are stored.
  void rotate_as_stored(float* query) const {
    const RowFormat& format = params_.storage.k.format;
    if (format.rotation != 0) kernels().rotate(query, format.head_dim, format.rotation);
  }

  /// The query for a key whose pending rotation is `offset`.
  const float* rotated_query(int32_t offset) {
    const Rope& rope = params_.constants.rope;
    if (offset == 0 || rope.n_dims == 0) return stored_query_;
    if (offset == rotated_by_) return scratch_.q_rotated;
    rotated_by_ = offset;
    OffsetRotations(rope, scratch_.rotations)
        .turn(one_row(scratch_.q_rotated, scratch_.q, padded(params_.storage.k.head_dim())), -offset);
    rotate_as_stored(scratch_.q_rotated);
    return scratch_.q_rotated;
  }

  float score(int32_t cell, int32_t position) {
    const Slab& keys = params_.storage.k;
    const AttentionConstants& constants = params_.constants;
    const float bias = score_bias(params_.tensors, head_, row_.token, cell - first_column_);
    if (bias == minus_infinity) return minus_infinity;
    const int32_t kv_head = head_ / (constants.n_q_heads / keys.n_heads);
    float* wide = scratch_.q + padded(keys.head_dim());
    std::fill_n(wide, padded(keys.head_dim()), 0.0f);
    kernels().decode(keys.format, wide, keys.stored(kv_head, cell));
    const bool pending = params_.plan.lists[row_.list].has_pending;
    const float* query = rotated_query(pending ? position - params_.plan.rotated_for[cell] : 0);
    float x = dot(query, wide, padded(keys.head_dim()));
    if (constants.softcap != 0) x = constants.softcap * std::tanh(x / constants.softcap);
    if (constants.slopes != nullptr) {
      x -= constants.slopes[head_] * static_cast<float>(std::abs(int64_t{row_.position} - position));
    }
    return x + bias;
  }

  const AttentionParams& params_;
  const ThreadScratch& scratch_;  // q: the query, a key, the query as keys are stored; q_rotated: turned, too
  const AttentionRow& row_;
  const int32_t head_;
  const int32_t first_column_;
  int32_t rotated_by_ = 0;
  float* stored_query_ = nullptr;
};

struct Job {
  const AttentionParams* params;
  Workspace space;
  int32_t first_row;
};

}  // namespace

void attention_weights(const AttentionParams& params, ThreadPool& pool) noexcept {
  Job job{&params, {}, 0};
  job.space.place(params, pool.n_threads());
  const auto run_one = [](void* context, int32_t item, int32_t thread) noexcept {
    const Job& j = *static_cast<const Job*>(context);
    const int32_t n_heads = j.params->constants.n_q_heads;
    const ThreadScratch scratch = j.space.scratch_of(thread);
    const AttentionRow& row = j.params->plan.rows[j.first_row + item / n_heads];
    WeightsRow(*j.params, scratch, row, item % n_heads).run();
  };
  const int32_t n_rows = params.plan.n_rows, n_heads = params.constants.n_q_heads;
  const int32_t rows_at_once = ThreadPool::items_max / n_heads;
  for (; job.first_row < n_rows; job.first_row += rows_at_once)
    pool.run(std::min(rows_at_once, n_rows - job.first_row) * n_heads, run_one, &job);
}

}  // namespace kvc::cpu
