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
///   for each block of 128 cells (fewer with large heads)
///     pack_block            keys → A [16 cells][32 dimensions], values → B [32 cells][16 dims]
///     for each strip of 32 rows, three strips under way
///       score_strip         keys × queries (B, packed once per tile) → scores [cell][row], f32
///       Softmax             of the strip before: scores → probabilities (the wide kernel's), in
///                           place, then as A [16 rows][32 cells]
///       add_values          of the strip before that: probabilities × values → product; o = o ·
///                           rescale + product
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
  float* product[2];   // [strip_rows][32] of probabilities and values

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
};

KVC_INLINE size_t lay_out(Work& work, std::byte* base, int32_t head_dim_k, int32_t head_dim_v) {
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
  work.block = block_cells(head_dim_k, head_dim_v);
  const size_t rows = rows_max, dims_v = static_cast<size_t>(rounded_up(head_dim_v, 16)),
               block = static_cast<size_t>(work.block), dims_k = static_cast<size_t>(work.dims_k);
  constexpr size_t element = parts_max * sizeof(uint16_t);
  for (size_t i = 0; i < 2; ++i) {
    work.scores[i] = carve_floats(block * strip_rows);
    work.probabilities[i] = carve(strip_rows * block * element);
    work.product[i] = carve_floats(strip_rows * 32);
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
  work.queries = carve(rows * dims_k * element);
  return offset;
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
        store_parts<parts_max>(to + pair * 64, x, y);
      }
    }
  }
  const bool scaled = tile.scale != 1.0f || tile.k.type == StorageType::int8;
  work.suited = are_suited(magnitudes) && (!scaled || magnitudes.largest() < limit);
  work.query_parts = used.n_parts();
}

// ---- A strip ------------------------------------------------------------------------------------

template <class Use>
KVC_INLINE void with_count(int32_t parts, Use use) {
  switch (parts) {
    case 1: return use(Parts<1>{});
    case 2: return use(Parts<2>{});
    default: return use(Parts<3>{});
  }
}

/// Scores of a strip, [cell][width].
template <int32_t key_parts, int32_t query_parts, int32_t vectors>
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
    Product<key_parts, query_parts, 2, vectors>::multiply(
        keys, queries, work.dims_k / amx_depth, strip.scores + cell * width, width, work.background);
  }
}

/// A product that o has not got yet.
struct Sum {
  float* o = nullptr;  // [rows][32 dimensions]; null: none
  const float* product = nullptr;
  const float* rescale = nullptr;  // of o, null: 1
  int32_t n_vectors = 0;
};

/// o = o · rescale + product.
KVC_INLINE void add_sum(const Sum& sum, size_t stride, int32_t n_rows) {
  if (sum.o == nullptr) return;
  for (int32_t row = 0; row < n_rows; ++row) {
    const Vec rescale = broadcast(sum.rescale != nullptr ? sum.rescale[row] : 1.0f);
    for (int32_t v = 0; v < sum.n_vectors; ++v) {
      float* at = sum.o + static_cast<size_t>(row) * stride + v * lanes;
      store(at, fma(load(at), rescale, load(sum.product + row * 32 + v * lanes)));
    }
  }
}

/// Adds the values of a strip's cells to its o. A product is added while the next one is under way.
template <int32_t parts, int32_t vectors>
static void add_values(Work& work, const Strip& strip) {
  constexpr size_t value_bytes = parts * amx_tile_bytes,
                   probability_bytes = parts_max * amx_tile_bytes;
  const size_t stride = static_cast<size_t>(work.plain.tile->o_stride);
  float* const o = work.plain.tile->o + static_cast<size_t>(strip.first_row) * stride;
  const size_t side = work.steps_v() * value_bytes;
  const float* rescale = strip.rescale;
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
      float* const product = work.product[n_products++ % 2];
      const int32_t n_vectors = smaller(2, (work.plain.dims_v - d) / 16);
      if (n_vectors == 2) {
        Product<parts_max, parts, vectors, 2>::multiply(probabilities, values, n_steps, product, 32,
                                                        work.background);
      } else {
        Product<parts_max, parts, vectors, 1>::multiply(probabilities, values, n_steps, product, 32,
                                                        work.background);
      }
      add_sum(waiting, stride, strip.n_rows);
      waiting = {o + d, product, rescale, n_vectors};
    }
    rescale = nullptr;
  }
  add_sum(waiting, stride, strip.n_rows);
}

/// Multiplications of tiles that the products of a strip take.
KVC_INLINE int64_t score_products(const Work& work, const Strip& strip) {
  if (strip.block == nullptr) return 0;
  return int64_t{strip.n_groups} * (work.dims_k / amx_depth) * 2 * strip.vectors() *
         Path(strip.block->key_parts, work.query_parts).count;
}
KVC_INLINE int64_t value_products(const Work& work, const Strip& strip) {
  if (strip.block == nullptr) return 0;
  return int64_t{strip.n_groups} * (work.plain.dims_v / 16) * strip.vectors() *
         Path(parts_max, strip.block->value_parts).count;
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
    with_count(first.block->key_parts, [&](auto key_parts) {
      with_count(work.query_parts, [&](auto query_parts) {
        if (first.vectors() == 2) {
          score_strip<key_parts.value, query_parts.value, 2>(work, first);
        } else {
          score_strip<key_parts.value, query_parts.value, 1>(work, first);
        }
      });
    });
  }
  if (third.block != nullptr) {
    with_count(third.block->value_parts, [&](auto parts) {
      if (third.vectors() == 2) {
        add_values<parts.value, 2>(work, third);
      } else {
        add_values<parts.value, 1>(work, third);
      }
    });
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
  stored::with_reader(tile.k, [&]<class Type>(stored::Reader<Type>) {
    block.key_parts = parts_of<Type>;
    block.scales_scores = scaled_after<Type> || tile.scale != 1.0f;
  });
  stored::with_reader(tile.v, [&]<class Type>(stored::Reader<Type>) {
    block.value_parts = parts_of<Type>;
    block.scales_values = scaled_after<Type>;
  });
  for (int32_t i = 0; i < work.block; ++i) block.score_scale[i] = tile.scale;
  bool suited = true;
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    suited = suited && stored::with_reader(tile.k, [&](auto keys) {
               return pack_keys(tile, block, keys, range, work.dims_k);
             });
    suited = suited && stored::with_reader(tile.v, [&](auto values) {
               return pack_values(tile, block, values, range, work.steps_v());
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

/// Processes cells [begin, end) of the tile as the wide kernel does.
[[gnu::noinline]] static void process_plainly(Work& work, int32_t begin, int32_t end) {
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

/// Scratch of one thread for tiles of up to tile_rows_max rows.
size_t matrix_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  matrix::Work work = {};
  return matrix::lay_out(work, nullptr, head_dim_k, head_dim_v);
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
  matrix::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim);
  work.plain.block = work.block;
  work.background.softmax.tile = &tile;
  work.background.softmax.rows = &work.plain.rows;
  work.background.softmax.n_steps = static_cast<int32_t>(work.steps_v());
  matrix::amx_begin();
  matrix::pack_queries(work);
  work.plain.rows.load_from(tile, wide::rounded_up(tile.n_rows, wide::strip_rows));
  for (int32_t begin = 0; begin < tile.n_cells; begin += work.block)
    matrix::process_block(work, begin, wide::smaller(begin + work.block, tile.n_cells));
  matrix::drain(work);
  work.plain.rows.store_to(tile);
  matrix::amx_end();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
