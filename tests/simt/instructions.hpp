#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/base/half.hpp"
#include "tests/simt/simt.hpp"

/// What kernels/cuda/ptx.cuh says in PTX, on the CPU. Where an instruction may be inexact, it is as inexact here as it may be.
namespace kvc::cuda {

inline int thread_index() { return static_cast<int>(simt::thread_index()); }
inline int block_index() { return static_cast<int>(simt::block_index()); }
inline int n_threads() { return static_cast<int>(simt::n_threads()); }
inline int n_blocks() { return static_cast<int>(simt::n_blocks()); }
inline void sync_block() { simt::sync_block(); }
inline char* shared_memory() { return simt::shared_memory(); }

inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float multiply_rounded(float a, float b) { return a * b; }
inline float add_rounded(float a, float b) { return a + b; }
inline float subtract_rounded(float a, float b) { return a - b; }
inline float divide_rounded(float a, float b) { return a / b; }

inline int count_bits(uint32_t x) { return std::popcount(x); }

inline void cosine_and_sine(double angle, double* cosine, double* sine) {
  *cosine = std::cos(angle);
  *sine = std::sin(angle);
}

inline double exponential(double x) { return std::exp(x); }

/// Rounds twice, as fused it would not.
inline float multiply_add(float a, float b, float c) { return a * b + c; }

inline float load_across_blocks(const float* address) { return *address; }

template <class Word>
Word load_counted(const void* address) {
  simt::count_load(address, sizeof(Word));
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Word) != 0)
    simt::fail("%zu bytes loaded from %p", sizeof(Word), address);
  Word loaded;
  std::memcpy(&loaded, address, sizeof loaded);
  return loaded;
}
inline Word4 load_stream(const void* address) { return load_counted<Word4>(address); }
inline Word2 load_stream_8(const void* address) { return load_counted<Word2>(address); }
inline uint32_t load_stream_4(const void* address) { return load_counted<uint32_t>(address); }

/// Any multiple of 1024 that a wrong offset does not make of itself.
inline constexpr uint32_t shared_begin = 1024;
inline uint32_t shared_address() { return shared_begin; }

inline void copy_async(uint32_t shared, const void* global, bool reads) {
  if (reads) simt::count_load(global, sizeof(Word4));
  if ((shared | reinterpret_cast<uintptr_t>(global)) % 16 != 0)
    simt::fail("16 bytes copied from %p to %u", global, shared);
  simt::begin_copy(shared - shared_begin, reads ? global : nullptr, sizeof(Word4));
}
inline void end_copy_group() { simt::end_copy_group(); }
template <int n_left>
void wait_for_copies() {
  simt::wait_for_copies(n_left);
}

inline uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t byte = selector >> 4 * i & 7u;
    result |= static_cast<uint32_t>(both >> 8 * byte & 0xffu) << 8 * i;
  }
  return result;
}

inline uint32_t select_and_flip(uint32_t word, uint32_t mask, uint32_t flipped) {
  return (word & mask) ^ flipped;
}

/// Off by up to 2^-22, by the same for the same argument.
inline float exp2_fast(float x) {
  const uint32_t mixed = bits_of(x) * 2654435761u;
  const auto error = static_cast<float>(static_cast<int32_t>(mixed) >> 16) * (0x1p-22f / 32768);
  return std::exp2(x) * (1.0f + error);
}

inline uint32_t shuffle(uint32_t value, int from) {
  const uint32_t in[2] = {value, static_cast<uint32_t>(from)};
  uint32_t out = 0;
  simt::collective("shfl.idx", in, 2, &out, 1, [](const simt::Inputs& a, simt::Outputs& r) {
    for (size_t lane = 0; lane < simt::warp_lanes; ++lane)
      r[lane][0] = a[a[lane][1] % simt::warp_lanes][0];
  });
  return out;
}
inline int32_t shuffle(int32_t value, int from) {
  return static_cast<int32_t>(shuffle(static_cast<uint32_t>(value), from));
}
inline float shuffle(float value, int from) { return float_of(shuffle(bits_of(value), from)); }

