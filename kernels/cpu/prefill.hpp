#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/soften.hpp"
#include "kernels/cpu/tile.hpp"

/// The wide kernel: many query rows of one KV head against a stretch of cells.
///
/// Cells are taken in blocks whose K and V are converted to f32 once. A strip of rows then makes
/// its whole way through the block while its scores stay in the first-level cache: scores (rows in
/// the lanes, so keys need no transposing and softmax no sums across lanes), softmax, and values
/// (dimensions in the lanes, so the output keeps its place). Scores lie as [cell][row of the
/// strip]: what the first product writes is the layout that the second one broadcasts.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace wide {

/// Rows of a strip whose values are added together.
inline constexpr int32_t value_rows = 6;

/// Dimensions of a strip's queries that stay in the first-level cache from cell to cell.
inline constexpr int32_t score_depth = 256;

inline constexpr int32_t rows_max = rounded_up(tile_rows_max, strip_rows);

/// Half-open range of cells of a block.
struct Range {
  int32_t begin = 0;
  int32_t end = 0;
};

KVC_INLINE bool is_empty(Range range) { return range.begin >= range.end; }

/// What some rows see of a block: up to two ranges that any of them sees, up to two that all of
/// them see.
struct View {
  Range any[2];
  Range all[2];
};

/// Rows whose values are added together, and the cells that count for them.
struct Piece {
  int32_t row;  // of the strip
  int32_t n_rows;
  Range ranges[2];
};

/// What belongs to one tile on its way through the blocks.
struct Work {
  const Tile* tile;
  int32_t dims_k;  // padded to 16
  int32_t dims_v;
  int32_t block;        // cells
  int32_t block_begin;  // this block's first cell
  int32_t n_cells;      // of this block
  bool finite;          // every packed value of this block
  int32_t ahead_begin;  // cells of the next block still to ask memory for
  int32_t ahead_end;
  int32_t ahead_step;  // asked for between two products

  float* queries;  // strip s at s · strip_rows · dims_k, [dims_k][width]
  float* keys;     // [block][dims_k]
  float* values;   // panels
  float* scores;   // [block][width]
  float* rescale;  // [strip_rows] what earlier sums are multiplied with
  RowState rows;
};

KVC_INLINE size_t carve(size_t& offset, size_t count) {
  const size_t at = offset;
  offset += (count + 63) / 64 * 64;  // floats; 256 bytes apart
  return at;
}

/// Lays the scratch out; returns the floats it needs. `base` may be null to learn the size.
KVC_INLINE size_t lay_out(Work& work, float* base, int32_t head_dim_k, int32_t head_dim_v) {
  work.dims_k = rounded_up(head_dim_k, 16);
  work.dims_v = rounded_up(head_dim_v, 16);
  work.block = block_cells(head_dim_k, head_dim_v);
  const size_t rows = rows_max, block = static_cast<size_t>(work.block);
  const size_t dims_k = static_cast<size_t>(work.dims_k), dims_v = static_cast<size_t>(work.dims_v);
  size_t offset = 0;
  const size_t scores = carve(offset, block * strip_rows);
  const size_t queries = carve(offset, rows * dims_k);
  const size_t keys = carve(offset, block * dims_k);
  const size_t values = carve(offset, block * dims_v);
  size_t state[row_arrays];
  for (size_t& at : state) at = carve(offset, rows);
  const size_t rescale = carve(offset, strip_rows);
  if (base == nullptr) return offset;
  work.scores = base + scores;
  work.queries = base + queries;
  work.keys = base + keys;
  work.values = base + values;
  work.rescale = base + rescale;
  work.rows.place(base, state);
  return offset;
}

KVC_INLINE int32_t clamp(int32_t x, int32_t low, int32_t high) {
  return smaller(larger(x, low), high);
}

