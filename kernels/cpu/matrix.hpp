#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/kernel_table.hpp"
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
///     for each strip of 32 rows
///       score_strip         keys × queries (B, packed once per tile) → scores [cell][row], f32
///       softmax_strip       scores → probabilities, in place (the wide kernel's)
///       pack_probabilities  → A [16 rows][32 cells]
///       add_values          probabilities × values → product; o = o · rescale + product
///
///   registers of a product   0–3: sums of 2 × 2 tiles   4, 5: tiles of A   6, 7: tiles of B
///   between two products     a few cells of the next block are prefetched into L2
///
/// AMX multiplies bf16, and attention is wanted in f32. So every factor is a sum of two or three
/// bf16 (bf16_parts.hpp), and of the products of parts those are added up that matter in f32: five
/// for f16 storage, six for f32, three for bf16. AMX sums 32 products before it adds them to the
/// rest, so the result is rounded less often than a chain of multiply-adds in f32. A block goes to
/// the wide kernel's code when a value of it is not finite, or too small.
///
/// A tile of AMX is 1 KiB of an operand (matrix_tiles.hpp); its names begin with amx. A Tile is
/// what the kernel processes.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace matrix {

using wide::is_empty;
using wide::larger;
using wide::Range;
using wide::rounded_up;
using wide::smaller;
using wide::Visible;

/// Rows whose scores are computed together.
inline constexpr int32_t strip_rows = 32;
inline constexpr int32_t rows_max = rounded_up(tile_rows_max, strip_rows);

constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v) {
  return smaller(128, 2 * wide::block_cells(head_dim_k, head_dim_v));
}
static_assert(128 * strip_rows <=
              wide::block_cells(128, 128) * wide::strip_rows);  // they share the memory of scores

/// Tiles of one operand: part p of tile (side, step) at at + side · side_bytes + step · step_bytes
/// + p · amx_tile_bytes.
struct Operand {
  const std::byte* at;
  size_t side_bytes;  // A: to the next 16 rows, B: to the next 16 columns
  size_t step_bytes;  // to the next 32 of what is summed over
};

struct Work {
  wide::Work plain;  // rows, scores and options; for a block that AMX cannot do, everything
  bool plain_queries_packed;
  bool suited;     // whether AMX can multiply the queries
  int32_t dims_k;  // padded to 32
  int32_t block;   // cells

  std::byte* queries;        // [16 rows][dims_k / 32][part] tiles
  std::byte* keys;           // [16 cells][dims_k / 32][part]
  std::byte* values;         // [16 dimensions][block / 32][part]
  std::byte* probabilities;  // [16 rows][block / 32][part]
  float* columns;            // [dims_k][16] of queries
  float* product;            // [strip_rows][32] of probabilities and values

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
  work.dims_k = rounded_up(head_dim_k, amx_depth);
  work.block = block_cells(head_dim_k, head_dim_v);
  const size_t rows = rows_max, dims_v = static_cast<size_t>(rounded_up(head_dim_v, 16)),
               block = static_cast<size_t>(work.block), dims_k = static_cast<size_t>(work.dims_k);
  constexpr size_t element = parts_max * sizeof(uint16_t);
  work.probabilities = carve(strip_rows * block * element);
  work.columns = reinterpret_cast<float*>(carve(dims_k * 16 * sizeof(float)));
  work.product = reinterpret_cast<float*>(carve(strip_rows * 32 * sizeof(float)));
  work.queries = carve(rows * dims_k * element);
  work.keys = carve(block * dims_k * element);
  work.values = carve(block * dims_v * element);
  return offset;
}

// ---- Products -----------------------------------------------------------------------------------

/// The products of parts that matter, in an order in which each shares a part with the one before.
/// That saves loads, which take time of their own when the core's other thread is busy.
struct Path {
  int32_t count = 0;
  int32_t a[6] = {}, b[6] = {};

  constexpr Path(int32_t parts_a, int32_t parts_b) {
    bool reached = false;
    const auto visit = [&](int32_t i, int32_t j) {
      a[count] = i;
      b[count++] = j;
      reached |= i == 0 && j == 0;
    };
    for (int32_t i = parts_a - 1, j = 0; i >= 0; --i) {
      visit(i, j);
      for (; j + 1 < parts_b && i + j + 1 < parts_max; visit(i, j)) ++j;
    }
    if (!reached) visit(0, 0);
  }
};

/// A · B in 16 · tiles_a rows and 16 · tiles_b columns: sums in registers 0 to 3, A in 4 and 5, B
/// in 6 and 7.
template <int32_t parts_a, int32_t parts_b, int32_t tiles_a, int32_t tiles_b>
struct Product {
  static constexpr Path path{parts_a, parts_b};

