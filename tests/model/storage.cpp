#include "storage.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "formats.hpp"

namespace model {
namespace {

// Operations of f32. The operands have 24 bits each, so that rounding the result of double is rounding the exact one.
float add(float a, float b) { return static_cast<float>(double{a} + double{b}); }
float multiply(float a, float b) { return static_cast<float>(double{a} * double{b}); }
float divide(float a, float b) { return static_cast<float>(double{a} / double{b}); }

constexpr float tiny = 0x1p-100f;

constexpr uint32_t nf4_bits[16] = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
float nf4_value(int32_t code) { return std::bit_cast<float>(nf4_bits[code]); }

/// Which of the nf4 values is nearest, by counting the thresholds below.
int32_t nf4_code(float x) {
  int32_t code = 0;
  for (int32_t i = 0; i < 15; ++i) code += divide(add(nf4_value(i), nf4_value(i + 1)), 2) < x;
  return code;
}

struct SmallFloat {
  int precision, least, bias;  // bits of the significand; exponent of the least normal number
  double largest;
};

SmallFloat small_float(uint32_t dtype) {
  return dtype == KVC_F8_E4M3 ? SmallFloat{4, -6, 7, 448} : SmallFloat{3, -14, 15, 57344};
}

uint8_t f8_code(uint32_t dtype, float x, float bound) {
  if (std::isnan(x)) return 0x7f;
  const SmallFloat format = small_float(dtype);
  const float scaled = divide(x, bound);
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isinf(x)) return dtype == KVC_F8_E4M3 ? 0x7f : static_cast<uint8_t>(sign | 0x7c);
  const double magnitude = std::fabs(double{scaled});
  const int stored = format.precision - 1;
  if (magnitude == 0) return sign;
  double rounded = format.largest;
  if (magnitude < format.largest) {
    const double step = std::ldexp(1, std::max(std::ilogb(magnitude), format.least) - stored);
    rounded = std::nearbyint(magnitude / step) * step;
  }
  if (rounded < std::ldexp(1, format.least))
    return static_cast<uint8_t>(sign | static_cast<int>(std::ldexp(rounded, stored - format.least)));
  const int exponent = std::ilogb(rounded);
  const int fraction = static_cast<int>(std::ldexp(rounded, stored - exponent)) - (1 << stored);
  return static_cast<uint8_t>(sign | (exponent + format.bias) << stored | fraction);
}

float f8_value(uint32_t dtype, uint8_t code) {
  const SmallFloat format = small_float(dtype);
  const int stored = format.precision - 1;
  const int exponent = (code & 0x7f) >> stored, fraction = code & ((1 << stored) - 1);
  const double sign = code & 0x80 ? -1 : 1;
  if (dtype == KVC_F8_E4M3 && (code & 0x7f) == 0x7f) return std::nanf("");
  if (dtype == KVC_F8_E5M2 && exponent == 31)
    return fraction ? std::nanf("") : static_cast<float>(sign * HUGE_VAL);
  if (exponent == 0) return static_cast<float>(sign * std::ldexp(fraction, format.least - stored));
  return static_cast<float>(sign *
                            std::ldexp((1 << stored) + fraction, exponent - format.bias - stored));
}

/// The magnitude that the scale is made of, and the scale before it is stored. For q4_0 both have the sign of the first largest value.
float scale_of_block(uint32_t dtype, const float* x, int32_t n) {
  float largest = 0;
  for (int32_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return std::nanf("");
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  if (std::fabs(largest) < tiny) return 0;
  if (dtype == KVC_Q4_0) return divide(largest, -8);
  return dtype == KVC_NF4 ? std::fabs(largest) : divide(std::fabs(largest), 127);
}

int32_t code_of(uint32_t dtype, float x, float scale) {
  if (dtype == KVC_Q8_0) return static_cast<int32_t>(std::round(multiply(x, divide(1, scale))));
  if (dtype == KVC_INT8) return static_cast<int32_t>(std::nearbyint(divide(x, scale)));
  if (dtype == KVC_NF4) return nf4_code(divide(x, scale));
  const float moved = add(multiply(x, divide(1, scale)), 8.5f);
  return std::min(15, static_cast<int32_t>(std::trunc(moved)));
}

/// Which byte of the block holds value i, and the shift of its code there.
struct Nibble {
  int32_t byte, shift;
};
Nibble nibble_of(uint32_t dtype, int32_t i, int32_t block) {
  if (dtype == KVC_Q4_0) return {i % (block / 2), i < block / 2 ? 0 : 4};
  return {i / 2, i % 2 == 0 ? 4 : 0};
}

bool has_nibbles(uint32_t dtype) { return dtype == KVC_Q4_0 || dtype == KVC_NF4; }

void encode_block(const Storage& storage, const float* x, uint8_t* codes, uint8_t* scale) {
  const uint32_t dtype = storage.dtype;
  const int32_t n = storage.block;
  const size_t n_bytes = static_cast<size_t>(has_nibbles(dtype) ? n / 2 : n);
  std::memset(codes, 0, n_bytes);
  const float wide = scale_of_block(dtype, x, n);
  const double stored = round_to(storage.scale_dtype(), wide);
  if (!std::isfinite(stored) || stored == 0) {
    store(scale, storage.scale_dtype(), 0, stored == 0 ? 0.0 : std::nan(""));
    return;
  }
  store(scale, storage.scale_dtype(), 0, stored);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t code = code_of(dtype, x[i], wide);
    if (!has_nibbles(dtype)) {
      codes[i] = static_cast<uint8_t>(code);
      continue;
    }
    const Nibble at = nibble_of(dtype, i, n);
    codes[at.byte] = static_cast<uint8_t>(codes[at.byte] | code << at.shift);
  }
}

void decode_block(const Storage& storage, const uint8_t* codes, const uint8_t* scale, float* x) {
  const auto wide = static_cast<float>(load(scale, storage.scale_dtype(), 0));
  for (int32_t i = 0; i < storage.block; ++i) {
    float factor;
    if (has_nibbles(storage.dtype)) {
      const Nibble at = nibble_of(storage.dtype, i, storage.block);
      const int32_t code = codes[at.byte] >> at.shift & 15;
      factor = storage.dtype == KVC_NF4 ? nf4_value(code) : static_cast<float>(code - 8);
    } else {
      factor = static_cast<float>(static_cast<int8_t>(codes[i]));
    }
    x[i] = multiply(factor, wide);
  }
}

double sign_of(int32_t i) { return std::popcount(static_cast<uint32_t>(i & i >> 1)) % 2 ? -1 : 1; }

/// Element (i, j) of Sylvester's matrix.
double hadamard(int32_t i, int32_t j) {
  return std::popcount(static_cast<uint32_t>(i & j)) % 2 ? -1 : 1;
}

}  // namespace

