#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// Rows of every storage type as vectors of floats, for the kernels that read a row more than once or lay it out anew: code ·
/// scale, rounded once. What the kernels see of a storage type is a Reader of it.
namespace kvc::cpu::KVC_ISA_NAMESPACE::stored {

/// How a row's codes and scales lie in memory; numbers are read by F32, F16 and Bf16.
struct E4m3 {};
struct E5m2 {};
struct Q8 {};
struct Q4 {};
struct Int8 {};
struct Nf4 {};

inline constexpr int32_t ggml_block = 32;

/// The numbers that nf4's codes stand for, as bits.
alignas(64) inline constexpr uint32_t nf4_bits[16] = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};

/// A row of one cell.
struct Row {
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
};

KVC_INLINE Row row_of(const TileRows& rows, int32_t cell) {
  const auto index = static_cast<size_t>(cell);
  return {rows.codes + index * rows.stride, rows.scales + index * rows.scale_stride};
}

// ---- Codes as floats ------------------------------------------------------------------------------

/// f16 numbers from the upper byte, which e5m2 is.
KVC_INLINE Vec e5m2_codes(const std::byte* p);
/// e4m3 lies one bit lower in an f16, which makes it 2^8 times too small. All ones are NaN.
KVC_INLINE Vec finish_e4m3(Vec small) {
  const Vec x = small * broadcast(256.0f);
  return select_less(absolute(x), broadcast(464.0f), x, broadcast(__builtin_nanf("")));
}
KVC_INLINE Vec e4m3_codes(const std::byte* p);
KVC_INLINE Vec int8_codes(const std::byte* p);
/// Vector `index` of a block of 32 4-bit codes less 8: value i in the low half of byte i, value i + 16 in its high half.
KVC_INLINE Vec q4_codes(const std::byte* block, int32_t index);
/// Values 2i in the high, 2i + 1 in the low half of byte i.
KVC_INLINE Vec nf4_codes(const std::byte* p);
KVC_INLINE Vec broadcast_half(const std::byte* p);

#if defined(__AVX512F__)

KVC_INLINE __m128i load_16(const std::byte* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
KVC_INLINE int32_t load_4(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return four;
}
KVC_INLINE Vec from_halves(__m256i halves) { return _mm512_maskz_cvtph_ps(0xffff, halves); }
KVC_INLINE Vec from_integers(__m128i codes) {
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, codes));
}
KVC_INLINE Vec e5m2_codes(const std::byte* p) {
  return from_halves(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load_16(p)), 8));
}
KVC_INLINE Vec e4m3_codes(const std::byte* p) {
  const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(load_16(p)), 7);
  return finish_e4m3(
      from_halves(_mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<int16_t>(0xbf80)))));
}
KVC_INLINE Vec int8_codes(const std::byte* p) { return from_integers(load_16(p)); }
KVC_INLINE Vec q4_codes(const std::byte* block, int32_t index) {
  const __m128i bytes = load_16(block);
  const __m128i halves = index == 0 ? bytes : _mm_srli_epi16(bytes, 4);
  return from_integers(_mm_sub_epi8(_mm_and_si128(halves, _mm_set1_epi8(15)), _mm_set1_epi8(8)));
}
KVC_INLINE Vec nf4_codes(const std::byte* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m128i high = _mm_srli_epi16(bytes, 4);
  const __m128i codes = _mm_and_si128(_mm_unpacklo_epi8(high, bytes), _mm_set1_epi8(15));
  return _mm512_maskz_permutexvar_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, codes),
                                     _mm512_load_ps(nf4_bits));
}
KVC_INLINE Vec broadcast_half(const std::byte* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return from_halves(_mm256_set1_epi16(static_cast<int16_t>(half)));
}

#elif defined(__AVX2__)

