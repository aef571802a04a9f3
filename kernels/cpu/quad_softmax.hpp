#pragma once
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// Softmax for a few rows: rows go in quads of four, scores lie as [cell][row] of a quad, so that a vector
/// holds four rows of a few cells. What walks over K and V chooses how many cells a block has.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

inline constexpr int32_t quad_rows = 4;
inline constexpr float minus_infinity = -__builtin_inff();

KVC_INLINE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
KVC_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/// What the rows of a quad see of a block.
enum class Visibility : int32_t { none, all, mixed };

/// Four rows of the tile, fewer in the last quad, and what they see.
struct alignas(64) RowQuad {
  float slope[quad_rows];
  int32_t position[quad_rows];
  int32_t first_end[quad_rows];  // a row sees [0, first_end) and [begin, end)
  int32_t begin[quad_rows];
  int32_t end[quad_rows];
  int32_t first_end_min, first_end_max, begin_min, begin_max, end_min, end_max;
  int32_t row;
  int32_t n_rows;
  Visibility visibility;  // of the block whose values come next
  Visibility scored;      // of the block whose scores come next
};

KVC_INLINE void describe_quad(const Tile& tile, int32_t index, RowQuad& quad) {
  quad.row = index * quad_rows;
  quad.n_rows = smaller(quad_rows, tile.n_rows - quad.row);
  quad.visibility = Visibility::none;
  quad.first_end_min = quad.begin_min = quad.end_min = INT32_MAX;
  quad.first_end_max = quad.begin_max = quad.end_max = 0;
  for (int32_t i = 0; i < quad_rows; ++i) {
    const int32_t row = quad.row + smaller(i, quad.n_rows - 1);
    const TileToken& token = tile.token[row / tile.group];
    const bool one_range = token.first_end >= token.begin;
    const int32_t first_end = one_range ? 0 : token.first_end;
    const int32_t begin = one_range ? 0 : token.begin;
    const int32_t end = larger(begin, token.end);
    quad.slope[i] = tile.slope ? tile.slope[row % tile.group] : 0.0f;
    quad.position[i] = token.position;
    quad.first_end[i] = first_end;
    quad.begin[i] = begin;
    quad.end[i] = end;
    quad.first_end_min = smaller(quad.first_end_min, first_end);
    quad.first_end_max = larger(quad.first_end_max, first_end);
    quad.begin_min = smaller(quad.begin_min, begin);
    quad.begin_max = larger(quad.begin_max, begin);
    quad.end_min = smaller(quad.end_min, end);
    quad.end_max = larger(quad.end_max, end);
  }
}

/// What the rows of a quad see of the cells [begin, end). Returns "mixed" for some blocks that are
/// none or all.
KVC_INLINE Visibility visibility_of(const RowQuad& quad, int32_t begin, int32_t end) {
  if (end <= quad.first_end_min) return Visibility::all;
  if (begin >= quad.begin_max && end <= quad.end_min) return Visibility::all;
  if (begin >= quad.first_end_max && (end <= quad.begin_min || begin >= quad.end_max))
    return Visibility::none;
  return Visibility::mixed;
}

/// Returns whether the tile's bias hides a cell from a row.
KVC_INLINE bool is_hidden(const Tile& tile, int32_t cell, int32_t row) {
  return tile.bias[static_cast<size_t>(cell) * static_cast<size_t>(tile.bias_stride) +
                   static_cast<size_t>(row)] == minus_infinity;
}

/// Returns whether row `r` of the quad sees the cell: neither its token's limits nor the bias hide it.
KVC_INLINE bool sees(const Tile& tile, const RowQuad& quad, int32_t cell, int32_t r) {
  if (cell >= quad.first_end[r] && (cell < quad.begin[r] || cell >= quad.end[r])) return false;
  return tile.bias == nullptr || !is_hidden(tile, cell, quad.row + r);
}

template <int32_t block_cells>
KVC_INLINE void apply_cap(const Tile& tile, float* scores) {
  const Vec cap = broadcast(tile.cap), inverse = broadcast(tile.cap_inverse);
  for (int32_t i = 0; i < block_cells * quad_rows; i += lanes)
    store(scores + i, cap * tanh(load_sums(scores + i) * inverse));
}

template <int32_t block_cells>
KVC_INLINE void apply_slopes(const Tile& tile, const RowQuad& quad, int32_t begin, int32_t n_cells,
                             float* scores) {
  const QuadInt own = load_quad(quad.position);
  const Vec slope = repeat(load_quad(quad.slope));
  const int32_t* position = tile.position + begin;
  int32_t last[block_cells] = {};
  if (n_cells < block_cells) {  // nothing is read past the end
    for (int32_t i = 0; i < n_cells; ++i) last[i] = position[i];
    position = last;
  }
  for (int32_t i = 0; i < block_cells * quad_rows; i += lanes) {
    store(scores + i, load_sums(scores + i) - slope * distances(own, position + i / quad_rows));
  }
}