/// What rows [begin, begin + count) of the tile see of the block.
KVC_INLINE View view_of(const Work& work, int32_t begin, int32_t count) {
  const int32_t n = work.n_cells, group = work.tile->group;
  int32_t first_any = 0, begin_any = n, end_any = 0;
  int32_t first_all = n, begin_all = 0, end_all = n;
  for (int32_t i = begin / group; i <= (begin + count - 1) / group; ++i) {
    const TileToken& token = work.tile->token[i];
    const int32_t first_end = clamp(token.first_end - work.block_begin, 0, n);
    int32_t window_begin = clamp(token.begin - work.block_begin, 0, n);
    int32_t window_end = clamp(token.end - work.block_begin, 0, n);
    if (window_begin >= window_end) window_begin = n, window_end = 0;
    first_any = larger(first_any, first_end);
    begin_any = smaller(begin_any, window_begin);
    end_any = larger(end_any, window_end);
    first_all = smaller(first_all, first_end);
    begin_all = larger(begin_all, window_begin);
    end_all = smaller(end_all, window_end);
  }
  View view;
  view.all[0] = {0, first_all};
  view.all[1] = {begin_all, larger(begin_all, end_all)};
  if (begin_any >= end_any) begin_any = end_any = first_any;
  if (begin_any <= first_any) {
    view.any[0] = {0, larger(first_any, end_any)};
  } else {
    view.any[0] = {0, first_any};
    view.any[1] = {begin_any, end_any};
  }
  return view;
}

/// The ranges grown to whole groups of `multiple` cells, as the score kernel computes them; joined
/// when they meet.
KVC_INLINE void grow(const Range (&from)[2], int32_t multiple, Range (&to)[2]) {
  for (int32_t i = 0; i < 2; ++i) {
    to[i] = {0, 0};
    if (from[i].begin >= from[i].end) continue;
    to[i] = {from[i].begin / multiple * multiple, rounded_up(from[i].end, multiple)};
  }
  if (to[0].begin < to[0].end && to[1].begin < to[1].end && to[1].begin <= to[0].end) {
    to[0].end = to[1].end;
    to[1] = {0, 0};
  }
}

/// Asks for a few cells of the next block, so that packing them will not wait for memory. A few at
/// a time: what is asked for at once beyond the misses a core can have in flight stops it.
KVC_INLINE void ask_ahead(Work& work) {
  const Tile& tile = *work.tile;
  const int32_t end = smaller(work.ahead_begin + work.ahead_step, work.ahead_end);
  for (; work.ahead_begin < end; ++work.ahead_begin) {
    const size_t cell = static_cast<size_t>(tile.cell[work.ahead_begin]);
    const std::byte* key = tile.k + cell * tile.k_row_bytes;
    const std::byte* value = tile.v + cell * tile.v_row_bytes;
    for (size_t at = 0; at < tile.k_row_bytes; at += 64) prefetch_far(key + at);
    for (size_t at = 0; at < tile.v_row_bytes; at += 64) prefetch_far(value + at);
  }
}

/// From now on ask_ahead asks for cells [begin, begin + block), spread over `calls` calls.
KVC_INLINE void look_ahead(Work& work, int32_t begin, int32_t calls) {
  work.ahead_begin = begin;
  work.ahead_end = smaller(begin + work.block, work.tile->n_cells);
  work.ahead_step = (work.block + calls - 1) / calls;
}

KVC_INLINE int32_t strip_width(int32_t n_rows) {
  return n_rows >= strip_rows ? strip_rows : rounded_up(n_rows, lanes);
}

/// Packs all queries, strip by strip, while the first cells are on their way.
KVC_INLINE void pack_strips(Work& work) {
  const Tile& tile = *work.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride), dims = static_cast<size_t>(work.dims_k);
  look_ahead(work, 0, (tile.n_rows + lanes - 1) / lanes);
  for (int32_t row = 0; row < tile.n_rows; row += strip_rows) {
    const int32_t width = strip_width(tile.n_rows - row);
    float* strip = work.queries + static_cast<size_t>(row) * dims;
    for (int32_t column = 0; column < width; column += lanes) {
      ask_ahead(work);
      pack_queries(strip + column, width, tile.q + static_cast<size_t>(row + column) * stride,
                   stride, tile.n_rows - row - column, work.dims_k);
    }
  }
}

