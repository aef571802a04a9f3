#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// The wide kernel, for many query rows of one KV head.
///
///                                                               AVX-512   AVX2   portable
///   for each block of cells (fewer with large heads)            96        128    128
///     pack_block        K, V → f32: keys [cell][dimension],
///                       values in panels of dimensions          64        16     8
///     for each strip of rows                                    64        24     12
///       score_strip     keys × queries → scores [cell][row]
///       softmax_strip   scores → probabilities, in place
///       for each panel, for each set of up to 6 rows
///         add_values    probabilities × values → o, and a few cells of the next block prefetched
///
///                 registers of sums, AVX-512 (others)         streams
///   score_strip   6 cells × 4 vectors of rows (4 × 3)         keys broadcast, queries
///   add_values    6 rows × 4 vectors of dimensions (6 × 2)    probabilities broadcast, a panel
///
/// Before each add_values a few cells of the next block are prefetched into the second-level cache,
/// where its pack_block finds them. K and V are converted once per block. The scores of a strip
/// stay in the first-level cache on their way. In score_strip rows lie in the lanes, so keys need
/// no transposing and softmax no sums across lanes; in add_values dimensions do, so o keeps its
/// layout. What the first product writes is what the second one broadcasts.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace wide {

/// Rows of a set at most.
inline constexpr int32_t set_rows_max = 6;

/// Dimensions of a strip's queries that stay in the first-level cache from cell to cell.
inline constexpr int32_t score_depth = 256;

inline constexpr int32_t rows_max = rounded_up(tile_rows_max, strip_rows);

/// Half-open range of cells of a block.
struct Range {
  int32_t begin = 0;
  int32_t end = 0;
};

KVC_INLINE bool is_empty(Range range) { return range.begin >= range.end; }

/// The cells of a block that some rows see: up to two ranges visible to any of them, up to two
/// visible to all.
struct Visible {
  Range any[2];
  Range all[2];
};

/// Rows whose values are added together, and the cells that they see.
struct RowSet {
  int32_t row;  // of the strip
  int32_t n_rows;
  Range ranges[2];
};

/// The state of one tile.
struct Work {
  const Tile* tile;
  int32_t dims_k;  // padded to 16
  int32_t dims_v;
  int32_t block;        // cells
  int32_t block_begin;  // this block's first cell
  int32_t n_cells;      // of this block
  bool finite;          // every packed value of this block
  int32_t ahead_begin;  // cells of the next block that are not prefetched yet
  int32_t ahead_end;
  int32_t ahead_step;  // prefetched between two products

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

/// Lays out the scratch and returns how many floats it needs. With a null `base` it only returns
/// them.
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

/// The block's cells that rows [begin, begin + count) of the tile see.
KVC_INLINE Visible visible_cells(const Work& work, int32_t begin, int32_t count) {
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
  Visible visible;
  visible.all[0] = {0, first_all};
  visible.all[1] = {begin_all, larger(begin_all, end_all)};
  if (begin_any >= end_any) begin_any = end_any = first_any;
  if (begin_any <= first_any) {
    visible.any[0] = {0, larger(first_any, end_any)};
  } else {
    visible.any[0] = {0, first_any};
    visible.any[1] = {begin_any, end_any};
  }
  return visible;
}

/// Grows the ranges to multiples of `multiple` cells, as scores are computed, and joins them when
/// they touch.
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

/// Prefetches a few cells of the next block, so that packing them will not wait for memory. Only a
/// few: a core that asks for more lines than it can have misses in flight stalls.
KVC_INLINE void prefetch_some(Work& work) {
  const Tile& tile = *work.tile;
  const int32_t end = smaller(work.ahead_begin + work.ahead_step, work.ahead_end);
  for (; work.ahead_begin < end; ++work.ahead_begin) {
    const auto key_cell = static_cast<size_t>(tile.k.cell[work.ahead_begin]);
    const auto value_cell = static_cast<size_t>(tile.v.cell[work.ahead_begin]);
    const std::byte* key = tile.k.codes + key_cell * tile.k.stride;
    const std::byte* value = tile.v.codes + value_cell * tile.v.stride;
    for (size_t at = 0; at < tile.k.bytes; at += 64) prefetch_far(key + at);
    for (size_t at = 0; at < tile.v.bytes; at += 64) prefetch_far(value + at);
  }
}

/// Lets the next `calls` calls of prefetch_some prefetch cells [begin, begin + block).
KVC_INLINE void plan_prefetch(Work& work, int32_t begin, int32_t calls) {
  work.ahead_begin = begin;
  work.ahead_end = smaller(begin + work.block, work.tile->n_cells);
  work.ahead_step = (work.block + calls - 1) / calls;
}

KVC_INLINE int32_t strip_width(int32_t n_rows) {
  return n_rows >= strip_rows ? strip_rows : rounded_up(n_rows, lanes);
}

/// Packs all queries, strip by strip, and prefetches the first block meanwhile.
KVC_INLINE void pack_strips(Work& work) {
  const Tile& tile = *work.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride), dims = static_cast<size_t>(work.dims_k);
  plan_prefetch(work, 0, (tile.n_rows + lanes - 1) / lanes);
  for (int32_t row = 0; row < tile.n_rows; row += strip_rows) {
    const int32_t width = strip_width(tile.n_rows - row);
    float* strip = work.queries + static_cast<size_t>(row) * dims;
    for (int32_t column = 0; column < width; column += lanes) {
      prefetch_some(work);
      pack_queries(strip + column, width, tile.q + static_cast<size_t>(row + column) * stride,
                   stride, tile.n_rows - row - column, work.dims_k);
    }
  }
}

