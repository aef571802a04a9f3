#include "kernels/reference/lightning.hpp"

#include <cmath>
#include <cstring>

#include "core/base/half.hpp"

namespace kvc {
namespace {

double element(const Tensor& t, int64_t token, int64_t head, int64_t d) {
  return static_cast<double>(
      load_element(t.data, t.dtype, token * t.stride[0] + head * t.stride[1] + d * t.stride[2]));
}

/// The state before the row, and the tokens up to one of them: what a number is the sum of.
struct Terms {
  const LightningParams& params;
  const LightningRow& row;
  int32_t head;

  double decay(int64_t positions) const {
    return std::exp(-static_cast<double>(params.slopes[head]) * static_cast<double>(positions));
  }
  double before(int64_t d_k, int64_t d_v) const {
    const int64_t stride = padded_to_vectors(params.bounds.head_dim_v);
    float x = 0;
    std::memcpy(
        &x,
        params.states.slot(row.from) + 4 * ((head * params.bounds.head_dim_k + d_k) * stride + d_v),
        sizeof x);
    return static_cast<double>(x);
  }
  /// Calls add(factor) with what multiplies k[d_k] v[d_v] of the state at `position`, the old state's own numbers apart.
  template <class Add>
  void for_each_token(int32_t position, int64_t d_k, int64_t d_v, Add add) const {
    for (int32_t i = 0; i < row.n_tokens; ++i) {
      const LightningToken& token = params.token[row.first_token + i];
      if (token.position > position) return;
      if (token.is_masked) continue;
      add(decay(position - token.position) * element(params.k, token.index, head, d_k) *
          element(params.v, token.index, head, d_v));
    }
  }
};

}  // namespace

void reference_lightning(const LightningParams& params, const LightningRow& row,
                         ReferenceNumbers* out, ReferenceNumbers* state) {
  *out = *state = {};
  const auto put = [](ReferenceNumbers* to, double value, double magnitude) {
    to->value.push_back(value);
    to->magnitude.push_back(magnitude);
  };
  const int32_t group = params.q.data == nullptr ? 1 : params.n_q_heads / params.bounds.n_heads;
  for (int32_t i = 0; params.q.data != nullptr && i < row.n_tokens; ++i) {
    const LightningToken& token = params.token[row.first_token + i];
    for (int32_t head = 0; head < params.n_q_heads; ++head) {
      const Terms terms = {params, row, head / group};
      for (int64_t d_v = 0; d_v < params.bounds.head_dim_v; ++d_v) {
        double sum = 0, magnitude = 0;
        for (int64_t d_k = 0; d_k < params.bounds.head_dim_k; ++d_k) {
          const double q = static_cast<double>(params.scale) *
                           element(params.q, token.index, head, d_k);
          const auto add = [&](double x) {
            sum += q * x;
            magnitude += std::fabs(q * x);
          };
          add(terms.decay(token.position + 1 - row.next) * terms.before(d_k, d_v));
          terms.for_each_token(token.position, d_k, d_v, add);
        }
        put(out, sum, magnitude);
      }
    }
  }
  const int32_t last = params.token[row.first_token + row.n_tokens - 1].position;
  for (int32_t head = 0; head < params.bounds.n_heads; ++head) {
    const Terms terms = {params, row, head};
    for (int64_t d_k = 0; d_k < params.bounds.head_dim_k; ++d_k) {
      for (int64_t d_v = 0; d_v < params.bounds.head_dim_v; ++d_v) {
        double sum = 0, magnitude = 0;
        const auto add = [&](double x) {
          sum += x;
          magnitude += std::fabs(x);
        };
        add(terms.decay(last + 1 - row.next) * terms.before(d_k, d_v));
        terms.for_each_token(last, d_k, d_v, add);
        put(state, sum, magnitude);
      }
    }
  }
}

}  // namespace kvc
