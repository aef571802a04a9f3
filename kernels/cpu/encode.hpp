#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/integers.hpp"
#include "kernels/cpu/stored_rows.hpp"

/// From numbers to codes (docs/SEMANTICS.md, section 9), 16 at a time. The bytes do not depend on the instruction set: each
/// operation is rounded by itself, nothing is fused, and no reciprocal stands for a division.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

// ---- f8 -------------------------------------------------------------------------------------------------------------------

/// A format of 8 bits: a sign, an exponent, `mantissa` bits.
template <int32_t mantissa, int32_t bias>
struct F8 {
  static constexpr int32_t shift = 23 - mantissa;
  static constexpr int32_t rebias = (127 - bias) << 23;
  static constexpr int32_t smallest_normal = (128 - bias) << 23;
  /// A power of two whose ulp is the smallest step of the format: added, it rounds a subnormal number.
  static constexpr int32_t rounder = (151 - bias - mantissa) << 23;
};
struct ToE4m3 : F8<3, 7> {
  static constexpr float largest = 448;
  static constexpr bool has_infinity = false;
};
struct ToE5m2 : F8<2, 15> {
  static constexpr float largest = 57344;
  static constexpr bool has_infinity = true;
};

inline constexpr int32_t infinity_bits = 0x7f800000;

template <class Format>
KVC_INLINE Ints f8_codes(Vec value, Vec scale) {
  const Ints magnitude = magnitude_bits(value);
  const Ints sign = (Ints)value >> 24 & 0x80;
  const Vec quotient = (Vec)magnitude / scale, largest = broadcast(Format::largest);
  const Vec x = select_less(quotient, largest, quotient, largest);
  const Ints bits = (Ints)x;
  const Ints subnormal = (Ints)(x + (Vec)every(Format::rounder)) - Format::rounder;
  const Ints odd = bits >> Format::shift & 1;
  const Ints half = odd + ((1 << (Format::shift - 1)) - 1);
  const Ints normal = (bits + half - Format::rebias) >> Format::shift;
  const Ints code = (bits < Format::smallest_normal ? subnormal : normal) | sign;
  const Ints infinity = Format::has_infinity ? sign | 0x7c : every(0x7f);
  const Ints not_finite = magnitude > infinity_bits ? every(0x7f) : infinity;
  return magnitude >= infinity_bits ? not_finite : code;
}

/// Calls `codes(to, from)` for each 16 of n values; the last are padded with zeros.
template <class Codes>
KVC_INLINE void encode_by_16(std::byte* to, const float* from, int32_t n, Codes codes) {
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) codes(to + i, from + i);
  if (i == n) return;
  float values[16] = {};
  std::byte bytes[16];
  for (int32_t j = i; j < n; ++j) values[j - i] = from[j];
  codes(bytes, values);
  for (int32_t j = i; j < n; ++j) to[j] = bytes[j - i];
}

template <class Format>
KVC_INLINE void encode_f8(std::byte* codes, const float* values, int32_t n, float scale) {
  const Vec divisor = broadcast(scale);
  encode_by_16(codes, values, n, [divisor](std::byte* to, const float* from) {
    Ints code[parts_of_16];
    for (int32_t i = 0; i < parts_of_16; ++i)
      code[i] = f8_codes<Format>(load_unaligned(from + i * lanes), divisor);
    store_bytes(to, code);
  });
}

// ---- Blocks with a stored scale -------------------------------------------------------------------------------------------

/// Bits of the largest magnitude; of infinity or above where one is infinite or NaN.
KVC_INLINE int32_t largest_magnitude(const float* values, int32_t n) {
  Ints largest[parts_of_16] = {};
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int32_t j = 0; j < parts_of_16; ++j)
      largest[j] = larger(largest[j], magnitude_bits(load_unaligned(values + i + j * lanes)));
  }
  if (i < n) {
    float rest[16] = {};
    for (int32_t j = i; j < n; ++j) rest[j - i] = values[j];
    for (int32_t j = 0; j < parts_of_16; ++j)
      largest[j] = larger(largest[j], magnitude_bits(load_unaligned(rest + j * lanes)));
  }
  for (int32_t j = 1; j < parts_of_16; ++j) largest[0] = larger(largest[0], largest[j]);
  return largest_lane(largest[0]);
}

/// A scale as it is stored, in the low bytes, and what it makes of its block.
struct BlockScale {
  uint32_t bits;
  bool codes_are_zero;  // canonical: zeros for zeros and, with the scale NaN, for what is not finite
};

/// Of magnitudes below this one nothing is kept.
inline constexpr int32_t least_magnitude_bits = (127 - 100) << 23;

/// `magnitude` as largest_magnitude returns it.
KVC_INLINE BlockScale scale_of(int32_t magnitude, float scale) {
  if (magnitude >= infinity_bits) return {0x7fc00000, true};
  if (magnitude < least_magnitude_bits) return {0, true};
  return {__builtin_bit_cast(uint32_t, scale), false};
}
/// The same for a scale that is stored as f16, where it may become 0 or infinite.
KVC_INLINE BlockScale half_scale_of(int32_t magnitude, float scale) {
  constexpr uint32_t infinity = 0x7c00, nan = 0x7e00;
  const uint32_t half = half_of(scale), half_magnitude = half & 0x7fff;
  if (magnitude >= infinity_bits) return {nan, true};
  if (magnitude < least_magnitude_bits || half_magnitude == 0) return {0, true};
  return half_magnitude >= infinity ? BlockScale{nan, true} : BlockScale{half, false};
}

