#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

/// Floats as sums of 8-bit digits, for products with integer codes. A float in units of 2^−30 of its row's
/// largest is a 32-bit integer, and that is four signed digits: x = Σ digit[i] · 256^i, the highest at most
/// 64. Their products with codes are added as integers, without any rounding.
namespace kvc::cpu::KVC_ISA_NAMESPACE::digits {

inline constexpr int32_t count = 4;

/// The digits of each 32-bit lane, in its bytes.
KVC_INLINE __m512i of_integers(__m512i x) {
  // The bytes of x + 0x808080 are the digits plus 128, but for the highest, which has no neighbour to borrow.
  const __m512i offset = _mm512_set1_epi32(0x00808080);
  return _mm512_xor_si512(_mm512_add_epi32(x, offset), offset);
}

/// Rounds floats of at most 2^30.
KVC_INLINE __m512i to_integers(Vec x) { return _mm512_maskz_cvtps_epi32(0xffff, x); }

/// In each 128-bit lane: the first digits of its four numbers, their second ones, and so on.
KVC_INLINE Vec by_digit(__m512i x) {
  const __m512i order = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
  return _mm512_castsi512_ps(_mm512_shuffle_epi8(x, order));
}

/// Transposes the 4 × 4 matrix of 128-bit lanes whose rows are a, b, c, d.
KVC_INLINE void transpose_lanes(Vec& a, Vec& b, Vec& c, Vec& d) {
  const Vec ab_low = _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x44);
  const Vec ab_high = _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xee);
  const Vec cd_low = _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0x44);
  const Vec cd_high = _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0xee);
  a = _mm512_maskz_shuffle_f32x4(0xffff, ab_low, cd_low, 0x88);
  b = _mm512_maskz_shuffle_f32x4(0xffff, ab_low, cd_low, 0xdd);
  c = _mm512_maskz_shuffle_f32x4(0xffff, ab_high, cd_high, 0x88);
  d = _mm512_maskz_shuffle_f32x4(0xffff, ab_high, cd_high, 0xdd);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::digits
