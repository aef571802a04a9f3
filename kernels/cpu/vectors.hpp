#pragma once
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// Loops over contiguous elements: conversion to and from f32, and the sums that the attention
/// driver needs.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

struct Unchanged {
  [[gnu::always_inline]] Vec operator()(Vec x) const { return x; }
};
struct Times {
  Vec factor;
  [[gnu::always_inline]] Vec operator()(Vec x) const { return x * factor; }
};

template <class Storage, class Change>
KVC_INLINE void widen(float* to, const typename Storage::Element* from, int64_t count, Change change) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    store_unaligned(to + i, change(load_as<Storage>(from + i)));
  if (i == count) return;
  typename Storage::Element rest[16] = {};
  alignas(64) float wide[16];
  for (int64_t j = i; j < count; ++j) rest[j - i] = from[j];
  store(wide, change(load_as<Storage>(rest)));
  for (int64_t j = i; j < count; ++j) to[j] = wide[j - i];
}

template <class Storage, class Change>
KVC_INLINE void narrow(typename Storage::Element* to, const float* from, int64_t count, Change change) {
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    store_as<Storage>(to + i, change(load_unaligned(from + i)));
  if (i == count) return;
  typename Storage::Element rest[16];
  alignas(64) float wide[16] = {};
  for (int64_t j = i; j < count; ++j) wide[j - i] = from[j];
  store_as<Storage>(rest, change(load(wide)));
  for (int64_t j = i; j < count; ++j) to[j] = rest[j - i];
}

template <class Change>
KVC_INLINE void widen_from(float* to, const void* from, DType from_type, int64_t count, Change change) {
  switch (from_type) {
    case DType::f32: return widen<F32>(to, static_cast<const float*>(from), count, change);
    case DType::f16: return widen<F16>(to, static_cast<const uint16_t*>(from), count, change);
    case DType::bf16: return widen<Bf16>(to, static_cast<const uint16_t*>(from), count, change);
    default: break;  // booleans and codes are not converted
  }
  __builtin_unreachable();
}

template <class Change>
KVC_INLINE void narrow_to(void* to, DType to_type, const float* from, int64_t count, Change change) {
  switch (to_type) {
    case DType::f32: return narrow<F32>(static_cast<float*>(to), from, count, change);
    case DType::f16: return narrow<F16>(static_cast<uint16_t*>(to), from, count, change);
    case DType::bf16: return narrow<Bf16>(static_cast<uint16_t*>(to), from, count, change);
    default: break;
  }
  __builtin_unreachable();
}

[[maybe_unused]] static void to_f32(float* to, const void* from, DType from_type, int64_t count) {
  widen_from(to, from, from_type, count, Unchanged{});
}

[[maybe_unused]] static void from_f32(void* to, DType to_type, const float* from, int64_t count) {
  narrow_to(to, to_type, from, count, Unchanged{});
}

[[maybe_unused]] static void to_f32_scaled(float* to, const void* from, DType from_type,
                                           float factor, int64_t count) {
  widen_from(to, from, from_type, count, Times{broadcast(factor)});
}

[[maybe_unused]] static void from_f32_scaled(void* to, DType to_type, const float* from,
                                             float factor, int64_t count) {
  narrow_to(to, to_type, from, count, Times{broadcast(factor)});
}

/// to = to · keep + from · add, in whole vectors: the caller's rows are padded to 16 floats.
[[maybe_unused]] static void blend(float* to, float keep, const float* from, float add, int64_t count) {
  const Vec a = broadcast(keep), b = broadcast(add);
  for (int64_t i = 0; i < count; i += lanes)
    store(to + i, fma(load(from + i), b, load(to + i) * a));
}

[[maybe_unused]] static void exp2_each(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes)
    store_unaligned(to + i, exp2(load_unaligned(from + i)));
}

[[maybe_unused]] static void tanh_each(float* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += lanes)
    store_unaligned(to + i, tanh(load_unaligned(from + i)));
}

/// Advances `length` while the cells behind the first `length` are neighbours in order, `step` at a time.
template <int32_t step>
KVC_INLINE void extend_run(const int32_t* cell, int32_t n, int32_t& length) {
  for (; length + step <= n; length += step) {
    uint32_t difference = 0;
    const int32_t base = cell[0] + length;
    for (int32_t i = 0; i < step; ++i)
      difference |= static_cast<uint32_t>(cell[length + i] ^ (base + i));
    if (difference != 0) return;
  }
}

/// How many of the n cells, 1 at least, are neighbours in order.
[[maybe_unused]] static int32_t run_length(const int32_t* cell, int32_t n) {
  int32_t length = 1;
  extend_run<128>(cell, n, length);
  extend_run<16>(cell, n, length);
  extend_run<1>(cell, n, length);
  return length;
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
