#pragma once
#include <cmath>
#include <cstdint>

#include "core/attention/params.hpp"

/// RoPE: the one place of the CPU kernels that computes angles, and the one that applies them. A
/// rotation is a table of cosines, then of sines, that its caller holds.
namespace kvc::cpu {

/// Some pairs of the dimensions that a Rope rotates.
struct PairRange {
  int32_t first = 0;
  int32_t count = 0;
};

/// Writes the rotation of `pairs` by `offset` positions: 2 · count floats. Angles are computed in
/// double, because an offset may be large.
inline void make_rotation(const Rope& rope, PairRange pairs, int32_t offset, float* rotation) {
  for (int32_t i = 0; i < pairs.count; ++i) {
    const double angle = offset * rope.frequency[pairs.first + i];
    rotation[i] = static_cast<float>(std::cos(angle));
    rotation[pairs.count + i] = static_cast<float>(std::sin(angle));
  }
}

/// Rotates `pairs` of a row, whose dimension d is load(d) before and becomes store(d, x).
template <class Load, class Store>
inline void rotate_pairs(const Rope& rope, PairRange pairs, const float* rotation, Load load,
                         Store store) {
  const float* cosine = rotation;
  const float* sine = rotation + pairs.count;
  const int32_t step = rope.halves ? 1 : 2;
  const int32_t partner = rope.halves ? rope.n_dims / 2 : 1;
  for (int32_t i = 0; i < pairs.count; ++i) {
    const int32_t first = rope.first_dim + (pairs.first + i) * step;
    const int32_t second = first + partner;
    const float a = load(first);
    const float b = load(second);
    store(first, a * cosine[i] - b * sine[i]);
    store(second, a * sine[i] + b * cosine[i]);
  }
}

}  // namespace kvc::cpu
