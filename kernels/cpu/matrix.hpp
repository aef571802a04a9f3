#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/matrix_pack.hpp"
#include "kernels/cpu/matrix_product.hpp"
#include "kernels/cpu/matrix_softmax.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/prefill.hpp"
#include "kernels/cpu/softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// The wide kernel (prefill.hpp) with its products done by AMX, which multiplies sixteen times as
/// fast as vectors do.
///
///   for each block of up to 256 cells
///     pack_block            keys → A [16 cells][32 dimensions], values → A [16 dims][32 cells]
///     for each strip of 32 rows, three strips under way
///       score_strip         keys × queries (B, packed once per tile) → scores [cell][row], f32
///       Softmax             of the strip before: scores → probabilities, B [32 cells][16 rows]
///       add_values          of the strip before that: values × probabilities → product
///                           [dimension][row]; o = o · rescale + product
///
///   registers of a product   0–3: sums of 2 × 2 tiles   4, 5: tiles of A   6, 7: tiles of B
///   meanwhile                slices of Softmax, which vectors do while the matrix unit multiplies
///   between two products     a few cells of the next block are prefetched into L2
///
/// AMX multiplies bf16, and attention is wanted in f32. So every factor is a sum of up to three bf16
/// (bf16_parts.hpp), and of the products of parts those are added up that matter in f32. Queries that
/// come as they are, not multiplied with the scale, need fewer parts where they are f16 or bf16: the
/// scale then comes after the product, as the scales of int8 do.
///
///                       parts   products of scores with f32, f16, bf16 queries   of values
///   f32, q8_0, nf4      3       6  5  3                                          6
///   f16, q4_0           2       5  4  2                                          5
///   bf16, f8, int8      1       3  2  1                                          3
///
/// Where a tile allows fewer parts (Tile::parts), factors are rounded to them, and products are added to o in its registers.
///
/// AMX sums 32 products before it adds them to the rest, so the result is rounded less often than a
/// chain of multiply-adds in f32. A block goes to the wide kernel's code when a value of it is not
/// finite, or too small.
///
/// A tile of AMX is 1 KiB of an operand (matrix_tiles.hpp); its names begin with amx. A Tile is
/// what the kernel processes.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace matrix {

inline constexpr int32_t rows_max = rounded_up(tile_rows_max, strip_rows);
inline constexpr int32_t strips_kept = 3;

struct Work {
  wide::Work plain;  // rows and options; for a block that AMX cannot do, everything
  bool plain_queries_packed;
  bool suited;  // whether AMX can multiply the queries
  int32_t query_parts;
  int32_t dims_k;  // padded to 32
  int32_t block;   // cells

  std::byte* queries;  // [16 rows][dims_k / 32][part] tiles
  float* columns;      // [dims_k][16] of queries
  float* o;            // [strip][dims_v][strip_rows] the tile's o, rows in the lanes
  float* product[2];   // [32 dimensions][strip_rows] of values and probabilities

  Block blocks[2];  // the one whose strips begin, and the one that strips under way are of
  int32_t n_blocks;
  Strip strips[strips_kept];
  int32_t n_strips;  // that have begun, and drains
  float* scores[2];
  float* rescale[2];
  std::byte* probabilities[2];
  Background background;

  size_t steps_k() const { return static_cast<size_t>(dims_k / amx_depth); }
  size_t steps_v() const { return static_cast<size_t>(block / amx_depth); }
  /// Of parts whose products matter (Path): where a factor may be rounded to two, what both leave over does not.
  int32_t order() const { return plain.tile->parts == 2 ? 2 : parts_max; }
  float* o_of(int32_t first_row) const {
    return o + static_cast<size_t>(first_row) * static_cast<size_t>(plain.dims_v);
  }
};