/// Converts what any row of the tile sees of the block. False when there is nothing to see.
KVC_INLINE bool pack_block(Work& work) {
  const Tile& tile = *work.tile;
  Range ranges[2];
  grow(view_of(work, 0, tile.n_rows).any, pack_cells, ranges);
  bool any = false;
  work.finite = true;
  for (const Range& range : ranges) {
    const int32_t end = smaller(range.end, work.n_cells);
    if (range.begin >= end) continue;
    any = true;
    const int32_t* cell = tile.cell + work.block_begin + range.begin;
    const size_t at = static_cast<size_t>(range.begin);
    pack_keys(work.keys + at * static_cast<size_t>(work.dims_k), static_cast<size_t>(work.dims_k),
              tile, cell, end - range.begin);
    work.finite &= pack_values(work.values, work.block, range.begin, tile, cell, end - range.begin);
  }
  return any;
}

/// Scores of `cells` cells and `vectors` · lanes rows, over dimensions [depth_begin, depth_end).
template <int32_t cells, int32_t vectors>
[[gnu::noinline]] static void score_cells_of(const float* keys, size_t stride, const float* queries,
                                             int32_t depth, bool first, float* scores) {
  constexpr size_t width = vectors * lanes;
  Vec c[cells][vectors];
  if (first) {
    clear_block(c);
  } else {
    load_block(c, scores, width);
  }
  multiply_add_rows(c, keys, stride, queries, width, depth);
  store_block(c, scores, width);
}

/// Scores are computed for whole groups of so many cells.
inline constexpr int32_t fewest_cells = 2;

/// Cells whose scores are computed together: as many sums as registers hold, and as keep the multipliers busy for a narrow
/// strip.
#if defined(__AVX512F__)
template <int32_t vectors>
inline constexpr int32_t cells_at_once = vectors < 4 ? 8 : 6;
#else
template <int32_t vectors>
inline constexpr int32_t cells_at_once = vectors == 1 ? 8 : 4;
#endif

template <int32_t vectors>
[[gnu::noinline]] static void score_strip(const Work& work, const float* queries,
                                          const Range (&ranges)[2]) {
  constexpr int32_t cells = cells_at_once<vectors>;
  constexpr int32_t width = vectors * lanes;
  const int32_t dims = work.tile->head_dim_k;
  const int32_t n_chunks = (dims + score_depth - 1) / score_depth;
  const int32_t chunk = (dims + n_chunks - 1) / n_chunks;
  const size_t stride = static_cast<size_t>(work.dims_k);
  for (int32_t d = 0; d < dims; d += chunk) {
    const int32_t depth = smaller(chunk, dims - d);
    for (const Range& range : ranges) {
      const float* keys = work.keys + static_cast<size_t>(range.begin) * stride + d;
      float* scores = work.scores + range.begin * width;
      int32_t left = range.end - range.begin;
      for (; left >= cells; left -= cells, keys += cells * stride, scores += cells * width) {
        score_cells_of<cells, vectors>(keys, stride, queries + d * width, depth, d == 0, scores);
      }
      if (left >= 4) {
        score_cells_of<4, vectors>(keys, stride, queries + d * width, depth, d == 0, scores);
        left -= 4, keys += 4 * stride, scores += 4 * width;
      }
      if (left > 0) {
        score_cells_of<fewest_cells, vectors>(keys, stride, queries + d * width, depth, d == 0,
                                              scores);
      }
    }
  }
}

/// o[rows][dims of a panel] = o · rescale + probabilities · values, over the piece's ranges.
template <int32_t n_rows, int32_t vectors>
[[gnu::noinline]] static void add_values(const Work& work, const Piece& piece, int32_t width,
                                         const float* panel, float* o) {
  const size_t stride = static_cast<size_t>(work.tile->o_stride);
  Vec c[n_rows][vectors];
  clear_block(c);  // a chain of sums no longer than a block: earlier blocks are added last
  for (const Range& range : piece.ranges) {
    if (is_empty(range)) continue;
    multiply_add_columns(c, work.scores + range.begin * width + piece.row,
                         static_cast<size_t>(width), panel + range.begin * vectors * lanes,
                         vectors * lanes, range.end - range.begin);
  }
  add_rescaled(c, o, stride, work.rescale + piece.row);
}