inline uint32_t shuffle_xor(uint32_t value, int mask) {
  const uint32_t in[2] = {value, static_cast<uint32_t>(mask)};
  uint32_t out = 0;
  simt::collective("shfl.bfly", in, 2, &out, 1, [](const simt::Inputs& a, simt::Outputs& r) {
    for (uint32_t lane = 0; lane < simt::warp_lanes; ++lane) r[lane][0] = a[lane ^ a[lane][1]][0];
  });
  return out;
}
inline float shuffle_xor(float value, int mask) {
  return float_of(shuffle_xor(bits_of(value), mask));
}

inline uint32_t largest_of_lanes(uint32_t value) {
  uint32_t out = 0;
  simt::collective("redux.max", &value, 1, &out, 1, [](const simt::Inputs& a, simt::Outputs& r) {
    uint32_t largest = 0;
    for (const auto& lane : a) largest = std::max(largest, lane[0]);
    for (auto& lane : r) lane[0] = largest;
  });
  return out;
}

inline bool any_lane(bool value) {
  const uint32_t in = value ? 1u : 0u;
  uint32_t out = 0;
  simt::collective("vote.any", &in, 1, &out, 1, [](const simt::Inputs& a, simt::Outputs& r) {
    uint32_t any = 0;
    for (const auto& lane : a) any |= lane[0];
    for (auto& lane : r) lane[0] = any;
  });
  return out != 0;
}

inline int uniform(int value) { return value; }

inline void sync_warp() {
  simt::collective("bar.warp.sync", nullptr, 0, nullptr, 0,
                   [](const simt::Inputs&, simt::Outputs&) {});
}

inline uint32_t transpose_8x8(uint32_t value) {
  uint32_t out = 0;
  simt::collective("movmatrix", &value, 1, &out, 1, [](const simt::Inputs& a, simt::Outputs& r) {
    const auto at = [&a](size_t row, size_t column) {
      return a[row * 4 + column / 2][0] >> 16 * (column % 2) & 0xffffu;
    };
    for (size_t lane = 0; lane < simt::warp_lanes; ++lane)
      r[lane][0] = at(lane % 4 * 2, lane / 4) | at(lane % 4 * 2 + 1, lane / 4) << 16;
  });
  return out;
}

/// Word `column` of row `row` of a matrix whose rows lie where the lanes from `first` on say.
inline uint32_t matrix_word(const simt::Inputs& in, size_t first, size_t row, size_t column) {
  uint32_t word = 0;
  std::memcpy(&word, shared_memory() + in[first + row][0] + 4 * column, sizeof word);
  return word;
}

template <bool transposed>
void load_matrices_as(uint32_t (&m)[4], uint32_t shared_row) {
  const uint32_t in[1] = {shared_row - shared_begin};
  if (in[0] % 16 != 0 || in[0] + size_t{16} > simt::shared_bytes())
    simt::fail("a row of a matrix at %u", in[0]);
  const auto compute = [](const simt::Inputs& a, simt::Outputs& r) {
    for (size_t lane = 0; lane < simt::warp_lanes; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        if (!transposed) {
          r[lane][i] = matrix_word(a, 8 * i, lane / 4, lane % 4);
          continue;
        }
        const size_t column = lane / 4, shift = 16 * (column % 2);
        const uint32_t upper = matrix_word(a, 8 * i, lane % 4 * 2, column / 2);
        const uint32_t lower = matrix_word(a, 8 * i, lane % 4 * 2 + 1, column / 2);
        r[lane][i] = (upper >> shift & 0xffffu) | (lower >> shift) << 16;
      }
    }
  };
  simt::collective(transposed ? "ldmatrix.trans" : "ldmatrix", in, 1, m, 4, compute);
}
inline void load_matrices(uint32_t (&m)[4], uint32_t shared_row) {
  load_matrices_as<false>(m, shared_row);
}
inline void load_matrices_transposed(uint32_t (&m)[4], uint32_t shared_row) {
  load_matrices_as<true>(m, shared_row);
}