KVC_INLINE size_t lay_out(Work& work, std::byte* base, int32_t head_dim_k, int32_t head_dim_v,
                          int32_t parts) {
  size_t offset = wide::lay_out(work.plain, reinterpret_cast<float*>(base), head_dim_k, head_dim_v) *
                  sizeof(float);
  offset = (offset + 4095) / 4096 * 4096;
  const auto carve = [&](size_t bytes) {
    const size_t at = offset;
    offset += (bytes + 4095) / 4096 * 4096;
    return base == nullptr ? nullptr : base + at;
  };
  const auto carve_floats = [&](size_t count) {
    return reinterpret_cast<float*>(carve(count * sizeof(float)));
  };
  work.dims_k = rounded_up(head_dim_k, amx_depth);
  work.block = block_cells(head_dim_k, head_dim_v, parts);
  const size_t rows = rows_max, dims_v = static_cast<size_t>(rounded_up(head_dim_v, 16)),
               block = static_cast<size_t>(work.block), dims_k = static_cast<size_t>(work.dims_k);
  constexpr size_t element = parts_max * sizeof(uint16_t);
  for (size_t i = 0; i < 2; ++i) {
    work.scores[i] = carve_floats(block * strip_rows);
    work.probabilities[i] = carve(strip_rows * block * element);
    work.product[i] = carve_floats(32 * strip_rows);
    work.rescale[i] = carve_floats(strip_rows);
  }
  std::byte* const keys = carve(block * dims_k * element);
  for (Block& each : work.blocks) {
    each.keys = keys;  // read when strips begin, and no longer
    each.values = carve(block * dims_v * element);
    each.score_scale = carve_floats(block);
    each.value_scale = carve_floats(block);
  }
  work.columns = carve_floats(dims_k * 16);
  work.o = carve_floats(rows * dims_v);
  work.queries = carve(rows * dims_k * element);
  return offset;
}

template <class Use>
KVC_INLINE auto with_count(int32_t parts, Use use) {
  switch (parts) {
    case 1: return use(Parts<1>{});
    case 2: return use(Parts<2>{});
    default: return use(Parts<3>{});
  }
}

KVC_INLINE void pack_queries(Work& work) {
  constexpr float limit = 0x1p50f;
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride);
  const int32_t dims = work.plain.dims_k;
  float* columns = work.columns;
  for (int32_t i = dims * 16; i < work.dims_k * 16; i += 16) store(columns + i, zero());
  Magnitudes magnitudes;
  UsedBits used;
  wide::plan_prefetch(work.plain, 0, (tile.n_rows + amx_rows - 1) / amx_rows);
  std::byte* to = work.queries;
  for (int32_t row = 0; row < tile.n_rows; row += amx_rows) {
    wide::prefetch_some(work.plain);
    wide::pack_queries(columns, 16, tile.q + static_cast<size_t>(row) * stride, stride,
                       tile.n_rows - row, dims);
    for (int32_t d = 0; d < work.dims_k; d += amx_depth, to += parts_max * amx_tile_bytes) {
      for (int32_t pair = 0; pair < amx_depth / 2; ++pair) {
        const Vec x = load(columns + (d + pair) * 16),
                  y = load(columns + (d + pair + amx_depth / 2) * 16);
        magnitudes.add(x);
        magnitudes.add(y);
        used.add(x);
        used.add(y);
        with_count(tile.parts, [&](auto parts) { store_parts<parts.value>(to + pair * 64, x, y); });
      }
    }
  }
  const bool scaled = tile.scale != 1.0f || tile.k.type == StorageType::int8;
  work.suited = are_suited(magnitudes) && (!scaled || magnitudes.largest() < limit);
  work.query_parts = smaller(used.n_parts(), tile.parts);
}

// ---- A strip ------------------------------------------------------------------------------------