KVC_INLINE __m128i load_8(const std::byte* p) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
KVC_INLINE Vec from_integers(__m128i codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
}
KVC_INLINE Vec e5m2_codes(const std::byte* p) {
  return _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), load_8(p)));
}
KVC_INLINE Vec e4m3_codes(const std::byte* p) {
  const __m128i shifted = _mm_slli_epi16(_mm_cvtepi8_epi16(load_8(p)), 7);
  return finish_e4m3(
      _mm256_cvtph_ps(_mm_and_si128(shifted, _mm_set1_epi16(static_cast<int16_t>(0xbf80)))));
}
KVC_INLINE Vec int8_codes(const std::byte* p) { return from_integers(load_8(p)); }
KVC_INLINE Vec q4_codes(const std::byte* block, int32_t index) {
  const __m128i bytes = load_8(block + index % 2 * 8);
  const __m128i halves = index < 2 ? bytes : _mm_srli_epi16(bytes, 4);
  return from_integers(_mm_sub_epi8(_mm_and_si128(halves, _mm_set1_epi8(15)), _mm_set1_epi8(8)));
}
/// Each lane gets all four bytes and shifts its code down: the lookups use three bits, the choice
/// between them the fourth.
KVC_INLINE Vec nf4_codes(const std::byte* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  const __m256i index = _mm256_srlv_epi32(_mm256_set1_epi32(four),
                                          _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
  const auto* table = reinterpret_cast<const __m256i*>(nf4_bits);
  const Vec low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(_mm256_load_si256(table), index));
  const Vec upper = _mm256_castsi256_ps(
      _mm256_permutevar8x32_epi32(_mm256_load_si256(table + 1), index));
  return _mm256_blendv_ps(low, upper, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
KVC_INLINE Vec broadcast_half(const std::byte* p) {
  uint16_t half;
  __builtin_memcpy(&half, p, sizeof half);
  return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(half)));
}

#else

KVC_INLINE uint32_t byte_at(const std::byte* p, int32_t i) { return static_cast<uint32_t>(p[i]); }

KVC_INLINE Vec e5m2_codes(const std::byte* p) {
  uint16_t halves[lanes];
  for (int32_t i = 0; i < lanes; ++i) halves[i] = static_cast<uint16_t>(byte_at(p, i) << 8);
  return load_as<F16>(halves);
}
KVC_INLINE Vec e4m3_codes(const std::byte* p) {
  uint16_t halves[lanes];
  for (int32_t i = 0; i < lanes; ++i) {
    const uint32_t code = byte_at(p, i);
    halves[i] = static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7f) << 7);
  }
  return finish_e4m3(load_as<F16>(halves));
}
KVC_INLINE Vec int8_codes(const std::byte* p) {
  Vec x = {};
  for (int32_t i = 0; i < lanes; ++i) x[i] = static_cast<float>(static_cast<int8_t>(p[i]));
  return x;
}
KVC_INLINE Vec q4_codes(const std::byte* block, int32_t index) {
  const int32_t first = index * lanes % 16, shift = index * lanes / 16 * 4;
  Vec x = {};
  for (int32_t i = 0; i < lanes; ++i) {
    const uint32_t code = byte_at(block, first + i) >> shift & 15;
    x[i] = static_cast<float>(static_cast<int32_t>(code) - 8);
  }
  return x;
}
KVC_INLINE Vec nf4_codes(const std::byte* p) {
  Vec x = {};
  for (int32_t i = 0; i < lanes; i += 2) {
    const uint32_t both = byte_at(p, i / 2);
    x[i] = __builtin_bit_cast(float, nf4_bits[both >> 4]);
    x[i + 1] = __builtin_bit_cast(float, nf4_bits[both & 15]);
  }
  return x;
}
KVC_INLINE Vec broadcast_half(const std::byte* p) {
  uint16_t halves[lanes];
  for (uint16_t& half : halves) __builtin_memcpy(&half, p, sizeof half);
  return load_as<F16>(halves);
}

#endif

KVC_INLINE Vec broadcast_float(const std::byte* p) {
  float x;
  __builtin_memcpy(&x, p, sizeof x);
  return broadcast(x);
}

// ---- Rows -----------------------------------------------------------------------------------------