  template <int32_t index>
  KVC_INLINE void add_step(const std::byte* a, size_t side_a, const std::byte* b, size_t side_b) {
    if constexpr (index < path.count) {
      constexpr size_t part_a = static_cast<size_t>(path.a[index]),
                       part_b = static_cast<size_t>(path.b[index]);
      if constexpr (index == 0 || path.a[index] != path.a[index > 0 ? index - 1 : 0]) {
        amx_load<4>(a + part_a * amx_tile_bytes);
        if constexpr (tiles_a == 2) amx_load<5>(a + side_a + part_a * amx_tile_bytes);
      }
      if constexpr (index == 0 || path.b[index] != path.b[index > 0 ? index - 1 : 0]) {
        amx_load<6>(b + part_b * amx_tile_bytes);
        if constexpr (tiles_b == 2) amx_load<7>(b + side_b + part_b * amx_tile_bytes);
      }
      amx_multiply_add<0, 4, 6>();
      if constexpr (tiles_b == 2) amx_multiply_add<1, 4, 7>();
      if constexpr (tiles_a == 2) amx_multiply_add<2, 5, 6>();
      if constexpr (tiles_a == 2 && tiles_b == 2) amx_multiply_add<3, 5, 7>();
      add_step<index + 1>(a, side_a, b, side_b);
    }
  }

  /// c [16 · tiles_a][stride] = A · B over `steps` steps.
  [[gnu::noinline]] static void multiply(const Operand& a, const Operand& b, int32_t steps,
                                         float* c, size_t stride) {
    amx_zero<0>();
    if constexpr (tiles_b == 2) amx_zero<1>();
    if constexpr (tiles_a == 2) amx_zero<2>();
    if constexpr (tiles_a == 2 && tiles_b == 2) amx_zero<3>();
    const std::byte *from_a = a.at, *from_b = b.at;
    for (int32_t step = 0; step < steps; ++step, from_a += a.step_bytes, from_b += b.step_bytes)
      add_step<0>(from_a, a.side_bytes, from_b, b.side_bytes);
    const size_t bytes = stride * sizeof(float);
    amx_store<0>(c, bytes);
    if constexpr (tiles_b == 2) amx_store<1>(c + 16, bytes);
    if constexpr (tiles_a == 2) amx_store<2>(c + 16 * stride, bytes);
    if constexpr (tiles_a == 2 && tiles_b == 2) amx_store<3>(c + 16 * stride + 16, bytes);
  }
};

// ---- Packing ------------------------------------------------------------------------------------

KVC_INLINE void pack_queries(Work& work) {
  const Tile& tile = *work.plain.tile;
  const size_t stride = static_cast<size_t>(tile.q_stride);
  const int32_t dims = work.plain.dims_k;
  float* columns = work.columns;
  for (int32_t i = dims * 16; i < work.dims_k * 16; i += 16) store(columns + i, zero());
  Magnitudes magnitudes;
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
        store_parts<parts_max>(to + pair * 64, x, y);
      }
    }
  }
  work.suited = magnitudes.are_suited();
}

/// Packs the keys of up to 16 cells; rows of the others become 0.
template <class Type>
KVC_INLINE void pack_key_cells(std::byte* to, stored::Reader<Type> keys, const int32_t* cell,
                               int32_t count, int32_t dims, Magnitudes& magnitudes) {
  for (int32_t i = 0; i < amx_rows; ++i) {
    const stored::Row row = i < count ? keys.row(cell[i]) : stored::Row{};
    std::byte* out = to + i * 64;
    for (int32_t d = 0; d < dims; d += amx_depth, out += parts_of<Type> * amx_tile_bytes) {
      const Vec x = i < count ? keys.vector(row, d / lanes) : zero();
      const Vec y = i < count ? keys.vector(row, d / lanes + 1) : zero();
      magnitudes.add(x);
      magnitudes.add(y);
      store_parts<parts_of<Type>>(out, x, y);
    }
  }
}

/// Packs the values of up to 32 cells; rows of the others become 0.
template <class Type>
KVC_INLINE void pack_value_cells(std::byte* to, size_t side_bytes, stored::Reader<Type> values,
                                 const int32_t* cell, int32_t count, Magnitudes& magnitudes) {
  const int32_t n_vectors = rounded_up(values.rows.head_dim, 16) / lanes;
  for (int32_t i = 0; i < amx_depth / 2; ++i, to += 64) {
    const int32_t j = i + amx_depth / 2;
    const stored::Row first = i < count ? values.row(cell[i]) : stored::Row{};
    const stored::Row second = j < count ? values.row(cell[j]) : stored::Row{};
    std::byte* out = to;
    for (int32_t v = 0; v < n_vectors; ++v, out += side_bytes) {
      const Vec x = i < count ? values.vector(first, v) : zero();
      const Vec y = j < count ? values.vector(second, v) : zero();
      magnitudes.add(x);
      magnitudes.add(y);
      store_parts<parts_of<Type>>(out, x, y);
    }
  }
}