/// Scores of a strip, [cell][width].
template <int32_t key_parts, int32_t query_parts, int32_t order, int32_t vectors>
static void score_strip(Work& work, const Strip& strip) {
  constexpr int32_t width = vectors * lanes;
  constexpr size_t key_bytes = key_parts * amx_tile_bytes, query_bytes = parts_max * amx_tile_bytes;
  const size_t side = work.steps_k() * key_bytes, query_side = work.steps_k() * query_bytes;
  const Operand queries = {work.queries + static_cast<size_t>(strip.first_row / 16) * query_side,
                           query_side, query_bytes};
  for (int32_t i = 0; i < strip.n_groups; ++i) {
    const int32_t cell = strip.group[i];
    wide::prefetch_some(work.plain);
    const Operand keys = {strip.block->keys + static_cast<size_t>(cell / amx_rows) * side, side,
                          key_bytes};
    using Scores = Product<key_parts, query_parts, order, 2, vectors>;
    Scores::template multiply<false>(keys, queries, work.dims_k / amx_depth,
                                     strip.scores + cell * width, width, work.background);
  }
}

/// A product that o has not got yet.
struct Sum {
  float* o = nullptr;  // [n_dims][strip_rows]; null: none
  const float* product = nullptr;
  const float* rescale = nullptr;  // of o's rows, null: 1
  int32_t n_dims = 0;
};

/// o = o · rescale + product.
template <int32_t vectors>
KVC_INLINE void add_sum(const Sum& sum) {
  if (sum.o == nullptr) return;
  Vec rescale[vectors];
  for (int32_t v = 0; v < vectors; ++v)
    rescale[v] = sum.rescale != nullptr ? load(sum.rescale + v * lanes) : broadcast(1.0f);
  for (int32_t d = 0; d < sum.n_dims; ++d) {
    for (int32_t v = 0; v < vectors; ++v) {
      const int32_t at = d * strip_rows + v * lanes;
      store(sum.o + at, fma(load(sum.o + at), rescale[v], load(sum.product + at)));
    }
  }
}

/// o = o · rescale.
template <int32_t vectors>
KVC_INLINE void rescale_o(float* o, const float* rescale, int32_t n_dims) {
  for (int32_t d = 0; d < n_dims; ++d) {
    for (int32_t v = 0; v < vectors; ++v) {
      float* at = o + d * strip_rows + v * lanes;
      store(at, load(at) * load(rescale + v * lanes));
    }
  }
}

/// Adds the values of a strip's cells to its o. A product is added while the next one is under way. Where factors are rounded, it
/// is added as it is made: a chain of sums as long as a tile is then short enough.
template <int32_t value_parts, int32_t parts, int32_t order, int32_t vectors>
static void add_values(Work& work, const Strip& strip) {
  constexpr bool adds = parts < parts_max;
  constexpr size_t value_bytes = value_parts * amx_tile_bytes,
                   probability_bytes = parts * amx_tile_bytes;
  float* const o = work.o_of(strip.first_row);
  const size_t side = work.steps_v() * value_bytes;
  const float* rescale = strip.rescale;
  if (adds && strip.rescales) rescale_o<vectors>(o, rescale, work.plain.dims_v);
  Sum waiting;
  int32_t n_products = 0;
  for (const Range& range : strip.ranges) {
    if (is_empty(range)) continue;
    const size_t first_step = static_cast<size_t>(range.begin / amx_depth);
    const int32_t n_steps = (range.end - range.begin) / amx_depth;
    const Operand probabilities = {strip.probabilities + first_step * probability_bytes,
                                   work.steps_v() * probability_bytes, probability_bytes};
    Operand values = {strip.block->values + first_step * value_bytes, side, value_bytes};
    for (int32_t d = 0; d < work.plain.dims_v; d += 32, values.at += 2 * side) {
      wide::prefetch_some(work.plain);
      const int32_t n_dims = smaller(32, work.plain.dims_v - d);
      float* const at = o + d * strip_rows;
      float* const product = adds ? at : work.product[n_products++ % 2];
      if (n_dims == 32) {
        using Values = Product<value_parts, parts, order, 2, vectors>;
        Values::template multiply<adds>(values, probabilities, n_steps, product, strip_rows,
                                        work.background);
      } else {
        using Values = Product<value_parts, parts, order, 1, vectors>;
        Values::template multiply<adds>(values, probabilities, n_steps, product, strip_rows,
                                        work.background);
      }
      if constexpr (!adds) {
        add_sum<vectors>(waiting);
        waiting = {at, product, rescale, n_dims};
      }
    }
    rescale = nullptr;
  }
  add_sum<vectors>(waiting);
}

