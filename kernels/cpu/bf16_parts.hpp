#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/magnitudes.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/stored_rows.hpp"

/// Floats as sums of bf16: the first part is the float cut off after 8 significant bits, the second
/// the next 8, the third the rest. Nothing is lost, so products of parts, added in f32, are as
/// exact as products of floats. A caller may allow fewer parts: the last one is then rounded.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

inline constexpr int32_t parts_max = 3;

/// Whether a storage type is multiplied as codes: they have one scale per cell, which comes after the
/// product.
template <class Type>
inline constexpr bool scaled_after = false;
template <>
inline constexpr bool scaled_after<stored::Int8> = true;

/// Parts that an element of a storage type needs: f32 has 24 significant bits, f16 11, a product of a
/// q4_0 code and its scale 14, one of q8_0 18; bf16, f8 and a code of int8 have at most 8.
template <class Type>
inline constexpr int32_t parts_of = 3;
template <>
inline constexpr int32_t parts_of<F16> = 2;
template <>
inline constexpr int32_t parts_of<Bf16> = 1;
template <>
inline constexpr int32_t parts_of<stored::E4m3> = 1;
template <>
inline constexpr int32_t parts_of<stored::E5m2> = 1;
template <>
inline constexpr int32_t parts_of<stored::Q4> = 2;
template <>
inline constexpr int32_t parts_of<stored::Int8> = 1;

/// The most that a factor has where it may be rounded to `parts` of them. A value meets a probability that is rounded, so it keeps
/// two parts: both rounded to one would be off by twice what bf16 is.
constexpr int32_t key_parts_of(int32_t needed, int32_t parts) {
  return needed < parts ? needed : parts;
}
constexpr int32_t value_parts_of(int32_t needed, int32_t parts) {
  return key_parts_of(needed, parts < 2 ? 2 : parts);
}

template <int32_t parts>
struct Parts {
  static constexpr int32_t value = parts;
};

KVC_INLINE Vec cut_off(Vec x) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x),
                                              _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))));
}

/// The first parts (upper halves of floats) of a and of b, alternating. A product may sum over its
/// dimension in any order that both operands share; this one takes two cheap instructions.
KVC_INLINE __m512i first_parts(Vec a, Vec b) {
  constexpr __mmask32 odd = 0xaaaaaaaa;
  return _mm512_mask_blend_epi16(odd, _mm512_maskz_srli_epi32(0xffff, _mm512_castps_si512(a), 16),
                                 _mm512_castps_si512(b));
}

/// So that cutting off rounds: a half of what the last bit of the first part stands for is added to the magnitude.
KVC_INLINE Vec add_half(Vec x) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)));
}

/// Writes a row of a tile, and of the tiles of the further parts behind it: 16 elements of a and of
/// b, alternating. Three parts are exact; the last of fewer is rounded.
template <int32_t parts>
KVC_INLINE void store_parts(std::byte* to, Vec a, Vec b) {
#pragma GCC unroll 3
  for (size_t part = 0; part < parts; ++part) {
    if (parts < parts_max && part == parts - 1) {
      a = add_half(a);
      b = add_half(b);
    }
    _mm512_store_si512(to + part * amx_tile_bytes,
                       first_parts(a, b));  // takes the upper halves, as cutting off does
    a = a - cut_off(a);
    b = b - cut_off(b);
  }
}

KVC_INLINE bool differs(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ) != 0; }

/// Returns whether products of parts are exact but for what is rounded: everything is finite, also when it is rounded up, and
/// nothing so small that a part of it would be denormal, which AMX takes for 0. The smallest magnitude decides and not
/// the largest, because a row may see nothing else.
KVC_INLINE bool are_suited(const Magnitudes& magnitudes) {
  const float smallest = magnitudes.smallest();
  return magnitudes.largest() < 0x1p127f && (smallest == 0 || smallest >= 0x1p-100f);
}

/// The bits that some numbers use.
struct UsedBits {
  __m512i used = _mm512_setzero_si512();

  [[gnu::always_inline]] void add(Vec x) { used = _mm512_or_si512(used, _mm512_castps_si512(x)); }
  /// Parts that all of them need: further ones would be 0.
  [[gnu::always_inline]] int32_t n_parts() const {
    alignas(64) uint32_t bits[lanes];
    _mm512_store_si512(bits, used);
    uint32_t any = 0;
    for (int32_t i = 0; i < lanes; ++i) any |= bits[i];
    return (any & 0xffff) == 0 ? 1 : (any & 0xff) == 0 ? 2 : 3;
  }
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
