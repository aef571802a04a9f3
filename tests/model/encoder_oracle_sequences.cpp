#include <algorithm>
#include <cmath>

#include "encoder_oracle.hpp"

/// Stepping back, copies and removals; what inputs hold, and attention over them.
namespace model {

bool EncoderOracle::can_continue(int32_t s, int32_t g) const {
  if (g == 0) return true;
  return g <= at(s).next && (at(s).input < 0 || g > at(s).at || g <= at(s).first);
}

int32_t EncoderOracle::best(int32_t s, int32_t want) const {
  const int32_t most = std::min(want, at(s).next);
  // Nothing lies between the first input and the newest.
  return can_continue(s, most) ? most : at(s).first;
}

EncoderSequence EncoderOracle::cut_to(EncoderSequence sequence, int32_t g) const {
  if (sequence.input >= 0 && g <= sequence.first) sequence = {};
  sequence.next = g;
  return sequence;
}

kvc_status EncoderOracle::may_remove_middle(int32_t s, int32_t b, int32_t e) const {
  const EncoderSequence& sequence = at(s);
  const bool takes_input = sequence.input >= 0 && b <= sequence.at && sequence.at < e;
  return takes_input && sequence.first < b ? KVC_E_WINDOW_LOST : KVC_OK;
}

void EncoderOracle::remove_middle(int32_t s, int32_t b, int32_t e) {
  EncoderSequence& sequence = at(s);
  const int32_t d = e - b, next = sequence.next - d;
  if (sequence.input >= 0 && sequence.at >= e) {
    sequence.at -= d;
    if (sequence.first >= b) sequence.first = std::max(b, sequence.first - d);
  } else if (sequence.input >= 0 && sequence.at >= b) {
    sequence = {};
  }
  sequence.next = next;
}

// ---- Contents ---------------------------------------------------------------------------------------------------------

std::vector<double> EncoderOracle::key(int32_t layer, int32_t index, int32_t row) const {
  std::vector<double> result;
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const std::vector<double> one = inputs[static_cast<size_t>(index)].k.values(
        stored_row(layer, index, row, head));
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

std::vector<double> EncoderOracle::value(int32_t layer, int32_t index, int32_t row) const {
  std::vector<double> result;
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const std::vector<double> one = inputs[static_cast<size_t>(index)].v.values(
        stored_row(layer, index, row, head));
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

AttentionResult EncoderOracle::attend(int32_t layer, int32_t n_q_heads,
                                      const std::vector<double>& q, const Bias& bias) const {
  const int32_t n = pass.n_tokens, dk = cache.head_dim_k, dv = cache.head_dim_v;
  const Constants& constant = constants[static_cast<size_t>(layer)];
  const double scale = constant.scale != 0 ? constant.scale : 1 / std::sqrt(static_cast<double>(dk));
  AttentionResult result;
  result.out.resize(static_cast<size_t>(n * n_q_heads * dv));
  for (int32_t t = 0; t < n; ++t) {
    const int32_t input = seen(t);
    const int32_t rows = input < 0 ? 0 : inputs[static_cast<size_t>(input)].length;
    std::vector<std::vector<double>> keys, values;
    for (int32_t row = 0; row < rows; ++row) {
      keys.push_back(key(layer, input, row));
      values.push_back(value(layer, input, row));
    }
    for (int32_t h = 0; h < n_q_heads; ++h) {
      const int32_t kv_head = h / (n_q_heads / cache.n_kv_heads);
      const double* query = q.data() + (t * n_q_heads + h) * dk;
      std::vector<Seen> visible;
      std::vector<std::pair<int32_t, double>> weights;
      double largest = 0, magnitude = 0;
      std::vector<double> multiplied(query, query + dk);
      rotate(storage_k, multiplied.data());
      for (int32_t row = 0; row < rows; ++row) {
        const double added = bias ? bias(h, t, row) : 0;
        if (added == -HUGE_VAL) continue;
        const double* k = keys[static_cast<size_t>(row)].data() + kv_head * dk;
        const double* v = values[static_cast<size_t>(row)].data() + kv_head * dv;
        double dot = 0;
        for (int32_t d = 0; d < dk; ++d) dot += query[d] * k[d];
        const EncoderInput& held = inputs[static_cast<size_t>(input)];
        const size_t stored = stored_row(layer, input, row, kv_head);
        double sum = 0;
        for (int32_t d = 0; d < dk; ++d)
          sum += std::fabs(multiplied[static_cast<size_t>(d)] * held.k.numbers(stored)[d]);
        magnitude = std::max(magnitude, std::fabs(scale) * sum + std::fabs(added));
        for (int32_t d = 0; d < dv; ++d)
          largest = std::max({largest, std::fabs(v[d]), std::fabs(double{held.v.numbers(stored)[d]})});
        visible.push_back({dot, 0, v, added});
        weights.emplace_back(row, 0);
      }
      double* out = result.out.data() + (t * n_q_heads + h) * dv;
      std::vector<double> weight(visible.size());
      result.lse.push_back(attend_row(constant, h, scale, visible, dv, out, weight.data()));
      for (size_t i = 0; i < weight.size(); ++i) weights[i].second = weight[i];
      result.weights.push_back(weights);
      result.largest.push_back(largest);
      result.magnitude.push_back(magnitude);
    }
  }
  return result;
}

}  // namespace model