/// Multiplications of tiles that the products of a strip take.
KVC_INLINE int64_t score_products(const Work& work, const Strip& strip) {
  if (strip.block == nullptr) return 0;
  return int64_t{strip.n_groups} * (work.dims_k / amx_depth) * 2 * strip.vectors() *
         Path(strip.block->key_parts, work.query_parts, work.order()).count;
}
KVC_INLINE int64_t value_products(const Work& work, const Strip& strip) {
  if (strip.block == nullptr) return 0;
  return int64_t{strip.n_groups} * (work.plain.dims_v / 16) * strip.vectors() *
         Path(strip.block->value_parts, work.plain.tile->parts, work.order()).count;
}

template <int32_t vectors>
KVC_INLINE void score(Work& work, const Strip& strip) {
  const int32_t order = work.order();
  with_count(strip.block->key_parts, [&](auto key_parts) {
    with_count(work.query_parts, [&](auto query_parts) {
      if constexpr (key_parts.value == 2 && query_parts.value == 2) {
        if (order == 2) return score_strip<2, 2, 2, vectors>(work, strip);
      }
      score_strip<key_parts.value, query_parts.value, parts_max, vectors>(work, strip);
    });
  });
}

template <int32_t vectors>
KVC_INLINE void add(Work& work, const Strip& strip) {
  with_count(strip.block->value_parts, [&](auto value_parts) {
    constexpr int32_t n = value_parts.value, two = n < 2 ? n : 2;
    switch (work.plain.tile->parts) {
      case 1: return add_values<two, 1, parts_max, vectors>(work, strip);
      case 2: return add_values<two, 2, 2, vectors>(work, strip);
      default: return add_values<n, parts_max, parts_max, vectors>(work, strip);
    }
  });
}

/// Scores of the strip that was placed last, if there is one, softmax of the one before, values of the
/// one before that.
[[gnu::noinline]] static void advance(Work& work) {
  const int32_t now = work.n_strips++;
  Strip& first = work.strips[now % strips_kept];
  Strip& second = work.strips[(now + 2) % strips_kept];
  Strip& third = work.strips[(now + 1) % strips_kept];
  work.background.begin(second, score_products(work, first) + value_products(work, third));
  if (first.block != nullptr) {
    if (first.vectors() == 2) {
      score<2>(work, first);
    } else {
      score<1>(work, first);
    }
  }
  if (third.block != nullptr) {
    if (third.vectors() == 2) {
      add<2>(work, third);
    } else {
      add<1>(work, third);
    }
  }
  work.background.finish();
  third.block = nullptr;  // and its place the next strip's
}

/// Finishes the strips that are under way.
KVC_INLINE void drain(Work& work) {
  for (int32_t i = 1; i < strips_kept; ++i) advance(work);
}

/// Places the strip of up to 32 rows behind those under way. Returns whether it sees any cell.
KVC_INLINE bool place_strip(Work& work, const Block& block, int32_t first_row, int32_t n_rows) {
  Strip& strip = work.strips[work.n_strips % strips_kept];
  strip.first_row = first_row;
  strip.n_rows = n_rows;
  strip.visible = wide::visible_cells(work.plain, first_row, n_rows);
  wide::grow(strip.visible.any, amx_depth, strip.ranges);
  strip.n_groups = 0;
  for (const Range& range : strip.ranges) {
    for (int32_t cell = range.begin; cell < range.end; cell += amx_depth)
      strip.group[strip.n_groups++] = cell;
  }
  if (strip.n_groups == 0) return false;
  strip.block = &block;
  const int32_t buffer = work.n_strips % 2;
  strip.scores = work.scores[buffer];
  strip.rescale = work.rescale[buffer];
  strip.probabilities = work.probabilities[buffer];
  return true;
}

// ---- A block ------------------------------------------------------------------------------------

