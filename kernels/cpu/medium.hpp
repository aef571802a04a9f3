#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/prefill.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/soften.hpp"
#include "kernels/cpu/tile.hpp"

/// The medium kernel, for more rows than the narrow one's block and too few for the wide one: decode with many query heads
/// per KV head, drafts, short prompts.
///
/// Memory and products take about as long here, so neither may wait for the other: while one block of cells is worked on,
/// K and V of the next are asked for line by line. Sixteen rows are a group and lie in the lanes, so scores need no sums
/// across lanes and softmax is the wide kernel's. K is converted to f32 strip by strip, so that an element can be
/// broadcast in the multiply-add itself, and stays in the first-level cache. V is read in place: a vector of dimensions
/// is converted once and meets all rows of a group, whose sums are registers. Only AVX-512 has so many.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace medium {

using wide::is_empty;
using wide::Range;
using wide::rounded_up;
using wide::smaller;
using wide::View;

inline constexpr int32_t rows_max = medium_tile_rows_max;
inline constexpr int32_t group_rows = lanes;
inline constexpr int32_t strip_cells = 16;    // the sums of their scores fit the registers
inline constexpr int32_t key_dims = 128;      // of K converted at a time
inline constexpr int32_t score_unrolled = 4;  // dimensions

/// Cells whose values are added together: the more, the less often queries and sums come from the second-level cache.
inline constexpr int32_t block_cells_max = 4 * strip_cells;
constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v) {
  return head_dim_k + head_dim_v <= 576 ? block_cells_max : block_cells_max / 2;
}

/// Where the cells of a block lie. Cells past the tile's last one repeat it.
struct Cells {
  const std::byte* k[block_cells_max];
  const std::byte* v[block_cells_max];
};

/// Lines of the next block's rows still to ask memory for, a few at a time: what is asked for at once beyond the misses a
/// core can have in flight stops it, and meanwhile memory waits.
struct Asking {
  const std::byte* const* row = nullptr;
  int32_t n_rows = 0;
  size_t row_bytes = 0;
  int32_t n_lines = 0;  // at a time
  size_t at = 0;

  [[gnu::always_inline]] void ask() {
    for (int32_t i = 0; i < n_lines && n_rows > 0; ++i) {
      prefetch_far(*row + at);
      at += 64;
      if (at < row_bytes) continue;
      at = 0;
      ++row;
      --n_rows;
    }
  }
};

struct Work {
  wide::Work plain;  // rows, options, and the scores of the group at hand
  float* queries;    // [group][dims_k][group_rows]
  float* keys;       // [strip_cells][key_dims]
  float* scores;     // [group][block][group_rows]
  float* o;          // [group][dims_v / lanes][group_rows][lanes]
  Cells* cells;      // of the block at hand
  Cells* next_cells;
  Asking keys_ahead, values_ahead;
};

KVC_INLINE size_t lay_out(Work& work, float* base, int32_t head_dim_k, int32_t head_dim_v) {
  wide::Work& plain = work.plain;
  plain.dims_k = rounded_up(head_dim_k, 16);
  plain.dims_v = rounded_up(head_dim_v, 16);
  plain.block = block_cells(head_dim_k, head_dim_v);
  size_t offset = 0;
  const auto carve = [&](int32_t count) { return wide::carve(offset, static_cast<size_t>(count)); };
  const size_t keys = carve(strip_cells * key_dims);
  const size_t scores = carve(plain.block * rows_max);
  const size_t queries = carve(rows_max * plain.dims_k);
  const size_t o = carve(rows_max * plain.dims_v);
  size_t state[wide::row_arrays];
  for (size_t& at : state) at = carve(rows_max);
  const size_t rescale = carve(group_rows);
  if (base == nullptr) return offset;
  work.keys = base + keys;
  work.scores = base + scores;
  work.queries = base + queries;
  work.o = base + o;
  plain.rescale = base + rescale;
  plain.rows.place(base, state);
  return offset;
}

KVC_INLINE void locate(const Work& work, int32_t begin, Cells& cells) {
  const Tile& tile = *work.plain.tile;
  for (int32_t i = 0; i < work.plain.block; ++i) {
    const auto cell = static_cast<size_t>(tile.cell[smaller(begin + i, tile.n_cells - 1)]);
    cells.k[i] = tile.k + cell * tile.k_row_bytes;
    cells.v[i] = tile.v + cell * tile.v_row_bytes;
  }
}