template <int32_t vectors>
KVC_INLINE void add_panel_of(const Work& work, const Piece& piece, int32_t width,
                             const float* panel, float* o) {
  switch (piece.n_rows) {
    case 6: return add_values<6, vectors>(work, piece, width, panel, o);
    case 4: return add_values<4, vectors>(work, piece, width, panel, o);
    case 2: return add_values<2, vectors>(work, piece, width, panel, o);
    default: return add_values<1, vectors>(work, piece, width, panel, o);
  }
}

/// The last panel may be narrower.
KVC_INLINE void add_panel(const Work& work, const Piece& piece, int32_t width, const float* panel,
                          int32_t dims_left, float* o) {
  switch (smaller(dims_left, panel_dims) / lanes) {
    case 1: return add_panel_of<1>(work, piece, width, panel, o);
#if defined(__AVX512F__)
    case 2: return add_panel_of<2>(work, piece, width, panel, o);
    case 3: return add_panel_of<3>(work, piece, width, panel, o);
#endif
    default: return add_panel_of<value_vectors>(work, piece, width, panel, o);
  }
}

KVC_INLINE int32_t piece_rows(int32_t left) {
  return left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/// Whether every row sees all that any row sees. May say no where kept cells meet a window.
KVC_INLINE bool is_seen_by_all(const View& view) {
  bool all = true;
  for (const Range& range : view.any) {
    const bool kept = range.end <= view.all[0].end;
    const bool windowed = range.begin >= view.all[1].begin && range.end <= view.all[1].end;
    all &= is_empty(range) || kept || windowed;
  }
  return all;
}

/// Cuts a strip into pieces. With a value that is not finite in the block, rows that do not all see
/// the same cells go alone: a probability of zero would not keep it from them.
KVC_INLINE int32_t cut_strip(const Work& work, const View& strip, int32_t first_row, int32_t n_rows,
                             Piece* pieces) {
  const bool all_same = is_seen_by_all(strip);
  int32_t count = 0;
  for (int32_t row = 0, size = 0; row < n_rows; row += size) {
    size = piece_rows(n_rows - row);
    View view = all_same ? strip : view_of(work, first_row + row, size);
    if (!work.finite && !is_seen_by_all(view)) {
      size = 1;
      view = view_of(work, first_row + row, 1);
    }
    pieces[count] = {row, size, {view.any[0], view.any[1]}};
    count += !is_empty(view.any[0]) || !is_empty(view.any[1]);
  }
  return count;
}

/// Scores of a strip become probabilities; its rows' maxima and sums are carried on.
template <int32_t vectors>
KVC_INLINE void soften_strip(const Work& work, const View& view, int32_t first_row,
                             const Range (&ranges)[2]) {
  const Scores scores = {work.tile, &work.rows, work.scores, work.block_begin, first_row};
  Vec highest[vectors], reference[vectors], sums[vectors];
  for (Vec& x : highest) x = broadcast(lowest);
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    adjust<vectors>(scores, range.begin, range.end);
    hide<vectors>(scores, range.begin, range.end, view.all[0].end, view.all[1].begin, view.all[1].end);
    find_highest<vectors>(scores, range.begin, range.end, highest);
  }
  raise_reference<vectors>(scores, highest, work.rescale, reference);
  for (Vec& x : sums) x = zero();
  for (const Range& range : ranges) {
    if (!is_empty(range)) exponentiate<vectors>(scores, range.begin, range.end, reference, sums);
  }
  add_sums<vectors>(scores, work.rescale, sums);
}