/// Converts the cells of the block that any row of the tile sees. Returns whether there is one.
KVC_INLINE bool pack_block(Work& work) {
  const Tile& tile = *work.tile;
  Range ranges[2];
  grow(visible_cells(work, 0, tile.n_rows).any, pack_cells, ranges);
  bool any = false;
  work.finite = true;
  for (const Range& range : ranges) {
    const int32_t end = smaller(range.end, work.n_cells);
    if (range.begin >= end) continue;
    any = true;
    const int32_t first = work.block_begin + range.begin;
    const size_t at = static_cast<size_t>(range.begin);
    pack_keys(work.keys + at * static_cast<size_t>(work.dims_k), static_cast<size_t>(work.dims_k),
              tile, tile.k.cell + first, end - range.begin);
    work.finite &= pack_values(work.values, work.block, range.begin, tile, tile.v.cell + first,
                               end - range.begin);
  }
  return any;
}

/// Adds `depth` dimensions to the scores of `cells` cells and `vectors` · lanes rows.
template <int32_t cells, int32_t vectors>
[[gnu::noinline]] static void score_cells_of(const float* keys, size_t stride, const float* queries,
                                             int32_t depth, bool first, float* scores) {
  constexpr size_t width = vectors * lanes;
  Vec c[cells][vectors];
  if (first) {
    clear_sums(c);
  } else {
    read_sums(c, scores, width);
  }
  multiply_add_rows(c, keys, stride, queries, width, depth);
  write_sums(c, scores, width);
}

/// Scores are computed for multiples of so many cells.
inline constexpr int32_t fewest_cells = 2;

/// Cells whose scores are computed together: as many sums as fit the registers, and in a narrow
/// strip enough to keep the multipliers busy.
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
  const int32_t dims = work.tile->k.head_dim;
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

/// o[rows][dims of a panel] = o · rescale + probabilities · values, over the ranges of a set of
/// rows.
template <int32_t n_rows, int32_t vectors>
[[gnu::noinline]] static void add_values(const Work& work, const RowSet& set, int32_t width,
                                         const float* panel, float* o) {
  const size_t stride = static_cast<size_t>(work.tile->o_stride);
  Vec c[n_rows][vectors];
  clear_sums(c);  // earlier blocks are added last, so that no chain of sums is longer than a block
  for (const Range& range : set.ranges) {
    if (is_empty(range)) continue;
    multiply_add_columns(c, work.scores + range.begin * width + set.row, static_cast<size_t>(width),
                         panel + range.begin * vectors * lanes, vectors * lanes,
                         range.end - range.begin);
  }
  add_rescaled(c, o, stride, work.rescale + set.row);
}

template <int32_t vectors>
KVC_INLINE void add_panel_of(const Work& work, const RowSet& set, int32_t width, const float* panel,
                             float* o) {
  switch (set.n_rows) {
    case 6: return add_values<6, vectors>(work, set, width, panel, o);
    case 4: return add_values<4, vectors>(work, set, width, panel, o);
    case 2: return add_values<2, vectors>(work, set, width, panel, o);
    default: return add_values<1, vectors>(work, set, width, panel, o);
  }
}

/// The last panel may be narrower.
KVC_INLINE void add_panel(const Work& work, const RowSet& set, int32_t width, const float* panel,
                          int32_t dims_left, float* o) {
  switch (smaller(dims_left, panel_dims) / lanes) {
    case 1: return add_panel_of<1>(work, set, width, panel, o);
#if defined(__AVX512F__)
    case 2: return add_panel_of<2>(work, set, width, panel, o);
    case 3: return add_panel_of<3>(work, set, width, panel, o);
#endif
    default: return add_panel_of<value_vectors>(work, set, width, panel, o);
  }
}