/// Packs the keys and values of the cells that any row sees. Returns whether AMX can multiply them.
KVC_INLINE bool pack_block(const Work& work, Block& block, const Range (&ranges)[2]) {
  const Tile& tile = *work.plain.tile;
  block.begin = work.plain.block_begin;
  block.n_cells = work.plain.n_cells;
  block.adjusts = tile.cap != 0.0f || tile.slope != nullptr || tile.bias != nullptr;
  stored::with_reader(tile.k, [&]<class Type>(stored::Reader<Type>) {
    block.key_parts = key_parts_of(parts_of<Type>, tile.parts);
    block.scales_scores = scaled_after<Type> || (block.adjusts && tile.scale != 1.0f);
  });
  block.factor = block.scales_scores ? 1.0f : tile.scale;
  stored::with_reader(tile.v, [&]<class Type>(stored::Reader<Type>) {
    block.value_parts = value_parts_of(parts_of<Type>, tile.parts);
    block.scales_values = scaled_after<Type>;
  });
  for (int32_t i = 0; i < work.block; ++i) block.score_scale[i] = tile.scale;
  bool suited = true;
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    suited = suited && stored::with_reader(tile.k, [&]<class Type>(stored::Reader<Type> keys) {
               return with_count(block.key_parts, [&](auto parts) {
                 constexpr int32_t n = smaller(parts.value, parts_of<Type>);
                 return pack_keys<n>(tile, block, keys, range, work.dims_k);
               });
             });
    suited = suited && stored::with_reader(tile.v, [&]<class Type>(stored::Reader<Type> values) {
               return with_count(block.value_parts, [&](auto parts) {
                 constexpr int32_t n = smaller(parts.value, parts_of<Type>);
                 return pack_values<n>(tile, block, values, range, work.steps_v());
               });
             });
  }
  return suited;
}

/// Packs queries as the wide kernel does, multiplied with the scale.
KVC_INLINE void pack_plain_queries(Work& work) {
  wide::Work& plain = work.plain;
  if (work.plain_queries_packed) return;
  work.plain_queries_packed = true;
  wide::pack_strips(plain);
  if (plain.tile->scale == 1.0f) return;
  const int32_t count = rounded_up(plain.tile->n_rows, lanes) * plain.dims_k;
  const Vec factor = broadcast(plain.tile->scale);
  for (int32_t i = 0; i < count; i += lanes)
    store(plain.queries + i, load(plain.queries + i) * factor);
}

/// Reads the tile's o, which is all 0 where no row has seen anything.
[[gnu::noinline]] static void load_o(const Work& work) {
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.o_stride);
  bool any = false;
  for (int32_t row = 0; row < tile.n_rows; ++row)
    any |= tile.sum[row] != 0 || tile.max[row] != wide::lowest;
  if (!any) {
    const int32_t count = rounded_up(tile.n_rows, strip_rows) * work.plain.dims_v;
    for (int32_t i = 0; i < count; i += lanes) store(work.o + i, zero());
    return;
  }
  for (int32_t row = 0; row < tile.n_rows; row += lanes) {
    wide::pack_queries(work.o_of(row / strip_rows * strip_rows) + row % strip_rows, strip_rows,
                       tile.o + static_cast<size_t>(row) * stride, stride, tile.n_rows - row,
                       work.plain.dims_v);
  }
}

/// Writes o back to the tile.
[[gnu::noinline]] static void store_o(const Work& work) {
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.o_stride);
  for (int32_t row = 0; row < tile.n_rows; row += 4) {
    const float* from = work.o_of(row / strip_rows * strip_rows) + row % strip_rows;
    float* to = tile.o + static_cast<size_t>(row) * stride;
    const int32_t n_rows = smaller(4, tile.n_rows - row);
    for (int32_t d = 0; d < work.plain.dims_v; d += lanes, from += lanes * strip_rows, to += lanes) {
      Vec x[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) x[i] = load_quads(from + i * strip_rows, 4 * strip_rows);
      transpose_quads(x[0], x[1], x[2], x[3]);
      for (int32_t i = 0; i < n_rows; ++i) store(to + static_cast<size_t>(i) * stride, x[i]);
    }
  }
}

