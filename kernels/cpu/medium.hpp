#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/prefill.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// The medium kernel, for more rows than a narrow quad and too few for the wide kernel: decode with
/// many query heads per KV head, drafts, short prompts. Memory and products take about as long
/// here, so they have to overlap:
///
///   for each block of 64 cells (32 with large heads)
///     for each 128 dimensions, for each step of 16 cells
///       convert_keys     K → f32 [16 cells][128 dimensions], in the first-level cache
///       for each strip of 16 rows
///         score_step     keys × queries → scores [cell][row]
///     for each strip of 16 rows
///       softmax_strip    scores → probabilities, in place (the wide kernel's)
///       for each vector of dimensions
///         add_panel      probabilities × values → o
///
///                registers                       streams              prefetched into L2
///   score_step   16 sums (a cell each), 1 of q   keys, queries        K of the next block
///   add_panel    16 sums (a row each), 1 of V    V where it is kept   V of the next block
///
/// A strip's rows lie in the lanes, so neither scores nor softmax need sums across lanes. Keys are
/// converted first because a multiply-add can then broadcast an element from memory. A vector of
/// values is converted once for all rows of a strip. Only AVX-512 has registers enough.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace medium {

using wide::is_empty;
using wide::Range;
using wide::rounded_up;
using wide::smaller;
using wide::Visible;

inline constexpr int32_t rows_max = medium_tile_rows_max;
inline constexpr int32_t strip_rows = lanes;
inline constexpr int32_t step_cells = 16;     // whose sums fit the registers
inline constexpr int32_t key_dims = 128;      // of K converted at a time
inline constexpr int32_t score_unrolled = 4;  // dimensions

/// BlockRows whose values are added together: the more, the less often queries and sums come from
/// the second-level cache.
inline constexpr int32_t block_cells_max = 4 * step_cells;
constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v) {
  return head_dim_k + head_dim_v <= 576 ? block_cells_max : block_cells_max / 2;
}

/// Where the cells of a block lie. BlockRows past the tile's last one repeat it.
struct BlockRows {
  stored::Row k[block_cells_max];
  stored::Row v[block_cells_max];
};

/// The lines of the next block's rows that are not prefetched yet. They are prefetched a few at a
/// time: a core that asks for more lines than it can have misses in flight stalls, and then memory
/// idles.
struct Prefetch {
  const stored::Row* row = nullptr;
  int32_t n_rows = 0;
  size_t row_bytes = 0;
  int32_t n_lines = 0;  // at a time
  size_t at = 0;

  [[gnu::always_inline]] void prefetch_some() {
    for (int32_t i = 0; i < n_lines && n_rows > 0; ++i) {
      prefetch_far(row->codes + at);
      at += 64;
      if (at < row_bytes) continue;
      at = 0;
      ++row;
      --n_rows;
    }
  }
};

struct Work {
  wide::Work plain;       // rows, options, and the scores of the current strip
  float* queries;         // [strip][dims_k][strip_rows]
  float* keys;            // [step_cells][key_dims]
  float* scores;          // [strip][block][strip_rows]
  float* o;               // [strip][dims_v / lanes][strip_rows][lanes]
  BlockRows* block_rows;  // of the current block
  BlockRows* next_rows;
  Prefetch key_prefetch, value_prefetch;
};

KVC_INLINE size_t lay_out(Work& work, float* base, int32_t head_dim_k, int32_t head_dim_v) {
  wide::Work& plain = work.plain;
  plain.dims_k = rounded_up(head_dim_k, 16);
  plain.dims_v = rounded_up(head_dim_v, 16);
  plain.block = block_cells(head_dim_k, head_dim_v);
  size_t offset = 0;
  const auto carve = [&](int32_t count) { return wide::carve(offset, static_cast<size_t>(count)); };
  const size_t keys = carve(step_cells * key_dims);
  const size_t scores = carve(plain.block * rows_max);
  const size_t queries = carve(rows_max * plain.dims_k);
  const size_t o = carve(rows_max * plain.dims_v);
  size_t state[wide::row_arrays];
  for (size_t& at : state) at = carve(rows_max);
  const size_t rescale = carve(strip_rows);
  if (base == nullptr) return offset;
  work.keys = base + keys;
  work.scores = base + scores;
  work.queries = base + queries;
  work.o = base + o;
  plain.rescale = base + rescale;
  plain.rows.place(base, state);
  return offset;
}