/// Vector `index` of a row: whole(…) its codes, scale(…) what they are multiplied with. Rows that have no scales are numbers.
template <class Type>
struct Vectors {  // F32, F16, Bf16
  using Element = typename Type::Element;
  static constexpr bool has_scales = false;
  static constexpr size_t code_bytes = sizeof(Element);
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return load_as<Type>(reinterpret_cast<const Element*>(codes) + index * lanes);
  }
};
template <>
struct Vectors<E4m3> {
  static constexpr bool has_scales = false;
  static constexpr size_t code_bytes = 1;
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return e4m3_codes(codes + index * lanes);
  }
};
template <>
struct Vectors<E5m2> {
  static constexpr bool has_scales = false;
  static constexpr size_t code_bytes = 1;
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return e5m2_codes(codes + index * lanes);
  }
};
template <>
struct Vectors<Int8> {
  static constexpr bool has_scales = true;
  static constexpr size_t code_bytes = 1;
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return int8_codes(codes + index * lanes);
  }
  KVC_INLINE Vec scale(const std::byte* scales, int32_t, int32_t) {
    return broadcast_float(scales);
  }
};
template <>
struct Vectors<Q8> {
  static constexpr bool has_scales = true;
  static constexpr size_t code_bytes = 1;
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return int8_codes(codes + index * lanes);
  }
  KVC_INLINE Vec scale(const std::byte* scales, int32_t index, int32_t) {
    return broadcast_half(scales + index * lanes / ggml_block * 2);
  }
};
template <>
struct Vectors<Q4> {
  static constexpr bool has_scales = true;
  static constexpr size_t code_bytes = 0;  // half a byte; its rows are whole vectors
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    constexpr int32_t in_block = ggml_block / lanes;
    return q4_codes(codes + index / in_block * (ggml_block / 2), index % in_block);
  }
  KVC_INLINE Vec scale(const std::byte* scales, int32_t index, int32_t) {
    return broadcast_half(scales + index * lanes / ggml_block * 2);
  }
};
template <>
struct Vectors<Nf4> {
  static constexpr bool has_scales = true;
  static constexpr size_t code_bytes = 0;
  KVC_INLINE Vec whole(const std::byte* codes, int32_t index) {
    return nf4_codes(codes + index * (lanes / 2));
  }
  KVC_INLINE Vec scale(const std::byte* scales, int32_t index, int32_t block) {
    return broadcast_float(scales + index * lanes / block * 4);
  }
};

/// Reads rows of one type.
template <class Type>
struct Reader {
  using Codes = Vectors<Type>;
  const TileRows& rows;

  [[gnu::always_inline]] Row row(int32_t cell) const { return row_of(rows, cell); }
  /// Vectors of a row that are whole.
  [[gnu::always_inline]] int32_t n_whole() const { return rows.head_dim / lanes; }

  /// One of the n_whole().
  [[gnu::always_inline]] Vec whole(Row row, int32_t index) const {
    return scaled(Codes::whole(row.codes, index), row, index);
  }
  /// Any; what lies past the row is 0.
  [[gnu::always_inline]] Vec vector(Row row, int32_t index) const {
    const Vec x = codes(row, index);
    return index * lanes < rows.head_dim ? scaled(x, row, index) : x;
  }
  /// The same, not multiplied with the scale. Only types whose rows need not be whole vectors have a
  /// rest.
  [[gnu::always_inline]] Vec codes(Row row, int32_t index) const {
    if (index < n_whole()) return Codes::whole(row.codes, index);
    if constexpr (Codes::code_bytes != 0) {
      const int32_t left = rows.head_dim - index * lanes;
      if (left > 0) return rest(row, index, left);
    }
    return zero();
  }

 private:
  [[gnu::always_inline]] Vec scaled(Vec codes, Row row, int32_t index) const {
    if constexpr (Codes::has_scales) return codes * Codes::scale(row.scales, index, rows.block);
    return codes;
  }
  [[gnu::always_inline]] Vec rest(Row row, int32_t index, int32_t count) const {
    alignas(16) std::byte padded[lanes * Codes::code_bytes] = {};
    const std::byte* from = row.codes + static_cast<size_t>(index) * lanes * Codes::code_bytes;
    for (size_t i = 0; i < static_cast<size_t>(count) * Codes::code_bytes; ++i) padded[i] = from[i];
    return Codes::whole(padded, 0);
  }
};

/// Calls `use` with a Reader of the rows.
template <class Use>
KVC_INLINE auto with_reader(const TileRows& rows, Use use) {
  switch (rows.type) {
    case StorageType::f32: return use(Reader<F32>{rows});
    case StorageType::f16: return use(Reader<F16>{rows});
    case StorageType::bf16: return use(Reader<Bf16>{rows});
    case StorageType::f8_e4m3: return use(Reader<E4m3>{rows});
    case StorageType::f8_e5m2: return use(Reader<E5m2>{rows});
    case StorageType::q8_0: return use(Reader<Q8>{rows});
    case StorageType::q4_0: return use(Reader<Q4>{rows});
    case StorageType::int8: return use(Reader<Int8>{rows});
    case StorageType::nf4: return use(Reader<Nf4>{rows});
  }
  __builtin_unreachable();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::stored