int32_t power_of_two_in(int32_t n) { return n & -n; }

void resolve_storage(kvc_cache_desc& cache, Storage* k, Storage* v) {
  const bool v_in_k = cache.flags & KVC_CACHE_V_IN_K;
  if (cache.head_dim_v == 0) cache.head_dim_v = cache.head_dim_k;
  if (cache.dtype_k == 0) cache.dtype_k = KVC_F32;
  if (v_in_k) cache.dtype_v = cache.dtype_k;
  if (cache.dtype_v == 0) cache.dtype_v = KVC_F32;
  *k = Storage(cache.dtype_k, cache.head_dim_k, cache.block_k, cache.flags & KVC_CACHE_ROTATE_K);
  *v = v_in_k ? Storage(cache.dtype_k, cache.head_dim_v, 0, false)
              : Storage(cache.dtype_v, cache.head_dim_v, cache.block_v,
                        cache.flags & KVC_CACHE_ROTATE_V);
}

Storage::Storage(uint32_t type, int32_t head_dim, int32_t asked, bool rotates)
    : dtype(type == 0 ? uint32_t{KVC_F32} : type),
      dim(head_dim),
      rotation(rotates ? power_of_two_in(head_dim) : 0) {
  if (dtype == KVC_Q8_0 || dtype == KVC_Q4_0) block = 32;
  if (dtype == KVC_INT8) block = dim;
  if (dtype == KVC_NF4) block = asked > 0 ? asked : std::min(64, power_of_two_in(dim));
}

uint32_t Storage::code_dtype() const {
  if (is_plain() || is_f8()) return dtype;
  return has_nibbles(dtype) ? uint32_t{KVC_U8} : uint32_t{KVC_I8};
}

uint32_t Storage::scale_dtype() const {
  if (block == 0) return 0;
  return dtype == KVC_Q8_0 || dtype == KVC_Q4_0 ? uint32_t{KVC_F16} : uint32_t{KVC_F32};
}

int64_t Storage::codes_per_row() const { return has_nibbles(dtype) ? dim / 2 : dim; }
size_t Storage::code_bytes() const {
  return static_cast<size_t>(codes_per_row()) * element_bytes(code_dtype());
}
size_t Storage::scale_bytes() const {
  return block == 0 ? 0 : static_cast<size_t>(scales_per_row()) * element_bytes(scale_dtype());
}

void rotate(const Storage& storage, std::vector<float>& x) {
  const int32_t b = storage.rotation;
  if (b == 0) return;
  const auto factor = static_cast<float>(1 / std::sqrt(static_cast<double>(b)));
  for (size_t start = 0; start < x.size(); start += static_cast<size_t>(b)) {
    float* const part = x.data() + start;
    for (int32_t i = 0; i < b; ++i)
      if (sign_of(i) < 0) part[i] = -part[i];
    for (int32_t distance = 1; distance < b; distance *= 2)
      for (int32_t i = 0; i < b; ++i) {
        if (i & distance) continue;
        const float u = part[i], v = part[i + distance];
        part[i] = add(u, v);
        part[i + distance] = add(u, -v);
      }
    for (int32_t i = 0; i < b; ++i) part[i] = multiply(part[i], factor);
  }
}