template <class Type>
[[gnu::noinline]] static bool pack_keys(const Work& work, stored::Reader<Type> keys, Range range) {
  const int32_t* cell = work.plain.tile->k.cell + work.plain.block_begin;
  const size_t side_bytes = work.steps_k() * parts_of<Type> * amx_tile_bytes;
  Magnitudes magnitudes;
  for (int32_t i = range.begin; i < range.end; i += amx_rows) {
    pack_key_cells(work.keys + static_cast<size_t>(i / amx_rows) * side_bytes, keys, cell + i,
                   work.plain.n_cells - i, work.dims_k, magnitudes);
  }
  return magnitudes.are_suited();
}

template <class Type>
[[gnu::noinline]] static bool pack_values(const Work& work, stored::Reader<Type> values, Range range) {
  constexpr size_t step_bytes = parts_of<Type> * amx_tile_bytes;
  const int32_t* cell = work.plain.tile->v.cell + work.plain.block_begin;
  Magnitudes magnitudes;
  for (int32_t i = range.begin; i < range.end; i += amx_depth) {
    pack_value_cells(work.values + static_cast<size_t>(i / amx_depth) * step_bytes,
                     work.steps_v() * step_bytes, values, cell + i, work.plain.n_cells - i,
                     magnitudes);
  }
  return magnitudes.are_suited();
}

/// Packs the probabilities [cell][width] of a range of cells, transposed.
template <int32_t vectors>
[[gnu::noinline]] static void pack_probabilities(const Work& work, Range range) {
  constexpr size_t width = vectors * lanes;
  for (int32_t begin = range.begin; begin < range.end; begin += amx_depth) {
    const float* from = work.plain.scores + static_cast<size_t>(begin) * width;
    for (size_t row = 0; row < width; row += 4) {
      Vec x[2][4];
      for (size_t half = 0; half < 2; ++half) {
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; ++i)
          x[half][i] = load_quads(from + (half * 16 + i) * width + row, 4 * width);
        transpose_quads(x[half][0], x[half][1], x[half][2], x[half][3]);
      }
      std::byte* to = work.probabilities +
                      ((row / 16) * work.steps_v() + static_cast<size_t>(begin / amx_depth)) *
                          parts_max * amx_tile_bytes +
                      row % 16 * 64;
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; ++i) store_parts<parts_max>(to + i * 64, x[0][i], x[1][i]);
    }
  }
}

// ---- A block ------------------------------------------------------------------------------------

/// o [rows][32 dimensions] = o · rescale + product.
KVC_INLINE void add_product(const Work& work, int32_t n_rows, int32_t n_vectors, bool first, float* o) {
  const size_t stride = static_cast<size_t>(work.plain.tile->o_stride);
  for (int32_t row = 0; row < n_rows; ++row) {
    const Vec rescale = broadcast(first ? work.plain.rescale[row] : 1.0f);
    for (int32_t v = 0; v < n_vectors; ++v) {
      float* at = o + static_cast<size_t>(row) * stride + v * lanes;
      store(at, fma(load(at), rescale, load(work.product + row * 32 + v * lanes)));
    }
  }
}

/// Scores of a strip, [cell][width].
template <int32_t parts, int32_t vectors>
static void score_strip(Work& work, int32_t first_row, const Range (&ranges)[2]) {
  constexpr int32_t width = vectors * lanes;
  constexpr size_t key_bytes = parts * amx_tile_bytes, query_bytes = parts_max * amx_tile_bytes;
  const size_t side = work.steps_k() * key_bytes, query_side = work.steps_k() * query_bytes;
  const Operand queries = {work.queries + static_cast<size_t>(first_row / 16) * query_side,
                           query_side, query_bytes};
  for (const Range& range : ranges) {
    for (int32_t cell = range.begin; cell < range.end; cell += 2 * amx_rows) {
      wide::prefetch_some(work.plain);
      const Operand keys = {work.keys + static_cast<size_t>(cell / amx_rows) * side, side, key_bytes};
      Product<parts, parts_max, 2, vectors>::multiply(keys, queries, work.dims_k / amx_depth,
                                                      work.plain.scores + cell * width, width);
    }
  }
}