/// Processes cells [begin, end) of the tile as the wide kernel does.
[[gnu::noinline]] static void process_plainly(Work& work, int32_t begin, int32_t end) {
  store_o(work);
  wide::Work& plain = work.plain;
  const int32_t block = plain.block;
  plain.block = wide::block_cells(plain.tile->k.head_dim, plain.tile->v.head_dim);
  pack_plain_queries(work);
  for (int32_t at = begin; at < end; at += plain.block) {
    plain.block_begin = at;
    plain.n_cells = smaller(plain.block, end - at);
    if (wide::pack_block(plain)) wide::process_block(plain);
  }
  plain.block = block;
  plain.rows.store_to(*plain.tile);
  load_o(work);
}

KVC_INLINE void process_block(Work& work, int32_t begin, int32_t end) {
  wide::Work& plain = work.plain;
  plain.block_begin = begin;
  plain.n_cells = end - begin;
  const int32_t n_rows = plain.tile->n_rows;
  Range ranges[2];
  wide::grow(wide::visible_cells(plain, 0, n_rows).any, amx_depth, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;
  Block& block = work.blocks[work.n_blocks % 2];
  if (!work.suited || !pack_block(work, block, ranges)) {
    drain(work);
    return process_plainly(work, begin, end);
  }
  const int32_t n_products = (n_rows + strip_rows - 1) / strip_rows *
                             (work.block / 32 + (plain.dims_v + 31) / 32);
  wide::plan_prefetch(plain, end, n_products);
  int32_t n_placed = 0;
  for (int32_t row = 0; row < n_rows; row += strip_rows) {
    if (!place_strip(work, block, row, smaller(strip_rows, n_rows - row))) continue;
    advance(work);
    ++n_placed;
  }
  if (n_placed >= strips_kept - 1) {
    ++work.n_blocks;  // no strip of the block before is under way any more
  } else {
    drain(work);
  }
}

}  // namespace matrix

// NOLINTBEGIN(misc-definitions-in-headers): isa_amx.cpp alone includes them

/// Scratch of one thread for tiles of up to tile_rows_max rows.
size_t matrix_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  matrix::Work work = {};
  return matrix::lay_out(work, nullptr, head_dim_k, head_dim_v, matrix::parts_max);
}

/// Fewer rows pay where keys and values need fewer parts. Measured: where two kernels take the same
/// time.
int32_t matrix_tile_rows_min(StorageType k, StorageType v) {
  int32_t parts = 0;
  for (const StorageType type : {k, v}) {
    const TileRows rows = {.type = type};
    stored::with_reader(rows, [&]<class Type>(stored::Reader<Type>) {
      parts = wide::larger(parts, matrix::parts_of<Type>);
    });
  }
  return parts == 1 ? 16 : parts == 2 ? 24 : 48;
}

/// The same contract as process_wide_tile, and it multiplies scores with the tile's scale.
void process_matrix_tile(const Tile& tile) {
  matrix::Work work = {};
  work.plain.tile = &tile;
  matrix::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim, tile.parts);
  work.plain.block = work.block;
  work.background.softmax.tile = &tile;
  work.background.softmax.rows = &work.plain.rows;
  work.background.softmax.n_steps = static_cast<int32_t>(work.steps_v());
  matrix::amx_begin();
  matrix::pack_queries(work);
  work.plain.rows.load_from(tile, wide::rounded_up(tile.n_rows, wide::strip_rows));
  matrix::load_o(work);
  for (int32_t begin = 0; begin < tile.n_cells; begin += work.block)
    matrix::process_block(work, begin, wide::smaller(begin + work.block, tile.n_cells));
  matrix::drain(work);
  matrix::store_o(work);
  work.plain.rows.store_to(tile);
  matrix::amx_end();
}

// NOLINTEND(misc-definitions-in-headers)

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