KVC_INLINE void locate(const Work& work, int32_t begin, BlockRows& rows) {
  const Tile& tile = *work.plain.tile;
  for (int32_t i = 0; i < work.plain.block; ++i) {
    const int32_t at = smaller(begin + i, tile.n_cells - 1);
    rows.k[i] = stored::row_of(tile.k, tile.k.cell[at]);
    rows.v[i] = stored::row_of(tile.v, tile.v.cell[at]);
  }
}

KVC_INLINE void pack_queries(const Work& work) {
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride);
  for (int32_t row = 0; row < tile.n_rows; row += strip_rows) {
    wide::pack_queries(work.queries + row * work.plain.dims_k, strip_rows,
                       tile.q + static_cast<size_t>(row) * stride, stride, tile.n_rows - row,
                       work.plain.dims_k);
  }
}

/// Calls use(o in the tile, o of the strips) for every vector of the tile's rows.
template <class Use>
KVC_INLINE void for_each_sum(const Work& work, Use use) {
  const Tile& tile = *work.plain.tile;
  const int32_t dims = work.plain.dims_v;
  for (int32_t row = 0; row < tile.n_rows; ++row) {
    float* own = work.o + row / strip_rows * strip_rows * dims + row % strip_rows * lanes;
    float* given = tile.o + static_cast<size_t>(row) * static_cast<size_t>(tile.o_stride);
    for (int32_t d = 0; d < dims; d += lanes) use(given + d, own + d * strip_rows);
  }
}

// ---- Scores -------------------------------------------------------------------------------------

/// Converts dimensions [d, d + n) of a step's keys to f32.
template <class Type>
[[gnu::noinline]] static void convert_keys(const Work& work, stored::Reader<Type> keys,
                                           const stored::Row* rows, int32_t d, int32_t n) {
  const int32_t whole = smaller(n, (keys.rows.head_dim - d) / lanes * lanes);
  for (int32_t i = 0; i < step_cells; ++i) {
    float* to = work.keys + i * key_dims;
#pragma GCC unroll 8
    for (int32_t at = 0; at < whole; at += lanes)
      store(to + at, keys.whole(rows[i], (d + at) / lanes));
    for (int32_t at = whole; at < n; at += lanes)
      store(to + at, keys.vector(rows[i], (d + at) / lanes));
  }
}

/// Adds `depth` dimensions to the scores of a step's cells and a strip's rows.
[[maybe_unused, gnu::noinline]] static void score_step(Work& work, const float* queries,
                                                       int32_t depth, bool first, float* scores) {
  const float* keys = work.keys;
  Prefetch ahead = work.key_prefetch;
  Vec sum[step_cells];
#pragma GCC unroll 16
  for (int32_t i = 0; i < step_cells; ++i) sum[i] = first ? zero() : load(scores + i * strip_rows);
  for (; depth > 0; depth -= score_unrolled) {
    ahead.prefetch_some();
#pragma GCC unroll 4
    for (int32_t j = 0; j < score_unrolled; ++j, ++keys, queries += lanes) {
      const Vec query = load(queries);
#pragma GCC unroll 16
      for (int32_t i = 0; i < step_cells; ++i)
        sum[i] = fma(broadcast(keys[i * key_dims]), query, sum[i]);
    }
  }
  work.key_prefetch = ahead;
#pragma GCC unroll 16
  for (int32_t i = 0; i < step_cells; ++i) store(scores + i * strip_rows, sum[i]);
}

/// Scores of all strips in the steps that have a visible cell.
template <class Type>
[[gnu::noinline]] static void score_block(Work& work, stored::Reader<Type> keys,
                                          const Visible& visible) {
  const wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  const auto sees = [](Range range, int32_t begin) {
    return range.begin < begin + step_cells && range.end > begin && !is_empty(range);
  };
  for (int32_t d = 0; d < plain.dims_k; d += key_dims) {
    const int32_t depth = smaller(key_dims, plain.dims_k - d);
    for (int32_t cell = 0; cell < plain.n_cells; cell += step_cells) {
      if (!sees(visible.any[0], cell) && !sees(visible.any[1], cell)) continue;
      convert_keys(work, keys, work.block_rows->k + cell, d, depth);
      for (int32_t row = 0; row < tile.n_rows; row += strip_rows) {
        score_step(work, work.queries + row * plain.dims_k + d * strip_rows, depth, d == 0,
                   work.scores + row * plain.block + cell * strip_rows);
      }
    }
  }
}