KVC_INLINE void pack_queries(const Work& work) {
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride);
  for (int32_t row = 0; row < tile.n_rows; row += group_rows) {
    wide::pack_queries(work.queries + row * work.plain.dims_k, group_rows,
                       tile.q + static_cast<size_t>(row) * stride, stride, tile.n_rows - row,
                       work.plain.dims_k);
  }
}

/// Calls use(o in the tile, o of the groups) for every vector of the tile's rows.
template <class Use>
KVC_INLINE void for_each_sum(const Work& work, Use use) {
  const Tile& tile = *work.plain.tile;
  const int32_t dims = work.plain.dims_v;
  for (int32_t row = 0; row < tile.n_rows; ++row) {
    float* own = work.o + row / group_rows * group_rows * dims + row % group_rows * lanes;
    float* given = tile.o + static_cast<size_t>(row) * static_cast<size_t>(tile.o_stride);
    for (int32_t d = 0; d < dims; d += lanes) use(given + d, own + d * group_rows);
  }
}

// ---- Scores ------------------------------------------------------------------------------------------

/// Dimensions [d, d + n) of a strip's keys in f32.
template <class K>
[[gnu::noinline]] static void convert_keys(const Work& work, const std::byte* const* rows,
                                           int32_t d, int32_t n) {
  const int32_t head_dim = work.plain.tile->head_dim_k;
  const int32_t whole = smaller(n, (head_dim - d) / lanes * lanes);
  for (int32_t i = 0; i < strip_cells; ++i) {
    const auto* row = reinterpret_cast<const typename K::Element*>(rows[i]);
    float* to = work.keys + i * key_dims;
#pragma GCC unroll 8
    for (int32_t at = 0; at < whole; at += lanes) store(to + at, load_as<K>(row + d + at));
    for (int32_t at = whole; at < n; at += lanes)
      store(to + at, wide::load_row<K>(row, (d + at) / lanes, head_dim));
  }
}

/// Adds `depth` dimensions to the scores of a strip and a group.
[[maybe_unused, gnu::noinline]] static void score_strip(Work& work, const float* queries,
                                                        int32_t depth, bool first, float* scores) {
  const float* keys = work.keys;
  Asking ahead = work.keys_ahead;
  Vec sum[strip_cells];
#pragma GCC unroll 16
  for (int32_t i = 0; i < strip_cells; ++i) sum[i] = first ? zero() : load(scores + i * group_rows);
  for (; depth > 0; depth -= score_unrolled) {
    ahead.ask();
#pragma GCC unroll 4
    for (int32_t j = 0; j < score_unrolled; ++j, ++keys, queries += lanes) {
      const Vec query = load(queries);
#pragma GCC unroll 16
      for (int32_t i = 0; i < strip_cells; ++i)
        sum[i] = fma(broadcast(keys[i * key_dims]), query, sum[i]);
    }
  }
  work.keys_ahead = ahead;
#pragma GCC unroll 16
  for (int32_t i = 0; i < strip_cells; ++i) store(scores + i * group_rows, sum[i]);
}

/// Scores of all groups in the strips that any row sees something of.
template <class K>
[[gnu::noinline]] static void score_groups(Work& work, const View& view) {
  const wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  const auto sees = [](Range range, int32_t begin) {
    return range.begin < begin + strip_cells && range.end > begin && !is_empty(range);
  };
  for (int32_t d = 0; d < plain.dims_k; d += key_dims) {
    const int32_t depth = smaller(key_dims, plain.dims_k - d);
    for (int32_t cell = 0; cell < plain.n_cells; cell += strip_cells) {
      if (!sees(view.any[0], cell) && !sees(view.any[1], cell)) continue;
      convert_keys<K>(work, work.cells->k + cell, d, depth);
      for (int32_t row = 0; row < tile.n_rows; row += group_rows) {
        score_strip(work, work.queries + row * plain.dims_k + d * group_rows, depth, d == 0,
                    work.scores + row * plain.block + cell * group_rows);
      }
    }
  }
}

// ---- Values ------------------------------------------------------------------------------------------

