#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_tiles.hpp"
#include "kernels/cpu/digits.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/quad_softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// What the kernels over integer codes share (codes.hpp for AMX, codes_vnni.hpp for VNNI): queries and probabilities as digits, and
/// rows that are multiplied as floats instead.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace codes {

inline constexpr int32_t quads_max = 4;
inline constexpr int32_t rows_max = quads_max * quad_rows;
inline constexpr int32_t columns = digits::count * quad_rows;
static_assert(columns == 16 && block_cells == 4 * 16);  // of tiles

struct Work {
  const Tile* tile;
  int32_t first_quad;  // of the rows that are processed together
  int32_t n_quads;
  int32_t n_key_steps;    // of 64 dimensions
  int32_t n_key_sums;     // scales that a key's row has: its products are summed up for each
  int32_t n_value_tiles;  // of 16 dimensions
  int32_t n_value_scales;
  float query_max[rows_max];  // the largest magnitude of each query; infinity if it is not in digits

  RowQuad* quad;             // [quads_max]
  std::byte* queries;        // [quad][product] B tiles
  float* weight;             // [quad][column] what a column's integers count for
  std::byte* keys;           // [step][64 cells][64 dimensions]
  std::byte* values;         // [dimensions / 16] B tiles
  std::byte* probabilities;  // [quad][scale] A tiles
  float* scores;             // [quad][64 cells][4 rows]
  float* key_scales;         // [64 cells][stride]
  float* value_scales;
  float* ordered_scales;  // [scale][64 cells], in the order of probabilities

  int32_t n_products() const { return n_key_sums == 1 ? n_key_steps : n_key_sums; }
  std::byte* queries_of(int32_t quad_index) const {
    return queries + static_cast<size_t>(quad_index * n_products()) * tile_bytes;
  }
  std::byte* probabilities_of(int32_t quad_index) const {
    return probabilities + static_cast<size_t>(quad_index * n_value_scales) * tile_bytes;
  }
  float* scores_of(int32_t quad_index) const {
    return scores + quad_index * block_cells * quad_rows;
  }
};

KVC_INLINE int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

/// Lays out arrays in scratch, or counts their bytes where there is none. Not core's Carver: what sources share must not be compiled
/// for one instruction set.
struct ScratchLayout {
  std::byte* base;
  size_t offset = 0;

  template <class T>
  [[gnu::always_inline]] void carve(T*& to, int32_t count) {
    if (base != nullptr) to = reinterpret_cast<T*>(base + offset);
    offset += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }
};

/// An even number of tiles: those of q4_0 are written in pairs.
KVC_INLINE int32_t value_tiles_max(int32_t head_dim_v) {
  return 2 * divide_up(head_dim_v, stored::ggml_block);
}

KVC_INLINE void lay_out_shared(Work& work, ScratchLayout& layout, int32_t head_dim_k,
                               int32_t head_dim_v) {
  constexpr auto tile = static_cast<int32_t>(tile_bytes);
  const int32_t steps = divide_up(head_dim_k, step_dims);
  const int32_t scales_k = divide_up(head_dim_k, stored::ggml_block);
  const int32_t scales_v = divide_up(head_dim_v, stored::ggml_block);
  layout.carve(work.quad, quads_max);
  layout.carve(work.queries, quads_max * scales_k * tile);
  layout.carve(work.weight, quads_max * columns);
  layout.carve(work.keys, steps * static_cast<int32_t>(block_bytes));
  layout.carve(work.values, divide_up(value_tiles_max(head_dim_v), 4) * 4 * tile);
  layout.carve(work.probabilities, quads_max * scales_v * tile);
  layout.carve(work.scores, quads_max * block_cells * quad_rows);
  layout.carve(work.key_scales, block_cells * divide_up(scales_k, 4) * 4);
  layout.carve(work.value_scales, block_cells * divide_up(scales_v, 4) * 4);
  layout.carve(work.ordered_scales, divide_up(scales_v, 4) * 4 * block_cells);
}

// ---- Rows -----------------------------------------------------------------------------------------

