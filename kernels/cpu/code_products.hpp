#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_tiles.hpp"
#include "kernels/cpu/digits.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/quad_softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// Queries and probabilities as digits, and their products with the codes of a block (codes.hpp).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace codes {

using matrix::amx_rows;

inline constexpr int32_t quads_max = 4;
inline constexpr int32_t rows_max = quads_max * quad_rows;
inline constexpr int32_t columns = digits::count * quad_rows;
static_assert(columns == amx_rows && block_cells == 4 * amx_rows);

struct Work {
  const Tile* tile;
  int32_t first_quad;  // of the rows that are processed together
  int32_t n_quads;
  int32_t n_key_steps;    // of 64 dimensions
  int32_t n_key_sums;     // scales that a key's row has: its products are summed up for each
  int32_t n_value_tiles;  // of 16 dimensions
  int32_t n_value_scales;
  Ahead ahead_k, ahead_v;
  float query_max[rows_max];  // the largest magnitude of each query; infinity if it is not in digits

  RowQuad* quad;             // [quads_max]
  std::byte* queries;        // [quad][product] B tiles
  float* weight;             // [quad][column] what a column's integers count for
  std::byte* keys;           // [step][64 cells][64 dimensions]
  std::byte* values;         // [dimensions / 16] B tiles
  std::byte* probabilities;  // [quad][scale] A tiles
  float* scores;             // [quad][64 cells][4 rows]
  int32_t* key_sums[2];      // [key sum][64 cells][column]
  int32_t* value_sums[2];    // [dimensions / 16][column][16 dimensions]
  float* key_scales;         // [64 cells][stride]
  float* value_scales;
  float* ordered_scales;  // [scale][64 cells], in the order of probabilities
  int32_t* unused;        // [16][16], for amx_stay_awake

  int32_t n_products() const { return n_key_sums == 1 ? n_key_steps : n_key_sums; }
  [[gnu::always_inline]] void prefetch_some() {
    ahead_k.prefetch_some();
    ahead_v.prefetch_some();
  }
  std::byte* probabilities_of(int32_t quad_index) const {
    return probabilities + static_cast<size_t>(quad_index * n_value_scales) * amx_tile_bytes;
  }
};

KVC_INLINE int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

KVC_INLINE size_t lay_out(Work& work, std::byte* base, int32_t head_dim_k, int32_t head_dim_v) {
  size_t offset = 0;
  const auto carve = [&]<class T>(T*& to, int32_t count) {
    if (base != nullptr) to = reinterpret_cast<T*>(base + offset);
    offset += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  };
  constexpr auto tile_bytes = static_cast<int32_t>(amx_tile_bytes);
  const int32_t steps = divide_up(head_dim_k, step_dims);
  const int32_t scales_k = divide_up(head_dim_k, stored::ggml_block);
  const int32_t scales_v = divide_up(head_dim_v, stored::ggml_block);
  // An even number of tiles: those of q4_0 are written in pairs.
  const int32_t tiles_v = 2 * scales_v;
  carve(work.quad, quads_max);
  carve(work.queries, quads_max * scales_k * tile_bytes);
  carve(work.weight, quads_max * columns);
  carve(work.keys, steps * static_cast<int32_t>(block_bytes));
  carve(work.values, tiles_v * tile_bytes);
  carve(work.probabilities, quads_max * scales_v * tile_bytes);
  carve(work.scores, quads_max * block_cells * quad_rows);
  for (int32_t i = 0; i < 2; ++i) {
    carve(work.key_sums[i], scales_k * block_cells * columns);
    carve(work.value_sums[i], divide_up(tiles_v, 4) * 4 * columns * tile_dims);
  }
  carve(work.key_scales, block_cells * divide_up(scales_k, 4) * 4);
  carve(work.value_scales, block_cells * divide_up(scales_v, 4) * 4);
  carve(work.ordered_scales, divide_up(scales_v, 4) * 4 * block_cells);
  carve(work.unused, amx_rows * columns);
  return offset;
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
    x[r] = digits::by_digit(digits::of_floats(x[r]));
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
  const size_t quad_bytes = static_cast<size_t>(work.n_products()) * amx_tile_bytes;
  __builtin_memset(work.queries, 0, static_cast<size_t>(work.n_quads) * quad_bytes);
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
    std::byte* to = work.queries + static_cast<size_t>(i) * quad_bytes;
    for (int32_t d = 0; d < tile.q_stride; d += lanes) {
      std::byte* product = to + static_cast<size_t>(d / product_dims) * amx_tile_bytes;
      pack_query_digits(product + d % step_dims / 4 * 64, q + d, stride, factor, quad.n_rows);
    }
  }
}

