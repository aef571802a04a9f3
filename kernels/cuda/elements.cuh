#pragma once
#include "kernels/cuda/element.hpp"
#include "kernels/cuda/ptx.cuh"

/// Elements of rows, with the bits of core/base/half.hpp: what is stored must not depend on the device, and the conversions that a
/// GPU has make one NaN of all. Rows have room for their arithmetic, they wait for memory.
namespace kvc::cuda {

KVC_DEVICE float f16_bits_to_f32(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31u;
  const uint32_t mantissa = half & 1023u;
  if (exponent == 31)
    return float_of(sign | 0x7f800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0u));
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

KVC_DEVICE uint32_t f32_to_f16_bits(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u | (magnitude >> 13 & 0x3ffu);
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) return sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u);
  return sign | (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
}

KVC_DEVICE uint32_t f32_to_bf16_bits(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

KVC_DEVICE int element_bytes(Element element) {
  return element == Element::f32 ? 4 : element == Element::code ? 1 : 2;
}

/// Not of codes.
KVC_DEVICE float load_element(const char* row, Element element, int64_t index) {
  if (element == Element::f32) return reinterpret_cast<const float*>(row)[index];
  const uint32_t bits = reinterpret_cast<const uint16_t*>(row)[index];
  return element == Element::f16 ? f16_bits_to_f32(bits) : float_of(bits << 16);
}

KVC_DEVICE void store_element(char* row, Element element, int64_t index, float value) {
  if (element == Element::f32) {
    reinterpret_cast<float*>(row)[index] = value;
  } else {
    const uint32_t bits = element == Element::f16 ? f32_to_f16_bits(value) : f32_to_bf16_bits(value);
    reinterpret_cast<uint16_t*>(row)[index] = static_cast<uint16_t>(bits);
  }
}

// What the lanes of a warp do to a row, or the threads of a block: `lane` of `n_lanes`.

template <class Unit>
KVC_DEVICE void copy_units(char* to, const char* from, int64_t bytes, int lane, int n_lanes) {
  for (int64_t i = lane; i < bytes / static_cast<int64_t>(sizeof(Unit)); i += n_lanes)
    reinterpret_cast<Unit*>(to)[i] = reinterpret_cast<const Unit*>(from)[i];
}

/// As much at a time as the addresses allow.
KVC_DEVICE void copy_bytes(char* to, const char* from, int64_t bytes, int lane, int n_lanes) {
  const uint64_t all = reinterpret_cast<uint64_t>(to) | reinterpret_cast<uint64_t>(from) |
                       static_cast<uint64_t>(bytes);
  if (all % 16 == 0) {
    copy_units<Word4>(to, from, bytes, lane, n_lanes);
  } else if (all % 4 == 0) {
    copy_units<uint32_t>(to, from, bytes, lane, n_lanes);
  } else if (all % 2 == 0) {
    copy_units<uint16_t>(to, from, bytes, lane, n_lanes);
  } else {
    copy_units<uint8_t>(to, from, bytes, lane, n_lanes);
  }
}

KVC_DEVICE void exchange_bytes(char* a, char* b, int64_t bytes, int lane, int n_lanes) {
  for (int64_t i = lane; i < bytes; i += n_lanes) {
    const char kept = a[i];
    a[i] = b[i];
    b[i] = kept;
  }
}

KVC_DEVICE void clear_bytes(char* to, int64_t bytes, int lane, int n_lanes) {
  const uint64_t all = reinterpret_cast<uint64_t>(to) | static_cast<uint64_t>(bytes);
  if (all % 16 == 0) {
    for (int64_t i = lane; i < bytes / 16; i += n_lanes) reinterpret_cast<Word4*>(to)[i] = Word4{};
  } else {
    for (int64_t i = lane; i < bytes; i += n_lanes) to[i] = 0;
  }
}

/// A row somewhere; the stride is in elements.
struct ElementRow {
  char* data;
  int64_t stride;
  Element element;
};

template <class Unit>
KVC_DEVICE void copy_elements(const ElementRow& to, const ElementRow& from, int n, int lane, int n_lanes) {
  for (int i = lane; i < n; i += n_lanes)
    reinterpret_cast<Unit*>(to.data)[i * to.stride] =
        reinterpret_cast<const Unit*>(from.data)[i * from.stride];
}

/// The same type bit for bit, else rounded to nearest even.
KVC_DEVICE void convert_row(const ElementRow& to, const ElementRow& from, int n, int lane,
                            int n_lanes) {
  if (to.element != from.element) {
    for (int i = lane; i < n; i += n_lanes)
      store_element(to.data, to.element, i * to.stride,
                    load_element(from.data, from.element, i * from.stride));
  } else if (to.stride == 1 && from.stride == 1) {
    copy_bytes(to.data, from.data, int64_t{n} * element_bytes(to.element), lane, n_lanes);
  } else if (to.element == Element::f32) {
    copy_elements<uint32_t>(to, from, n, lane, n_lanes);
  } else if (to.element == Element::code) {
    copy_elements<uint8_t>(to, from, n, lane, n_lanes);
  } else {
    copy_elements<uint16_t>(to, from, n, lane, n_lanes);
  }
}

}  // namespace kvc::cuda