/// One panel of a group's sums: o · rescale + probabilities · values over the ranges.
template <class V, bool whole>
KVC_INLINE void add_panel(Work& work, const Range (&ranges)[2], int32_t d, float* o) {
  Asking ahead = work.values_ahead;
  Vec sum[group_rows][1];
  wide::clear_block(sum);
  for (const Range& range : ranges) {
    const float* probability = work.plain.scores + range.begin * group_rows;
    for (int32_t cell = range.begin; cell < range.end;) {
      ahead.ask();
      const int32_t stop = smaller(cell + strip_cells, range.end);
      for (; cell < stop; ++cell, probability += group_rows) {
        const auto* row = reinterpret_cast<const typename V::Element*>(work.cells->v[cell]);
        const Vec x = whole ? load_as<V>(row + d)
                            : wide::load_row<V>(row, d / lanes, work.plain.tile->head_dim_v);
#pragma GCC unroll 16
        for (int32_t r = 0; r < group_rows; ++r)
          sum[r][0] = fma(broadcast(probability[r]), x, sum[r][0]);
      }
    }
  }
  work.values_ahead = ahead;
  wide::add_rescaled(sum, o, lanes, work.plain.rescale);
}

template <class V>
[[gnu::noinline]] static void add_values(Work& work, const Range (&ranges)[2], float* o) {
  const int32_t whole = work.plain.tile->head_dim_v / lanes * lanes;
  for (int32_t d = 0; d < work.plain.dims_v; d += lanes, o += group_rows * lanes) {
    if (d < whole) {
      add_panel<V, true>(work, ranges, d, o);
    } else {
      add_panel<V, false>(work, ranges, d, o);
    }
  }
}

/// Whether every value of the ranges is finite.
template <class V>
[[gnu::noinline]] static bool are_finite(const Work& work, const Range (&ranges)[2]) {
  Vec poison = zero();
  for (const Range& range : ranges) {
    for (int32_t cell = range.begin; cell < range.end; ++cell) {
      const auto* row = reinterpret_cast<const typename V::Element*>(work.cells->v[cell]);
      for (int32_t v = 0; v < work.plain.dims_v / lanes; ++v) {
        const Vec x = wide::load_row<V>(row, v, work.plain.tile->head_dim_v);
        poison = fma(x, zero(), poison);  // 0 · x is 0 for finite x only
      }
    }
  }
  return reduce_sum(poison) == 0.0f;
}

/// Whether the row sees the cell: neither its token's limits nor the bias hide it.
KVC_INLINE bool is_seen(const Work& work, int32_t row, int32_t cell) {
  const Tile& tile = *work.plain.tile;
  const int32_t index = work.plain.block_begin + cell;
  const TileToken& token = tile.token[row / tile.group];
  if (index >= token.first_end && (index < token.begin || index >= token.end)) return false;
  return tile.bias == nullptr ||
         tile.bias[static_cast<size_t>(index) * static_cast<size_t>(tile.bias_stride) +
                   static_cast<size_t>(row)] != wide::lowest;
}

/// As add_values, one cell and row at a time: where rows do not see the same cells and a value is not finite.
template <class V>
[[gnu::noinline]] static void add_seen_values(const Work& work, const Range (&ranges)[2],
                                              int32_t first_row, float* o) {
  const Tile& tile = *work.plain.tile;
  const int32_t n_rows = smaller(group_rows, tile.n_rows - first_row);
  for (int32_t r = 0; r < n_rows; ++r) {
    for (int32_t d = 0; d < work.plain.dims_v; d += lanes) {
      float* to = o + d * group_rows + r * lanes;
      Vec sum = load(to) * broadcast(work.plain.rescale[r]);
      for (const Range& range : ranges) {
        for (int32_t cell = range.begin; cell < range.end; ++cell) {
          if (!is_seen(work, first_row + r, cell)) continue;
          const auto* row = reinterpret_cast<const typename V::Element*>(work.cells->v[cell]);
          const Vec p = broadcast(work.plain.scores[cell * group_rows + r]);
          sum = fma(p, wide::load_row<V>(row, d / lanes, tile.head_dim_v), sum);
        }
      }
      store(to, sum);
    }
  }
}

// ---- The way through the tile ------------------------------------------------------------------------