// ---- Scores ---------------------------------------------------------------------------------------

KVC_INLINE void clear_sums() {
  matrix::amx_zero<0>();
  matrix::amx_zero<1>();
  matrix::amx_zero<2>();
  matrix::amx_zero<3>();
}
KVC_INLINE void store_sums(int32_t* to) {
  constexpr int32_t tile = amx_rows * columns;
  matrix::amx_store<0>(to, 64);
  matrix::amx_store<1>(to + tile, 64);
  matrix::amx_store<2>(to + 2 * tile, 64);
  matrix::amx_store<3>(to + 3 * tile, 64);
}

/// Adds one step of the keys of all four groups of cells, times one B tile.
KVC_INLINE void add_keys_step(const Keys& keys, int32_t step, const std::byte* queries) {
  const size_t at = static_cast<size_t>(step) * keys.step_bytes;
  matrix::amx_load<6>(queries);
  matrix::amx_load<4>(keys.at[0] + at, keys.row_bytes);
  matrix::amx_multiply_add_bytes<0, 4, 6>();
  matrix::amx_load<5>(keys.at[1] + at, keys.row_bytes);
  matrix::amx_multiply_add_bytes<1, 5, 6>();
  matrix::amx_load<4>(keys.at[2] + at, keys.row_bytes);
  matrix::amx_multiply_add_bytes<2, 4, 6>();
  matrix::amx_load<5>(keys.at[3] + at, keys.row_bytes);
  matrix::amx_multiply_add_bytes<3, 5, 6>();
}

/// Keys times the queries of a quad. Where each 32 dimensions have a scale, they have sums of their own.
KVC_INLINE void multiply_keys(const Work& work, const Keys& keys, int32_t quad, int32_t* sums) {
  const int32_t n = work.n_products();
  const std::byte* queries = work.queries + static_cast<size_t>(quad * n) * amx_tile_bytes;
  const bool is_one_sum = work.n_key_sums == 1;
  for (int32_t i = 0; i < n; ++i, queries += amx_tile_bytes) {
    if (i == 0 || !is_one_sum) clear_sums();
    add_keys_step(keys, is_one_sum ? i : i / 2, queries);
    if (!is_one_sum) store_sums(sums + i * block_cells * columns);
  }
  if (is_one_sum) store_sums(sums);
}

KVC_INLINE Vec load_integers(const int32_t* p) {
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_load_si512(p));
}