// ---- Values -------------------------------------------------------------------------------------

/// One panel of a strip: o = o · rescale + probabilities · values over the ranges.
template <bool whole, class Type>
KVC_INLINE void add_panel(Work& work, stored::Reader<Type> values, const Range (&ranges)[2],
                          int32_t d, float* o) {
  Prefetch ahead = work.value_prefetch;
  Vec sum[strip_rows][1];
  wide::clear_sums(sum);
  for (const Range& range : ranges) {
    const float* probability = work.plain.scores + range.begin * strip_rows;
    for (int32_t cell = range.begin; cell < range.end;) {
      ahead.prefetch_some();
      const int32_t stop = smaller(cell + step_cells, range.end);
      for (; cell < stop; ++cell, probability += strip_rows) {
        const stored::Row row = work.block_rows->v[cell];
        const Vec x = whole ? values.whole(row, d / lanes) : values.vector(row, d / lanes);
#pragma GCC unroll 16
        for (int32_t r = 0; r < strip_rows; ++r)
          sum[r][0] = fma(broadcast(probability[r]), x, sum[r][0]);
      }
    }
  }
  work.value_prefetch = ahead;
  wide::add_rescaled(sum, o, lanes, work.plain.rescale);
}

template <class Type>
[[gnu::noinline]] static void add_values(Work& work, stored::Reader<Type> values,
                                         const Range (&ranges)[2], float* o) {
  const int32_t whole = values.n_whole() * lanes;
  for (int32_t d = 0; d < work.plain.dims_v; d += lanes, o += strip_rows * lanes) {
    if (d < whole) {
      add_panel<true>(work, values, ranges, d, o);
    } else {
      add_panel<false>(work, values, ranges, d, o);
    }
  }
}

/// Returns whether every value of the ranges is finite.
template <class Type>
[[gnu::noinline]] static bool are_finite(const Work& work, stored::Reader<Type> values,
                                         const Range (&ranges)[2]) {
  Vec poison = zero();
  for (const Range& range : ranges) {
    for (int32_t cell = range.begin; cell < range.end; ++cell) {
      for (int32_t v = 0; v < work.plain.dims_v / lanes; ++v) {
        const Vec x = values.vector(work.block_rows->v[cell], v);
        poison = fma(x, zero(), poison);  // 0 · x is 0 for finite x only
      }
    }
  }
  return reduce_sum(poison) == 0.0f;
}

/// Returns whether the row sees the cell: neither its token's limits nor the bias hide it.
KVC_INLINE bool is_visible(const Work& work, int32_t row, int32_t cell) {
  const Tile& tile = *work.plain.tile;
  const int32_t index = work.plain.block_begin + cell;
  const TileToken& token = tile.token[row / tile.group];
  if (index >= token.first_end && (index < token.begin || index >= token.end)) return false;
  return tile.bias == nullptr ||
         tile.bias[static_cast<size_t>(index) * static_cast<size_t>(tile.bias_stride) +
                   static_cast<size_t>(row)] != wide::lowest;
}

/// As add_values, one cell and row at a time: for rows that see different cells, one of them with a
/// value that is not finite.
template <class Type>
[[gnu::noinline]] static void add_visible_values(const Work& work, stored::Reader<Type> values,
                                                 const Range (&ranges)[2], int32_t first_row,
                                                 float* o) {
  const Tile& tile = *work.plain.tile;
  const int32_t n_rows = smaller(strip_rows, tile.n_rows - first_row);
  for (int32_t r = 0; r < n_rows; ++r) {
    for (int32_t d = 0; d < work.plain.dims_v; d += lanes) {
      float* to = o + d * strip_rows + r * lanes;
      Vec sum = load(to) * broadcast(work.plain.rescale[r]);
      for (const Range& range : ranges) {
        for (int32_t cell = range.begin; cell < range.end; ++cell) {
          if (!is_visible(work, first_row + r, cell)) continue;
          const Vec p = broadcast(work.plain.scores[cell * strip_rows + r]);
          sum = fma(p, values.vector(work.block_rows->v[cell], d / lanes), sum);
        }
      }
      store(to, sum);
    }
  }
}