/// Softmax and values of one group.
template <class V>
[[gnu::noinline]] static void finish_group(Work& work, int32_t row) {
  wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  const View view = wide::view_of(plain, row, smaller(group_rows, tile.n_rows - row));
  Range ranges[2];
  wide::grow(view.any, wide::fewest_cells, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;
  plain.scores = work.scores + row * plain.block;
  wide::soften_strip<1>(plain, view, row, ranges);
  float* o = work.o + row * plain.dims_v;
  const bool same = wide::is_seen_by_all(view) && tile.bias == nullptr;
  if (same || are_finite<V>(work, view.any)) {
    add_values<V>(work, view.any, o);
  } else {
    add_seen_values<V>(work, view.any, row, o);
  }
}

/// The types of K and V are dispatched apart, so that their pairs are no instances.
[[gnu::noinline]] static void process_block(Work& work) {
  const Tile& tile = *work.plain.tile;
  const View view = wide::view_of(work.plain, 0, tile.n_rows);
  if (is_empty(view.any[0]) && is_empty(view.any[1])) return;
  with_storage(tile.type_k, [&](auto k) { score_groups<decltype(k)>(work, view); });
  with_storage(tile.type_v, [&](auto v) {
    for (int32_t row = 0; row < tile.n_rows; row += group_rows)
      finish_group<decltype(v)>(work, row);
  });
}

/// Asks for `rows` in about so many steps.
KVC_INLINE Asking ask_for(const std::byte* const* rows, int32_t n_rows, size_t row_bytes,
                          int32_t n_steps) {
  const int32_t n_lines = n_rows * static_cast<int32_t>((row_bytes + 63) / 64);
  return {rows, n_rows, row_bytes, (n_lines + n_steps - 1) / n_steps};
}

/// What comes before the first block.
KVC_INLINE void begin_tile(Work& work) {
  const Tile& tile = *work.plain.tile;
  locate(work, 0, *work.next_cells);
  ask_for(work.next_cells->k, work.plain.block, tile.k_row_bytes, 1).ask();
  ask_for(work.next_cells->v, work.plain.block, tile.v_row_bytes, 1).ask();
  pack_queries(work);
  const int32_t n_rows = rounded_up(tile.n_rows, group_rows);
  work.plain.rows.load_from(tile, n_rows);
  for (int32_t i = 0; i < n_rows * work.plain.dims_v; i += lanes) store(work.o + i, zero());
  for_each_sum(work, [](const float* given, float* own) { store(own, load(given)); });
}

KVC_INLINE void begin_block(Work& work, int32_t begin) {
  wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  plain.block_begin = begin;
  plain.n_cells = smaller(plain.block, tile.n_cells - begin);
  Cells* const done = work.cells;
  work.cells = work.next_cells;
  work.next_cells = done;
  const int32_t next = begin + plain.block;
  locate(work, next, *work.next_cells);
  const int32_t n_next = smaller(plain.block, tile.n_cells - next);
  const int32_t n_strips = rounded_up(tile.n_rows, group_rows) / group_rows * plain.block /
                           strip_cells;
  work.keys_ahead = ask_for(work.next_cells->k, n_next, tile.k_row_bytes,
                            n_strips * plain.dims_k / score_unrolled);
  work.values_ahead = ask_for(work.next_cells->v, n_next, tile.v_row_bytes,
                              n_strips * plain.dims_v / lanes);
}

KVC_INLINE void process(Work& work) {
  const Tile& tile = *work.plain.tile;
  Cells cells[2];
  work.cells = &cells[0];
  work.next_cells = &cells[1];
  begin_tile(work);
  for (int32_t begin = 0; begin < tile.n_cells; begin += work.plain.block) {
    begin_block(work, begin);
    process_block(work);
  }
  for_each_sum(work, [](float* given, const float* own) { store(given, load(own)); });
  work.plain.rows.store_to(tile);
}

}  // namespace medium

/// Scratch of one thread for tiles of up to medium::rows_max rows.
[[maybe_unused]] static size_t medium_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  medium::Work work = {};
  return medium::lay_out(work, nullptr, head_dim_k, head_dim_v) * sizeof(float);
}

/// As process_wide_tile, for tiles of up to medium::rows_max rows.
[[maybe_unused]] static void process_medium_tile(const Tile& tile) {
  medium::Work work = {};
  work.plain.tile = &tile;
  medium::lay_out(work, reinterpret_cast<float*>(tile.scratch), tile.head_dim_k, tile.head_dim_v);
  medium::process(work);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
