#pragma once
#include "kernels/cpu/simd.hpp"

/// Vectors of integers, one lane for each lane of a Vec: bits of floats, and codes before they are stored. They have the
/// compiler's operators.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

using Ints = int32_t __attribute__((vector_size(sizeof(Vec))));

KVC_INLINE Ints every(int32_t x) { return Ints{} + x; }
KVC_INLINE Ints magnitude_bits(Vec x) { return (Ints)x & 0x7fffffff; }
/// Towards zero.
KVC_INLINE Ints truncated(Vec x) { return __builtin_convertvector(x, Ints); }

/// 16 values as vectors.
inline constexpr int32_t parts_of_16 = 16 / lanes;

/// The larger of each two.
KVC_INLINE Ints larger(Ints a, Ints b);
KVC_INLINE int32_t largest_lane(Ints x);
/// Bit i: lane i of the two is equal.
KVC_INLINE uint32_t equal_lanes(Ints a, Ints b);
/// Stores the low bytes of 16 integers.
KVC_INLINE void store_bytes(std::byte* to, const Ints (&x)[parts_of_16]);
/// The low halves of 16 bytes, two in each byte: the first of a pair is the high half.
KVC_INLINE void store_pairs(std::byte* to, const Ints (&x)[parts_of_16]);
/// Lane by lane table[index], of eight floats; only the low three bits of an index count.
KVC_INLINE Vec pick_of_8(const float* table, Ints index);
/// Rounded to f16, as bits.
KVC_INLINE uint16_t half_of(float x);

/// Each lane i gets what lane i ^ distance holds.
template <int32_t distance>
KVC_INLINE Vec swap_lanes(Vec x);

#if defined(__AVX512F__)

template <int32_t distance>
KVC_INLINE Vec swap_lanes(Vec x) {
  if constexpr (distance == 1) return _mm512_maskz_permute_ps(0xffff, x, 0xb1);
  if constexpr (distance == 2) return _mm512_maskz_permute_ps(0xffff, x, 0x4e);
  if constexpr (distance == 4) return _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0xb1);
  return _mm512_maskz_shuffle_f32x4(0xffff, x, x, 0x4e);
}
KVC_INLINE Ints larger(Ints a, Ints b) {
  return (Ints)_mm512_maskz_max_epi32(0xffff, (__m512i)a, (__m512i)b);
}
KVC_INLINE int32_t largest_lane(Ints x) {
  const __m256i y = _mm256_max_epi32((__m256i)lower_half((Vec)x), (__m256i)upper_half((Vec)x));
  __m128i z = _mm_max_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
  z = _mm_max_epi32(z, _mm_shuffle_epi32(z, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}
KVC_INLINE uint32_t equal_lanes(Ints a, Ints b) {
  return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
}
KVC_INLINE __m128i low_bytes(const Ints (&x)[1]) {
  return _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)x[0]);
}
KVC_INLINE Vec pick_of_8(const float* table, Ints index) {
  const Vec twice = _mm512_maskz_broadcast_f32x8(0xffff, _mm256_loadu_ps(table));
  return _mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, twice);
}

#elif defined(__AVX2__)

template <int32_t distance>
KVC_INLINE Vec swap_lanes(Vec x) {
  if constexpr (distance == 1) return _mm256_permute_ps(x, 0xb1);
  if constexpr (distance == 2) return _mm256_permute_ps(x, 0x4e);
  return _mm256_permute2f128_ps(x, x, 0x01);
}
KVC_INLINE Ints larger(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
KVC_INLINE int32_t largest_lane(Ints x) {
  __m128i z = _mm_max_epi32(_mm256_castsi256_si128((__m256i)x),
                            _mm256_extracti128_si256((__m256i)x, 1));
  z = _mm_max_epi32(z, _mm_shuffle_epi32(z, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(z, _mm_shuffle_epi32(z, 0xb1)));
}
KVC_INLINE uint32_t equal_lanes(Ints a, Ints b) {
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(a == b)));
}
KVC_INLINE __m128i low_bytes(const Ints (&x)[2]) {
  const __m256i low = (__m256i)(x[0] & 0xff), high = (__m256i)(x[1] & 0xff);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
KVC_INLINE Vec pick_of_8(const float* table, Ints index) {
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
}

#else

template <int32_t distance>
KVC_INLINE Vec swap_lanes(Vec x) {
  if constexpr (distance == 1) return __builtin_shufflevector(x, x, 1, 0, 3, 2);
  return __builtin_shufflevector(x, x, 2, 3, 0, 1);
}
KVC_INLINE Ints larger(Ints a, Ints b) { return a > b ? a : b; }
KVC_INLINE int32_t largest_lane(Ints x) {
  int32_t largest = x[0];
  for (int32_t i = 1; i < lanes; ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}
KVC_INLINE uint32_t equal_lanes(Ints a, Ints b) {
  uint32_t equal = 0;
  for (int32_t i = 0; i < lanes; ++i) equal |= uint32_t{a[i] == b[i]} << i;
  return equal;
}
KVC_INLINE void store_bytes(std::byte* to, const Ints (&x)[4]) {
  using Four = uint8_t __attribute__((vector_size(4)));
  for (int32_t i = 0; i < 4; ++i) {
    const Four bytes = __builtin_convertvector(x[i], Four);
    __builtin_memcpy(to + i * 4, &bytes, sizeof bytes);
  }
}
KVC_INLINE void store_pairs(std::byte* to, const Ints (&x)[4]) {
  for (int32_t i = 0; i < 8; ++i) {
    const Ints& part = x[i / 2];
    to[i] = static_cast<std::byte>(part[i % 2 * 2] << 4 | part[i % 2 * 2 + 1]);
  }
}
KVC_INLINE Vec pick_of_8(const float* table, Ints index) {
  Vec x = {};
  for (int32_t i = 0; i < lanes; ++i) x[i] = table[index[i] & 7];
  return x;
}

#endif

#if defined(__AVX2__)
KVC_INLINE void store_bytes(std::byte* to, const Ints (&x)[parts_of_16]) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low_bytes(x));
}
KVC_INLINE void store_pairs(std::byte* to, const Ints (&x)[parts_of_16]) {
  const __m128i words = _mm_maddubs_epi16(low_bytes(x), _mm_set1_epi16(0x0110));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
KVC_INLINE uint16_t half_of(float x) {
  const __m128i half = _mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT);
  return static_cast<uint16_t>(_mm_cvtsi128_si32(half));
}
#else
KVC_INLINE uint16_t half_of(float x) {
  uint16_t halves[lanes];
  store_as<F16>(halves, broadcast(x));
  return halves[0];
}
#endif

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
