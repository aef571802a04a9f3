#pragma once
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/kernel.cuh"

/// From numbers to codes (docs/SEMANTICS.md, section 9), with the bytes of kernels/cpu/encode.hpp: each operation is rounded by itself,
/// and no reciprocal stands for a division. A warp encodes a row, whose numbers its lanes can all read.
namespace kvc::cuda {

inline constexpr uint32_t infinity_bits = 0x7f800000u;
/// Of magnitudes below 2^-100 nothing is kept.
inline constexpr uint32_t least_magnitude_bits = (127u - 100) << 23;

KVC_DEVICE uint32_t magnitude_of(float x) { return bits_of(x) & 0x7fffffffu; }

// ---- f8 -------------------------------------------------------------------------------------------------------------------

/// `mantissa` bits behind an exponent with this bias; `largest` is the largest number.
template <int mantissa, int bias>
KVC_DEVICE uint32_t f8_code(float value, float scale, float largest, uint32_t infinity) {
  constexpr int shift = 23 - mantissa;
  constexpr uint32_t rebias = (127u - bias) << 23, smallest_normal = (128u - bias) << 23;
  constexpr uint32_t rounder = (151u - bias - mantissa) << 23;  // its ulp is the smallest step
  const uint32_t magnitude = magnitude_of(value), sign = bits_of(value) >> 24 & 0x80u;
  if (magnitude > infinity_bits) return 0x7f;
  if (magnitude == infinity_bits) return infinity == 0x7f ? infinity : infinity | sign;
  const float quotient = divide_rounded(float_of(magnitude), scale);
  const float x = quotient < largest ? quotient : largest;
  const uint32_t bits = bits_of(x);
  const uint32_t half = (bits >> shift & 1u) + ((1u << (shift - 1)) - 1);
  const uint32_t code = bits < smallest_normal
                            ? bits_of(add_rounded(x, float_of(rounder))) - rounder
                            : (bits + half - rebias) >> shift;
  return code | sign;
}
KVC_DEVICE uint32_t e4m3_code(float value, float scale) {
  return f8_code<3, 7>(value, scale, 448, 0x7f);
}
KVC_DEVICE uint32_t e5m2_code(float value, float scale) {
  return f8_code<2, 15>(value, scale, 57344, 0x7c);
}

// ---- Blocks with a stored scale -------------------------------------------------------------------------------------------

/// A scale as it is stored, and what it makes of its block.
struct BlockScale {
  uint32_t bits;
  bool codes_are_zero;  // zeros for zeros and, with the scale NaN, for what is not finite
};

/// `magnitude` is the largest of the block.
KVC_DEVICE BlockScale scale_of(uint32_t magnitude, float scale) {
  if (magnitude >= infinity_bits) return {0x7fc00000, true};
  if (magnitude < least_magnitude_bits) return {0, true};
  return {bits_of(scale), false};
}
/// The same for a scale that is stored as f16, where it may become 0 or infinite.
KVC_DEVICE BlockScale half_scale_of(uint32_t magnitude, float scale) {
  const uint32_t half = f32_to_f16_bits(scale), half_magnitude = half & 0x7fffu;
  if (magnitude >= infinity_bits) return {0x7e00, true};
  if (magnitude < least_magnitude_bits || half_magnitude == 0) return {0, true};
  return half_magnitude >= 0x7c00 ? BlockScale{0x7e00, true} : BlockScale{half, false};
}

/// Halves away from zero: what is added is the largest float below a half.
KVC_DEVICE uint32_t q8_0_code(float x, float inverse) {
  const float product = multiply_rounded(x, inverse);
  const float half = product < 0 ? -0x1.fffffep-2f : 0x1.fffffep-2f;
  return static_cast<uint32_t>(static_cast<int>(add_rounded(product, half))) & 0xffu;
}
KVC_DEVICE uint32_t q4_0_code(float x, float inverse) {
  const int code = static_cast<int>(add_rounded(multiply_rounded(x, inverse), 8.5f));
  return static_cast<uint32_t>(code < 15 ? code : 15);
}
/// 1.5 · 2^23 has an ulp of 1: added, it rounds to the nearest integer, which is in the low bits.
KVC_DEVICE uint32_t int8_code(float x, float d) {
  return bits_of(add_rounded(divide_rounded(x, d), 12582912.0f)) & 0xffu;
}
/// How many thresholds lie below the number: each is between two numbers of the table.
KVC_DEVICE uint32_t nf4_code(float x, float a) {
  const float number = divide_rounded(x, a);
  uint32_t code = 0;
  for (int i = 0; i < 15; ++i) {
    const float threshold = add_rounded(nf4_number(static_cast<uint32_t>(i)),
                                        nf4_number(static_cast<uint32_t>(i + 1))) / 2;
    code += threshold < number ? 1 : 0;
  }
  return code;
}

/// What codes of a block are made with.
struct Divisor {
  BlockScale stored;
  float of_codes;  // d, or its inverse
};

/// Of the block `values`, whose largest magnitude is `magnitude`.
KVC_DEVICE Divisor divisor_of(const Coding& coding, const float* values, uint32_t magnitude, int lane) {
  const float a = float_of(magnitude);
  if (coding.type == StorageType::nf4) return {scale_of(magnitude, a), a};
  float d = divide_rounded(a, 127);
  if (coding.type == StorageType::int8) return {scale_of(magnitude, d), d};
  if (coding.type == StorageType::q4_0) {  // by the first value of that magnitude
    const bool is_it = magnitude_of(values[lane]) == magnitude;
    const uint32_t behind = largest_of_lanes(is_it ? static_cast<uint32_t>(ggml_block - lane) : 0u);
    d = divide_rounded(values[ggml_block - static_cast<int>(behind)], -8);
  }
  return {half_scale_of(magnitude, d), divide_rounded(1, d)};
}

/// Byte `i` of the codes of a block.
KVC_DEVICE uint32_t code_byte(const Coding& coding, const float* values, int i, float divisor) {
  switch (coding.type) {
    case StorageType::q8_0: return q8_0_code(values[i], divisor);
    case StorageType::q4_0:
      return q4_0_code(values[i], divisor) | q4_0_code(values[i + ggml_block / 2], divisor) << 4;
    case StorageType::nf4:
      return nf4_code(values[2 * i], divisor) << 4 | nf4_code(values[2 * i + 1], divisor);
    default: return int8_code(values[i], divisor);
  }
}

KVC_DEVICE void encode_block(const Coding& coding, char* codes, char* scales, const float* values,
                             int index, int lane) {
  uint32_t magnitude = 0;
  for (int i = lane; i < coding.block; i += warp_lanes) {
    const uint32_t own = magnitude_of(values[i]);
    if (own > magnitude) magnitude = own;
  }
  const Divisor divisor = divisor_of(coding, values, largest_of_lanes(magnitude), lane);
  const bool is_half = coding.type == StorageType::q8_0 || coding.type == StorageType::q4_0;
  if (lane == 0 && is_half)
    reinterpret_cast<uint16_t*>(scales)[index] = static_cast<uint16_t>(divisor.stored.bits);
  if (lane == 0 && !is_half) reinterpret_cast<uint32_t*>(scales)[index] = divisor.stored.bits;
  const bool is_pair = coding.type == StorageType::q4_0 || coding.type == StorageType::nf4;
  for (int i = lane; i < (is_pair ? coding.block / 2 : coding.block); i += warp_lanes)
    codes[i] = static_cast<char>(
        divisor.stored.codes_are_zero ? 0 : code_byte(coding, values, i, divisor.of_codes));
}

/// The numbers of a row, rotated where they are to be stored so.
KVC_DEVICE void encode_row(const Coding& coding, char* codes, char* scales, float head_scale,
                           const float* values, int lane) {
  if (coding.block == 0) {
    for (int i = lane; i < coding.dim; i += warp_lanes)
      codes[i] = static_cast<char>(coding.type == StorageType::f8_e4m3
                                       ? e4m3_code(values[i], head_scale)
                                       : e5m2_code(values[i], head_scale));
    return;
  }
  const bool is_pair = coding.type == StorageType::q4_0 || coding.type == StorageType::nf4;
  const int block_bytes = is_pair ? coding.block / 2 : coding.block;
  for (int i = 0; i < coding.dim / coding.block; ++i)
    encode_block(coding, codes + i * block_bytes, scales, values + i * coding.block, i, lane);
}

}  // namespace kvc::cuda