/// Stores a scale; true where the codes are zeros, which it stores too.
template <class Stored>
KVC_INLINE bool store_scale(std::byte* scale, std::byte* codes, const BlockScale& of, int32_t n_bytes) {
  const auto bits = static_cast<Stored>(of.bits);
  __builtin_memcpy(scale, &bits, sizeof bits);
  if (of.codes_are_zero) __builtin_memset(codes, 0, static_cast<size_t>(n_bytes));
  return of.codes_are_zero;
}

KVC_INLINE float float_of(int32_t bits) { return __builtin_bit_cast(float, bits); }

KVC_INLINE void encode_q8_0(std::byte* codes, std::byte* scale, const float* values) {
  constexpr int32_t n = stored::ggml_block;
  const int32_t magnitude = largest_magnitude(values, n);
  const float d = float_of(magnitude) / 127;
  if (store_scale<uint16_t>(scale, codes, half_scale_of(magnitude, d), n)) return;
  const Vec inverse = broadcast(1 / d);
  // The largest float below a half: with it, halves are rounded away from zero and nothing else is.
  const Vec half = broadcast(0x1.fffffep-2f);
  for (int32_t i = 0; i < n; i += 16) {
    Ints code[parts_of_16];
    for (int32_t j = 0; j < parts_of_16; ++j) {
      const Vec x = load_unaligned(values + i + j * lanes) * inverse;
      code[j] = truncated(x + with_sign(half, x));
    }
    store_bytes(codes + i, code);
  }
}

/// The first value of this magnitude among 32.
KVC_INLINE float first_of_magnitude(const float* values, int32_t magnitude) {
  uint32_t equal = 0;
  for (int32_t i = 0; i < 32; i += lanes)
    equal |= equal_lanes(magnitude_bits(load_unaligned(values + i)), every(magnitude)) << i;
  return values[__builtin_ctz(equal)];
}

KVC_INLINE void encode_q4_0(std::byte* codes, std::byte* scale, const float* values) {
  constexpr int32_t half_block = stored::ggml_block / 2;
  static_assert(half_block == 16);
  const int32_t magnitude = largest_magnitude(values, stored::ggml_block);
  const float d = first_of_magnitude(values, magnitude) / -8;
  if (store_scale<uint16_t>(scale, codes, half_scale_of(magnitude, d), half_block)) return;
  const Vec inverse = broadcast(1 / d);
  const auto codes_of = [inverse](const float* from) {
    const Ints code = truncated(load_unaligned(from) * inverse + broadcast(8.5f));
    return code > 15 ? every(15) : code;
  };
  Ints both[parts_of_16];
  for (int32_t j = 0; j < parts_of_16; ++j) {
    const float* low = values + j * lanes;
    both[j] = codes_of(low) | codes_of(low + half_block) << 4;
  }
  store_bytes(codes, both);
}

KVC_INLINE void encode_int8(std::byte* codes, std::byte* scale, const float* values, int32_t n) {
  const int32_t magnitude = largest_magnitude(values, n);
  const float d = float_of(magnitude) / 127;
  if (store_scale<uint32_t>(scale, codes, scale_of(magnitude, d), n)) return;
  const Vec divisor = broadcast(d);
  // 1.5 · 2^23 has an ulp of 1: added, it rounds to the nearest integer, which is in the low bits.
  const Vec rounder = broadcast(12582912.0f);
  encode_by_16(codes, values, n, [divisor, rounder](std::byte* to, const float* from) {
    Ints code[parts_of_16];
    for (int32_t j = 0; j < parts_of_16; ++j)
      code[j] = (Ints)(load_unaligned(from + j * lanes) / divisor + rounder);
    store_bytes(to, code);
  });
}

/// nf4's thresholds, each between two of its numbers, in the order in which a binary search asks for them.
struct Nf4Search {
  float first = 0;
  float second[2] = {};
  float third[8] = {};  // four of them
  float fourth[8] = {};

  constexpr Nf4Search() {
    const auto threshold = [](int32_t i) {
      const float below = __builtin_bit_cast(float, stored::nf4_bits[i]);
      const float above = __builtin_bit_cast(float, stored::nf4_bits[i + 1]);
      return (below + above) / 2;
    };
    first = threshold(7);
    for (int32_t i = 0; i < 2; ++i) second[i] = threshold(3 + 8 * i);
    for (int32_t i = 0; i < 4; ++i) third[i] = threshold(1 + 4 * i);
    for (int32_t i = 0; i < 8; ++i) fourth[i] = threshold(2 * i);
  }
};
inline constexpr Nf4Search nf4_search;

/// How many thresholds lie below x.
KVC_INLINE Ints nf4_codes_of(Vec x) {
  const Ints none = {};
  const auto next = [x, none](Ints code, Vec threshold) {
    return code + code + (Ints)select_less(threshold, x, (Vec)(none + 1), (Vec)none);
  };
  const Vec first = broadcast(nf4_search.first);
  Ints code = next(none, first);
  code = next(
      code, select_less(first, x, broadcast(nf4_search.second[1]), broadcast(nf4_search.second[0])));
  code = next(code, pick_of_8(nf4_search.third, code));
  return next(code, pick_of_8(nf4_search.fourth, code));
}

KVC_INLINE void encode_nf4(std::byte* codes, std::byte* scale, const float* values, int32_t block) {
  const int32_t magnitude = largest_magnitude(values, block);
  const float a = float_of(magnitude);
  if (store_scale<uint32_t>(scale, codes, scale_of(magnitude, a), block / 2)) return;
  const Vec divisor = broadcast(a);
  for (int32_t i = 0; i < block; i += 16) {
    Ints code[parts_of_16];
    for (int32_t j = 0; j < parts_of_16; ++j)
      code[j] = nf4_codes_of(load_unaligned(values + i + j * lanes) / divisor);
    store_pairs(codes + i / 2, code);
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
