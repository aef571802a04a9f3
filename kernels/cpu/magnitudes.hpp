#pragma once
#include <cstdint>

#include "kernels/cpu/simd.hpp"

namespace kvc::cpu::KVC_ISA_NAMESPACE {

/// The range of the magnitudes of some numbers, and whether all are positive.
class Magnitudes {
 public:
  [[gnu::always_inline]] void add(Vec x) {
    const __m512i bits = _mm512_castps_si512(absolute(x));
    largest_ = _mm512_maskz_max_epu32(0xffff, largest_, bits);
    // Less one, so that zeros are the largest of all.
    smallest_ = _mm512_maskz_min_epu32(0xffff, smallest_,
                                       _mm512_sub_epi32(bits, _mm512_set1_epi32(1)));
    signs_ = _mm512_or_si512(signs_, _mm512_castps_si512(x));
  }
  /// Infinity if one is not finite.
  [[gnu::always_inline]] float largest() const {
    constexpr uint32_t infinity = 0x7f800000;
    const uint32_t bits = fold(
        largest_, [](__m512i x, __m512i y) { return _mm512_maskz_max_epu32(0xffff, x, y); });
    return __builtin_bit_cast(float, bits < infinity ? bits : infinity);
  }
  /// Of those that are not 0; 0 if all are.
  [[gnu::always_inline]] float smallest() const {
    const uint32_t less_one = fold(
        smallest_, [](__m512i x, __m512i y) { return _mm512_maskz_min_epu32(0xffff, x, y); });
    return __builtin_bit_cast(float, less_one + 1);
  }
  /// Whether one of them has a sign, be it a zero.
  [[gnu::always_inline]] bool has_negative() const { return _mm512_movepi32_mask(signs_) != 0; }

 private:
  template <class Choose>
  [[gnu::always_inline]] static uint32_t fold(__m512i x, Choose choose) {
    x = choose(x, _mm512_maskz_shuffle_i64x2(0xff, x, x, 0x4e));
    x = choose(x, _mm512_maskz_shuffle_i64x2(0xff, x, x, 0xb1));
    x = choose(x, _mm512_maskz_shuffle_epi32(0xffff, x, _MM_PERM_BADC));
    x = choose(x, _mm512_maskz_shuffle_epi32(0xffff, x, _MM_PERM_CDAB));
    using Words [[gnu::vector_size(64)]] = uint32_t;
    return ((Words)x)[0];
  }

  __m512i largest_ = _mm512_setzero_si512();
  __m512i smallest_ = _mm512_set1_epi32(-1);
  __m512i signs_ = _mm512_setzero_si512();
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
