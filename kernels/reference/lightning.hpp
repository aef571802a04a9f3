#pragma once
#include <vector>

#include "core/attention/lightning.hpp"

namespace kvc {

/// Numbers, and the sum of the magnitudes of the terms that make each.
struct ReferenceNumbers {
  std::vector<double> value, magnitude;
};

/// What linear attention with decay means, term by term in double: the oracle that every kernel is compared with. One row of
/// `params`, whose input is tensors: its outputs, [n_tokens, n_q_heads, head_dim_v], and the state behind it, [n_heads,
/// head_dim_k, head_dim_v]. Writes nothing of `params`. It allocates, so it may throw.
void reference_lightning(const LightningParams& params, const LightningRow& row,
                         ReferenceNumbers* out, ReferenceNumbers* state);

}  // namespace kvc
