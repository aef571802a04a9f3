#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/simd.hpp"

/// Floats as sums of bf16: the first part is the float cut off after 8 significant bits, the second the next 8, the third
/// the rest. Nothing is lost, so products of parts, added in f32, are as exact as products of floats.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

inline constexpr int32_t parts_max = 3;

/// Parts that an element of a storage type needs: 24, 11 and 8 significant bits.
constexpr int32_t parts_of(DType dtype) {
  return dtype == DType::f32 ? 3 : dtype == DType::f16 ? 2 : 1;
}

KVC_INLINE Vec cut_off(Vec x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x),
                                              _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

/// The first part of each of a's floats, then of b's.
KVC_INLINE __m512i side_by_side(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t places[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                      23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                      45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(places),
                                   _mm512_castps_si512(b));
}
/// The first parts of a's and of b's floats in turn.
KVC_INLINE __m512i in_turn(Vec a, Vec b) {
  alignas(64) static constexpr uint16_t places[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11,
                                                      43, 13, 45, 15, 47, 17, 49, 19, 51, 21, 53,
                                                      23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
  return _mm512_permutex2var_epi16(_mm512_castps_si512(a), _mm512_load_si512(places),
                                   _mm512_castps_si512(b));
}

/// A row of a tile and of the parts' tiles behind it: `arrange` puts 16 elements of a and of b into it.
template <int32_t parts, class Arrange>
KVC_INLINE void store_parts(std::byte* to, Vec a, Vec b, Arrange arrange) {
#pragma GCC unroll 3
  for (size_t part = 0; part < parts; ++part) {
    _mm512_store_si512(to + part * tile_bytes,
                       arrange(a, b));  // takes the upper halves, as cutting off does
    a = a - cut_off(a);
    b = b - cut_off(b);
  }
}

/// Watches the largest magnitude of what is packed.
struct Largest {
  __m512i bits = _mm512_setzero_si512();

  [[gnu::always_inline]] void see(Vec x) {
    const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    bits = _mm512_maskz_max_epu32(0xffff, bits, magnitude);
  }

  /// Products of parts are exact: all is finite, and not so small that the unit, which knows no denormal numbers, would
  /// lose the rest of the largest.
  [[gnu::always_inline]] bool suits() const {
    alignas(64) uint32_t all[lanes];
    _mm512_store_si512(all, bits);
    uint32_t largest = 0;
    for (const uint32_t each : all) largest = each > largest ? each : largest;
    constexpr uint32_t infinity = 0x7f800000, smallest = (127 - 60) << 23;  // 2^−60
    return largest == 0 || (largest >= smallest && largest < infinity);
  }
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