/// A block in which the bias hides a cell is "mixed".
KVC_INLINE Visibility visibility_with_bias(const Tile& tile, const RowQuad& quad,
                                           Visibility visibility, int32_t begin, int32_t end) {
  if (visibility != Visibility::all) return visibility;
  for (int32_t cell = begin; cell < end; ++cell) {
    for (int32_t r = 0; r < quad.n_rows; ++r) {
      if (is_hidden(tile, cell, quad.row + r)) return Visibility::mixed;
    }
  }
  return Visibility::all;
}

KVC_INLINE void apply_bias(const Tile& tile, const RowQuad& quad, int32_t begin, int32_t n_cells,
                           float* scores) {
  const Quad hidden = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  for (int32_t i = 0; i < n_cells; ++i, scores += quad_rows) {
    const Quad bias = load_quad(
        tile.bias + static_cast<size_t>(begin + i) * static_cast<size_t>(tile.bias_stride) + quad.row);
    store_quad(scores, bias == hidden ? hidden : load_quad(scores) + bias);
  }
}

/// Replaces the scores of hidden cells, and those past the last cell, by −infinity.
template <int32_t block_cells>
KVC_INLINE void hide(const RowQuad& quad, Visibility visibility, int32_t begin, int32_t n_cells,
                     float* scores) {
  const Quad hidden = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  for (int32_t i = n_cells; i < block_cells; ++i) store_quad(scores + i * quad_rows, hidden);
  if (visibility != Visibility::mixed) return;
  const QuadInt first_end = load_quad(quad.first_end);
  const QuadInt range_begin = load_quad(quad.begin);
  const QuadInt range_end = load_quad(quad.end);
  for (int32_t i = 0; i < n_cells; ++i) {
    const QuadInt cell = QuadInt{} + (begin + i);
    const QuadInt visible = (cell < first_end) | ((cell >= range_begin) & (cell < range_end));
    float* to = scores + i * quad_rows;
    store_quad(to, visible ? load_quad(to) : hidden);
  }
}

/// Turns scores into probabilities. When a row's maximum grows, its sum and its o shrink to match.
template <int32_t block_cells>
KVC_INLINE void update_softmax(const Tile& tile, const RowQuad& quad, float* scores) {
  const Quad minus_infinities = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  Vec top = repeat(minus_infinities);
  for (int32_t i = 0; i < block_cells * quad_rows; i += lanes)
    top = maximum(load_sums(scores + i), top);  // skips NaN
  const Quad before = load_quad(tile.max + quad.row);
  const Quad block_top = fold_maximum(top);
  const Quad after = block_top > before ? block_top : before;
  const Quad base = after > minus_infinities ? after : Quad{};  // nothing yet: 2^(−∞ − 0) = 0
  const Vec base_all = repeat(base);
  Vec sum = zero();
  for (int32_t i = 0; i < block_cells * quad_rows; i += lanes) {
    const Vec p = exp2(load_sums(scores + i) - base_all);
    store(scores + i, p);
    sum = sum + p;
  }
  Quad total = load_quad(tile.sum + quad.row);
  const QuadInt grown = after > before;
  if (any(grown)) {
    alignas(64) float shrink[16];
    store(shrink, exp2(repeat(before - base)));
    total *= load_quad(shrink);
    store_quad(tile.max + quad.row, after);
    for (int32_t r = 0; r < quad.n_rows; ++r) {
      if (grown[r] == 0) continue;
      const Vec factor = broadcast(shrink[r]);
      float* o = tile.o + static_cast<size_t>(quad.row + r) * static_cast<size_t>(tile.o_stride);
      for (int32_t d = 0; d < tile.o_stride; d += lanes) store(o + d, factor * load(o + d));
    }
  }
  store_quad(tile.sum + quad.row, total + fold_sum(sum));
}

/// Applies the tile's options to the scores of a block and turns them into probabilities.
template <int32_t block_cells>
KVC_INLINE void finish_scores(const Tile& tile, const RowQuad& quad, Visibility visibility,
                              int32_t begin, float* scores) {
  const int32_t n_cells = smaller(block_cells, tile.n_cells - begin);
  if (tile.cap != 0) apply_cap<block_cells>(tile, scores);
  if (tile.slope) apply_slopes<block_cells>(tile, quad, begin, n_cells, scores);
  if (tile.bias) apply_bias(tile, quad, begin, n_cells, scores);
  if (visibility == Visibility::mixed || n_cells < block_cells)
    hide<block_cells>(quad, visibility, begin, n_cells, scores);
  update_softmax<block_cells>(tile, quad, scores);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
