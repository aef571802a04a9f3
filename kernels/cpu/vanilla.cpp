#include "kernels/cpu/vanilla.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/attention/visible.hpp"
#include "core/base/half.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/attention_workspace.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/offset_rotations.hpp"
#include "kernels/cpu/score_bias.hpp"

/// Scores wait in the thread's scratch, some keys at a time, so that no matrix of scores exists. The weights, where a call asks for
/// them, are computed by another walk over the keys.
namespace kvc::cpu {
namespace {

constexpr int32_t parts = 16;  // sums of a dot product: as many as lanes of the widest vectors

/// Keys whose scores wait at a time.
constexpr int32_t keys_at_once = 1024;
static_assert(keys_at_once * sizeof(double) <= bias_floats_max * sizeof(float));

/// One row of the plan and one query head. Real is what scores and softmax are computed in; sums are in double.
template <class Real>
class VanillaRow {
 public:
  VanillaRow(const AttentionParams& params, const ThreadScratch& scratch, const AttentionRow& row,
             int32_t head)
      : params_(params),
        row_(row),
        head_(head),
        kv_head_(head / (params.constants.n_q_heads / params.storage.k.n_heads)),
        first_column_(params.plan.first_column(params.plan.lists[row.list], params.first_column)),
        head_dim_k_(padded(params.storage.k.head_dim())),
        query_(scratch.q),
        key_(scratch.q + head_dim_k_),
        stored_query_(scratch.q + 2 * head_dim_k_),
        turned_query_(scratch.q_rotated),
        rotations_(scratch.rotations),
        value_(scratch.folded_o),
        sum_(reinterpret_cast<double*>(scratch.o)),
        score_(reinterpret_cast<Real*>(scratch.bias)),
        position_(scratch.position),
        cell_(scratch.cell),
        dropout_(params.dropout, row.sequence, row.position, head) {}

  void run() {
    load_query();
    std::fill_n(sum_, params_.storage.v.head_dim(), 0.0);
    int32_t n = 0;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t position) {
      const Real x = score(cell, position);
      if (x == minus_infinity) return;
      score_[n] = x;
      cell_[n] = cell;
      position_[n] = position;
      if (++n < keys_at_once) return;
      add(n);
      n = 0;
    });
    add(n);
    write();
  }

 private:
  static constexpr Real minus_infinity = -std::numeric_limits<Real>::infinity();

  void load_query() {
    const Tensor& q = params_.tensors.q;
    const RowFormat& format = params_.storage.k.format;
    std::fill_n(query_, head_dim_k_, 0.0f);
    const int64_t first = q.token_offset(row_.token) + head_ * q.stride[1];
    for (int32_t i = 0; i < format.head_dim; ++i)
      query_[i] = load_element(q.data, q.dtype, first + i * q.stride[2]) * query_factor();
    std::copy_n(query_, head_dim_k_, stored_query_);
    rotate_as_stored(stored_query_);
  }