KVC_INLINE int32_t rows_at_once(int32_t left) {
  return left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

/// Returns whether every row sees all cells that any row sees. May return false where kept cells
/// touch a window.
KVC_INLINE bool is_visible_to_all(const Visible& visible) {
  bool all = true;
  for (const Range& range : visible.any) {
    const bool kept = range.end <= visible.all[0].end;
    const bool windowed = range.begin >= visible.all[1].begin && range.end <= visible.all[1].end;
    all &= is_empty(range) || kept || windowed;
  }
  return all;
}

/// Cuts a strip into sets of rows. When a value of the block is not finite, rows that see different
/// cells become sets of one: a probability of 0 would not hide that value (0 · NaN is not 0).
KVC_INLINE int32_t cut_strip(const Work& work, const Visible& strip, int32_t first_row,
                             int32_t n_rows, RowSet* sets) {
  const bool all_same = is_visible_to_all(strip);
  int32_t count = 0;
  for (int32_t row = 0, size = 0; row < n_rows; row += size) {
    size = rows_at_once(n_rows - row);
    Visible visible = all_same ? strip : visible_cells(work, first_row + row, size);
    if (!work.finite && !is_visible_to_all(visible)) {
      size = 1;
      visible = visible_cells(work, first_row + row, 1);
    }
    sets[count] = {row, size, {visible.any[0], visible.any[1]}};
    count += !is_empty(visible.any[0]) || !is_empty(visible.any[1]);
  }
  return count;
}

/// Turns the scores of a strip into probabilities and updates its rows' maxima and sums.
template <int32_t vectors>
KVC_INLINE void softmax_strip(const Work& work, const Visible& visible, int32_t first_row,
                              const Range (&ranges)[2]) {
  const Scores scores = {work.tile, &work.rows, work.scores, work.block_begin, first_row};
  Vec highest[vectors], reference[vectors], sums[vectors];
  for (Vec& x : highest) x = broadcast(lowest);
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    adjust<vectors>(scores, range.begin, range.end);
    hide<vectors>(scores, range.begin, range.end, visible.all[0].end, visible.all[1].begin,
                  visible.all[1].end);
    find_highest<vectors>(scores, range.begin, range.end, highest);
  }
  raise_reference<vectors>(scores, highest, work.rescale, reference);
  for (Vec& x : sums) x = zero();
  for (const Range& range : ranges) {
    if (!is_empty(range)) exponentiate<vectors>(scores, range.begin, range.end, reference, sums);
  }
  add_sums<vectors>(scores, work.rescale, sums);
}

/// As add_values, one cell and row at a time: where a bias hides values that are not finite.
[[gnu::noinline]] static void add_visible_values(const Work& work, const RowSet& set, int32_t width,
                                                 int32_t first_row) {
  const Tile& tile = *work.tile;
  for (int32_t row = set.row; row < set.row + set.n_rows; ++row) {
    float* o = tile.o + static_cast<size_t>(first_row + row) * static_cast<size_t>(tile.o_stride);
    for (int32_t d = 0; d < work.dims_v; ++d) o[d] *= work.rescale[row];
    for (const Range& range : set.ranges) {
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

/// Scores, softmax and values of one strip of rows in the current block.
template <int32_t vectors>
static void process_strip(Work& work, int32_t first_row, int32_t n_rows) {
  constexpr int32_t width = vectors * lanes;
  const size_t row = static_cast<size_t>(first_row);
  const size_t stride = static_cast<size_t>(work.tile->o_stride);
  const Visible visible = visible_cells(work, first_row, n_rows);
  Range ranges[2];
  grow(visible.any, fewest_cells, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;

  score_strip<vectors>(work, work.queries + row * static_cast<size_t>(work.dims_k), ranges);
  softmax_strip<vectors>(work, visible, first_row, ranges);

  RowSet sets[strip_rows];
  const int32_t count = cut_strip(work, visible, first_row, n_rows, sets);
  if (!work.finite && work.tile->bias != nullptr) {
    for (int32_t i = 0; i < count; ++i) add_visible_values(work, sets[i], width, first_row);
    return;
  }
  for (int32_t d = 0; d < work.dims_v; d += panel_dims) {
    const float* panel = work.values + static_cast<size_t>(d) * static_cast<size_t>(work.block);
    for (int32_t i = 0; i < count; ++i) {
      prefetch_some(work);
      float* o = work.tile->o + (row + static_cast<size_t>(sets[i].row)) * stride + d;
      add_panel(work, sets[i], width, panel, work.dims_v - d, o);
    }
  }
}

KVC_INLINE void process_block(Work& work) {
  const int32_t n_rows = work.tile->n_rows;
  const int32_t n_products = (n_rows + set_rows_max - 1) / set_rows_max *
                             ((work.dims_v + panel_dims - 1) / panel_dims);
  plan_prefetch(work, work.block_begin + work.n_cells, n_products);
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

/// Attention of the tile's rows over its cells, added to (max, sum, o). Takes any option and any
/// head dimension.
[[maybe_unused]] static void process_wide_tile(const Tile& tile) {
  wide::Work work = {};
  work.tile = &tile;
  wide::lay_out(work, reinterpret_cast<float*>(tile.scratch), tile.k.head_dim, tile.v.head_dim);
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