/// The quads that see something of a block.
struct Sight {
  int32_t quad[quads_max];
  int32_t n_quads;
  bool is_mixed;  // some row sees the block only in part, and so perhaps none of its largest values
};

KVC_INLINE void look(const Work& work, int32_t begin, Sight& sight) {
  const Tile& tile = *work.tile;
  const int32_t end = smaller(begin + block_cells, tile.n_cells);
  sight.n_quads = 0;
  sight.is_mixed = false;
  for (int32_t i = 0; i < work.n_quads && begin < end; ++i) {
    RowQuad& quad = work.quad[i];
    quad.scored = visibility_of(quad, begin, end);
    if (tile.bias) quad.scored = visibility_with_bias(tile, quad, quad.scored, begin, end);
    if (quad.scored != Visibility::none) sight.quad[sight.n_quads++] = i;
    sight.is_mixed |= quad.scored == Visibility::mixed;
  }
}

/// Calls `process_rows(K, V)`, types that have integer codes, for up to rows_max rows at a time. Returns false if those of the tile
/// have none.
template <class ProcessRows>
KVC_INLINE bool with_rows(Work& work, ProcessRows process_rows) {
  const Tile& tile = *work.tile;
  const int32_t n_quads = divide_up(tile.n_rows, quad_rows);
  bool is_done = false;
  with_codes(tile.k.type, [&]<class K>(K k) {
    is_done = with_codes(tile.v.type, [&]<class V>(V v) {
      work.n_key_steps = divide_up(tile.k.head_dim, step_dims);
      work.n_key_sums = Codes<K>::is_scaled_by_block ? tile.k.head_dim / stored::ggml_block : 1;
      work.n_value_tiles = divide_up(tile.v.head_dim, tile_dims);
      work.n_value_scales = Codes<V>::is_scaled_by_block ? tile.v.head_dim / stored::ggml_block : 1;
      for (work.first_quad = 0; work.first_quad < n_quads; work.first_quad += quads_max) {
        work.n_quads = smaller(quads_max, n_quads - work.first_quad);
        for (int32_t i = 0; i < work.n_quads; ++i)
          describe_quad(tile, work.first_quad + i, work.quad[i]);
        process_rows(k, v);
      }
    });
  });
  return is_done;
}

/// The larger of what a kernel over codes needs and what the kernels for AVX-512 need, which do what it leaves to them.
KVC_INLINE size_t scratch_bytes_with(size_t bytes, int32_t head_dim_k, int32_t head_dim_v) {
  for (const auto other :
       {avx512_kernels.narrow_tile_scratch_bytes, avx512_kernels.medium_tile_scratch_bytes}) {
    const size_t others = other(head_dim_k, head_dim_v);
    bytes = others > bytes ? others : bytes;
  }
  return bytes;
}

KVC_INLINE bool have_codes(const Tile& tile) {
  const auto has_codes = [](StorageType type) { return with_codes(type, [](auto) {}); };
  return has_codes(tile.k.type) && has_codes(tile.v.type);
}

// ---- Queries --------------------------------------------------------------------------------------

/// The factor that makes integers of at most 2^30 of numbers up to `largest`: a power of two. 0 if there
/// is none in the range of f32.
KVC_INLINE float integer_factor(float largest) {
  if (largest == 0) return 1;
  const uint32_t exponent = __builtin_bit_cast(uint32_t, largest) >> 23;  // largest < 2^(exponent − 126)
  if (exponent < 40 || exponent > 210) return 0;
  return __builtin_bit_cast(float, (127 + 30 - (exponent - 126)) << 23);
}

/// Packs 16 dimensions of a quad: four rows of a B tile.
KVC_INLINE void pack_query_digits(std::byte* to, const float* q, size_t stride,
                                  const float (&factor)[4], int32_t n_rows) {
  Vec x[4];
  for (int32_t r = 0; r < 4; ++r) {
    const bool is_packed = r < n_rows && factor[r] != 0;
    x[r] = is_packed ? load(q + static_cast<size_t>(r) * stride) * broadcast(factor[r]) : zero();
    x[r] = digits::by_digit(digits::of_integers(digits::to_integers(x[r])));
  }
  transpose_quads(x[0], x[1], x[2], x[3]);
  digits::transpose_lanes(x[0], x[1], x[2], x[3]);
  for (int32_t i = 0; i < 4; ++i) store(reinterpret_cast<float*>(to + i * 64), x[i]);
}