/// The same, one cell and row at a time: where a bias hides values that are not finite.
[[gnu::noinline]] static void add_seen_values(const Work& work, const Piece& piece, int32_t width,
                                              int32_t first_row) {
  const Tile& tile = *work.tile;
  for (int32_t row = piece.row; row < piece.row + piece.n_rows; ++row) {
    float* o = tile.o + static_cast<size_t>(first_row + row) * static_cast<size_t>(tile.o_stride);
    for (int32_t d = 0; d < work.dims_v; ++d) o[d] *= work.rescale[row];
    for (const Range& range : piece.ranges) {
      for (int32_t cell = range.begin; cell < range.end; ++cell) {
        const int32_t index = work.block_begin + cell;
        const float* bias = tile.bias +
                            static_cast<size_t>(index) * static_cast<size_t>(tile.bias_stride);
        if (bias[first_row + row] == lowest) continue;
        const float probability = work.scores[cell * width + row];
        for (int32_t d = 0; d < work.dims_v; ++d) {
          const int32_t panel = d / panel_dims * panel_dims;
          const int32_t panel_width = smaller(panel_dims, work.dims_v - panel);
          o[d] += probability *
                  work.values[static_cast<size_t>(panel) * static_cast<size_t>(work.block) +
                              static_cast<size_t>(cell * panel_width + d - panel)];
        }
      }
    }
  }
}

/// One strip of rows through the block: scores, softmax, values.
template <int32_t vectors>
static void process_strip(Work& work, int32_t first_row, int32_t n_rows) {
  constexpr int32_t width = vectors * lanes;
  const size_t row = static_cast<size_t>(first_row);
  const size_t stride = static_cast<size_t>(work.tile->o_stride);
  const View view = view_of(work, first_row, n_rows);
  Range ranges[2];
  grow(view.any, fewest_cells, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;

  score_strip<vectors>(work, work.queries + row * static_cast<size_t>(work.dims_k), ranges);
  soften_strip<vectors>(work, view, first_row, ranges);

  Piece pieces[strip_rows];
  const int32_t count = cut_strip(work, view, first_row, n_rows, pieces);
  if (!work.finite && work.tile->bias != nullptr) {
    for (int32_t i = 0; i < count; ++i) add_seen_values(work, pieces[i], width, first_row);
    return;
  }
  for (int32_t d = 0; d < work.dims_v; d += panel_dims) {
    const float* panel = work.values + static_cast<size_t>(d) * static_cast<size_t>(work.block);
    for (int32_t i = 0; i < count; ++i) {
      ask_ahead(work);
      float* o = work.tile->o + (row + static_cast<size_t>(pieces[i].row)) * stride + d;
      add_panel(work, pieces[i], width, panel, work.dims_v - d, o);
    }
  }
}

KVC_INLINE void process_block(Work& work) {
  const int32_t n_rows = work.tile->n_rows;
  const int32_t n_products = (n_rows + value_rows - 1) / value_rows *
                             ((work.dims_v + panel_dims - 1) / panel_dims);
  look_ahead(work, work.block_begin + work.n_cells, n_products);
  for (int32_t row = 0; row < n_rows; row += strip_rows) {
    const int32_t count = smaller(strip_rows, n_rows - row);
    switch (strip_width(count) / lanes) {
      case 1: process_strip<1>(work, row, count); break;
      case 2: process_strip<2>(work, row, count); break;
#if defined(__AVX512F__)
      case 3: process_strip<3>(work, row, count); break;
#endif
      default: process_strip<strip_vectors>(work, row, count); break;
    }
  }
}

}  // namespace wide

/// Scratch of one thread for tiles of up to tile_rows_max rows.
[[maybe_unused]] static size_t wide_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  wide::Work work = {};
  return wide::lay_out(work, nullptr, head_dim_k, head_dim_v) * sizeof(float);
}

/// Attention of all rows of the tile over its cells, carried on in (max, sum, o). Any option, any
/// head dimension.
[[maybe_unused]] static void process_wide_tile(const Tile& tile) {
  wide::Work work = {};
  work.tile = &tile;
  wide::lay_out(work, reinterpret_cast<float*>(tile.scratch), tile.head_dim_k, tile.head_dim_v);
  wide::pack_strips(work);
  work.rows.load_from(tile, wide::rounded_up(tile.n_rows, wide::strip_rows));
  for (int32_t begin = 0; begin < tile.n_cells; begin += work.block) {
    work.block_begin = begin;
    work.n_cells = wide::smaller(work.block, tile.n_cells - begin);
    if (wide::pack_block(work)) wide::process_block(work);
  }
  work.rows.store_to(tile);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
