#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/storage.hpp"
#include "kernels/cpu/vectors.hpp"

/// Codecs of the storage types (docs/SEMANTICS.md, section 9). The bytes do not depend on the instruction set: each operation is
/// rounded by itself, nothing is fused, and no reciprocal stands for a division.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

// ---- Numbers and their bits ----------------------------------------------------------------------------------------------

KVC_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
KVC_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

KVC_INLINE uint16_t half_of(float x) {
  uint16_t halves[lanes];
  store_as<F16>(halves, broadcast(x));
  return halves[0];
}
KVC_INLINE float float_of_half(uint16_t half) {
  uint16_t halves[lanes];
  float values[lanes];
  for (uint16_t& each : halves) each = half;
  store_unaligned(values, load_as<F16>(halves));
  return values[0];
}

inline constexpr uint32_t sign_bit = 0x80000000u;
inline constexpr uint32_t infinity_bits = 0x7f800000u;
inline constexpr uint32_t nan_bits = 0x7fc00000u;
inline constexpr uint16_t half_infinity = 0x7c00u;
inline constexpr uint16_t half_nan = 0x7e00u;
/// A block of smaller magnitudes is stored as zeros.
inline constexpr float least_magnitude = 0x1p-100f;

// ---- f8 -------------------------------------------------------------------------------------------------------------------

/// A format of 8 bits: a sign, an exponent, `mantissa` bits.
template <uint32_t mantissa, uint32_t bias, uint32_t infinity>
struct F8 {
  static constexpr uint32_t shift = 23 - mantissa;
  static constexpr uint32_t rebias = (127 - bias) << 23;
  static constexpr uint32_t smallest_normal = (128 - bias) << 23;
  /// A power of two whose ulp is the smallest step of the format: added, it rounds a subnormal number.
  static constexpr uint32_t rounder = (151 - bias - mantissa) << 23;
  static constexpr uint32_t infinity_code = infinity;
};
struct E4m3 : F8<3, 7, 0x7f> {  // has no infinity: NaN
  static constexpr float largest = 448;
};
struct E5m2 : F8<2, 15, 0x7c> {
  static constexpr float largest = 57344;
};

template <class Format>
KVC_INLINE uint8_t encode_f8(float value, float scale) {
  const uint32_t magnitude = bits_of(value) & ~sign_bit;
  const uint32_t sign = bits_of(value) >> 24 & 0x80u;
  if (magnitude > infinity_bits) return 0x7f;
  if (magnitude == infinity_bits)
    return static_cast<uint8_t>(Format::infinity_code == 0x7f ? 0x7f : sign | Format::infinity_code);
  const float quotient = float_of(magnitude) / scale;
  const float x = quotient < Format::largest ? quotient : Format::largest;
  const uint32_t bits = bits_of(x);
  if (bits < Format::smallest_normal) {
    const uint32_t code = bits_of(x + float_of(Format::rounder)) - Format::rounder;
    return static_cast<uint8_t>(sign | code);
  }
  const uint32_t half = (1u << (Format::shift - 1)) - 1 + (bits >> Format::shift & 1);
  return static_cast<uint8_t>(sign | (bits + half - Format::rebias) >> Format::shift);
}

/// Both formats are f16 with fewer bits: e5m2 its upper byte; e4m3 shifted by one bit less, 2^8 times too small.
KVC_INLINE float decode_f8(E5m2, uint8_t code) {
  return float_of_half(static_cast<uint16_t>(code << 8));
}
KVC_INLINE float decode_f8(E4m3, uint8_t code) {
  if ((code & 0x7f) == 0x7f) return float_of(nan_bits);
  return float_of_half(static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7)) * 256;
}

template <class Format>
KVC_INLINE void encode_f8_row(uint8_t* codes, const float* values, int32_t n, float scale) {
  for (int32_t i = 0; i < n; ++i) codes[i] = encode_f8<Format>(values[i], scale);
}

template <class Format>
KVC_INLINE void decode_f8_row(float* values, const uint8_t* codes, int32_t n, float scale) {
  for (int32_t i = 0; i < n; ++i) values[i] = decode_f8(Format{}, codes[i]) * scale;
}

