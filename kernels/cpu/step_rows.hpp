#pragma once
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/stored_rows.hpp"
#include "kernels/cpu/tile.hpp"

/// Rows as the steps of the narrow kernel read them: codes become floats in registers. Decoding takes
/// turns with products on the same ports, so what counts is the number of instructions per vector.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

inline constexpr int32_t chunk_dims = 64;  // of an unrolled inner loop

/// Scales of a row that a chunk has: one for each half of it.
inline constexpr int32_t chunk_scales = 2;

/// What a cell's one scale is multiplied with is its product, or its probability: a multiplication of four numbers, where values
/// are many. The product may so be larger than a score; queries beyond this take the other way.
inline constexpr float one_scale_query_max = 0x1p100f;

/// A storage type as steps see it. Rows are read in units of a few vectors; `chunk` points at the
/// codes of chunk_dims dimensions, and a unit begins at dimension `d` of them.
template <class Type>
struct StepType {
  static constexpr int32_t unit_vectors = 1;
  static constexpr bool has_scales = stored::Vectors<Type>::has_scales;
  static constexpr bool has_one_scale = __is_same(Type, stored::Int8);
  static constexpr size_t code_bytes = stored::Vectors<Type>::code_bytes;  // 0: half a byte
  static constexpr size_t chunk_bytes = code_bytes == 0 ? chunk_dims / 2 : chunk_dims * code_bytes;
  KVC_INLINE void load(Vec (&x)[1], const std::byte* chunk, int32_t d, const float* scale) {
    x[0] = stored::Vectors<Type>::whole(chunk, d / lanes);
    if constexpr (has_scales && !has_one_scale) x[0] = x[0] * broadcast(*scale);
  }
};

/// What steps have to multiply products and probabilities with, because load() leaves it out.
template <class Type>
inline constexpr float step_factor = 1;

#if defined(__AVX512F__)

/// Numbers of rows whose last vector is not whole: what lies behind a row is not read and counts as 0.
template <class Type>
struct Partial {};
template <class Type>
struct StepType<Partial<Type>> {
  static constexpr int32_t unit_vectors = 1;
  static constexpr bool has_scales = false;
  static constexpr bool has_one_scale = false;
  static constexpr size_t chunk_bytes = chunk_dims * element_bytes<Type>;
  KVC_INLINE void load(Vec (&x)[1], const std::byte* chunk, int32_t d, __mmask16 mask) {
    x[0] = load_some(Type{}, reinterpret_cast<const typename Type::Element*>(chunk) + d, mask);
  }
};

/// Values of 4-bit codes are multiplied with the scale once per block, and then looked up by the low
/// four bits of each lane.
template <>
struct StepType<stored::Q4> {
  static constexpr int32_t unit_vectors = 2;
  static constexpr bool has_scales = true;
  static constexpr bool has_one_scale = false;
  static constexpr size_t chunk_bytes = chunk_dims / 2;
  KVC_INLINE void load(Vec (&x)[2], const std::byte* chunk, int32_t d, const float* scale) {
    const Vec values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const Vec table = values * broadcast(*scale);
    const __m512i both = _mm512_maskz_cvtepu8_epi32(0xffff, stored::load_16(chunk + d / 2));
    x[0] = _mm512_maskz_permutexvar_ps(0xffff, both, table);
    x[1] = _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srli_epi32(0xffff, both, 4), table);
  }
};

/// Sixteen values of nf4 from eight bytes: each lane gets the four bytes of its code, then shifts.
KVC_INLINE Vec look_up_nf4(const std::byte* p, Vec table) {
  const __m512i shift = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
  const __m512i lower = _mm512_set1_epi32(stored::load_4(p));
  const __m512i both = _mm512_mask_broadcastd_epi32(lower, 0xff00,
                                                    _mm_cvtsi32_si128(stored::load_4(p + 4)));
  return _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_srlv_epi32(0xffff, both, shift), table);
}
/// Thirty-two codes become halves together.
template <>
struct StepType<stored::E4m3> {
  static constexpr int32_t unit_vectors = 2;
  static constexpr bool has_scales = false;
  static constexpr bool has_one_scale = false;
  static constexpr size_t chunk_bytes = chunk_dims;
  KVC_INLINE void load(Vec (&x)[2], const std::byte* chunk, int32_t d, const float*) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + d));
    const __m256i all_ones = _mm256_set1_epi8(0x7f);
    const __mmask32 is_nan = _mm256_cmpeq_epi8_mask(_mm256_and_si256(codes, all_ones), all_ones);
    const __m512i widened = _mm512_maskz_cvtepi8_epi16(~0u, codes);
    const __m512i small = _mm512_and_si512(_mm512_maskz_slli_epi16(~0u, widened, 7),
                                           _mm512_set1_epi16(static_cast<int16_t>(0xbf80)));
    const __m512i halves = _mm512_mask_mov_epi16(small, is_nan, _mm512_set1_epi16(0x7e00));
    const __m256i lower = __builtin_shufflevector(halves, halves, 0, 1, 2, 3);
    const __m256i upper = __builtin_shufflevector(halves, halves, 4, 5, 6, 7);
    x[0] = stored::from_halves(lower);
    x[1] = stored::from_halves(upper);
  }
};
template <>
inline constexpr float step_factor<stored::E4m3> = 256;