// ---- The walk over the tile ---------------------------------------------------------------------

/// Softmax and values of one strip.
template <class Type>
[[gnu::noinline]] static void finish_strip(Work& work, stored::Reader<Type> values, int32_t row) {
  wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  const Visible visible = wide::visible_cells(plain, row, smaller(strip_rows, tile.n_rows - row));
  Range ranges[2];
  wide::grow(visible.any, wide::fewest_cells, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;
  plain.scores = work.scores + row * plain.block;
  wide::softmax_strip<1>(plain, visible, row, ranges);
  float* o = work.o + row * plain.dims_v;
  const bool same = wide::is_visible_to_all(visible) && tile.bias == nullptr;
  if (same || are_finite(work, values, visible.any)) {
    add_values(work, values, visible.any, o);
  } else {
    add_visible_values(work, values, visible.any, row, o);
  }
}

/// The types of K and V are dispatched apart, so that there are no instances of pairs.
[[gnu::noinline]] static void process_block(Work& work) {
  const Tile& tile = *work.plain.tile;
  const Visible visible = wide::visible_cells(work.plain, 0, tile.n_rows);
  if (is_empty(visible.any[0]) && is_empty(visible.any[1])) return;
  stored::with_reader(tile.k, [&](auto keys) { score_block(work, keys, visible); });
  stored::with_reader(tile.v, [&](auto values) {
    for (int32_t row = 0; row < tile.n_rows; row += strip_rows) finish_strip(work, values, row);
  });
}

/// A prefetch of `rows` that is spread over `n_steps` calls.
KVC_INLINE Prefetch plan_prefetch(const stored::Row* rows, int32_t n_rows, size_t row_bytes,
                                  int32_t n_steps) {
  const int32_t n_lines = n_rows * static_cast<int32_t>((row_bytes + 63) / 64);
  return {rows, n_rows, row_bytes, (n_lines + n_steps - 1) / n_steps};
}

/// Prefetches the first block and packs what the blocks share.
KVC_INLINE void begin_tile(Work& work) {
  const Tile& tile = *work.plain.tile;
  locate(work, 0, *work.next_rows);
  plan_prefetch(work.next_rows->k, work.plain.block, tile.k.bytes, 1).prefetch_some();
  plan_prefetch(work.next_rows->v, work.plain.block, tile.v.bytes, 1).prefetch_some();
  pack_queries(work);
  const int32_t n_rows = rounded_up(tile.n_rows, strip_rows);
  work.plain.rows.load_from(tile, n_rows);
  for (int32_t i = 0; i < n_rows * work.plain.dims_v; i += lanes) store(work.o + i, zero());
  for_each_sum(work, [](const float* given, float* own) { store(own, load(given)); });
}

KVC_INLINE void begin_block(Work& work, int32_t begin) {
  wide::Work& plain = work.plain;
  const Tile& tile = *plain.tile;
  plain.block_begin = begin;
  plain.n_cells = smaller(plain.block, tile.n_cells - begin);
  BlockRows* const done = work.block_rows;
  work.block_rows = work.next_rows;
  work.next_rows = done;
  const int32_t next = begin + plain.block;
  locate(work, next, *work.next_rows);
  const int32_t n_next = smaller(plain.block, tile.n_cells - next);
  const int32_t n_steps = rounded_up(tile.n_rows, strip_rows) / strip_rows * plain.block / step_cells;
  work.key_prefetch = plan_prefetch(work.next_rows->k, n_next, tile.k.bytes,
                                    n_steps * plain.dims_k / score_unrolled);
  work.value_prefetch = plan_prefetch(work.next_rows->v, n_next, tile.v.bytes,
                                      n_steps * plain.dims_v / lanes);
}

KVC_INLINE void process(Work& work) {
  const Tile& tile = *work.plain.tile;
  BlockRows rows[2];
  work.block_rows = &rows[0];
  work.next_rows = &rows[1];
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
  medium::lay_out(work, reinterpret_cast<float*>(tile.scratch), tile.k.head_dim, tile.v.head_dim);
  medium::process(work);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
