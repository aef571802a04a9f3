#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/vectors.hpp"

/// Rotations by RoPE as the driver applies them (offset_rotations.hpp): loops over cosines and sines, and over the dimensions of
/// a row.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

using Doubles = double __attribute__((vector_size(64)));

/// to = a · b, which may be one: cosines, then `count` sines, a multiple of 8 of each.
[[maybe_unused]] static void multiply_turns(double* to, const double* a, const double* b,
                                            int64_t count) {
  constexpr int64_t width = sizeof(Doubles) / sizeof(double);
  for (int64_t i = 0; i < count; i += width) {
    Doubles a_cosine, a_sine, b_cosine, b_sine;
    __builtin_memcpy(&a_cosine, a + i, sizeof(Doubles));
    __builtin_memcpy(&a_sine, a + count + i, sizeof(Doubles));
    __builtin_memcpy(&b_cosine, b + i, sizeof(Doubles));
    __builtin_memcpy(&b_sine, b + count + i, sizeof(Doubles));
    const Doubles cosine = a_cosine * b_cosine - a_sine * b_sine;
    const Doubles sine = a_cosine * b_sine + a_sine * b_cosine;
    __builtin_memcpy(to + i, &cosine, sizeof(Doubles));
    __builtin_memcpy(to + count + i, &sine, sizeof(Doubles));
  }
}

/// Some cosines and sines of a rotation: high · low, the sines times `sign`, which is 1 or −1.
struct Turns {
  Vec cosine, sine;
};
KVC_INLINE Turns turns_at(const KeyTurn& turn, int64_t i) {
  const Vec a_cosine = load(turn.high + i), a_sine = load(turn.high + turn.count + i);
  const Vec b_cosine = load(turn.low + i), b_sine = load(turn.low + turn.count + i);
  return {fma(a_cosine, b_cosine, zero() - a_sine * b_sine),
          fma(a_cosine, b_sine, a_sine * b_cosine) * broadcast(turn.sign)};
}

/// x of neighbouring lanes exchanged.
KVC_INLINE Vec swap_neighbours(Vec x) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__AVX2__)
  return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return __builtin_shufflevector(x, x, 1, 0, 3, 2);
#endif
}

template <class Storage>
KVC_INLINE const typename Storage::Element* row_of(const TurnedRows& rows, int32_t index, int64_t dim) {
  const std::byte* row = rows.from + static_cast<size_t>(rows.cell[index]) * rows.from_stride;
  return reinterpret_cast<const typename Storage::Element*>(row) + dim;
}

/// Pairs (i, i + half) of the dimensions from `first` on.
template <class Storage>
KVC_INLINE void turn_halves(const TurnedRows& rows, const KeyTurn& turn, int64_t first, int64_t half) {
  int64_t i = 0;
  for (; i + lanes <= half; i += lanes) {
    const Turns t = turns_at(turn, i);
    float* to = rows.to + first + i;
    for (int32_t r = 0; r < rows.n; ++r, to += rows.to_stride) {
      const auto* from = row_of<Storage>(rows, r, first + i);
      const Vec a = load_as<Storage>(from), b = load_as<Storage>(from + half);
      store_unaligned(to, fma(a, t.cosine, zero() - b * t.sine));
      store_unaligned(to + half, fma(a, t.sine, b * t.cosine));
    }
  }
  if (i == half) return;
  const Turns t = turns_at(turn, i);
  float* to = rows.to + first + i;
  for (int32_t r = 0; r < rows.n; ++r, to += rows.to_stride) {
    const auto* from = row_of<Storage>(rows, r, first + i);
    typename Storage::Element rest_a[lanes] = {}, rest_b[lanes] = {};
    alignas(64) float wide_a[lanes], wide_b[lanes];
    for (int64_t j = 0; j < half - i; ++j) rest_a[j] = from[j], rest_b[j] = from[half + j];
    const Vec a = load_as<Storage>(rest_a), b = load_as<Storage>(rest_b);
    store(wide_a, fma(a, t.cosine, zero() - b * t.sine));
    store(wide_b, fma(a, t.sine, b * t.cosine));
    for (int64_t j = 0; j < half - i; ++j) to[j] = wide_a[j], to[half + j] = wide_b[j];
  }
}

/// Pairs (2i, 2i + 1) of the dimensions from `first` on.
template <class Storage>
KVC_INLINE void turn_neighbours(const TurnedRows& rows, const KeyTurn& turn, int64_t first,
                                int64_t n_dims) {
  const auto turned = [](const Turns& t, Vec x) {
    return fma(x, t.cosine, swap_neighbours(x) * t.sine);
  };
  int64_t i = 0;
  for (; i + lanes <= n_dims; i += lanes) {
    const Turns t = turns_at(turn, i);
    float* to = rows.to + first + i;
    for (int32_t r = 0; r < rows.n; ++r, to += rows.to_stride)
      store_unaligned(to, turned(t, load_as<Storage>(row_of<Storage>(rows, r, first + i))));
  }
  if (i == n_dims) return;
  const Turns t = turns_at(turn, i);
  float* to = rows.to + first + i;
  for (int32_t r = 0; r < rows.n; ++r, to += rows.to_stride) {
    const auto* from = row_of<Storage>(rows, r, first + i);
    typename Storage::Element rest[lanes] = {};
    alignas(64) float wide[lanes];
    for (int64_t j = 0; j < n_dims - i; ++j) rest[j] = from[j];
    store(wide, turned(t, load_as<Storage>(rest)));
    for (int64_t j = 0; j < n_dims - i; ++j) to[j] = wide[j];
  }
}

/// Dimensions [begin, end), which are not turned.
template <class Storage>
KVC_INLINE void convert_dims(const TurnedRows& rows, int64_t begin, int64_t end) {
  if (begin == end) return;
  for (int32_t r = 0; r < rows.n; ++r)
    widen<Storage>(rows.to + r * rows.to_stride + begin, row_of<Storage>(rows, r, begin),
                   end - begin, Unchanged{});
}

template <class Storage>
KVC_INLINE void turn_as(const TurnedRows& rows, const KeyTurn& turn) {
  const Rope& rope = *turn.rope;
  convert_dims<Storage>(rows, 0, rope.first_dim);
  if (rope.halves) {
    turn_halves<Storage>(rows, turn, rope.first_dim, rope.n_dims / 2);
  } else {
    turn_neighbours<Storage>(rows, turn, rope.first_dim, rope.n_dims);
  }
  convert_dims<Storage>(rows, rope.first_dim + rope.n_dims, rows.head_dim);
}

[[maybe_unused]] static void turn_rows(const TurnedRows& rows, const KeyTurn& turn) {
  switch (rows.type) {
    case DType::f32: return turn_as<F32>(rows, turn);
    case DType::f16: return turn_as<F16>(rows, turn);
    case DType::bf16: return turn_as<Bf16>(rows, turn);
    default: break;  // codes are decoded first
  }
  __builtin_unreachable();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
