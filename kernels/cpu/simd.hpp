#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(KVC_NEON)
#include <arm_neon.h>
#endif

#include "core/base/storage.hpp"

/// One vector of floats, whatever the instruction set. The file that includes this has set
/// KVC_ISA_NAMESPACE.
///
/// Kernels are compiled once per instruction set, so nothing here may leave its translation unit:
/// no standard header with inline functions is included, and everything is in a namespace of its
/// own and always inlined. Of an inline function that objects share the linker could keep the
/// AVX-512 copy, which an older machine cannot run.
///
/// Vectors have the compiler's operators + - * /; comparisons are functions below. (Some AVX-512
/// intrinsics are used in their zero-masked form because gcc 12 warns about an uninitialised
/// operand inside its own plain ones.)
#if !defined(KVC_ISA_NAMESPACE)
#error "include this through kernels/cpu/isa_*.cpp"
#endif

#define KVC_INLINE [[maybe_unused, gnu::always_inline]] static inline

namespace kvc::cpu::KVC_ISA_NAMESPACE {

/// Four floats or integers: one for each row of a quad of rows.
using Quad = float __attribute__((vector_size(16)));
using QuadInt = int32_t __attribute__((vector_size(16)));

/// How elements lie in memory.
struct F32 {
  using Element = float;
};
struct F16 {
  using Element = uint16_t;
};
struct Bf16 {
  using Element = uint16_t;
};

template <class Storage>
inline constexpr size_t element_bytes = sizeof(typename Storage::Element);

#if defined(__AVX512F__)

inline constexpr int32_t lanes = 16;
using Vec = __m512;

KVC_INLINE Vec zero() { return _mm512_setzero_ps(); }
KVC_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
KVC_INLINE Vec load(const float* p) { return _mm512_load_ps(p); }
KVC_INLINE Vec load_unaligned(const float* p) { return _mm512_loadu_ps(p); }
KVC_INLINE void store(float* p, Vec x) { _mm512_store_ps(p, x); }
KVC_INLINE void store_unaligned(float* p, Vec x) { _mm512_storeu_ps(p, x); }
/// a · b + c
KVC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
/// The larger of the two; b when either is NaN.
KVC_INLINE Vec maximum(Vec a, Vec b) { return _mm512_maskz_max_ps(0xffff, a, b); }
/// Lane by lane a < b ? x : y; false when either is NaN.
KVC_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
KVC_INLINE Vec absolute(Vec x) { return _mm512_abs_ps(x); }
/// The magnitude of x (not negative) with the sign of s.
KVC_INLINE Vec with_sign(Vec x, Vec s) {
  return _mm512_or_ps(x, _mm512_and_ps(s, _mm512_set1_ps(-0.0f)));
}
/// 2^n for the integer n that x + 1.5·2^23 holds in its low bits, −126 ≤ n ≤ 127; 0 when n is
/// −127.
KVC_INLINE Vec power_of_two(Vec x) {
  const __m512i exponent = _mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(x), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000)));
}

KVC_INLINE Vec load_elements(F32, const float* p) { return _mm512_loadu_ps(p); }
KVC_INLINE Vec load_elements(F16, const uint16_t* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
KVC_INLINE Vec load_elements(Bf16, const uint16_t* p) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
}

/// The elements that the mask names, the others 0; these are not read.
KVC_INLINE Vec load_some(F32, const float* p, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
KVC_INLINE Vec load_some(F16, const uint16_t* p, __mmask16 mask) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_maskz_loadu_epi16(mask, p));
}
KVC_INLINE Vec load_some(Bf16, const uint16_t* p, __mmask16 mask) {
  const __m512i words = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_maskz_loadu_epi16(mask, p));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, words, 16));
}

using Halves = __m256i;
KVC_INLINE Halves narrowed(F16, Vec x) {
  return _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT);
}
KVC_INLINE Halves narrowed(Bf16, Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i high = _mm512_maskz_srli_epi32(0xffff, bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i biased = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i rounded = _mm512_maskz_srli_epi32(0xffff, biased, 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_blend_epi32(is_nan, rounded, quiet);
  return _mm512_maskz_cvtepi32_epi16(0xffff, result);
}

KVC_INLINE void store_elements(F32, float* p, Vec x) { _mm512_storeu_ps(p, x); }
template <class Storage>
KVC_INLINE void store_elements(Storage storage, uint16_t* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(storage, x));
}

KVC_INLINE void stream_elements(F32, float* p, Vec x) { _mm512_stream_ps(p, x); }
template <class Storage>
KVC_INLINE void stream_elements(Storage storage, uint16_t* p, Vec x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrowed(storage, x));
}