/// Adds the values of one range of cells to the o of a strip.
template <int32_t parts, int32_t vectors>
static void add_values(Work& work, Range range, bool first, int32_t n_rows, float* o) {
  constexpr size_t value_bytes = parts * amx_tile_bytes,
                   probability_bytes = parts_max * amx_tile_bytes;
  const size_t first_step = static_cast<size_t>(range.begin / amx_depth);
  const int32_t n_steps = (range.end - range.begin) / amx_depth;
  const size_t side = work.steps_v() * value_bytes;
  const Operand probabilities = {work.probabilities + first_step * probability_bytes,
                                 work.steps_v() * probability_bytes, probability_bytes};
  Operand values = {work.values + first_step * value_bytes, side, value_bytes};
  for (int32_t d = 0; d < work.plain.dims_v; d += 32, values.at += 2 * side) {
    wide::prefetch_some(work.plain);
    const int32_t n_vectors = smaller(2, (work.plain.dims_v - d) / 16);
    if (n_vectors == 2) {
      Product<parts_max, parts, vectors, 2>::multiply(probabilities, values, n_steps, work.product,
                                                      32);
    } else {
      Product<parts_max, parts, vectors, 1>::multiply(probabilities, values, n_steps, work.product,
                                                      32);
    }
    add_product(work, n_rows, n_vectors, first, o + d);
  }
}

/// Scores, softmax and values of up to 32 rows.
template <int32_t vectors>
static void process_strip(Work& work, int32_t first_row, int32_t n_rows) {
  const Tile& tile = *work.plain.tile;
  const Visible visible = wide::visible_cells(work.plain, first_row, n_rows);
  Range ranges[2];
  wide::grow(visible.any, amx_depth, ranges);
  if (is_empty(ranges[0]) && is_empty(ranges[1])) return;

  with_parts(tile.k, [&](auto parts) { score_strip<parts.value, vectors>(work, first_row, ranges); });
  wide::softmax_strip<vectors>(work.plain, visible, first_row, ranges);
  float* o = tile.o + static_cast<size_t>(first_row) * static_cast<size_t>(tile.o_stride);
  bool first = true;
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    pack_probabilities<vectors>(work, range);
    with_parts(tile.v,
               [&](auto parts) { add_values<parts.value, vectors>(work, range, first, n_rows, o); });
    first = false;
  }
}

/// Packs the keys and values of the cells that any row sees. Returns whether AMX can multiply them.
KVC_INLINE bool pack_block(const Work& work, const Range (&ranges)[2]) {
  const Tile& tile = *work.plain.tile;
  bool suited = true;
  for (const Range& range : ranges) {
    if (is_empty(range)) continue;
    suited = suited &&
             stored::with_reader(tile.k, [&](auto keys) { return pack_keys(work, keys, range); }) &&
             stored::with_reader(tile.v,
                                 [&](auto values) { return pack_values(work, values, range); });
  }
  return suited;
}

/// Processes cells [begin, end) of the tile as the wide kernel does.
[[gnu::noinline]] static void process_plainly(Work& work, int32_t begin, int32_t end) {
  wide::Work& plain = work.plain;
  const int32_t block = plain.block;
  plain.block = wide::block_cells(plain.tile->k.head_dim, plain.tile->v.head_dim);
  if (!work.plain_queries_packed) wide::pack_strips(plain);
  work.plain_queries_packed = true;
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
  if (!work.suited || !pack_block(work, ranges)) return process_plainly(work, begin, end);
  const int32_t n_products = (n_rows + strip_rows - 1) / strip_rows *
                             (work.block / 32 + (plain.dims_v + 31) / 32);
  wide::plan_prefetch(plain, end, n_products);
  for (int32_t row = 0; row < n_rows; row += strip_rows) {
    const int32_t count = smaller(strip_rows, n_rows - row);
    if (count > amx_rows) {
      process_strip<2>(work, row, count);
    } else {
      process_strip<1>(work, row, count);
    }
  }
}

}  // namespace matrix

/// Scratch of one thread for tiles of up to tile_rows_max rows.
size_t matrix_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  matrix::Work work = {};
  return matrix::lay_out(work, nullptr, head_dim_k, head_dim_v);
}

/// The same contract as process_wide_tile.
void process_matrix_tile(const Tile& tile) {
  matrix::Work work = {};
  work.plain.tile = &tile;
  matrix::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim);
  work.plain.block = work.block;
  matrix::amx_begin();
  matrix::pack_queries(work);
  work.plain.rows.load_from(tile, wide::rounded_up(tile.n_rows, wide::strip_rows));
  for (int32_t begin = 0; begin < tile.n_cells; begin += work.block)
    matrix::process_block(work, begin, wide::smaller(begin + work.block, tile.n_cells));
  work.plain.rows.store_to(tile);
  matrix::amx_end();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
