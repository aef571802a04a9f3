#pragma once
#include <cstdint>

#include "kernels/cpu/simd.hpp"

namespace kvc::cpu::KVC_ISA_NAMESPACE {

/// The range of the magnitudes of some numbers.
class Magnitudes {
 public:
  [[gnu::always_inline]] void add(Vec x) {
    const __m512i bits = _mm512_castps_si512(absolute(x));
    largest_ = _mm512_maskz_max_epu32(0xffff, largest_, bits);
    // Less one, so that zeros are the largest of all.
    smallest_ = _mm512_maskz_min_epu32(0xffff, smallest_,
                                       _mm512_sub_epi32(bits, _mm512_set1_epi32(1)));
  }
  /// Infinity if one is not finite.
  [[gnu::always_inline]] float largest() const {
    constexpr uint32_t infinity = 0x7f800000;
    const uint32_t bits = fold(largest_, 0, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
    return __builtin_bit_cast(float, bits < infinity ? bits : infinity);
  }
  /// Of those that are not 0; 0 if all are.
  [[gnu::always_inline]] float smallest() const {
    const uint32_t less_one = fold(smallest_, ~0u,
                                   [](uint32_t a, uint32_t b) { return a < b ? a : b; });
    return __builtin_bit_cast(float, less_one + 1);
  }

 private:
  template <class Choose>
  [[gnu::always_inline]] static uint32_t fold(__m512i x, uint32_t chosen, Choose choose) {
    alignas(64) uint32_t each[lanes];
    _mm512_store_si512(each, x);
    for (const uint32_t bits : each) chosen = choose(chosen, bits);
    return chosen;
  }

  __m512i largest_ = _mm512_setzero_si512();
  __m512i smallest_ = _mm512_set1_epi32(-1);
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
