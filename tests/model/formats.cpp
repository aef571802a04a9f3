#include "formats.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace model {
namespace {

struct Format {
  int precision;    // bits of the significand, the hidden one included
  int least, most;  // exponents of normal numbers
};

Format format_of(uint32_t dtype) {
  if (dtype == KVC_F16) return {11, -14, 15};
  if (dtype == KVC_BF16) return {8, -126, 127};
  return {24, -126, 127};
}

uint16_t encode_half(double value) {  // `value` is representable
  const uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  if (std::isnan(value)) return sign | 0x7e00u;
  if (std::isinf(value)) return sign | 0x7c00u;
  const double magnitude = std::fabs(value);
  if (magnitude < 0x1p-14) return sign | static_cast<uint16_t>(magnitude * 0x1p24);
  const int exponent = std::ilogb(magnitude);
  const auto fraction = static_cast<uint16_t>(std::ldexp(magnitude, 10 - exponent) - 1024);
  return static_cast<uint16_t>(sign | (exponent + 15) << 10 | fraction);
}

double decode_half(uint16_t bits) {
  const double sign = bits & 0x8000u ? -1 : 1;
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

}  // namespace

size_t element_bytes(uint32_t dtype) {
  if (dtype == KVC_F32 || dtype == KVC_I32) return 4;
  const bool is_byte = dtype == KVC_BOOL || dtype == KVC_U8 || dtype == KVC_I8 ||
                       dtype == KVC_F8_E4M3 || dtype == KVC_F8_E5M2;
  if (is_byte) return 1;
  return dtype == KVC_F16 || dtype == KVC_BF16 ? 2 : 0;
}

double spacing(uint32_t dtype, double value) {
  const Format format = format_of(dtype);
  const int exponent = value == 0 ? format.least : std::max(std::ilogb(value), format.least);
  return std::ldexp(1, exponent - (format.precision - 1));
}

double round_to(uint32_t dtype, double value) {
  if (dtype == KVC_BOOL) return value != 0;
  if (value == 0 || !std::isfinite(value)) return value;
  const Format format = format_of(dtype);
  const double step = spacing(dtype, value);
  const double rounded = std::nearbyint(value / step) * step;
  const double largest = std::ldexp(2 - std::ldexp(1, 1 - format.precision), format.most);
  if (std::fabs(rounded) > largest) return std::copysign(HUGE_VAL, value);
  return rounded == 0 ? std::copysign(0.0, value) : rounded;
}

double load(const void* data, uint32_t dtype, int64_t index) {
  const char* at = static_cast<const char*>(data) + index * static_cast<int64_t>(element_bytes(dtype));
  if (dtype == KVC_BOOL) return *at != 0;
  if (dtype == KVC_I32) {
    int32_t value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  if (dtype == KVC_F32) {
    float value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  if (dtype == KVC_F16) return decode_half(bits);
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

void store(void* data, uint32_t dtype, int64_t index, double value) {
  char* at = static_cast<char*>(data) + index * static_cast<int64_t>(element_bytes(dtype));
  if (dtype == KVC_I32) {
    const auto whole = static_cast<int32_t>(value);
    std::memcpy(at, &whole, sizeof whole);
    return;
  }
  const double rounded = round_to(dtype, value);
  if (dtype == KVC_BOOL) {
    *at = rounded != 0;
    return;
  }
  if (dtype == KVC_F16) {
    const uint16_t bits = encode_half(rounded);
    std::memcpy(at, &bits, sizeof bits);
    return;
  }
  const auto single = static_cast<float>(rounded);
  if (dtype == KVC_F32) {
    std::memcpy(at, &single, sizeof single);
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  const auto upper = static_cast<uint16_t>(bits >> 16);
  std::memcpy(at, &upper, sizeof upper);
}

}  // namespace model