struct Bf16 {
  static constexpr bool has_small_range = false;
  static float low(uint32_t pair) { return float_of(pair << 16); }
  static float high(uint32_t pair) { return float_of(pair & 0xffff0000u); }
  static uint32_t pack(float low_part, float high_part) {
    return f32_to_bf16(low_part) | static_cast<uint32_t>(f32_to_bf16(high_part)) << 16;
  }
};
struct F16 {
  static constexpr bool has_small_range = true;
  static float low(uint32_t pair) { return f16_to_f32(static_cast<uint16_t>(pair)); }
  static float high(uint32_t pair) { return f16_to_f32(static_cast<uint16_t>(pair >> 16)); }
  static uint32_t pack(float low_part, float high_part) {
    return f32_to_f16(low_part) | static_cast<uint32_t>(f32_to_f16(high_part)) << 16;
  }
  /// Rounds twice, but where f32 has the result.
  static uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
    return pack(low(a) * low(b) + low(c), high(a) * high(b) + high(c));
  }
};

/// A sum of 16 products and c as the worst tensor core that was measured makes it (Fasi et al., 2021): products are exact, all
/// addends are cut off one bit below the last one of the largest, and so is the sum at the last of f32.
inline float truncating_sum(float c, const float* a, const float* b) {
  double addends[17];
  addends[16] = static_cast<double>(c);
  double largest = std::fabs(addends[16]);
  for (int i = 0; i < 16; ++i) {
    addends[i] = static_cast<double>(a[i]) * static_cast<double>(b[i]);
    largest = std::fmax(largest, std::fabs(addends[i]));
  }
  bool is_finite = true;
  for (const double addend : addends) is_finite = is_finite && std::isfinite(addend);
  if (!is_finite || largest == 0) {
    double sum = 0;
    for (const double addend : addends) sum += addend;
    return static_cast<float>(sum);
  }
  const int exponent = std::ilogb(largest);
  const double up = std::ldexp(1.0, 24 - exponent);
  int64_t sum = 0;
  for (const double addend : addends) sum += static_cast<int64_t>(addend * up);
  const double exact = static_cast<double>(sum) * std::ldexp(1.0, exponent - 24);
  const auto rounded = static_cast<float>(exact);
  const bool is_too_large = std::fabs(static_cast<double>(rounded)) > std::fabs(exact);
  return is_too_large ? std::nextafter(rounded, 0.0f) : rounded;
}

inline float plain_sum(float c, const float* a, const float* b) {
  float sum = 0;
  for (int i = 0; i < 16; ++i) sum += a[i] * b[i];
  return c + sum;
}

template <class T>
void multiply_matrices(const simt::Inputs& in, simt::Outputs& out) {
  float left[16][16], right[8][16];  // right by columns
  for (size_t lane = 0; lane < simt::warp_lanes; ++lane) {
    const size_t g = lane / 4, t = lane % 4;
    for (size_t i = 0; i < 4; ++i) {
      float* const row = left[g + i % 2 * 8] + t * 2 + i / 2 * 8;
      row[0] = T::low(in[lane][i]);
      row[1] = T::high(in[lane][i]);
    }
    for (size_t i = 0; i < 2; ++i) {
      right[g][t * 2 + i * 8] = T::low(in[lane][4 + i]);
      right[g][t * 2 + i * 8 + 1] = T::high(in[lane][4 + i]);
    }
  }
  const auto sum = simt::options().truncates ? truncating_sum : plain_sum;
  for (size_t lane = 0; lane < simt::warp_lanes; ++lane) {
    for (size_t i = 0; i < 4; ++i) {
      const float* const row = left[lane / 4 + i / 2 * 8];
      const float* const column = right[lane % 4 * 2 + i % 2];
      out[lane][i] = bits_of(sum(float_of(in[lane][6 + i]), row, column));
    }
  }
  simt::count_product();
}

template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t in[simt::words_in] = {a[0],          a[1],         a[2],          a[3],
                                       b[0],          b[1],         bits_of(d[0]), bits_of(d[1]),
                                       bits_of(d[2]), bits_of(d[3])};
  uint32_t out[simt::words_out];
  simt::collective("mma.m16n8k16", in, simt::words_in, out, simt::words_out, multiply_matrices<T>);
  for (int i = 0; i < 4; ++i) d[i] = float_of(out[i]);
}

inline void fence_device() {}

inline int32_t atomic_add(int32_t* to, int32_t value) {
  simt::maybe_yield();
  const int32_t before = *to;
  *to += value;
  simt::maybe_yield();
  return before;
}

}  // namespace kvc::cuda
