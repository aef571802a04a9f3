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
inline constexpr int32_t block_cells_max = 256;

/// Cells of a block: the longer, the fewer times o is read and written; its K and V must leave room in the second-level cache. Where
/// factors are rounded, products take so little time that scores should stay in the first-level cache.
constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v, int32_t parts) {
  const int32_t cells = wide::block_cells(head_dim_k, head_dim_v);
  if (cells < wide::block_cells_max) return 2 * cells;
  return parts < parts_max ? block_cells_max / 2 : block_cells_max;
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
  bool adjusts = false;          // whether the tile has options that change scores
  bool scales_scores = false;  // whether scores are multiplied with them, or all with `factor`, at last
  float factor = 1;
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
  bool rescales = false;                       // whether any of them differs from 1
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

/// Turns the scores of two cells into probabilities, adds them to `sums` and writes them as a row of B. The values of a cell may
/// owe a scale, which its probabilities take.
template <int32_t parts, int32_t vectors, bool scaled>
KVC_INLINE void weigh_pair(const float* scores, const float* scale, Vec factor,
                           const Vec (&reference)[vectors], Vec (&sums)[vectors], std::byte* to,
                           size_t side_bytes) {
  constexpr int32_t half = amx_depth / 2;
#pragma GCC unroll 2
  for (size_t v = 0; v < vectors; ++v) {
    const float* s = scores + v * lanes;
    Vec a = exp2(fma(load(s), factor, zero() - reference[v]));
    Vec b = exp2(fma(load(s + half * vectors * lanes), factor, zero() - reference[v]));
    sums[v] = sums[v] + (a + b);
    if constexpr (scaled) {
      a = a * broadcast(scale[0]);
      b = b * broadcast(scale[half]);
    }
    store_parts<parts>(to + v * side_bytes, a, b);
  }
}

/// The slices of one strip, in order:
///
///   1 a group, or 4    options, limits, the highest score of each row; of 8 cells where the tile has options
///   8 a group, or 16   probabilities of two pairs of cells, or of one, as an operand of AMX
struct alignas(64) Softmax {
  Vec highest[2], reference[2], sums[2];
  const Tile* tile = nullptr;
  const wide::RowState* rows = nullptr;
  Strip* strip = nullptr;
  int32_t n_steps = 0;  // of 32 cells in a block
  int32_t look_cells = amx_depth;
  int32_t n_looks = 0;
  int32_t n_slices = 0;

  [[gnu::always_inline]] void begin(Strip& of) {
    strip = &of;
    n_looks = n_slices = 0;
    if (of.block == nullptr) return;
    look_cells = of.block->adjusts || of.block->scales_scores ? 8 : amx_depth;
    n_looks = of.n_groups * (amx_depth / look_cells);
    n_slices = n_looks + of.n_groups * (amx_depth / 2 / pairs_at_once(tile->parts));
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
  /// More parts take more instructions.
  static constexpr int32_t pairs_at_once(int32_t parts) { return parts == 1 ? 2 : 1; }

  template <int32_t vectors>
  [[gnu::always_inline]] void slice_of(int32_t index) {
    if (index < n_looks) return look<vectors>(index);
    switch (tile->parts) {
      case 1: return weigh<1, vectors>(index - n_looks);
      case 2: return weigh<2, vectors>(index - n_looks);
      default: return weigh<3, vectors>(index - n_looks);
    }
  }

  [[gnu::always_inline]] wide::Scores scores() const {
    return {tile, rows, strip->scores, strip->block->begin, strip->first_row};
  }

  template <int32_t vectors>
  [[gnu::noinline]] void look(int32_t index) {
    const int32_t in_group = amx_depth / look_cells;
    const int32_t begin = strip->group[index / in_group] + index % in_group * look_cells,
                  end = begin + look_cells;
    const wide::Scores at = scores();
    const Visible& visible = strip->visible;
    if (strip->block->scales_scores)
      scale_scores<vectors>(at.at, strip->block->score_scale, begin, end);
    wide::adjust<vectors>(at, begin, end);
    wide::hide<vectors>(at, begin, end, visible.all[0].end, visible.all[1].begin, visible.all[1].end);
    wide::find_highest<vectors>(at, begin, end, reinterpret_cast<Vec(&)[vectors]>(highest));
    if (index == n_looks - 1) refer<vectors>(at);
  }

  template <int32_t vectors>
  [[gnu::always_inline]] void refer(const wide::Scores& at) {
    using Vecs = Vec(&)[vectors];
    for (int32_t v = 0; v < vectors; ++v) highest[v] = highest[v] * broadcast(strip->block->factor);
    wide::raise_reference<vectors>(at, reinterpret_cast<Vecs>(highest), strip->rescale,
                                   reinterpret_cast<Vecs>(reference));
    strip->rescales = false;
    for (int32_t v = 0; v < vectors; ++v)
      strip->rescales |= differs(load(strip->rescale + v * lanes), broadcast(1.0f));
  }

  template <int32_t parts, int32_t vectors>
  [[gnu::noinline]] void weigh(int32_t index) {
    constexpr int32_t pairs = pairs_at_once(parts), in_group = amx_depth / 2 / pairs;
    constexpr size_t step_bytes = parts * amx_tile_bytes;
    const Block& block = *strip->block;
    const int32_t cell = strip->group[index / in_group], pair = index % in_group * pairs;
    std::byte* to = strip->probabilities + static_cast<size_t>(cell / amx_depth) * step_bytes +
                    pair * 64;
    const size_t side_bytes = static_cast<size_t>(n_steps) * step_bytes;
    const float* from = strip->scores + (cell + pair) * vectors * lanes;
    const float* scale = block.value_scale + cell + pair;
    const Vec factor = broadcast(block.factor);
    using Vecs = Vec(&)[vectors];
    Vecs references = reinterpret_cast<Vecs>(reference), total = reinterpret_cast<Vecs>(sums);
    if (block.scales_values) {
      for (int32_t i = 0; i < pairs; ++i, from += vectors * lanes, ++scale, to += 64)
        weigh_pair<parts, vectors, true>(from, scale, factor, references, total, to, side_bytes);
    } else {
#pragma GCC unroll 2
      for (int32_t i = 0; i < pairs; ++i, from += vectors * lanes, to += 64)
        weigh_pair<parts, vectors, false>(from, scale, factor, references, total, to, side_bytes);
    }
    if (index == n_slices - n_looks - 1) wide::add_sums<vectors>(scores(), strip->rescale, total);
  }
};

/// Does the slices of one strip while products of others are under way, evenly spread over them.
struct Background {
  Softmax softmax;
  int64_t n_products = 0;  // that will be under way
  int64_t products_done = 0;
  int32_t slices_done = 0;

  [[gnu::always_inline]] void begin(Strip& strip, int64_t products) {
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