void rotate(const Storage& storage, double* x) {
  const int32_t b = storage.rotation;
  std::vector<double> y(static_cast<size_t>(b));
  for (int32_t start = 0; b > 0 && start < storage.dim; start += b) {
    for (int32_t i = 0; i < b; ++i) {
      double sum = 0;
      for (int32_t j = 0; j < b; ++j) sum += hadamard(i, j) * sign_of(j) * x[start + j];
      y[static_cast<size_t>(i)] = sum / std::sqrt(static_cast<double>(b));
    }
    std::copy(y.begin(), y.end(), x + start);
  }
}

void rotate_back(const Storage& storage, double* x) {
  const int32_t b = storage.rotation;
  std::vector<double> y(static_cast<size_t>(b));
  for (int32_t start = 0; b > 0 && start < storage.dim; start += b) {
    for (int32_t i = 0; i < b; ++i) {
      double sum = 0;
      for (int32_t j = 0; j < b; ++j) sum += hadamard(i, j) * x[start + j];
      y[static_cast<size_t>(i)] = sign_of(i) * sum / std::sqrt(static_cast<double>(b));
    }
    std::copy(y.begin(), y.end(), x + start);
  }
}

void encode(const Storage& storage, const float* from, float bound, uint8_t* codes, uint8_t* scales) {
  std::vector<float> x(from, from + storage.dim);
  rotate(storage, x);
  for (int32_t i = 0; storage.block == 0 && i < storage.dim; ++i) {
    const auto at = static_cast<size_t>(i);
    if (storage.is_f8())
      codes[i] = f8_code(storage.dtype, x[at], bound);
    else
      store(codes, storage.dtype, i, x[at]);
  }
  for (int64_t b = 0; b < storage.scales_per_row(); ++b)
    encode_block(storage, x.data() + b * storage.block,
                 codes + b * storage.block / (has_nibbles(storage.dtype) ? 2 : 1),
                 scales + b * static_cast<int64_t>(element_bytes(storage.scale_dtype())));
}

void decode(const Storage& storage, const uint8_t* codes, const uint8_t* scales, float bound,
            float* x) {
  for (int32_t i = 0; storage.block == 0 && i < storage.dim; ++i)
    x[i] = storage.is_f8() ? multiply(f8_value(storage.dtype, codes[i]), bound)
                           : static_cast<float>(load(codes, storage.dtype, i));
  for (int64_t b = 0; b < storage.scales_per_row(); ++b)
    decode_block(storage, codes + b * storage.block / (has_nibbles(storage.dtype) ? 2 : 1),
                 scales + b * static_cast<int64_t>(element_bytes(storage.scale_dtype())),
                 x + b * storage.block);
}

// ---- Rows ----------------------------------------------------------------------------------------

StoredRows::StoredRows(const Storage& storage, size_t n_rows)
    : storage_(storage),
      codes_(n_rows * storage.code_bytes()),
      scales_(n_rows * storage.scale_bytes()),
      numbers_(n_rows * static_cast<size_t>(storage.dim)) {}

void StoredRows::put(size_t row, const float* x, float bound) {
  std::vector<uint8_t> coded(storage_.code_bytes()), scaled(storage_.scale_bytes());
  encode(storage_, x, bound, coded.data(), scaled.data());
  put_codes(row, coded.data(), scaled.data(), bound);
}

void StoredRows::put_codes(size_t row, const uint8_t* coded, const uint8_t* scaled, float bound) {
  std::copy_n(coded, storage_.code_bytes(), codes_.data() + row * storage_.code_bytes());
  std::copy_n(scaled, storage_.scale_bytes(), scales_.data() + row * storage_.scale_bytes());
  decode(storage_, coded, scaled, bound, numbers_.data() + row * static_cast<size_t>(storage_.dim));
}

std::vector<double> StoredRows::values(size_t row) const {
  std::vector<double> result(numbers(row), numbers(row) + storage_.dim);
  rotate_back(storage_, result.data());
  return result;
}

// ---- Accuracy --------------------------------------------------------------------------------------

namespace {

/// Half of the spacing of a type's numbers from 1 on.
double rounding(uint32_t runtime_dtype) { return runtime_dtype == KVC_BF16 ? 0x1p-8 : 0x1p-11; }
bool is_lowered(uint32_t runtime_dtype) {
  return runtime_dtype == KVC_BF16 || runtime_dtype == KVC_F16;
}

}  // namespace

double attention_error(double t, double v, uint32_t runtime_dtype) {
  if (is_lowered(runtime_dtype)) return rounding(runtime_dtype) * (1 + 2 * t) * v;
  return (0x1p-20 + 0x1p-22 * t) * v;
}

double log_sum_exp_error(double t, uint32_t runtime_dtype) {
  const double of_scores = is_lowered(runtime_dtype) ? 2 * rounding(runtime_dtype) * t : 0;
  return 0x1p-20 * (1 + t) + of_scores;
}

}  // namespace model
