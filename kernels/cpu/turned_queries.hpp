#pragma once
#include <cmath>
#include <cstdint>

#include "core/attention/params.hpp"

/// Queries turned back by what keys owe: q · R(offset) k = R(−offset) q · k.
namespace kvc::cpu {

/// Cosines, then sines, of the angles of one offset: n_dims floats. Made in double, because an offset may be large.
inline void make_turn(const Rope& rope, int32_t offset, float* turn) {
  const int32_t n_pairs = rope.n_dims / 2;
  for (int32_t i = 0; i < n_pairs; ++i) {
    const double angle = offset * rope.frequency[i];
    turn[i] = static_cast<float>(std::cos(angle));
    turn[n_pairs + i] = static_cast<float>(std::sin(angle));
  }
}

/// One row of `stride` floats; those behind the rotated dimensions are copied.
inline void turn_query(const Rope& rope, const float* turn, const float* from, float* to,
                       int32_t stride) {
  const int32_t n_pairs = rope.n_dims / 2;
  const float* cosine = turn;
  const float* sine = turn + n_pairs;
  const int32_t step = rope.halves ? 1 : 2;
  const int32_t partner = rope.halves ? n_pairs : 1;
  for (int32_t i = 0; i < n_pairs; ++i) {
    const float a = from[i * step];
    const float b = from[i * step + partner];
    to[i * step] = a * cosine[i] + b * sine[i];
    to[i * step + partner] = b * cosine[i] - a * sine[i];
  }
  for (int32_t i = rope.n_dims; i < stride; ++i) to[i] = from[i];
}

}  // namespace kvc::cpu
