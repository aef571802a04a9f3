#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/prefill.hpp"
#include "kernels/cpu/softmax.hpp"

/// Softmax of the matrix kernel, cut into slices of about a hundred instructions, which are done one
/// by one between the products of other rows. Slices are that small because the matrix unit has few
/// registers to rename: after some eight multiplications that wait, a core takes up nothing more.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

using wide::is_empty;
using wide::Range;
using wide::rounded_up;
using wide::smaller;
using wide::Visible;

/// Rows whose scores are computed together.
inline constexpr int32_t strip_rows = 32;
inline constexpr int32_t block_cells_max = 128;

constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v) {
  return smaller(block_cells_max, 2 * wide::block_cells(head_dim_k, head_dim_v));
}

/// A block of cells whose keys and values are packed.
struct Block {
  int32_t begin = 0;  // of the tile's cells
  int32_t n_cells = 0;
  int32_t key_parts = 0;
  int32_t value_parts = 0;
  std::byte* keys = nullptr;     // [16 cells][dims_k / 32][part] tiles of AMX
  std::byte* values = nullptr;   // [16 dimensions][block / 32][part]
  float* score_scale = nullptr;  // [block] what the scores of a cell are multiplied with
  float* value_scale = nullptr;  // [block] the scales of values that are packed as codes
  bool scales_scores = false;    // whether any score_scale differs from 1
  bool scales_values = false;
};

/// The scores of up to 32 rows and of the cells of a block that they see, on their way to
/// probabilities.
struct Strip {
  const Block* block = nullptr;  // null: there is no strip
  int32_t first_row = 0;
  int32_t n_rows = 0;
  Visible visible;
  Range ranges[2];                             // grown to whole steps of AMX
  int32_t n_groups = 0;                        // of 32 cells in the ranges
  int32_t group[block_cells_max / amx_depth];  // their first cells
  float* scores = nullptr;                     // [cell][16 · vectors()]
  float* rescale = nullptr;                    // [strip_rows]
  std::byte* probabilities = nullptr;          // [16 rows][block / 32][part] tiles of AMX

  int32_t vectors() const { return n_rows > lanes ? 2 : 1; }
};

/// Multiplies the scores of each cell with a number of its own.
template <int32_t vectors>
KVC_INLINE void scale_scores(float* scores, const float* scale, int32_t begin, int32_t end) {
  for (int32_t cell = begin; cell < end; ++cell) {
    const Vec factor = broadcast(scale[cell]);
    float* s = scores + cell * vectors * lanes;
#pragma GCC unroll 2
    for (int32_t v = 0; v < vectors; ++v) store(s + v * lanes, load(s + v * lanes) * factor);
  }
}

/// Packs the probabilities of four rows and 32 cells, transposed.
template <int32_t vectors, bool scaled>
KVC_INLINE void pack_probabilities(const float* scores, const float* scale, std::byte* to, size_t row) {
  constexpr size_t width = vectors * lanes;
  const Vec scales[2] = {scaled ? load(scale) : zero(), scaled ? load(scale + lanes) : zero()};
  Vec x[2][4];
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i)
      x[half][i] = load_quads(scores + (half * 16 + i) * width + row, 4 * width);
    transpose_quads(x[half][0], x[half][1], x[half][2], x[half][3]);
  }
#pragma GCC unroll 4
  for (size_t i = 0; i < 4; ++i) {
    const Vec a = scaled ? x[0][i] * scales[0] : x[0][i];
    const Vec b = scaled ? x[1][i] * scales[1] : x[1][i];
    store_parts<parts_max>(to + i * 64, a, b);
  }
}

/// The slices of one strip, in order:
///
///   4 a group      of 8 cells: options, limits, the highest score of each row
///   8 a group      of 4 cells: probabilities
///   4 a 16 rows    of 4 rows, behind the eight of their group: probabilities as an operand of AMX
struct alignas(64) Softmax {
  Vec highest[2], reference[2], sums[2];
  const Tile* tile = nullptr;
  const wide::RowState* rows = nullptr;
  const Strip* strip = nullptr;
  int32_t n_steps = 0;  // of 32 cells in a block
  int32_t n_slices = 0;

