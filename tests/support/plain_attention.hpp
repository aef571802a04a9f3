#pragma once
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace support {

/// Numbers between -1 and 1.
inline std::vector<float> sines(size_t n, float phase) {
  std::vector<float> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = std::sin(phase + 0.7f * static_cast<float>(i));
  return all;
}

/// The sizes of one attention.
struct PlainSizes {
  size_t n_q, n_k, q_heads, kv_heads, dim;
};

/// Attention of n_q queries over n_k keys, all [.., heads, dim], by the definition. weight(head, i, j) is what the weight of key j for
/// query i is multiplied with after the softmax: 1, or what dropout leaves.
inline std::vector<float> plain_attention(
    const PlainSizes& s, const float* q, const float* k, const float* v,
    const std::function<bool(size_t, size_t)>& sees, double scale, double sink = -HUGE_VAL,
    const std::function<double(size_t, size_t, size_t)>& weight = nullptr) {
  std::vector<float> out(s.n_q * s.q_heads * s.dim);
  for (size_t i = 0; i < s.n_q; ++i)
    for (size_t h = 0; h < s.q_heads; ++h) {
      const size_t kv = h / (s.q_heads / s.kv_heads), row = (i * s.q_heads + h) * s.dim;
      std::vector<double> score(s.n_k, -HUGE_VAL);
      double largest = sink;
      for (size_t j = 0; j < s.n_k; ++j) {
        if (!sees(i, j)) continue;
        double dot = 0;
        for (size_t d = 0; d < s.dim; ++d)
          dot += double{q[row + d]} * double{k[(j * s.kv_heads + kv) * s.dim + d]};
        score[j] = dot * scale;
        largest = std::max(largest, score[j]);
      }
      if (largest == -HUGE_VAL) continue;  // it sees nothing: zeros
      double sum = std::exp(sink - largest);
      for (double& x : score) sum += x = std::exp(x - largest);
      for (size_t d = 0; d < s.dim; ++d) {
        double value = 0;
        for (size_t j = 0; j < s.n_k; ++j) {
          if (score[j] == 0) continue;
          const double kept = weight ? weight(h, i, j) : 1;
          value += kept * score[j] / sum * double{v[(j * s.kv_heads + kv) * s.dim + d]};
        }
        out[row + d] = static_cast<float>(value);
      }
    }
  return out;
}

}  // namespace support