/// Packs the queries of all quads.
KVC_INLINE void pack_queries(Work& work) {
  constexpr float infinity = __builtin_inff();
  const Tile& tile = *work.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride);
  const int32_t product_dims = work.n_key_sums == 1 ? step_dims : stored::ggml_block;
  __builtin_memset(work.queries, 0,
                   static_cast<size_t>(work.n_quads * work.n_products()) * tile_bytes);
  for (int32_t i = 0; i < work.n_quads; ++i) {
    const RowQuad& quad = work.quad[i];
    const float* q = tile.q + static_cast<size_t>(quad.row) * stride;
    float factor[quad_rows] = {};
    for (int32_t r = 0; r < quad.n_rows; ++r) {
      Magnitudes magnitudes;
      for (int32_t d = 0; d < tile.q_stride; d += lanes)
        magnitudes.add(load(q + static_cast<size_t>(r) * stride + d));
      factor[r] = integer_factor(magnitudes.largest());
      work.query_max[i * quad_rows + r] = factor[r] == 0 ? infinity : magnitudes.largest();
    }
    float* weight = work.weight + i * columns;
    for (int32_t digit = 0; digit < digits::count; ++digit) {
      for (int32_t r = 0; r < quad_rows; ++r)
        weight[digit * quad_rows + r] = factor[r] == 0
                                            ? 0
                                            : static_cast<float>(1 << (8 * digit)) / factor[r];
    }
    std::byte* to = work.queries_of(i);
    for (int32_t d = 0; d < tile.q_stride; d += lanes) {
      std::byte* product = to + static_cast<size_t>(d / product_dims) * tile_bytes;
      pack_query_digits(product + d % step_dims / 4 * 64, q + d, stride, factor, quad.n_rows);
    }
  }
}

// ---- Scores ---------------------------------------------------------------------------------------

KVC_INLINE Vec to_floats(__m512i x) { return _mm512_maskz_cvtepi32_ps(0xffff, x); }

/// Adds up the digits of four cells. → [cell][row]
KVC_INLINE Vec fold_digits(Vec (&cell)[4]) {
  digits::transpose_lanes(cell[0], cell[1], cell[2], cell[3]);  // by digit, the lowest first
  return ((cell[0] + cell[1]) + cell[2]) + cell[3];
}

/// Scores of one row, from floats.
template <class K>
[[gnu::noinline]] static void score_plainly(const Tile& tile, const int32_t* cell, int32_t row,
                                            float* to) {
  const stored::Reader<K> keys{tile.k};
  const float* q = tile.q + static_cast<size_t>(row) * static_cast<size_t>(tile.q_stride);
  for (int32_t i = 0; i < block_cells; ++i) {
    const stored::Row key = keys.row(cell[i]);
    Vec sum = zero();
    for (int32_t d = 0; d < tile.q_stride; d += lanes)
      sum = fma(load(q + d), keys.vector(key, d / lanes), sum);
    to[i * quad_rows] = reduce_sum(sum);
  }
}

/// Where a query's largest number times a key's can be more, the query's rounding could matter.
inline constexpr float product_max = 256;

/// Scores, once more from floats, of the rows of a quad whose rounding could matter. `key_scale` is the largest of the block.
template <class K>
KVC_INLINE void correct_scores(const Work& work, int32_t quad_index, const int32_t* cell,
                               float key_scale) {
  const RowQuad& quad = work.quad[quad_index];
  for (int32_t r = 0; r < quad.n_rows; ++r) {
    const float largest = work.query_max[quad_index * quad_rows + r] * (Codes<K>::largest * key_scale);
    if (!(largest <= product_max))
      score_plainly<K>(*work.tile, cell, quad.row + r, work.scores_of(quad_index) + r);
  }
}

// ---- Values ---------------------------------------------------------------------------------------

/// Where a value's scale is less than this of the largest, the rounding of probability · scale could matter
/// to a row that sees none of the larger ones.
inline constexpr float scale_ratio_min = 0x1p-6f;

