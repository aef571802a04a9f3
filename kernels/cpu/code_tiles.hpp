#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/magnitudes.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/stored_rows.hpp"

/// Integer codes of K and V as operands of products, in tiles as AMX takes them: keys → A [16 cells][64 dimensions], values → B [64 cells][16
/// dimensions], four cells a row. And their scales.
namespace kvc::cpu::KVC_ISA_NAMESPACE::codes {

inline constexpr size_t tile_bytes = 1024;
inline constexpr int32_t block_cells = 64;
inline constexpr int32_t step_dims = 64;                        // of K in a tile
inline constexpr int32_t tile_dims = 16;                        // of V in a tile
inline constexpr size_t block_bytes = block_cells * step_dims;  // of K in a step

/// What differs between the types.
template <class Type>
struct Codes;
template <>
struct Codes<stored::Int8> {
  static constexpr bool is_scaled_by_block = false;
  static constexpr float largest = 128;
};
template <>
struct Codes<stored::Q8> {
  static constexpr bool is_scaled_by_block = true;
  static constexpr float largest = 128;
};
template <>
struct Codes<stored::Q4> {
  static constexpr bool is_scaled_by_block = true;
  static constexpr float largest = 8;
};

/// Calls `use` with a type that has integer codes. Returns whether `type` is one.
template <class Use>
KVC_INLINE bool with_codes(StorageType type, Use use) {
  switch (type) {
    case StorageType::int8: use(stored::Int8{}); return true;
    case StorageType::q8_0: use(stored::Q8{}); return true;
    case StorageType::q4_0: use(stored::Q4{}); return true;
    default: return false;
  }
}

/// The cells of a block, which may begin behind the tile's last one. Those past that repeat it.
struct BlockCells {
  const int32_t* cell;
  bool is_run;  // neighbours in order, as they mostly are
  int32_t padded[block_cells];

  [[gnu::always_inline]] void locate(const TileRows& rows, int32_t n_cells, int32_t begin) {
    is_run = begin + block_cells <= n_cells;
    if (is_run) {
      cell = rows.cell + begin;
      for (int32_t i = 0; i < block_cells; i += lanes) {
        const __m512i offset = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i expected = _mm512_add_epi32(_mm512_set1_epi32(cell[0] + i), offset);
        is_run = is_run && _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(cell + i), expected) == 0;
      }
      return;
    }
    for (int32_t i = 0; i < block_cells; ++i)
      padded[i] = rows.cell[begin + i < n_cells ? begin + i : n_cells - 1];
    cell = padded;
  }
};

/// Codes of a block that are not prefetched yet. They are prefetched a few lines at a time, in 32 calls: a
/// core that asks for more lines than it can have misses in flight stalls, and then memory idles.
struct Ahead {
  const std::byte* at = nullptr;  // of a run: the next line
  int32_t n_lines = 0;            // of a call
  int32_t n_calls = 0;            // that are left
  const TileRows* rows = nullptr;
  const int32_t* cell = nullptr;  // null: it is a run. Else the next of its cells, two a call

  /// Prefetches the scales, which are few.
  [[gnu::always_inline]] void begin(const TileRows& of, const BlockCells& cells) {
    const stored::Row first = stored::row_of(of, cells.cell[0]);
    rows = &of;
    n_calls = block_cells / 2;
    if (cells.is_run) {
      at = first.codes;
      n_lines = static_cast<int32_t>((of.stride * block_cells / 64 + 31) / 32);
      cell = nullptr;
      for (size_t byte = 0; byte < of.scale_stride * block_cells; byte += 64)
        prefetch_far(first.scales + byte);
      return;
    }
    cell = cells.cell;
    n_lines = static_cast<int32_t>((of.bytes + 63) / 64);
    for (int32_t i = 0; i < block_cells; ++i) prefetch_far(stored::row_of(of, cell[i]).scales);
  }
  [[gnu::always_inline]] void prefetch_some() {
    if (n_calls == 0) return;
    --n_calls;
    if (cell == nullptr) {
      for (int32_t i = 0; i < n_lines; ++i, at += 64) prefetch_far(at);
      return;
    }
    for (int32_t i = 0; i < 2; ++i, ++cell) {
      const std::byte* codes = stored::row_of(*rows, *cell).codes;
      for (int32_t line = 0; line < n_lines; ++line) prefetch_far(codes + line * 64);
    }
  }
};

// ---- Keys -----------------------------------------------------------------------------------------

template <class Type>
inline constexpr bool is_nibble = __is_same(Type, stored::Q4);