// ---- Blocks with a stored scale -------------------------------------------------------------------------------------------

/// Bits of the largest magnitude; of infinity or above where one is infinite or NaN.
KVC_INLINE uint32_t largest_magnitude(const float* values, int32_t n) {
  uint32_t largest = 0;
  for (int32_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(values[i]) & ~sign_bit;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

enum class BlockKind : uint8_t { ordinary, zero, not_finite };

/// `magnitude` as largest_magnitude returns it.
KVC_INLINE BlockKind kind_of(uint32_t magnitude) {
  if (magnitude >= infinity_bits) return BlockKind::not_finite;
  return float_of(magnitude) < least_magnitude ? BlockKind::zero : BlockKind::ordinary;
}
/// The same with a scale that is stored as f16: both 0 and infinity are possible there.
KVC_INLINE BlockKind kind_of(uint32_t magnitude, uint16_t scale) {
  const BlockKind kind = kind_of(magnitude);
  if (kind != BlockKind::ordinary) return kind;
  if ((scale & 0x7fff) >= half_infinity) return BlockKind::not_finite;
  return (scale & 0x7fff) == 0 ? BlockKind::zero : BlockKind::ordinary;
}

KVC_INLINE void store_half(std::byte* to, uint16_t half) {
  __builtin_memcpy(to, &half, sizeof half);
}
KVC_INLINE float load_half(const std::byte* from) {
  uint16_t half;
  __builtin_memcpy(&half, from, sizeof half);
  return float_of_half(half);
}
KVC_INLINE void store_float(std::byte* to, uint32_t bits) {
  __builtin_memcpy(to, &bits, sizeof bits);
}
KVC_INLINE float load_float(const std::byte* from) {
  uint32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return float_of(bits);
}

/// Zeros stand for zeros and, beside a scale that is NaN, for what is not finite.
KVC_INLINE void store_zeros(std::byte* codes, int32_t n_bytes) {
  __builtin_memset(codes, 0, static_cast<size_t>(n_bytes));
}

inline constexpr int32_t ggml_block = 32;

/// To the nearest integer, halves away from zero.
KVC_INLINE int32_t round_away(float x) {
  const int32_t towards_zero = static_cast<int32_t>(x);
  const float rest = x - static_cast<float>(towards_zero);
  return towards_zero + (rest >= 0.5f) - (rest <= -0.5f);
}
/// To the nearest integer, halves to even; |x| < 2^22.
KVC_INLINE int32_t round_even(float x) {
  const float rounder = 12582912;  // 1.5 · 2^23 has an ulp of 1
  return static_cast<int32_t>((x + rounder) - rounder);
}

KVC_INLINE void encode_q8_0(std::byte* codes, std::byte* scale, const float* values) {
  const uint32_t magnitude = largest_magnitude(values, ggml_block);
  const float d = float_of(magnitude) / 127;
  const uint16_t half = half_of(d);
  const BlockKind kind = kind_of(magnitude, half);
  store_half(scale, kind == BlockKind::ordinary ? half : kind == BlockKind::zero ? 0 : half_nan);
  if (kind != BlockKind::ordinary) return store_zeros(codes, ggml_block);
  const float inverse = 1 / d;
  for (int32_t i = 0; i < ggml_block; ++i)
    codes[i] = static_cast<std::byte>(round_away(values[i] * inverse));
}

KVC_INLINE void decode_q8_0(float* values, const std::byte* codes, const std::byte* scale) {
  const float d = load_half(scale);
  for (int32_t i = 0; i < ggml_block; ++i)
    values[i] = static_cast<float>(static_cast<int8_t>(codes[i])) * d;
}

KVC_INLINE void encode_q4_0(std::byte* codes, std::byte* scale, const float* values) {
  const uint32_t magnitude = largest_magnitude(values, ggml_block);
  int32_t first = 0;
  while ((bits_of(values[first]) & ~sign_bit) != magnitude) ++first;
  const float d = values[first] / -8;
  const uint16_t half = half_of(d);
  const BlockKind kind = kind_of(magnitude, half);
  store_half(scale, kind == BlockKind::ordinary ? half : kind == BlockKind::zero ? 0 : half_nan);
  if (kind != BlockKind::ordinary) return store_zeros(codes, ggml_block / 2);
  const float inverse = 1 / d;
  const auto code = [inverse](float x) {
    const int32_t up = static_cast<int32_t>(x * inverse + 8.5f);
    return up < 15 ? up : 15;
  };
  for (int32_t i = 0; i < ggml_block / 2; ++i)
    codes[i] = static_cast<std::byte>(code(values[i]) | code(values[i + ggml_block / 2]) << 4);
}

KVC_INLINE void decode_q4_0(float* values, const std::byte* codes, const std::byte* scale) {
  const float d = load_half(scale);
  for (int32_t i = 0; i < ggml_block / 2; ++i) {
    const int32_t both = static_cast<int32_t>(codes[i]);
    values[i] = static_cast<float>((both & 15) - 8) * d;
    values[i + ggml_block / 2] = static_cast<float>((both >> 4) - 8) * d;
  }
}

KVC_INLINE void encode_int8(std::byte* codes, std::byte* scale, const float* values, int32_t n) {
  const uint32_t magnitude = largest_magnitude(values, n);
  const BlockKind kind = kind_of(magnitude);
  const float d = float_of(magnitude) / 127;
  store_float(scale, kind == BlockKind::ordinary ? bits_of(d)
                     : kind == BlockKind::zero   ? 0
                                                 : nan_bits);
  if (kind != BlockKind::ordinary) return store_zeros(codes, n);
  for (int32_t i = 0; i < n; ++i) codes[i] = static_cast<std::byte>(round_even(values[i] / d));
}

KVC_INLINE void decode_int8(float* values, const std::byte* codes, const std::byte* scale, int32_t n) {
  const float d = load_float(scale);
  for (int32_t i = 0; i < n; ++i) values[i] = static_cast<float>(static_cast<int8_t>(codes[i])) * d;
}

/// The values of nf4's codes and, between each two, the threshold.
struct Nf4 {
  float value[16] = {};
  float threshold[15] = {};

  constexpr Nf4() {
    constexpr uint32_t bits[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0,
                                   0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                                   0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a,
                                   0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
    for (int32_t i = 0; i < 16; ++i) value[i] = __builtin_bit_cast(float, bits[i]);
    for (int32_t i = 0; i < 15; ++i) threshold[i] = (value[i] + value[i + 1]) / 2;
  }
};
inline constexpr Nf4 nf4;

KVC_INLINE void encode_nf4(std::byte* codes, std::byte* scale, const float* values, int32_t block) {
  const uint32_t magnitude = largest_magnitude(values, block);
  const BlockKind kind = kind_of(magnitude);
  store_float(scale, kind == BlockKind::ordinary ? magnitude
                     : kind == BlockKind::zero   ? 0
                                                 : nan_bits);
  if (kind != BlockKind::ordinary) return store_zeros(codes, block / 2);
  const float a = float_of(magnitude);
  const auto code = [a](float value) {
    const float x = value / a;
    int32_t below = 0;
    for (const float threshold : nf4.threshold) below += threshold < x;
    return below;
  };
  for (int32_t i = 0; i < block / 2; ++i)
    codes[i] = static_cast<std::byte>(code(values[2 * i]) << 4 | code(values[2 * i + 1]));
}

KVC_INLINE void decode_nf4(float* values, const std::byte* codes, const std::byte* scale,
                           int32_t block) {
  const float a = load_float(scale);
  for (int32_t i = 0; i < block / 2; ++i) {
    const int32_t both = static_cast<int32_t>(codes[i]);
    values[2 * i] = nf4.value[both >> 4] * a;
    values[2 * i + 1] = nf4.value[both & 15] * a;
  }
}

// ---- Rows -----------------------------------------------------------------------------------------------------------------

/// Calls `use` with the first value, codes and scale of each block.
template <class Use>
KVC_INLINE void for_each_block(const RowFormat& format, const StoredRow& row, Use use) {
  const StorageFormat& stored = format_of(format.type);
  const auto scale_bytes = static_cast<int32_t>(size_of(stored.scale));
  for (int32_t at = 0, i = 0; at < format.head_dim; at += format.block, ++i)
    use(at, row.codes + at / stored.codes_per_byte, row.scales + i * scale_bytes);
}

[[maybe_unused]] static void encode_row(const RowFormat& format, const StoredRow& to,
                                        const float* values) {
  auto* bytes = reinterpret_cast<uint8_t*>(to.codes);
  switch (format.type) {
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16:
      return from_f32(to.codes, format_of(format.type).code, values, format.head_dim);
    case StorageType::f8_e4m3: return encode_f8_row<E4m3>(bytes, values, format.head_dim, to.scale);
    case StorageType::f8_e5m2: return encode_f8_row<E5m2>(bytes, values, format.head_dim, to.scale);
    case StorageType::q8_0:
      return for_each_block(format, to, [values](int32_t at, std::byte* codes, std::byte* scale) {
        encode_q8_0(codes, scale, values + at);
      });
    case StorageType::q4_0:
      return for_each_block(format, to, [values](int32_t at, std::byte* codes, std::byte* scale) {
        encode_q4_0(codes, scale, values + at);
      });
    case StorageType::int8: return encode_int8(to.codes, to.scales, values, format.head_dim);
    case StorageType::nf4:
      return for_each_block(format, to, [&](int32_t at, std::byte* codes, std::byte* scale) {
        encode_nf4(codes, scale, values + at, format.block);
      });
  }
}

[[maybe_unused]] static void decode_row(const RowFormat& format, float* values, const StoredRow& from) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(from.codes);
  switch (format.type) {
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16:
      return to_f32(values, from.codes, format_of(format.type).code, format.head_dim);
    case StorageType::f8_e4m3:
      return decode_f8_row<E4m3>(values, bytes, format.head_dim, from.scale);
    case StorageType::f8_e5m2:
      return decode_f8_row<E5m2>(values, bytes, format.head_dim, from.scale);
    case StorageType::q8_0:
      return for_each_block(format, from, [values](int32_t at, std::byte* codes, std::byte* scale) {
        decode_q8_0(values + at, codes, scale);
      });
    case StorageType::q4_0:
      return for_each_block(format, from, [values](int32_t at, std::byte* codes, std::byte* scale) {
        decode_q4_0(values + at, codes, scale);
      });
    case StorageType::int8: return decode_int8(values, from.codes, from.scales, format.head_dim);
    case StorageType::nf4:
      return for_each_block(format, from, [&](int32_t at, std::byte* codes, std::byte* scale) {
        decode_nf4(values + at, codes, scale, format.block);
      });
  }
}

// ---- Rotation -------------------------------------------------------------------------------------------------------------

/// Rudin-Shapiro: a constant vector becomes flat instead of one spike.
KVC_INLINE float signed_as(float x, int32_t i) {
  return __builtin_parity(static_cast<uint32_t>(i & (i >> 1))) ? -x : x;
}

/// 1/√block, correctly rounded. Half of the powers of two have a root that is one.
KVC_INLINE float root_factor(int32_t block) {
  float factor = 1;
  for (; block > 2; block /= 4) factor /= 2;
  return block == 2 ? factor * 0x1.6a09e6p-1f : factor;
}

/// H x, in stages of distance 1, 2, 4, …
KVC_INLINE void transform(float* x, int32_t block) {
  for (int32_t distance = 1; distance < block; distance *= 2) {
    for (int32_t first = 0; first < block; first += 2 * distance) {
      for (int32_t i = first; i < first + distance; ++i) {
        const float u = x[i], v = x[i + distance];
        x[i] = u + v;
        x[i + distance] = u - v;
      }
    }
  }
}

[[maybe_unused]] static void rotate_blocks(float* values, int64_t count, int32_t block) {
  const float factor = root_factor(block);
  for (float* x = values; x < values + count; x += block) {
    for (int32_t i = 0; i < block; ++i) x[i] = signed_as(x[i], i);
    transform(x, block);
    for (int32_t i = 0; i < block; ++i) x[i] *= factor;
  }
}

[[maybe_unused]] static void rotate_blocks_back(float* values, int64_t count, int32_t block) {
  const float factor = root_factor(block);
  for (float* x = values; x < values + count; x += block) {
    transform(x, block);
    for (int32_t i = 0; i < block; ++i) x[i] = signed_as(x[i] * factor, i);
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
