#pragma once
#include <bit>
#include <cstdint>

#include "core/base/tensor.hpp"

/// Scalar conversions between f32 and the 16-bit storage types: round to nearest even, overflow becomes infinity,
/// NaN stays NaN. The fast kernels use instructions that give the same bits; this is what they are compared with.
namespace kvc {

inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 1023u;
  if (exponent == 31)
    return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0u));
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal: exact in f32
  return sign ? -magnitude : magnitude;
}

inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u)
    return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u)
    return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                   // below 2^-14: subnormal
    const float scaled = std::bit_cast<float>(magnitude) +
                         0.5f;  // 0.5 has an ulp of 2^-24, f16's smallest step
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

inline float bf16_to_f32(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/// Element `index` of an array of `dtype`.
inline float load_element(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f16: return f16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case DType::bf16: return bf16_to_f32(static_cast<const uint16_t*>(data)[index]);
    case DType::f32: return static_cast<const float*>(data)[index];
    case DType::boolean: return static_cast<const uint8_t*>(data)[index] != 0 ? 1.0f : 0.0f;
    case DType::i32:
    case DType::i8:
    case DType::u8:
    case DType::f8_e4m3:
    case DType::f8_e5m2: break;  // codes are read by their codec, masks by what they hide
  }
  __builtin_unreachable();
}

inline void store_element(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::f16: static_cast<uint16_t*>(data)[index] = f32_to_f16(value); return;
    case DType::bf16: static_cast<uint16_t*>(data)[index] = f32_to_bf16(value); return;
    case DType::f32: static_cast<float*>(data)[index] = value; return;
    case DType::boolean: static_cast<uint8_t*>(data)[index] = value != 0; return;
    case DType::i32:
    case DType::i8:
    case DType::u8:
    case DType::f8_e4m3:
    case DType::f8_e5m2: break;
  }
  __builtin_unreachable();
}

}  // namespace kvc