/// 4-bit codes from the low halves of bytes, 8 larger than what they stand for.
KVC_INLINE __m512i low_nibbles(__m512i bytes) {
  return _mm512_and_si512(bytes, _mm512_set1_epi8(15));
}
/// What codes stand for, which is themselves but for 4-bit ones.
template <class Type>
KVC_INLINE __m512i signed_codes(__m512i stored_codes) {
  if constexpr (!is_nibble<Type>) return stored_codes;
  return _mm512_sub_epi8(stored_codes, _mm512_set1_epi8(8));
}

/// Codes of dimensions [64 · step, 64 · step + 64) as they are stored, in order, 0 past the row.
template <class Type>
KVC_INLINE __m512i stored_keys(const std::byte* codes, int32_t step, int32_t head_dim) {
  const int32_t left = head_dim - step * step_dims;
  const auto first = [](int32_t n) { return n < 64 ? (1ull << n) - 1 : ~0ull; };
  if constexpr (is_nibble<Type>) {  // two blocks: 16 bytes of low halves, of high halves
    const __m512i bytes = _mm512_maskz_loadu_epi8(first(left < 64 ? left / 2 : 32),
                                                  codes + step * (step_dims / 2));
    const __m512i twice = _mm512_maskz_permutexvar_epi64(
        0xff, _mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), bytes);
    return low_nibbles(
        _mm512_maskz_srlv_epi64(0xff, twice, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)));
  } else {
    return _mm512_maskz_loadu_epi8(first(left), codes + step * step_dims);
  }
}

/// Keys of a block, as A tiles of 16 cells: those of group g and step s at at[g] + s · step_bytes.
struct Keys {
  const std::byte* at[block_cells / 16];
  size_t row_bytes;
  size_t step_bytes;
};

/// Whether keys can be multiplied where they are stored.
template <class Type>
KVC_INLINE bool are_tiles(const TileRows& rows, const BlockCells& cells) {
  return !is_nibble<Type> && cells.is_run && rows.head_dim % step_dims == 0;
}

/// Finds the keys of a block, which are packed, [step][cell][64 dimensions], unless they are tiles already.
template <class Type>
KVC_INLINE Keys place_keys(std::byte* to, const TileRows& rows, const BlockCells& cells) {
  if (are_tiles<Type>(rows, cells)) {
    const std::byte* first = stored::row_of(rows, cells.cell[0]).codes;
    const size_t group = 16 * rows.stride;
    return {{first, first + group, first + 2 * group, first + 3 * group}, rows.stride, step_dims};
  }
  const int32_t head_dim = rows.head_dim;
  for (int32_t i = 0; i < block_cells; ++i) {
    const std::byte* codes = stored::row_of(rows, cells.cell[i]).codes;
    std::byte* out = to + i * step_dims;
    for (int32_t step = 0; step * step_dims < head_dim; ++step, out += block_bytes)
      _mm512_store_si512(out, signed_codes<Type>(stored_keys<Type>(codes, step, head_dim)));
  }
  return {{to, to + tile_bytes, to + 2 * tile_bytes, to + 3 * tile_bytes}, 64, block_bytes};
}

// ---- Values ---------------------------------------------------------------------------------------

/// The cells whose values share row `row` of a B tile: this one and those 4, 8 and 12 behind it. Probabilities
/// come in this order (probability_digits).
KVC_INLINE int32_t first_cell_of(int32_t row) { return row % 4 * 16 + row / 4; }

/// Byte i of each of four 128-bit lanes, then byte i + 1, and so on.
KVC_INLINE __m512i interleave(__m512i lanes_of_cells) {
  alignas(64) static constexpr struct Order {
    uint8_t byte[64] = {};
    constexpr Order() {
      for (uint8_t i = 0; i < 64; ++i) byte[i] = static_cast<uint8_t>(i % 4 * 16 + i / 4);
    }
  } order;
  return _mm512_maskz_permutexvar_epi8(~0ull, _mm512_load_si512(&order), lanes_of_cells);
}

/// 16 bytes of each of four cells.
struct FourCells {
  const std::byte *a, *b, *c, *d;

  [[gnu::always_inline]] __m512i load(size_t at) const {
    const __m512i x = _mm512_zextsi128_si512(stored::load_16(a + at));
    const __m512i xy = _mm512_maskz_inserti32x4(0xffff, x, stored::load_16(b + at), 1);
    const __m512i xyz = _mm512_maskz_inserti32x4(0xffff, xy, stored::load_16(c + at), 2);
    return _mm512_maskz_inserti32x4(0xffff, xyz, stored::load_16(d + at), 3);
  }
  /// The first `left` of them, then zeros.
  [[gnu::always_inline]] __m512i load_first(size_t at, size_t left) const {
    alignas(64) std::byte padded[64] = {};
    const std::byte* const cells[4] = {a, b, c, d};
    for (size_t i = 0; i < 4; ++i) __builtin_memcpy(padded + 16 * i, cells[i] + at, left);
    return _mm512_load_si512(padded);
  }
};

