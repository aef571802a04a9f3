#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_work.hpp"
#include "kernels/cpu/matrix_tiles.hpp"

/// Products of digits and the codes of a block, by AMX (codes.hpp).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace codes {

using matrix::amx_rows;
static_assert(columns == amx_rows && tile_bytes == matrix::amx_tile_bytes);

struct AmxWork : Work {
  Ahead ahead_k, ahead_v;
  int32_t* key_sums[2];    // [key sum][64 cells][column]
  int32_t* value_sums[2];  // [dimensions / 16][column][16 dimensions]
  int32_t* unused;         // [16][16], for amx_stay_awake

  [[gnu::always_inline]] void prefetch_some() {
    ahead_k.prefetch_some();
    ahead_v.prefetch_some();
  }
};

KVC_INLINE size_t lay_out(AmxWork& work, std::byte* base, int32_t head_dim_k, int32_t head_dim_v) {
  ScratchLayout layout{base};
  lay_out_shared(work, layout, head_dim_k, head_dim_v);
  const int32_t scales_k = divide_up(head_dim_k, stored::ggml_block);
  const int32_t tiles_v = divide_up(value_tiles_max(head_dim_v), 4) * 4;
  for (int32_t i = 0; i < 2; ++i) {
    layout.carve(work.key_sums[i], scales_k * block_cells * columns);
    layout.carve(work.value_sums[i], tiles_v * columns * tile_dims);
  }
  layout.carve(work.unused, amx_rows * columns);
  return layout.offset;
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
KVC_INLINE void multiply_keys(const AmxWork& work, const Keys& keys, int32_t quad, int32_t* sums) {
  const int32_t n = work.n_products();
  const std::byte* queries = work.queries_of(quad);
  const bool is_one_sum = work.n_key_sums == 1;
  for (int32_t i = 0; i < n; ++i, queries += tile_bytes) {
    if (i == 0 || !is_one_sum) clear_sums();
    add_keys_step(keys, is_one_sum ? i : i / 2, queries);
    if (!is_one_sum) store_sums(sums + i * block_cells * columns);
  }
  if (is_one_sum) store_sums(sums);
}

KVC_INLINE Vec load_integers(const int32_t* p) { return to_floats(_mm512_load_si512(p)); }

/// Scores of a quad, [cell][row].
template <bool has_one_scale>
[[gnu::noinline]] static void fold_scores(AmxWork& work, int32_t quad, const int32_t* sums) {
  const Vec weight = load(work.weight + quad * columns);
  const int32_t stride = scale_stride(work.tile->k);
  const int32_t n_sums = has_one_scale ? 1 : work.n_key_sums;
  float* to = work.scores_of(quad);
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
    store(to + cell * quad_rows, fold_digits(x));
  }
}

// ---- Values ---------------------------------------------------------------------------------------

/// Digits of probabilities times value tile `index`, which has its sums in register `sum`.
template <int32_t sum>
KVC_INLINE void multiply_values_tile(const AmxWork& work, const std::byte* probabilities,
                                     int32_t index) {
  constexpr int32_t operand = 6 + sum % 2;
  if (index >= work.n_value_tiles) return;
  if (sum == 0 || (sum == 2 && work.n_value_scales > 1)) {
    const int32_t scale = work.n_value_scales == 1 ? 0 : index / 2;
    matrix::amx_load<4>(probabilities + static_cast<size_t>(scale) * tile_bytes);
  }
  matrix::amx_load<operand>(work.values + static_cast<size_t>(index) * tile_bytes);
  matrix::amx_multiply_add_bytes<sum, 4, operand>();
}

/// Digits of probabilities times all value tiles.
KVC_INLINE void multiply_values(const AmxWork& work, int32_t quad, int32_t* sums) {
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
[[maybe_unused, gnu::noinline]] static void add_values(AmxWork& work, int32_t quad_index,
                                                       float unit, const int32_t* sums) {
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

}  // namespace codes

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