/// With blocks of 32 and more.
template <>
struct StepType<stored::Nf4> {
  static constexpr int32_t unit_vectors = 2;
  static constexpr bool has_scales = true;
  static constexpr bool has_one_scale = false;
  static constexpr size_t chunk_bytes = chunk_dims / 2;
  KVC_INLINE void load(Vec (&x)[2], const std::byte* chunk, int32_t d, const float* scale) {
    const Vec table = _mm512_load_ps(stored::nf4_bits) * broadcast(*scale);
    x[0] = look_up_nf4(chunk + d / 2, table);
    x[1] = look_up_nf4(chunk + d / 2 + 8, table);
  }
};

#endif

/// Whether rows of numbers whose last vector is not whole can be read in place.
#if defined(__AVX512F__)
inline constexpr bool loads_partial_vectors = true;
#else
inline constexpr bool loads_partial_vectors = false;
#endif

/// Rows whose dimension is a multiple of this can be read in place.
KVC_INLINE int32_t unit_dims_of(const TileRows& rows) {
  return stored::with_reader(rows, []<class Type>(stored::Reader<Type>) -> int32_t {
    constexpr int32_t dims = StepType<Type>::unit_vectors * lanes;
    return dims < 16 ? 16 : dims;
  });
}

/// Up to four halves, of which `left` are there.
KVC_INLINE Quad load_halves(const std::byte* from, int32_t left) {
  if (left >= 4) return load_four_halves(from);
  uint32_t pair = 0;
  uint16_t last = 0;
  if (left >= 2) __builtin_memcpy(&pair, from, sizeof pair);
  if (left % 2 != 0) __builtin_memcpy(&last, from + 2 * (left - 1), sizeof last);
  const uint64_t bits = left >= 2 ? pair | uint64_t{last} << 32 : last;
  return load_four_halves(reinterpret_cast<const std::byte*>(&bits));
}

/// Lays out the scales of a step's rows: to[chunk][step_cells][chunk_scales], of `n_dims` dimensions; of int8, to[step_cells].
template <class Type>
[[gnu::noinline]] static void spread_scales(float* to, const TileRows& rows, const size_t* offsets,
                                            int32_t n_dims) {
  constexpr int32_t apart = step_cells * chunk_scales;
  if constexpr (StepType<Type>::has_one_scale) {
    Quad all = {};
    for (int32_t cell = 0; cell < step_cells; ++cell)
      all[cell] = *reinterpret_cast<const float*>(rows.scales + offsets[cell]);
    return store_quad(to, all);  // as they will be loaded
  }
#pragma GCC unroll 4
  for (int32_t cell = 0; cell < step_cells; ++cell) {
    const std::byte* scales = rows.scales + offsets[cell];
    const auto* from = reinterpret_cast<const float*>(scales);
    float* at = to + cell * chunk_scales;
    if constexpr (__is_same(Type, stored::Nf4)) {
      const int32_t shift = __builtin_ctz(static_cast<uint32_t>(rows.block));
      for (int32_t d = 0; d < n_dims; d += chunk_dims, at += apart) {
        const int32_t half = d + chunk_dims / 2;
        at[0] = from[d >> shift];
        at[1] = from[(half < n_dims ? half : d) >> shift];
      }
    } else if constexpr (StepType<Type>::has_scales) {
      const int32_t n_scales = n_dims / stored::ggml_block;
      for (int32_t first = 0; first < n_scales; first += 4, at += 2 * apart) {
        const int32_t left = n_scales - first;
        const Quad widened = load_halves(scales + 2 * first, left);
        __builtin_memcpy(at, &widened, 8);
        if (left > 2) __builtin_memcpy(at + apart, reinterpret_cast<const float*>(&widened) + 2, 8);
      }
    }
  }
}

/// Decodes a row of `rows`. What lies past its dimension becomes 0, up to the next vector.
template <class Type>
[[gnu::noinline]] static void decode_row_to(float* to, const TileRows& rows, const stored::Row& row) {
  const stored::Reader<Type> reader{rows};
  const int32_t n_whole = reader.n_whole();
  for (int32_t v = 0; v < n_whole; ++v) store(to + v * lanes, reader.whole(row, v));
  if (n_whole * lanes < rows.head_dim) store(to + n_whole * lanes, reader.vector(row, n_whole));
}

using DecodeRow = void (*)(float* to, const TileRows& rows, const stored::Row& row);
using SpreadScales = void (*)(float* to, const TileRows& rows, const size_t* offsets, int32_t n_dims);

KVC_INLINE DecodeRow decoder_for(const TileRows& rows) {
  return stored::with_reader(
      rows, []<class Type>(stored::Reader<Type>) -> DecodeRow { return decode_row_to<Type>; });
}
KVC_INLINE SpreadScales spreader_for(const TileRows& rows) {
  return stored::with_reader(
      rows, []<class Type>(stored::Reader<Type>) -> SpreadScales { return spread_scales<Type>; });
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