/// Whether the values of a block can be multiplied as codes, given their scales.
KVC_INLINE bool have_digits(const Magnitudes& scales, bool is_mixed) {
  const float largest = scales.largest();
  return integer_factor(largest) != 0 &&
         (!is_mixed || scales.smallest() >= largest * scale_ratio_min);
}

/// Brings the scales of a block into the order of probabilities, in units that make integers of at most
/// 2^30. Returns what a unit counts for.
KVC_INLINE float order_value_scales(const Work& work, float largest) {
  const float factor = integer_factor(largest);
  const int32_t stride = scale_stride(work.tile->v);
  for (int32_t cell = 0; cell < block_cells; cell += 16) {
    const float* scales = work.value_scales + cell * stride;
    if (stride == 1) {
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const Vec x = _mm512_maskz_permutexvar_ps(0xffff, order, load(scales));
      store(work.ordered_scales + cell, x * broadcast(factor));
      continue;
    }
    for (int32_t first = 0; first < work.n_value_scales; first += 4) {
      Vec x[4];
      for (int32_t i = 0; i < 4; ++i) {
        x[i] = load_quads(scales + 4 * i * stride + first, static_cast<size_t>(stride)) *
               broadcast(factor);
      }
      transpose_quads(x[0], x[1], x[2], x[3]);
      for (int32_t i = 0; i < 4; ++i)
        store(work.ordered_scales + (first + i) * block_cells + cell, x[i]);
    }
  }
  return 1 / factor;
}

/// Probabilities of a quad times scales, as A tiles. Digits have no sign where products need none (`is_signed`).
template <bool is_signed>
[[gnu::noinline]] static void pack_probabilities(const Work& work, int32_t quad) {
  const float* scores = work.scores_of(quad);
  Vec p[4][4];  // [16 cells][row]
#pragma GCC unroll 4
  for (int32_t i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int32_t j = 0; j < 4; ++j) p[i][j] = load(scores + (16 * i + 4 * j) * quad_rows);
    transpose_quads(p[i][0], p[i][1], p[i][2], p[i][3]);
  }
  std::byte* to = work.probabilities_of(quad);
  for (int32_t s = 0; s < work.n_value_scales; ++s, to += tile_bytes) {
    const float* scale = work.ordered_scales + s * block_cells;
#pragma GCC unroll 4
    for (int32_t r = 0; r < quad_rows; ++r) {
      Vec x[4];
#pragma GCC unroll 4
      for (int32_t i = 0; i < 4; ++i) {
        const __m512i integers = digits::to_integers(p[i][r] * load(scale + 16 * i));
        x[i] = digits::by_digit(is_signed ? digits::of_integers(integers) : integers);
      }
      transpose_quads(x[0], x[1], x[2], x[3]);
#pragma GCC unroll 4
      for (int32_t digit = 0; digit < digits::count; ++digit)
        store(reinterpret_cast<float*>(to + (digit * quad_rows + r) * 64), x[digit]);
    }
  }
}

/// Adds a block's values to the rows of a quad that see them, from floats.
template <class V>
[[gnu::noinline]] static void add_values_plainly(const Work& work, int32_t quad_index,
                                                 const int32_t* cell, int32_t begin) {
  const Tile& tile = *work.tile;
  const RowQuad& quad = work.quad[quad_index];
  const stored::Reader<V> values{tile.v};
  const float* probability = work.scores_of(quad_index);
  const int32_t n_cells = smaller(block_cells, tile.n_cells - begin);
  for (int32_t i = 0; i < n_cells; ++i) {
    const stored::Row value = values.row(cell[i]);
    for (int32_t r = 0; r < quad.n_rows; ++r) {
      if (!sees(tile, quad, begin + i, r)) continue;
      float* o = tile.o + static_cast<size_t>(quad.row + r) * static_cast<size_t>(tile.o_stride);
      const Vec p = broadcast(probability[i * quad_rows + r]);
      for (int32_t d = 0; d < tile.o_stride; d += lanes)
        store(o + d, fma(p, values.vector(value, d / lanes), load(o + d)));
    }
  }
}

}  // namespace codes

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