/// Lanes 0-3, 4-7, … folded into four.
KVC_INLINE __m256 lower_half(Vec x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
}
KVC_INLINE __m256 upper_half(Vec x) {
  return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}
KVC_INLINE Quad fold_sum(Vec x) {
  const __m256 y = _mm256_add_ps(lower_half(x), upper_half(x));
  return _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
KVC_INLINE Quad fold_maximum(Vec x) {
  const __m256 y = _mm256_max_ps(lower_half(x), upper_half(x));
  return _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
/// Four floats each from p, p + stride, p + 2 · stride, …
KVC_INLINE Vec load_quads(const float* p, size_t stride) {
  Vec x = _mm512_zextps128_ps512(_mm_loadu_ps(p));
  x = _mm512_maskz_insertf32x4(0xffff, x, _mm_loadu_ps(p + stride), 1);
  x = _mm512_maskz_insertf32x4(0xffff, x, _mm_loadu_ps(p + 2 * stride), 2);
  return _mm512_maskz_insertf32x4(0xffff, x, _mm_loadu_ps(p + 3 * stride), 3);
}
/// Transposes, in each four lanes, the 4 × 4 matrix whose rows are a, b, c, d.
KVC_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab_low = _mm512_maskz_unpacklo_ps(0xffff, a, b);
  const Vec ab_high = _mm512_maskz_unpackhi_ps(0xffff, a, b);
  const Vec cd_low = _mm512_maskz_unpacklo_ps(0xffff, c, d);
  const Vec cd_high = _mm512_maskz_unpackhi_ps(0xffff, c, d);
  a = _mm512_maskz_shuffle_ps(0xffff, ab_low, cd_low, 0x44);
  b = _mm512_maskz_shuffle_ps(0xffff, ab_low, cd_low, 0xee);
  c = _mm512_maskz_shuffle_ps(0xffff, ab_high, cd_high, 0x44);
  d = _mm512_maskz_shuffle_ps(0xffff, ab_high, cd_high, 0xee);
}
/// Four floats, repeated over the vector.
KVC_INLINE Vec repeat(Quad x) { return _mm512_maskz_broadcast_f32x4(0xffff, x); }

/// Cells of a step of the narrow kernel: with four rows, as many sums as fit the registers.
inline constexpr int32_t step_cells = 4;

/// In each four lanes: the sums of x, y, z and w.
KVC_INLINE Vec sum_quads(Vec x, Vec y, Vec z, Vec w) {
  const Vec xy = _mm512_maskz_unpacklo_ps(0xffff, x, y) + _mm512_maskz_unpackhi_ps(0xffff, x, y);
  const Vec zw = _mm512_maskz_unpacklo_ps(0xffff, z, w) + _mm512_maskz_unpackhi_ps(0xffff, z, w);
  return _mm512_maskz_shuffle_ps(0xffff, xy, zw, 0x44) + _mm512_maskz_shuffle_ps(0xffff, xy, zw, 0xee);
}

/// Sums over all lanes, to[cell][row], added in a fixed order.
KVC_INLINE void store_sums(float* to, const Vec (&sum)[step_cells][4]) {
  Vec row[4];
#pragma GCC unroll 4
  for (int32_t r = 0; r < 4; ++r) {
    const Vec a = sum[0][r], b = sum[1][r], c = sum[2][r], d = sum[3][r];
    const Vec ab = _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x44) +
                   _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xee);
    const Vec cd = _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0x44) +
                   _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0xee);
    row[r] = _mm512_maskz_shuffle_f32x4(0xffff, ab, cd, 0x88) +
             _mm512_maskz_shuffle_f32x4(0xffff, ab, cd, 0xdd);
  }
  store_unaligned(to, sum_quads(row[0], row[1], row[2], row[3]));
}