  // In f32 the query carries the scale, which products might leave the range without.
  static constexpr bool scales_query = sizeof(Real) == sizeof(float);
  float query_factor() const { return scales_query ? params_.constants.scale : 1; }
  Real score_factor() const {
    return scales_query ? 1 : static_cast<Real>(params_.constants.scale);
  }

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
    OffsetRotations(rope, rotations_).turn(one_row(turned_query_, query_, head_dim_k_), -offset);
    rotate_as_stored(turned_query_);
    return turned_query_;
  }

  Real dot(const float* a, const float* b) const {
    Real sum[parts] = {};
    for (int32_t i = 0; i < head_dim_k_; i += parts) {
      for (int32_t j = 0; j < parts; ++j)
        sum[j] += static_cast<Real>(a[i + j]) * static_cast<Real>(b[i + j]);
    }
    for (int32_t width = parts / 2; width > 0; width /= 2) {
      for (int32_t j = 0; j < width; ++j) sum[j] += sum[j + width];
    }
    return sum[0];
  }

  Real score(int32_t cell, int32_t position) {
    const Slab& keys = params_.storage.k;
    const AttentionConstants& constants = params_.constants;
    const float bias = score_bias(params_.tensors, head_, row_.token, cell - first_column_);
    if (bias == -std::numeric_limits<float>::infinity()) return minus_infinity;
    std::fill_n(key_, head_dim_k_, 0.0f);
    kernels().decode(keys.format, key_, keys.stored(kv_head_, cell));
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

  /// What a weight is multiplied with: 0 where it is dropped.
  double dropped(int32_t position) {
    if (!params_.dropout.drops) return 1;
    return dropout_.keeps(position) ? static_cast<double>(params_.dropout.keep_factor) : 0;
  }

  /// Adds the n keys whose scores wait.
  void add(int32_t n) {
    Real max = max_;
    for (int32_t i = 0; i < n; ++i) max = score_[i] > max ? score_[i] : max;
    const Slab& values = params_.storage.v;
    const int32_t dim = values.head_dim();
    if (max > max_) {
      const auto keep = static_cast<double>(std::exp(max_ - max));
      total_ *= keep;
      for (int32_t d = 0; d < dim; ++d) sum_[d] *= keep;
      max_ = max;
    }
    for (int32_t i = 0; i < n; ++i) {
      const auto weight = static_cast<double>(std::exp(score_[i] - shift()));
      total_ += weight;
      const double kept = dropped(position_[i]);
      if (kept == 0) continue;
      kernels().decode(values.format, value_, values.stored(kv_head_, cell_[i]));
      for (int32_t d = 0; d < dim; ++d) sum_[d] += weight * kept * static_cast<double>(value_[d]);
    }
  }

  Real shift() const { return max_ == minus_infinity ? 0 : max_; }

  void write() {
    const double seen = total_;
    if (const float* sinks = params_.constants.sinks; sinks != nullptr && seen != 0)
      total_ += std::exp(static_cast<double>(sinks[head_]) - static_cast<double>(shift()));
    write_out(seen == 0);
    if (params_.tensors.weights.data != nullptr) write_weights(seen == 0);
    const Tensor& lse = params_.tensors.lse;
    if (lse.data == nullptr) return;
    const double sum = static_cast<double>(shift()) + std::log(seen);
    static_cast<float*>(
        lse.data)[lse.token_offset(row_.token) + head_ * lse.stride[1]] = static_cast<float>(sum);
  }

  void write_out(bool sees_nothing) {
    const RowFormat& format = params_.storage.v.format;
    for (int32_t d = 0; d < format.head_dim; ++d)
      value_[d] = sees_nothing ? 0 : static_cast<float>(sum_[d] / total_);
    if (format.rotation != 0) kernels().rotate_back(value_, format.head_dim, format.rotation);
    const Tensor& out = params_.tensors.out;
    const int64_t first = out.token_offset(row_.token) + head_ * out.stride[1];
    for (int32_t d = 0; d < format.head_dim; ++d)
      store_element(out.data, out.dtype, first + d * out.stride[2], value_[d]);
  }

  void write_weights(bool sees_nothing) {
    const Tensor& weights = params_.tensors.weights;
    float* const first = static_cast<float*>(weights.data) + head_ * weights.stride[0] +
                         weights.token_offset(row_.token, 1);
    const auto at = [&](int64_t column) -> float& { return first[column * weights.stride[2]]; };
    for (int64_t column = 0; column < weights.shape[2]; ++column) at(column) = 0;
    if (sees_nothing) return;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t position) {
      const Real x = score(cell, position);
      if (x == minus_infinity) return;
      const auto weight = static_cast<double>(std::exp(x - shift()));
      at(cell - first_column_) = static_cast<float>(weight * dropped(position) / total_);
    });
  }

  const AttentionParams& params_;
  const AttentionRow& row_;
  const int32_t head_, kv_head_, first_column_, head_dim_k_;
  float *query_, *key_, *stored_query_, *turned_query_;  // [head_dim_k], padded with zeros
  std::byte* rotations_;
  float* value_;  // [head_dim_v]
  double* sum_;   // [head_dim_v] of weights · values, relative to max_
  Real* score_;   // [keys_at_once] of the keys that wait, with their cells and positions
  int32_t *position_, *cell_;
  DropoutRow dropout_;
  int32_t turned_by_ = 0;
  Real max_ = minus_infinity;
  double total_ = 0;  // of weights, relative to max_
};

struct Job {
  const AttentionParams* params;
  Workspace space;
  int32_t first_row;
};

void run_one(void* context, int32_t item, int32_t thread) noexcept {
  const Job& job = *static_cast<const Job*>(context);
  const AttentionParams& params = *job.params;
  const int32_t n_heads = params.constants.n_q_heads;
  const ThreadScratch scratch = job.space.scratch_of(thread);
  const AttentionRow& row = params.plan.rows[job.first_row + item / n_heads];
  if (params.settings.in_double) {
    VanillaRow<double>(params, scratch, row, item % n_heads).run();
  } else {
    VanillaRow<float>(params, scratch, row, item % n_heads).run();
  }
}

}  // namespace

void vanilla_attention(const AttentionParams& params, ThreadPool& pool) noexcept {
  write_padding(params);
  Job job{&params, {}, 0};
  job.space.place(params, pool.n_threads());
  for (int32_t thread = 0; thread < pool.n_threads(); ++thread)
    OffsetRotations::forget(job.space.scratch_of(thread).rotations);
  const int32_t n_rows = params.plan.n_rows, n_heads = params.constants.n_q_heads;
  const int32_t rows_at_once = ThreadPool::items_max / n_heads;
  for (; job.first_row < n_rows; job.first_row += rows_at_once)
    pool.run(std::min(rows_at_once, n_rows - job.first_row) * n_heads, run_one, &job);
}

}  // namespace kvc::cpu
