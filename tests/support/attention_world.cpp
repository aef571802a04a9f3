#include "attention_world.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "fuzz_world.hpp"

namespace fuzz {

kvc_attention_extra AttentionWorld::Extra::describe() {
  return support::extra(bias ? bias->tensor() : nullptr, mask ? mask->tensor() : nullptr,
                        weights ? weights->tensor() : nullptr);
}

bool AttentionWorld::wild(const std::vector<double>& values) {
  constexpr double too_large = 50;  // beyond it a logit's f32 rounding alone outgrows the tolerance
  return std::any_of(values.begin(), values.end(),
                     [](double value) { return !(std::fabs(value) <= too_large); });
}

void AttentionWorld::compare_attention(int32_t layer, const Queries& queries, bool with_lse,
                                       const Extra& extra, const model::AttentionResult& expected,
                                       const ColumnOf& column_of) {
  const support::Array &out = queries.out, &lse = queries.lse;
  if (!out.gaps_intact() || !lse.gaps_intact() || (extra.weights && !extra.weights->gaps_intact()))
    differ("attention wrote beside its output");
  const kvc_tensor& shape = *out.tensor();
  const auto heads = static_cast<int32_t>(shape.shape[shape.ndim - 2]);
  const int64_t dv = shape.shape[shape.ndim - 1];
  for (int32_t t = 0; t < n_tokens(); ++t) {
    if (is_wild(layer, t)) {
      ++counts_.rows_wild;
      continue;
    }
    ++counts_.rows_compared;
    for (int32_t h = 0; h < heads; ++h) {
      const auto row = static_cast<size_t>(t * heads + h);
      const double largest = expected.largest[row], magnitude = expected.magnitude[row];
      const double sum = expected.lse[row];
      for (int64_t d = 0; d < dv; ++d) {
        const int64_t at = static_cast<int64_t>(row) * dv + d;
        const double wanted = expected.out[static_cast<size_t>(at)], got = out.get(at);
        counts_.trace(std::bit_cast<uint64_t>(got));
        const double tolerance = model::attention_error(magnitude, largest) +
                                 0.51 * model::spacing(shape.dtype, wanted) + 1e-30;
        if (!(std::fabs(got - wanted) <= tolerance))  // NaN is a difference
          differ("attention of token " + std::to_string(t) + " of the batch, head " +
                 std::to_string(h) + ", dimension " + std::to_string(d) + " is " +
                 std::to_string(got) + ", expected " + std::to_string(wanted));
      }
      const double got = lse.get(static_cast<int64_t>(row));
      if (with_lse && got != sum && !(std::fabs(got - sum) <= model::log_sum_exp_error(magnitude)))
        differ("log-sum-exp is " + std::to_string(got) + ", expected " + std::to_string(sum));
      if (!extra.weights) continue;
      const kvc_tensor& weights = *extra.weights->tensor();
      std::vector<double> wanted(static_cast<size_t>(weights.shape[weights.ndim - 1]));
      for (const auto& [position, weight] : expected.weights[row])
        wanted[static_cast<size_t>(column_of(t, position))] = weight;
      compare_weights(t, h, *extra.weights, sum, wanted);
    }
  }
}

/// A weight where the token sees something, 0 everywhere else.
void AttentionWorld::compare_weights(int32_t token, int32_t head, const support::Array& weights,
                                     double lse, const std::vector<double>& wanted) const {
  const double slack = 4e-5 + logit_rounding(lse);
  for (size_t c = 0; c < wanted.size(); ++c) {
    const double got = support::broadcast_get(
        weights, {token / q_len(), head, token % q_len(), static_cast<int64_t>(c)});
    if (!(wanted[c] == 0 ? got == 0 : std::fabs(got - wanted[c]) <= slack))
      differ("the weight of token " + std::to_string(token) + " of the batch, column " +
             std::to_string(c) + " is " + std::to_string(got) + ", expected " +
             std::to_string(wanted[c]));
  }
}

}  // namespace fuzz
