#pragma once
#include <functional>
#include <utility>
#include <vector>

#include "oracle.hpp"
#include "rows_oracle.hpp"

/// softmax(scale * q k^T -> softcap -> + ALiBi / visibility -> sinks) v, by its definition, in
/// double.
namespace model {

struct AttentionResult {
  std::vector<double> out;  // [n_tokens, n_q_heads, head_dim_v]
  std::vector<double> lse;  // [n_tokens, n_q_heads]
  std::vector<std::vector<std::pair<int32_t, double>>> weights;  // [n_tokens, n_q_heads] of the
                                                                 // positions that the row sees
  // [n_tokens, n_q_heads] what errors are measured against (storage.hpp, attention_error): the largest |v| that the row sees, as
  // stored or as it is meant, and the largest scale * sum |q_i k_i| + |ALiBi| + |bias|.
  std::vector<double> largest, magnitude;
};

/// One key that one query sees: its logit before softcap and ALiBi, how far away it stands, its
/// value.
struct Seen {
  double dot;
  double distance;
  const double* value;  // [head_dim_v]
  double bias = 0;
  double counts = 1;  // what its weight is multiplied with: dropout
};

/// What a call adds to the score of a batch token and a position of its sequence; minus infinity
/// hides.
using Bias = std::function<double(int32_t head, int32_t token, int32_t position)>;

/// One query head over the keys that it sees. `out` [head_dim_v], `weights` [keys] may be null;
/// returns the log-sum-exp, without the sink.
double attend_row(const Constants& constants, int32_t head, double scale,
                  const std::vector<Seen>& keys, int32_t head_dim_v, double* out,
                  double* weights = nullptr);

/// The whole batch of the oracle's open pass. q [n_tokens, n_q_heads, head_dim_k]. `counts`, likewise, is what a weight is
/// multiplied with behind the softmax: dropout.
AttentionResult attend(const Oracle& oracle, int32_t layer, int32_t n_q_heads,
                       const std::vector<double>& q, const Bias& bias = {}, const Bias& counts = {});
/// The same of a pass of rows, token b * q_len + i of which is token i of row b.
AttentionResult attend(const RowsOracle& oracle, int32_t layer, int32_t n_q_heads,
                       const std::vector<double>& q, const Bias& bias = {}, const Bias& counts = {});

}  // namespace model