/// Values of a block, as [dimensions / 16] B tiles: `row(i)` is where the codes of cell i are, `bytes` of them, and `convert` makes
/// operands of 4-bit codes as they are stored, or of bytes. `meanwhile` is told of each row of tiles.
template <class Type, class Rows, class Convert, class Meanwhile>
KVC_INLINE void pack_values(std::byte* to, size_t bytes, const Rows& row, Convert convert,
                            Meanwhile meanwhile) {
  const size_t whole = bytes / 16 * 16;
  for (int32_t i = 0; i < block_cells / 4; ++i, to += 64) {
    const int32_t first = first_cell_of(i);
    const FourCells cells = {row(first), row(first + 4), row(first + 8), row(first + 12)};
    std::byte* out = to;
    const auto put = [&](__m512i x) {
      _mm512_store_si512(out, convert(is_nibble<Type> ? low_nibbles(x) : x));
      out += tile_bytes;
    };
#pragma GCC unroll 8
    for (size_t at = 0; at < whole; at += 16) {
      const __m512i x = interleave(cells.load(at));
      put(x);
      if constexpr (is_nibble<Type>) put(_mm512_maskz_srli_epi16(~0u, x, 4));
    }
    if (whole < bytes) put(interleave(cells.load_first(whole, bytes - whole)));
    meanwhile(i);
  }
}

// ---- Scales ---------------------------------------------------------------------------------------

/// Scales of a cell as they are placed: one, or one for each 32 dimensions, rounded up to whole quads.
KVC_INLINE int32_t scale_stride(const TileRows& rows) {
  return rows.type == StorageType::int8 ? 1 : (rows.head_dim / stored::ggml_block + 3) / 4 * 4;
}

template <class Type>
inline constexpr size_t stored_scale_bytes = Codes<Type>::is_scaled_by_block ? 2 : sizeof(float);

/// Sixteen scales that follow each other.
template <class Type>
KVC_INLINE Vec load_scales(const std::byte* from) {
  if constexpr (!Codes<Type>::is_scaled_by_block)
    return load_unaligned(reinterpret_cast<const float*>(from));
  return stored::from_halves(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

/// Writes the scales of a block, [cell][scale_stride]. Returns their magnitudes.
template <class Type>
[[gnu::noinline]] static Magnitudes place_scales(float* to, const TileRows& rows,
                                                 const BlockCells& cells) {
  Magnitudes magnitudes;
  const int32_t* cell = cells.cell;
  const auto cell_scales = static_cast<size_t>(scale_stride(rows));
  if (cells.is_run && rows.scale_stride == cell_scales * stored_scale_bytes<Type>) {
    const std::byte* from = stored::row_of(rows, cell[0]).scales;
    for (size_t i = 0; i < block_cells * cell_scales; i += lanes) {
      const Vec x = load_scales<Type>(from + i * stored_scale_bytes<Type>);
      magnitudes.add(x);
      store(to + i, x);
    }
    return magnitudes;
  }
  if constexpr (!Codes<Type>::is_scaled_by_block) {
    for (int32_t i = 0; i < block_cells; ++i)
      __builtin_memcpy(to + i, stored::row_of(rows, cell[i]).scales, sizeof(float));
    for (int32_t i = 0; i < block_cells; i += lanes) magnitudes.add(load(to + i));
    return magnitudes;
  }
  const int32_t stride = scale_stride(rows), n = rows.head_dim / stored::ggml_block;
  for (int32_t first = 0; first < n; first += 4) {
    const auto mask = static_cast<__mmask8>(n - first < 4 ? (1 << (n - first)) - 1 : 15);
    for (int32_t i = 0; i < block_cells; i += 4) {
      __m128i halves[4];
      for (int32_t j = 0; j < 4; ++j)
        halves[j] = _mm_maskz_loadu_epi16(mask, stored::row_of(rows, cell[i + j]).scales + 2 * first);
      const Vec x = stored::from_halves(_mm256_set_m128i(_mm_unpacklo_epi64(halves[2], halves[3]),
                                                         _mm_unpacklo_epi64(halves[0], halves[1])));
      magnitudes.add(x);
      if (stride == 4) {
        store(to + i * stride, x);
        continue;
      }
      alignas(64) float apart[16];
      store(apart, x);
      for (int32_t j = 0; j < 4; ++j)
        store_quad(to + (i + j) * stride + first, load_quad(apart + 4 * j));
    }
  }
  return magnitudes;
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::codes
