#include "attention.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

namespace model {

double attend_row(const Constants& constants, int32_t head, double scale,
                  const std::vector<Seen>& keys, int32_t head_dim_v, double* out, double* weights) {
  std::fill(out, out + head_dim_v, 0.0);
  if (keys.empty()) return -HUGE_VAL;
  const auto h = static_cast<size_t>(head);
  std::vector<double> logit;
  for (const Seen& key : keys) {
    double x = scale * key.dot;
    if (constants.softcap > 0) x = constants.softcap * std::tanh(x / constants.softcap);
    if (!constants.slopes.empty()) x -= constants.slopes[h] * key.distance;
    logit.push_back(x + key.bias);
  }
  double largest = *std::max_element(logit.begin(), logit.end());
  double visible = 0;
  for (const double x : logit) visible += std::exp(x - largest);
  double total = visible;
  if (!constants.sinks.empty()) total += std::exp(constants.sinks[h] - largest);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (keys[i].counts == 0) continue;  // dropped: its weight is 0, whatever keys and values are
    const double weight = std::exp(logit[i] - largest) / total * keys[i].counts;
    if (weights) weights[i] = weight;
    for (int32_t d = 0; d < head_dim_v; ++d) out[d] += weight * keys[i].value[d];
  }
  return largest + std::log(visible);
}

namespace {

/// The oracles of causal and of transformer caches are asked the same.
template <class Asked>
AttentionResult attend_asking(const Asked& oracle, int32_t layer, int32_t n_q_heads,
                              const std::vector<double>& q, const Bias& bias, const Bias& counts) {
  const int32_t n = oracle.pass.n_tokens;
  const int32_t dk = oracle.cache.head_dim_k;
  const int32_t dv = oracle.cache.head_dim_v;
  const Constants& constants = oracle.constants[static_cast<size_t>(layer)];
  const double scale = constants.scale != 0 ? constants.scale
                                            : 1 / std::sqrt(static_cast<double>(dk));
  struct Row {
    std::vector<double> key, value;
    std::vector<float> stored_value;
  };
  std::map<std::pair<int32_t, int32_t>, Row> rows;  // by content and position, each made once
  AttentionResult result;
  result.out.resize(static_cast<size_t>(n * n_q_heads * dv));
  for (int32_t t = 0; t < n; ++t) {
    const int32_t p = oracle.pass.position[static_cast<size_t>(t)];
    const std::vector<Token> tokens = oracle.visible(t);
    std::vector<const Row*> visible;
    for (const Token& token : tokens) {
      Row& row = rows[{token.content, token.position}];
      if (row.key.empty())
        row = {oracle.key(layer, token), oracle.value(layer, token),
               oracle.stored_value(layer, token)};
      visible.push_back(&row);
    }
    for (int32_t h = 0; h < n_q_heads; ++h) {
      const int32_t kv_head = h / (n_q_heads / oracle.cache.n_kv_heads);
      const double* query = q.data() + (t * n_q_heads + h) * dk;
      std::vector<Seen> seen;
      std::vector<std::pair<int32_t, double>> weights;
      double largest = 0, magnitude = 0;
      std::map<int32_t, std::vector<double>> multiplied;  // by what the key owes
      for (size_t i = 0; i < tokens.size(); ++i) {
        const double added = bias ? bias(h, t, tokens[i].position) : 0;
        if (added == -HUGE_VAL) continue;
        const double* key = visible[i]->key.data() + kv_head * dk;
        const double* value = visible[i]->value.data() + kv_head * dv;
        double dot = 0;
        for (int32_t d = 0; d < dk; ++d) dot += query[d] * key[d];
        const float* stored_value = visible[i]->stored_value.data() + kv_head * dv;
        for (int32_t d = 0; d < dv; ++d)
          largest = std::max({largest, std::fabs(value[d]), std::fabs(double{stored_value[d]})});
        const double distance = std::fabs(static_cast<double>(p) - tokens[i].position);
        std::vector<double>& turned = multiplied[oracle.pending_rotation(tokens[i])];
        if (turned.empty()) turned = oracle.as_multiplied(layer, tokens[i], query);
        const float* stored = oracle.stored_key(layer, tokens[i], kv_head);
        double sum = 0;
        for (int32_t d = 0; d < dk; ++d)
          sum += std::fabs(turned[static_cast<size_t>(d)] * stored[d]);
        sum = std::fabs(scale) * sum + std::fabs(added);
        if (!constants.slopes.empty())
          sum += std::fabs(constants.slopes[static_cast<size_t>(h)]) * distance;
        magnitude = std::max(magnitude, sum);
        seen.push_back({dot, distance, value, added});
        if (counts) seen.back().counts = counts(h, t, tokens[i].position);
        weights.emplace_back(tokens[i].position, 0);
      }
      double* out = result.out.data() + (t * n_q_heads + h) * dv;
      std::vector<double> weight(seen.size());
      result.lse.push_back(attend_row(constants, h, scale, seen, dv, out, weight.data()));
      for (size_t i = 0; i < weight.size(); ++i) weights[i].second = weight[i];
      result.weights.push_back(weights);
      result.largest.push_back(largest);
      result.magnitude.push_back(magnitude);
    }
  }
  return result;
}

}  // namespace

AttentionResult attend(const Oracle& oracle, int32_t layer, int32_t n_q_heads,
                       const std::vector<double>& q, const Bias& bias, const Bias& counts) {
  return attend_asking(oracle, layer, n_q_heads, q, bias, counts);
}

AttentionResult attend(const RowsOracle& oracle, int32_t layer, int32_t n_q_heads,
                       const std::vector<double>& q, const Bias& bias, const Bias& counts) {
  return attend_asking(oracle, layer, n_q_heads, q, bias, counts);
}

}  // namespace model