  [[gnu::always_inline]] void begin(const Strip& of) {
    strip = &of;
    n_slices = of.block == nullptr ? 0 : of.n_groups * (12 + 4 * of.vectors());
    for (int32_t v = 0; v < 2; ++v) highest[v] = broadcast(wide::lowest), sums[v] = zero();
  }

  [[gnu::always_inline]] void slice(int32_t index) {
    if (strip->vectors() == 2) {
      slice_of<2>(index);
    } else {
      slice_of<1>(index);
    }
  }

 private:
  template <int32_t vectors>
  [[gnu::noinline]] void slice_of(int32_t index) {
    using Vecs = Vec(&)[vectors];
    const wide::Scores scores = {tile, rows, strip->scores, strip->block->begin, strip->first_row};
    const int32_t n_looks = 4 * strip->n_groups;
    if (index < n_looks) {
      const int32_t cell = strip->group[index / 4] + index % 4 * 8;
      look<vectors>(scores, cell, cell + 8);
      if (index == n_looks - 1) {
        wide::raise_reference<vectors>(scores, reinterpret_cast<Vecs>(highest), strip->rescale,
                                       reinterpret_cast<Vecs>(reference));
      }
      return;
    }
    constexpr int32_t slices = 8 + 4 * vectors;
    const int32_t group = (index - n_looks) / slices, part = (index - n_looks) % slices;
    const int32_t cell = strip->group[group];
    if (part < 8) {
      wide::exponentiate<vectors>(scores, cell + 4 * part, cell + 4 * part + 4,
                                  reinterpret_cast<Vecs>(reference), reinterpret_cast<Vecs>(sums));
    } else {
      pack<vectors>(cell, 4 * (part - 8));
    }
    if (index == n_slices - 1)
      wide::add_sums<vectors>(scores, strip->rescale, reinterpret_cast<Vecs>(sums));
  }

  template <int32_t vectors>
  [[gnu::always_inline]] void look(const wide::Scores& scores, int32_t begin, int32_t end) {
    const Visible& visible = strip->visible;
    if (strip->block->scales_scores)
      scale_scores<vectors>(scores.at, strip->block->score_scale, begin, end);
    wide::adjust<vectors>(scores, begin, end);
    wide::hide<vectors>(scores, begin, end, visible.all[0].end, visible.all[1].begin,
                        visible.all[1].end);
    wide::find_highest<vectors>(scores, begin, end, reinterpret_cast<Vec(&)[vectors]>(highest));
  }

  template <int32_t vectors>
  [[gnu::always_inline]] void pack(int32_t cell, int32_t row) {
    const float* from = strip->scores + cell * vectors * lanes;
    const float* scale = strip->block->value_scale + cell;
    std::byte* to = strip->probabilities +
                    static_cast<size_t>(row / 16 * n_steps + cell / amx_depth) * parts_max *
                        amx_tile_bytes +
                    row % 16 * 64;
    if (strip->block->scales_values) {
      pack_probabilities<vectors, true>(from, scale, to, static_cast<size_t>(row));
    } else {
      pack_probabilities<vectors, false>(from, scale, to, static_cast<size_t>(row));
    }
  }
};

/// Does the slices of one strip while products of others are under way, evenly spread over them.
struct Background {
  Softmax softmax;
  int64_t n_products = 0;  // that will be under way
  int64_t products_done = 0;
  int32_t slices_done = 0;

  [[gnu::always_inline]] void begin(const Strip& strip, int64_t products) {
    softmax.begin(strip);
    n_products = products;
    products_done = 0;
    slices_done = 0;
  }
  [[gnu::always_inline]] void after(int32_t products) {
    products_done += products;
    while (slices_done < softmax.n_slices &&
           slices_done * n_products < products_done * softmax.n_slices)
      softmax.slice(slices_done++);
  }
  [[gnu::always_inline]] void finish() {
    while (slices_done < softmax.n_slices) softmax.slice(slices_done++);
  }
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
