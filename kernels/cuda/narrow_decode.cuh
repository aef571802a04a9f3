#pragma once
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/narrow_factors.cuh"

/// Codes as numbers of 16 bits, a word of four bytes at a time, for products on tensor cores. What a number is multiplied with
/// afterwards, beside its scale, is `unit`.
///
/// All codes but nf4's are exact in f16. nf4's levels are numbers of f32, of which two parts of f16 keep enough.
namespace kvc::cuda {

/// How a type lies in bytes.
constexpr int codes_per_byte(StorageType type) { return format_of(type).codes_per_byte; }
constexpr bool has_stored_scales(StorageType type) { return !is_f8(type); }
/// Numbers that share a stored scale, of rows of `dim`.
constexpr int block_of(StorageType type, int dim) {
  if (type == StorageType::q8_0 || type == StorageType::q4_0) return ggml_block;
  return type == StorageType::nf4 ? 64 : dim;
}
/// The dim of the n-th code of a byte, the one in its lower bits first.
KVC_DEVICE constexpr int dim_of_code(StorageType type, int byte, int n) {
  if (type == StorageType::nf4) return 2 * byte + 1 - n;
  if (type != StorageType::q4_0) return byte;
  constexpr int half = ggml_block / 2;
  return byte / half * ggml_block + byte % half + n * half;
}

/// The numbers of a word: pairs[part][n][i] has those of bytes i and i + 2, of the n-th code of each byte.
template <StorageType type>
struct CodeWord {  // q8_0 and int8
  static constexpr int parts = 1;
  static constexpr float unit = 1;

  KVC_DEVICE void decode(uint32_t word, uint32_t (&pairs)[parts][1][2]) const {
    KVC_UNROLL for (int i = 0; i < 2; ++i) {
      // 1024 + 128 + the number
      const uint32_t above = select_and_flip(word >> 8 * i, 0x00ff00ffu, 0x64806480u);
      pairs[0][0][i] = F16::multiply_add(above, 0x3c003c00u, 0xe480e480u);
    }
  }
};

template <>
struct CodeWord<StorageType::q4_0> {
  static constexpr int parts = 1;
  static constexpr float unit = 1;

  KVC_DEVICE void decode(uint32_t word, uint32_t (&pairs)[parts][2][2]) const {
    KVC_UNROLL for (int i = 0; i < 2; ++i) {
      const uint32_t bytes = word >> 8 * i;
      const uint32_t low = select_and_flip(bytes, 0x000f000fu, 0x64006400u);   // 1024 + the code
      const uint32_t high = select_and_flip(bytes, 0x00f000f0u, 0x64006400u);  // 1024 + 16 times the code
      pairs[0][0][i] = F16::multiply_add(low, 0x3c003c00u, 0xe408e408u);
      pairs[0][1][i] = F16::multiply_add(high, 0x2c002c00u, 0xd480d480u);
    }
  }
};

/// Moved to where f16 has exponent and mantissa, the magnitude is 2^-8 of what it was. Times 144 · 2^8, all numbers stay in f16, and
/// exactly, but NaN, which looks like 480, becomes infinite.
template <>
struct CodeWord<StorageType::f8_e4m3> {
  static constexpr int parts = 1;
  static constexpr float unit = 1.0f / 144;

  KVC_DEVICE void decode(uint32_t word, uint32_t (&pairs)[parts][1][2]) const {
    KVC_UNROLL for (int i = 0; i < 2; ++i) {
      const uint32_t upper = i == 0 ? word << 8 : word;
      const uint32_t moved = (upper >> 1 & 0x3f803f80u) | (upper & 0x80008000u);
      pairs[0][0][i] = F16::multiply_add(moved, 0x78807880u, 0);
    }
  }
};

/// The upper half of an f16.
template <>
struct CodeWord<StorageType::f8_e5m2> {
  static constexpr int parts = 1;
  static constexpr float unit = 1;

  KVC_DEVICE void decode(uint32_t word, uint32_t (&pairs)[parts][1][2]) const {
    KVC_UNROLL for (int i = 0; i < 2; ++i) pairs[0][0][i] = (i == 0 ? word << 8 : word) & 0xff00ff00u;
  }
};

/// A lane holds both parts of one level, and everybody asks the lane whose number ends in the code. Levels are multiplied with 1024, so
/// that f16 has all bits of their second parts.
template <>
struct CodeWord<StorageType::nf4> {
  static constexpr int parts = 2;
  static constexpr float unit = 1.0f / 1024;

  KVC_DEVICE CodeWord() {
    const float level = nf4_number(static_cast<uint32_t>(thread_index()) % 16) * 1024;
    const uint32_t first = F16::pack(level, 0);
    level_ = first | F16::pack(0, level - F16::low(first));
  }

  KVC_DEVICE void decode(uint32_t word, uint32_t (&pairs)[parts][2][2]) const {
    KVC_UNROLL for (int n = 0; n < 2; ++n) {
      KVC_UNROLL for (int i = 0; i < 2; ++i) {
        const int shift = 8 * i + 4 * n;  // bits above the code name lane numbers, too, and count for nothing
        const uint32_t low = shuffle(level_, static_cast<int>(word >> shift & 31u));
        const uint32_t high = shuffle(level_, static_cast<int>(word >> (shift + 16) & 31u));
        pairs[0][n][i] = permute(low, high, 0x5410);
        pairs[1][n][i] = permute(low, high, 0x7632);
      }
    }
  }

 private:
  uint32_t level_;
};

}  // namespace kvc::cuda