/// Scores of a quad, [cell][row].
template <bool has_one_scale>
[[gnu::noinline]] static void fold_scores(Work& work, int32_t quad, const int32_t* sums) {
  const Vec weight = load(work.weight + quad * columns);
  const int32_t stride = scale_stride(work.tile->k);
  const int32_t n_sums = has_one_scale ? 1 : work.n_key_sums;
  float* to = work.scores + quad * block_cells * quad_rows;
  for (int32_t cell = 0; cell < block_cells; cell += 4) {
    if (cell % 8 == 0) work.prefetch_some();
    Vec x[4];
#pragma GCC unroll 4
    for (int32_t i = 0; i < 4; ++i) {
      const int32_t* sum = sums + (cell + i) * columns;
      const float* scale = work.key_scales + (cell + i) * stride;
      x[i] = load_integers(sum) * broadcast(scale[0]);
      for (int32_t j = 1; j < n_sums; ++j)
        x[i] = fma(load_integers(sum + j * block_cells * columns), broadcast(scale[j]), x[i]);
      x[i] = x[i] * weight;
    }
    digits::transpose_lanes(x[0], x[1], x[2], x[3]);  // by digit, the lowest first
    store(to + cell * quad_rows, ((x[0] + x[1]) + x[2]) + x[3]);
  }
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

// ---- Values ---------------------------------------------------------------------------------------

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

/// Probabilities of a quad times scales, as A tiles.
[[maybe_unused, gnu::noinline]] static void pack_probabilities(const Work& work, int32_t quad) {
  const float* scores = work.scores + quad * block_cells * quad_rows;
  Vec p[4][4];  // [16 cells][row]
#pragma GCC unroll 4
  for (int32_t i = 0; i < 4; ++i) {
#pragma GCC unroll 4
    for (int32_t j = 0; j < 4; ++j) p[i][j] = load(scores + (16 * i + 4 * j) * quad_rows);
    transpose_quads(p[i][0], p[i][1], p[i][2], p[i][3]);
  }
  std::byte* to = work.probabilities_of(quad);
  for (int32_t s = 0; s < work.n_value_scales; ++s, to += amx_tile_bytes) {
    const float* scale = work.ordered_scales + s * block_cells;
#pragma GCC unroll 4
    for (int32_t r = 0; r < quad_rows; ++r) {
      Vec x[4];
#pragma GCC unroll 4
      for (int32_t i = 0; i < 4; ++i)
        x[i] = digits::by_digit(digits::of_floats(p[i][r] * load(scale + 16 * i)));
      transpose_quads(x[0], x[1], x[2], x[3]);
#pragma GCC unroll 4
      for (int32_t digit = 0; digit < digits::count; ++digit)
        store(reinterpret_cast<float*>(to + (digit * quad_rows + r) * 64), x[digit]);
    }
  }
}

/// Digits of probabilities times value tile `index`, which has its sums in register `sum`.
template <int32_t sum>
KVC_INLINE void multiply_values_tile(const Work& work, const std::byte* probabilities, int32_t index) {
  constexpr int32_t operand = 6 + sum % 2;
  if (index >= work.n_value_tiles) return;
  if (sum == 0 || (sum == 2 && work.n_value_scales > 1)) {
    const int32_t scale = work.n_value_scales == 1 ? 0 : index / 2;
    matrix::amx_load<4>(probabilities + static_cast<size_t>(scale) * amx_tile_bytes);
  }
  matrix::amx_load<operand>(work.values + static_cast<size_t>(index) * amx_tile_bytes);
  matrix::amx_multiply_add_bytes<sum, 4, operand>();
}

/// Digits of probabilities times all value tiles.
KVC_INLINE void multiply_values(const Work& work, int32_t quad, int32_t* sums) {
  const std::byte* probabilities = work.probabilities_of(quad);
  for (int32_t first = 0; first < work.n_value_tiles; first += 4) {
    clear_sums();
    multiply_values_tile<0>(work, probabilities, first);
    multiply_values_tile<1>(work, probabilities, first + 1);
    multiply_values_tile<2>(work, probabilities, first + 2);
    multiply_values_tile<3>(work, probabilities, first + 3);
    store_sums(sums + first * columns * tile_dims);
  }
}

/// Adds a block's sums to the rows of a quad. `unit` is what an integer counts for.
[[maybe_unused, gnu::noinline]] static void add_values(Work& work, int32_t quad_index, float unit,
                                                       const int32_t* sums) {
  constexpr int32_t row_sums = quad_rows * tile_dims;  // from digit to digit
  const Tile& tile = *work.tile;
  const RowQuad& quad = work.quad[quad_index];
  Vec weight[digits::count];
  for (int32_t i = 0; i < digits::count; ++i)
    weight[i] = broadcast(unit * static_cast<float>(1 << (8 * i)));
  for (int32_t r = 0; r < quad.n_rows; ++r) {
    work.prefetch_some();
    work.prefetch_some();
    float* o = tile.o + static_cast<size_t>(quad.row + r) * static_cast<size_t>(tile.o_stride);
    const int32_t* sum = sums + r * tile_dims;
    for (int32_t i = 0; i < work.n_value_tiles; ++i, o += tile_dims, sum += columns * tile_dims) {
      Vec x = load_integers(sum) * weight[0];
      x = fma(load_integers(sum + row_sums), weight[1], x);
      x = fma(load_integers(sum + 2 * row_sums), weight[2], x);
      x = fma(load_integers(sum + 3 * row_sums), weight[3], x);
      store(o, load(o) + x);
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
  const float* probability = work.scores + quad_index * block_cells * quad_rows;
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