/// Each of four numbers, four times: a factor for each cell of [cell][row].
KVC_INLINE Vec spread(Quad x) {
  const __m512i cells = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_maskz_permutexvar_ps(0xffff, cells, _mm512_zextps128_ps512(x));
}
/// Multiplies what store_sums stored with a factor for each cell.
KVC_INLINE void scale_sums(float* to, Quad factor) {
  store_unaligned(to, load_unaligned(to) * spread(factor));
}

/// Loads what store_sums has just stored, with loads no larger than its stores: larger ones would
/// wait for the cache.
KVC_INLINE Vec load_sums(const float* p) { return load_unaligned(p); }

/// |own − position| of four rows and `lanes / 4` cells, [cell][row].
KVC_INLINE Vec distances(QuadInt own, const int32_t* position) {
  const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(position));
  const __m512i cells = _mm512_maskz_permutexvar_epi32(0xffff, spread, _mm512_zextsi128_si512(four));
  const __m512i rows = _mm512_maskz_broadcast_i32x4(0xffff, (__m128i)own);
  return _mm512_maskz_cvtepi32_ps(0xffff,
                                  _mm512_maskz_abs_epi32(0xffff, _mm512_sub_epi32(rows, cells)));
}

/// Whether any of four comparisons holds.
KVC_INLINE bool any(QuadInt x) { return _mm_movemask_ps(_mm_castsi128_ps((__m128i)x)) != 0; }

#elif defined(__AVX2__)

inline constexpr int32_t lanes = 8;
using Vec = __m256;

KVC_INLINE Vec zero() { return _mm256_setzero_ps(); }
KVC_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
KVC_INLINE Vec load(const float* p) { return _mm256_load_ps(p); }
KVC_INLINE Vec load_unaligned(const float* p) { return _mm256_loadu_ps(p); }
KVC_INLINE void store(float* p, Vec x) { _mm256_store_ps(p, x); }
KVC_INLINE void store_unaligned(float* p, Vec x) { _mm256_storeu_ps(p, x); }
KVC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
KVC_INLINE Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
KVC_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) {
  return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
KVC_INLINE Vec absolute(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
KVC_INLINE Vec with_sign(Vec x, Vec s) {
  return _mm256_or_ps(x, _mm256_and_ps(s, _mm256_set1_ps(-0.0f)));
}
KVC_INLINE Vec power_of_two(Vec x) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(x), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f800000)));
}

KVC_INLINE Vec load_elements(F32, const float* p) { return _mm256_loadu_ps(p); }
KVC_INLINE Vec load_elements(F16, const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
KVC_INLINE Vec load_elements(Bf16, const uint16_t* p) {
  // One shuffle moves each half up and puts zeros below; widening and shifting would compete with
  // multiply-adds for ports.
  const __m256i places = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7,  //
                                          -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14,
                                          15);
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(halves), places));
}

using Halves = __m128i;
KVC_INLINE Halves narrowed(F16, Vec x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
KVC_INLINE Halves narrowed(Bf16, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i biased = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(_mm256_srli_epi32(biased, 16), quiet, is_nan);
  const __m128i low = _mm256_castsi256_si128(result);
  const __m128i upper = _mm256_extracti128_si256(result, 1);
  return _mm_packus_epi32(low, upper);
}

KVC_INLINE void store_elements(F32, float* p, Vec x) { _mm256_storeu_ps(p, x); }
template <class Storage>
KVC_INLINE void store_elements(Storage storage, uint16_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(storage, x));
}

KVC_INLINE void stream_elements(F32, float* p, Vec x) { _mm256_stream_ps(p, x); }
template <class Storage>
KVC_INLINE void stream_elements(Storage storage, uint16_t* p, Vec x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrowed(storage, x));
}

