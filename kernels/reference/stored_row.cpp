#include "kernels/reference/stored_row.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "core/base/half.hpp"

namespace kvc {
namespace {

constexpr uint32_t nf4_bits[16] = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};

/// Sign, exponent and mantissa, with gradual underflow: (−1)^s · 2^(e − bias) · 1.m.
float small_float(uint8_t code, int32_t mantissa_bits, int32_t bias) {
  const int32_t magnitude = code & 0x7f;
  const int32_t exponent = magnitude >> mantissa_bits;
  const int32_t mantissa = magnitude & ((1 << mantissa_bits) - 1);
  const int32_t one = exponent > 0 ? 1 << mantissa_bits : 0;
  const int32_t power = (exponent > 0 ? exponent : 1) - bias - mantissa_bits;
  const float value = std::ldexp(static_cast<float>(one + mantissa), power);
  return (code & 0x80) != 0 ? -value : value;
}

float e4m3(uint8_t code) {
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return small_float(code, 3, 7);
}

float e5m2(uint8_t code) {
  if ((code & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  if ((code & 0x7f) == 0x7c)
    return (code & 0x80) != 0 ? -std::numeric_limits<float>::infinity()
                              : std::numeric_limits<float>::infinity();
  return small_float(code, 2, 15);
}

/// Value `d` of a row.
float read(const RowFormat& format, const StoredRow& row, int32_t d) {
  const auto code = [&](int32_t index) { return static_cast<uint8_t>(row.codes[index]); };
  const auto scale = [&] {
    return load_element(row.scales, format_of(format.type).scale, d / format.block);
  };
  switch (format.type) {
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16: return load_element(row.codes, format_of(format.type).code, d);
    case StorageType::f8_e4m3: return e4m3(code(d)) * row.scale;
    case StorageType::f8_e5m2: return e5m2(code(d)) * row.scale;
    case StorageType::q8_0:
    case StorageType::int8: return static_cast<float>(static_cast<int8_t>(code(d))) * scale();
    case StorageType::q4_0: {
      const int32_t in_block = d % 32;
      const uint8_t both = code(d / 32 * 16 + in_block % 16);
      const int32_t nibble = in_block < 16 ? both & 15 : both >> 4;
      return static_cast<float>(nibble - 8) * scale();
    }
    case StorageType::nf4: {
      const uint8_t both = code(d / 2);
      return std::bit_cast<float>(nf4_bits[d % 2 == 0 ? both >> 4 : both & 15]) * scale();
    }
  }
  __builtin_unreachable();
}

/// x = s ∘ H y / √n of one block.
void rotate_back(double* y, int32_t n) {
  for (int32_t distance = 1; distance < n; distance *= 2) {
    for (int32_t i = 0; i < n; ++i) {
      if ((i & distance) != 0) continue;
      const double u = y[i], v = y[i + distance];
      y[i] = u + v;
      y[i + distance] = u - v;
    }
  }
  for (int32_t i = 0; i < n; ++i) {
    const bool is_odd = std::popcount(static_cast<uint32_t>(i & (i >> 1))) % 2 == 1;
    y[i] *= (is_odd ? -1 : 1) / std::sqrt(static_cast<double>(n));
  }
}

}  // namespace

std::vector<double> read_stored_row(const Slab& slab, int32_t head, int32_t cell) {
  const RowFormat& format = slab.format;
  const StoredRow row = slab.stored(head, cell);
  std::vector<double> values(static_cast<size_t>(format.head_dim));
  for (int32_t d = 0; d < format.head_dim; ++d)
    values[static_cast<size_t>(d)] = static_cast<double>(read(format, row, d));
  for (int32_t d = 0; format.rotation != 0 && d < format.head_dim; d += format.rotation)
    rotate_back(values.data() + d, format.rotation);
  return values;
}

}  // namespace kvc
