#pragma once
#include "kernels/cpu/integers.hpp"

/// The rotation of stored rows (docs/SEMANTICS.md, section 9): y = H (s ∘ x) / √b. Stages of distance 1, 2, 4, … replace each pair
/// (u, v) by (u + v, u − v): first those within a vector, then up to three at a time between eight vectors.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

/// Rudin-Shapiro: a constant vector becomes flat instead of one spike.
constexpr bool is_negative(int32_t i) {
  return __builtin_parity(static_cast<uint32_t>(i & (i >> 1))) != 0;
}

/// Bits that change the sign of each lane: of vectors with even and with odd index, up to a sign that is common to the vector.
struct SignTables {
  int32_t flip[2][16] = {};
  constexpr SignTables() {
    for (int32_t odd = 0; odd < 2; ++odd) {
      for (int32_t i = 0; i < lanes; ++i)
        flip[odd][i] = is_negative(odd * lanes + i) ? INT32_MIN : 0;
    }
  }
};
inline constexpr SignTables sign_tables;

/// The signs of vector `index` of a block.
KVC_INLINE Vec with_signs(Vec x, int32_t index) {
  Ints flip;
  __builtin_memcpy(&flip, sign_tables.flip[index % 2], sizeof flip);
  return (Vec)((Ints)x ^ flip ^ (is_negative(index) ? INT32_MIN : 0));
}

/// Lanes whose bit `distance` is set, as bits that change their sign.
template <int32_t distance>
struct UpperLanes {
  int32_t flip[lanes] = {};
  constexpr UpperLanes() {
    for (int32_t i = 0; i < lanes; ++i) flip[i] = (i & distance) != 0 ? INT32_MIN : 0;
  }
};

/// Each lane and the one at this distance: u + v in the lower, u − v in the upper.
template <int32_t distance>
KVC_INLINE Vec lane_stage(Vec x) {
  static constexpr UpperLanes<distance> upper;
  Ints flip;
  __builtin_memcpy(&flip, upper.flip, sizeof flip);
  return swap_lanes<distance>(x) + (Vec)((Ints)x ^ flip);
}

KVC_INLINE Vec lane_stages(Vec x) {
  x = lane_stage<2>(lane_stage<1>(x));
  if constexpr (lanes >= 8) x = lane_stage<4>(x);
  if constexpr (lanes >= 16) x = lane_stage<8>(x);
  return x;
}

template <int32_t count>
KVC_INLINE void vector_stages(Vec (&x)[count]) {
  for (int32_t distance = 1; distance < count; distance *= 2) {
    for (int32_t i = 0; i < count; ++i) {
      if ((i & distance) != 0) continue;
      const Vec u = x[i], v = x[i + distance];
      x[i] = u + v;
      x[i + distance] = u - v;
    }
  }
}

/// What is done with vector `index` of a block before and after the stages.
struct Ends {
  bool signs_first;
  bool signs_last;
  Vec factor;

  [[gnu::always_inline]] Vec first(Vec x, int32_t index) const {
    return signs_first ? with_signs(x, index) : x;
  }
  [[gnu::always_inline]] Vec last(Vec x, int32_t index) const {
    x = x * factor;
    return signs_last ? with_signs(x, index) : x;
  }
};

/// Stages between vectors that lie `apart`, over a block of n_vectors; apart 1 begins with the stages within vectors.
template <int32_t count>
KVC_INLINE void transform_by(float* block, int32_t n_vectors, int32_t apart, const Ends& ends) {
  const bool is_last = apart * count == n_vectors;
  for (int32_t group = 0; group < n_vectors; group += apart * count) {
    for (int32_t at = group; at < group + apart; ++at) {
      Vec x[count];
#pragma GCC unroll 8
      for (int32_t i = 0; i < count; ++i) {
        x[i] = load_unaligned(block + (at + i * apart) * lanes);
        if (apart == 1) x[i] = lane_stages(ends.first(x[i], at + i));
      }
      vector_stages(x);
#pragma GCC unroll 8
      for (int32_t i = 0; i < count; ++i) {
        const int32_t index = at + i * apart;
        store_unaligned(block + index * lanes, is_last ? ends.last(x[i], index) : x[i]);
      }
    }
  }
}

KVC_INLINE void transform(float* block, int32_t size, const Ends& ends) {
  const int32_t n_vectors = size / lanes;
  int32_t apart = 1;
  for (; n_vectors / apart >= 8; apart *= 8) transform_by<8>(block, n_vectors, apart, ends);
  if (n_vectors / apart == 4) return transform_by<4>(block, n_vectors, apart, ends);
  if (n_vectors / apart == 2) return transform_by<2>(block, n_vectors, apart, ends);
  if (n_vectors == 1) transform_by<1>(block, 1, 1, ends);
}

/// Blocks smaller than a vector.
KVC_INLINE void transform_small(float* x, int32_t size, float factor, bool signs_first) {
  const auto with_sign_of = [](float value, int32_t i) { return is_negative(i) ? -value : value; };
  for (int32_t i = 0; signs_first && i < size; ++i) x[i] = with_sign_of(x[i], i);
  for (int32_t distance = 1; distance < size; distance *= 2) {
    for (int32_t i = 0; i < size; ++i) {
      if ((i & distance) != 0) continue;
      const float u = x[i], v = x[i + distance];
      x[i] = u + v;
      x[i + distance] = u - v;
    }
  }
  for (int32_t i = 0; i < size; ++i)
    x[i] = signs_first ? x[i] * factor : with_sign_of(x[i] * factor, i);
}

/// 1/√size, correctly rounded.
KVC_INLINE float root_factor(int32_t size) {
  float factor = 1;
  for (; size > 2; size /= 4) factor /= 2;
  return size == 2 ? factor * 0x1.6a09e6p-1f : factor;
}

KVC_INLINE void rotate(float* values, int64_t count, int32_t block, bool back) {
  const float factor = root_factor(block);
  const Ends ends = {.signs_first = !back, .signs_last = back, .factor = broadcast(factor)};
  for (float* x = values; x < values + count; x += block) {
    if (block < lanes) {
      transform_small(x, block, factor, !back);
    } else {
      transform(x, block, ends);
    }
  }
}

[[maybe_unused]] static void rotate_blocks(float* values, int64_t count, int32_t block) {
  rotate(values, count, block, false);
}
[[maybe_unused]] static void rotate_blocks_back(float* values, int64_t count, int32_t block) {
  rotate(values, count, block, true);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