KVC_INLINE Quad fold_sum(Vec x) {
  return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
KVC_INLINE Quad fold_maximum(Vec x) {
  return _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
KVC_INLINE Vec load_quads(const float* p, size_t stride) {
  return _mm256_insertf128_ps(_mm256_zextps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
KVC_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
  const Vec cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
  a = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
  b = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
  c = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
  d = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
}
KVC_INLINE Vec repeat(Quad x) { return _mm256_set_m128(x, x); }

inline constexpr int32_t step_cells = 3;

KVC_INLINE Vec sum_quads(Vec x, Vec y, Vec z, Vec w) {
  const Vec xy = _mm256_unpacklo_ps(x, y) + _mm256_unpackhi_ps(x, y);
  const Vec zw = _mm256_unpacklo_ps(z, w) + _mm256_unpackhi_ps(z, w);
  return _mm256_shuffle_ps(xy, zw, 0x44) + _mm256_shuffle_ps(xy, zw, 0xee);
}

KVC_INLINE void store_sums(float* to, const Vec (&sum)[step_cells][4]) {
  Vec row[4];
#pragma GCC unroll 4
  for (int32_t r = 0; r < 4; ++r) {
    const Vec a = sum[0][r], b = sum[1][r];
    row[r] = _mm256_blend_ps(a, b, 0xf0) + _mm256_permute2f128_ps(a, b, 0x21);
  }
  store_unaligned(to, sum_quads(row[0], row[1], row[2], row[3]));
  const Quad x = fold_sum(sum[2][0]), y = fold_sum(sum[2][1]), z = fold_sum(sum[2][2]),
             w = fold_sum(sum[2][3]);
  const Quad xy = _mm_unpacklo_ps(x, y) + _mm_unpackhi_ps(x, y);
  const Quad zw = _mm_unpacklo_ps(z, w) + _mm_unpackhi_ps(z, w);
  _mm_storeu_ps(to + 8, _mm_movelh_ps(xy, zw) + _mm_movehl_ps(zw, xy));
}

KVC_INLINE Vec load_sums(const float* p) {
  return _mm256_set_m128(_mm_loadu_ps(p + 4), _mm_loadu_ps(p));
}

KVC_INLINE Vec distances(QuadInt own, const int32_t* position) {
  const __m256i cells = _mm256_set_m128i(_mm_set1_epi32(position[1]), _mm_set1_epi32(position[0]));
  const __m256i difference = _mm256_sub_epi32(_mm256_broadcastsi128_si256((__m128i)own), cells);
  return _mm256_cvtepi32_ps(_mm256_abs_epi32(difference));
}

KVC_INLINE bool any(QuadInt x) { return _mm_movemask_ps(_mm_castsi128_ps((__m128i)x)) != 0; }

#else  // the compiler's vectors: SSE2, NEON or whatever the machine has

inline constexpr int32_t lanes = 4;
using Vec = Quad;
using QuadBits = uint32_t __attribute__((vector_size(16)));
using QuadHalf = uint16_t __attribute__((vector_size(8)));

KVC_INLINE Vec zero() { return Vec{}; }
KVC_INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
KVC_INLINE Vec load_unaligned(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
KVC_INLINE Vec load(const float* p) {
  return load_unaligned(static_cast<const float*>(__builtin_assume_aligned(p, 16)));
}
KVC_INLINE void store_unaligned(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }
KVC_INLINE void store(float* p, Vec x) {
  store_unaligned(static_cast<float*>(__builtin_assume_aligned(p, 16)), x);
}
#if defined(KVC_NEON)
KVC_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
/// Rounds the product, too: not every machine fuses.
KVC_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
#endif
KVC_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
KVC_INLINE Vec select_less(Vec a, Vec b, Vec x, Vec y) { return a < b ? x : y; }
KVC_INLINE Vec absolute(Vec x) { return (Vec)((QuadBits)x & 0x7fffffffu); }
KVC_INLINE Vec with_sign(Vec x, Vec s) { return (Vec)((QuadBits)x | ((QuadBits)s & 0x80000000u)); }
KVC_INLINE Vec power_of_two(Vec x) { return (Vec)(((QuadBits)x << 23) + 0x3f800000u); }

KVC_INLINE QuadBits load_halves(const uint16_t* p) {
  QuadHalf halves;
  __builtin_memcpy(&halves, p, sizeof halves);
  return __builtin_convertvector(halves, QuadBits);
}
KVC_INLINE void store_halves(uint16_t* p, QuadBits bits) {
  const QuadHalf halves = __builtin_convertvector(bits, QuadHalf);
  __builtin_memcpy(p, &halves, sizeof halves);
}

KVC_INLINE Vec load_elements(F32, const float* p) { return load_unaligned(p); }
#if defined(KVC_NEON)
KVC_INLINE Vec load_elements(F16, const uint16_t* p) {
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
KVC_INLINE Vec load_elements(Bf16, const uint16_t* p) {
  // Zeros go below each half, so widening and shifting are one instruction.
  const uint16x4_t halves = vld1_u16(p);
  return (Vec)vzip1q_u16(vdupq_n_u16(0), vcombine_u16(halves, halves));
}
#else
KVC_INLINE Vec load_elements(F16, const uint16_t* p) {
  const QuadBits half = load_halves(p);
  const QuadBits magnitude = half & 0x7fffu;
  const QuadBits quiet = magnitude > 0x7c00u ? (QuadBits{} + 0x400000u) : QuadBits{};
  const QuadBits not_finite = magnitude << 13 | 0x7f800000u | quiet;
  const Vec small = __builtin_convertvector((QuadInt)magnitude, Vec) * 0x1p-24f;  // exact
  QuadBits bits = (magnitude << 13) + 0x38000000u;
  bits = magnitude < 0x400u ? (QuadBits)small : bits;
  bits = magnitude >= 0x7c00u ? not_finite : bits;
  return (Vec)(bits | (half & 0x8000u) << 16);
}
KVC_INLINE Vec load_elements(Bf16, const uint16_t* p) { return (Vec)(load_halves(p) << 16); }
#endif

KVC_INLINE void store_elements(F32, float* p, Vec x) { store_unaligned(p, x); }
#if defined(KVC_NEON)
KVC_INLINE void store_elements(F16, uint16_t* p, Vec x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}
#else
KVC_INLINE void store_elements(F16, uint16_t* p, Vec x) {
  const QuadBits magnitude = (QuadBits)x & 0x7fffffffu;
  const QuadBits rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  QuadBits bits = (rounded - 0x38000000u) >> 13;
  const QuadBits small = (QuadBits)((Vec)magnitude + 0.5f) -
                         0x3f000000u;  // 0.5 has f16's smallest step as its ulp
  bits = magnitude < 0x38800000u ? small : bits;
  bits = magnitude >= 0x477ff000u ? (QuadBits{} + 0x7c00u) : bits;
  bits = magnitude > 0x7f800000u ? (magnitude >> 13 & 0x3ffu) | 0x7e00u : bits;
  store_halves(p, bits | ((QuadBits)x >> 16 & 0x8000u));
}
#endif
KVC_INLINE void store_elements(Bf16, uint16_t* p, Vec x) {
  const QuadBits bits = (QuadBits)x;
  const QuadBits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  store_halves(p, (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}

template <class Storage>
KVC_INLINE void stream_elements(Storage storage, typename Storage::Element* p, Vec x) {
  store_elements(storage, p, x);
}

KVC_INLINE Quad fold_sum(Vec x) { return x; }
KVC_INLINE Quad fold_maximum(Vec x) { return x; }
KVC_INLINE Vec load_quads(const float* p, size_t) { return load_unaligned(p); }
KVC_INLINE void transpose_quads(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Vec ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vec cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Vec cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}
KVC_INLINE Vec repeat(Quad x) { return x; }

inline constexpr int32_t step_cells = 3;

KVC_INLINE void store_sums(float* to, const Vec (&sum)[step_cells][4]) {
  const auto fold = [](Quad a, Quad b) {
    return __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  };
  for (int32_t i = 0; i < step_cells; ++i) {
    const Quad all = fold(fold(sum[i][0], sum[i][2]), fold(sum[i][1], sum[i][3]));
    store_unaligned(to + 4 * i, all);
  }
}

KVC_INLINE Vec load_sums(const float* p) { return load_unaligned(p); }

KVC_INLINE Vec distances(QuadInt own, const int32_t* position) {
  const QuadInt difference = own - position[0];
  return __builtin_convertvector(difference < 0 ? -difference : difference, Vec);
}

KVC_INLINE bool any(QuadInt x) { return (x[0] | x[1] | x[2] | x[3]) != 0; }

#endif

/// `lanes` elements of a row, in f32. Alignment to the element is enough.
template <class Storage>
KVC_INLINE Vec load_as(const typename Storage::Element* p) {
  return load_elements(Storage{}, p);
}

/// Calls `use` with the class for a storage type.
template <class Use>
KVC_INLINE auto with_storage(StorageType type, Use use) {
  switch (type) {
    case StorageType::f32: return use(F32{});
    case StorageType::f16: return use(F16{});
    case StorageType::bf16: return use(Bf16{});
    default: break;
  }
  __builtin_unreachable();
}

/// Stores `lanes` elements, rounded to nearest even.
template <class Storage>
KVC_INLINE void store_as(typename Storage::Element* p, Vec x) {
  store_elements(Storage{}, p, x);
}

/// Past the caches where the instruction set can; p is aligned to a whole vector of elements.
template <class Storage>
KVC_INLINE void stream_as(typename Storage::Element* p, Vec x) {
  stream_elements(Storage{}, p, x);
}

KVC_INLINE Quad load_four_halves(const std::byte* p) {
#if defined(__AVX2__)
  return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  uint16_t halves[4];
  __builtin_memcpy(halves, p, sizeof halves);
  return load_elements(F16{}, halves);
#endif
}

KVC_INLINE Quad load_quad(const float* p) {
  Quad x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
KVC_INLINE void store_quad(float* p, Quad x) { __builtin_memcpy(p, &x, sizeof x); }

#if !defined(__AVX512F__)
/// Multiplies what store_sums stored with a factor for each cell.
KVC_INLINE void scale_sums(float* to, Quad factor) {
  for (int32_t i = 0; i < step_cells; ++i)
    store_quad(to + 4 * i, load_quad(to + 4 * i) * factor[i]);
}
#endif

KVC_INLINE QuadInt load_quad(const int32_t* p) {
  QuadInt x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}

KVC_INLINE float reduce_sum(Vec x) {
  const Quad y = fold_sum(x);
  return (y[0] + y[2]) + (y[1] + y[3]);
}

/// 2^x = power · (1 + factor · fraction): the power of two of the nearest integer, and a polynomial
/// of the rest.
struct Exponential {
  Vec power;
  Vec factor;
  Vec fraction;
};

/// The parts of 2^x for x ≤ 127. Below −126 the power is 0; NaN stays NaN.
KVC_INLINE Exponential exponential(Vec x) {
  // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
  const Vec rounding = broadcast(12582912.0f);
  // What is too small becomes −127, whose power is 0. The comparison lets NaN pass.
  const Vec clamped = select_less(x, broadcast(-126.0f), broadcast(-127.0f), x);
  const Vec shifted = clamped + rounding;
  const Vec fraction = clamped - (shifted - rounding);
  Vec p = broadcast(1.5345812164e-4f);
  p = fma(p, fraction, broadcast(1.3399931209e-3f));
  p = fma(p, fraction, broadcast(9.6184889565e-3f));
  p = fma(p, fraction, broadcast(5.5503287770e-2f));
  p = fma(p, fraction, broadcast(2.4022646891e-1f));
  p = fma(p, fraction, broadcast(6.9314720574e-1f));
  return {power_of_two(shifted), p, fraction};
}

/// 2^x for x ≤ 127 with a relative error of 8e-8. Below 2^−126 exactly 0, −infinity included; NaN
/// stays NaN.
KVC_INLINE Vec exp2(Vec x) {
  const Exponential e = exponential(x);
  return fma(e.factor, e.fraction, broadcast(1.0f)) * e.power;
}

/// tanh(x) = (1 − e) / (1 + e), e = exp(−2|x|), with a relative error of 2.8e-7, and ±1 for large x.
/// e − 1 comes from the parts of e: near 0 the difference would cancel.
KVC_INLINE Vec tanh(Vec x) {
  const Exponential e = exponential(absolute(x) * broadcast(-2.88539008178f));
  const Vec less_one = fma(e.factor * e.fraction, e.power, e.power - broadcast(1.0f));
  return with_sign((zero() - less_one) / (broadcast(2.0f) + less_one), x);
}

/// Keeps an address in a register of its own. Left alone the compiler derives addresses from one
/// another, or computes them all before a loop, with more registers than there are.
template <class T>
KVC_INLINE void keep_in_register([[maybe_unused]] const T*& p) {
#if defined(__GNUC__)
  asm("" : "+r"(p));
#endif
}

/// Prefetches the cache line at `p`; any address is allowed.
KVC_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
/// The same into the second-level cache, for what is needed later.
KVC_INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
