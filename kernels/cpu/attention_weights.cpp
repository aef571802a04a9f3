#include "kernels/cpu/attention_weights.hpp"

#include <cmath>

#include "core/attention/visible.hpp"
#include "kernels/cpu/row_scores.hpp"

/// The weights are as large as a score matrix and serve inspection. A pass of their own over the
/// keys computes them, one row at a time, so that attention itself never holds such a matrix.
namespace kvc::cpu {
namespace {

/// One row of the plan and one query head.
class WeightsRow {
 public:
  WeightsRow(const AttentionParams& params, const ThreadScratch& scratch, const AttentionRow& row,
             int32_t head)
      : params_(params), row_(row), head_(head), scores_(params, scratch, row, head) {}

  void run() {
    const Tensor& weights = params_.tensors.weights;
    for (int64_t column = 0; column < weights.shape[2]; ++column) at(column) = 0;
    float max = minus_infinity;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t position) {
      const float x = scores_.score(cell, position);
      at(scores_.column(cell)) = x;
      if (x > max) max = x;
    });
    const float shift = max == minus_infinity ? 0.0f : max;
    double total = 0;
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t) {
      float& weight = at(scores_.column(cell));
      weight = weight == minus_infinity ? 0.0f : std::exp(weight - shift);
      total += static_cast<double>(weight);
    });
    if (total == 0) return;
    if (const float* sinks = params_.constants.sinks)
      total += std::exp(static_cast<double>(sinks[head_] - shift));
    // What a bias or mask hides keeps its 0 beside a NaN, too.
    for_each_visible(params_.plan, row_, [&](int32_t, int32_t cell, int32_t) {
      float& weight = at(scores_.column(cell));
      if (weight != 0) weight = static_cast<float>(static_cast<double>(weight) / total);
    });
  }

 private:
  static constexpr float minus_infinity = RowScores<float>::minus_infinity;

  float& at(int64_t column) {
    const Tensor& weights = params_.tensors.weights;
    return static_cast<float*>(
        weights.data)[head_ * weights.stride[0] + weights.token_offset(row_.token, 1) +
                      column * weights.stride[2]];
  }

  const AttentionParams& params_;
  const AttentionRow& row_;
  const int32_t head_;
  RowScores<float> scores_;
};

}  // namespace

void attention_weights(const AttentionParams& params, ThreadPool& pool) noexcept {
  for_each_row_and_head(params, pool,
                        [&](const ThreadScratch& scratch, const AttentionRow& row, int32_t head) {
                          WeightsRow(params, scratch, row, head).run();
                        });
}

}  // namespace kvc::cpu
