#include "kernels/cpu/vanilla.hpp"

#include <algorithm>
#include <cmath>

#include "core/attention/visible.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/row_scores.hpp"

/// Scores wait in the thread's scratch, some keys at a time, so that no matrix of scores exists. The weights, where a call asks for
/// them, are computed by another walk over the keys.
namespace kvc::cpu {
namespace {

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
        scores_(params, scratch, row, head),
        value_(scratch.folded_o),
        sum_(reinterpret_cast<double*>(scratch.o)),
        score_(reinterpret_cast<Real*>(scratch.bias)),
        position_(scratch.position),
        cell_(scratch.cell),
        dropout_(params.dropout, row.sequence, row.position, head) {}

  void run() {
    std::fill_n(sum_, params_.storage.v.head_dim(), 0.0);
    int32_t n = 0;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t position) {
      const Real x = scores_.score(cell, position);
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
  static constexpr Real minus_infinity = RowScores<Real>::minus_infinity;

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
      keeps_any_ = true;
      kernels().decode(values.format, value_, values.stored(scores_.kv_head(), cell_[i]));
      for (int32_t d = 0; d < dim; ++d) sum_[d] += weight * kept * static_cast<double>(value_[d]);
    }
  }

  Real shift() const { return max_ == minus_infinity ? 0 : max_; }

  void write() {
    const double seen = total_;
    if (const float* sinks = params_.constants.sinks; sinks != nullptr && seen != 0)
      total_ += std::exp(static_cast<double>(sinks[head_]) - static_cast<double>(shift()));
    write_out();
    if (params_.tensors.weights.data != nullptr) write_weights(seen == 0);
    const Tensor& lse = params_.tensors.lse;
    if (lse.data == nullptr) return;
    const double sum = static_cast<double>(shift()) + std::log(seen);
    static_cast<float*>(
        lse.data)[lse.token_offset(row_.token) + head_ * lse.stride[1]] = static_cast<float>(sum);
  }

  void write_out() {
    const RowFormat& format = params_.storage.v.format;
    for (int32_t d = 0; d < format.head_dim; ++d)
      value_[d] = keeps_any_ ? static_cast<float>(sum_[d] / total_) : 0;
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
      const Real x = scores_.score(cell, position);
      const double kept = dropped(position);
      if (x == minus_infinity || kept == 0) return;
      const auto weight = static_cast<double>(std::exp(x - shift()));
      at(scores_.column(cell)) = static_cast<float>(weight * kept / total_);
    });
  }

  const AttentionParams& params_;
  const AttentionRow& row_;
  const int32_t head_;
  RowScores<Real> scores_;
  float* value_;  // [head_dim_v]
  double* sum_;   // [head_dim_v] of weights · values, relative to max_
  Real* score_;   // [keys_at_once] of the keys that wait, with their cells and positions
  int32_t *position_, *cell_;
  DropoutRow dropout_;
  Real max_ = minus_infinity;
  double total_ = 0;  // of weights, relative to max_
  bool keeps_any_ = false;  // a key that is seen and not dropped; without one the output is 0, whatever the scores
};

}  // namespace

void vanilla_attention(const AttentionParams& params, ThreadPool& pool) noexcept {
  write_padding(params);
  for_each_row_and_head(params, pool,
                        [&](const ThreadScratch& scratch, const AttentionRow& row, int32_t head) {
                          if (params.settings.in_double) {
                            VanillaRow<double>(params, scratch, row, head).run();
                          } else {
                            VanillaRow<float>(params, scratch, row, head).run();
                          }
                        });
}

}  // namespace kvc::cpu
