#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/stored_rows.hpp"
#include "kernels/cpu/tile.hpp"

/// How the wide kernel lays out its operands, in f32: the queries of a strip as columns, keys as
/// rows, values as panels of dimensions. Conversion is paid once per block of cells, not once per
/// row of queries.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide {

/// Vectors of rows in a strip, and of dimensions in a panel. With registers for 24 sums, six by
/// four needs the fewest loads for a multiply-add.
#if defined(__AVX512F__)
inline constexpr int32_t strip_vectors = 4;
inline constexpr int32_t value_vectors = 4;
#else
inline constexpr int32_t strip_vectors = 3;
inline constexpr int32_t value_vectors = 2;
#endif
inline constexpr int32_t strip_rows = strip_vectors * lanes;
inline constexpr int32_t panel_dims = value_vectors * lanes;

/// Cells are packed sixteen at a time; sixteen that no row sees are neither read nor packed.
inline constexpr int32_t pack_cells = 16;

constexpr int32_t rounded_up(int32_t x, int32_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}
constexpr int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
constexpr int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

/// Cells of a block. Its K and V should leave room for queries and o in a second-level cache of 512
/// KiB; a strip's scores and a panel of values share the first-level cache (48 KiB where there is
/// AVX-512).
inline constexpr int32_t block_cells_max = lanes == 16 ? 96 : 128;
constexpr int32_t block_cells(int32_t head_dim_k, int32_t head_dim_v) {
  const int32_t dims = rounded_up(head_dim_k, 16) + rounded_up(head_dim_v, 16);
  return dims <= 576 ? block_cells_max : dims <= 1152 ? 64 : 32;
}

/// Writes `lanes` rows of queries as columns: to[d · width + row]. `dims` is a multiple of 16.
KVC_INLINE void pack_whole_queries(float* to, size_t width, const float* q, size_t q_stride,
                                   int32_t dims) {
  for (int32_t d = 0; d < dims; d += 4, to += 4 * width) {
    Vec x[4];
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) x[i] = load_quads(q + i * q_stride + d, 4 * q_stride);
    transpose_quads(x[0], x[1], x[2], x[3]);
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) store(to + i * width, x[i]);
  }
}

/// The same for fewer than `lanes` rows; the others become 0.
KVC_INLINE void pack_some_queries(float* to, size_t width, const float* q, size_t q_stride,
                                  int32_t n_rows, int32_t dims) {
  for (int32_t d = 0; d < dims; ++d, to += width) {
    const float* from = q + d;
    for (int32_t row = 0; row < lanes; ++row, from += q_stride)
      to[row] = row < n_rows ? *from : 0.0f;
  }
}

[[maybe_unused, gnu::noinline]] static void pack_queries(float* to, int32_t width, const float* q,
                                                         size_t q_stride, int32_t n_rows,
                                                         int32_t dims) {
  if (n_rows >= lanes) {
    pack_whole_queries(to, static_cast<size_t>(width), q, q_stride, dims);
  } else {
    pack_some_queries(to, static_cast<size_t>(width), q, q_stride, n_rows, dims);
  }
}

/// Writes the keys of `count` cells as rows of `stride` floats, and rows of 0 up to the next
/// multiple of pack_cells.
template <class Type>
[[gnu::noinline]] static void pack_keys(float* to, size_t stride, stored::Reader<Type> keys,
                                        const int32_t* cell, int32_t count) {
  const int32_t vectors = static_cast<int32_t>(stride) / lanes;
  const int32_t whole = keys.n_whole();
  for (int32_t i = 0; i < count; ++i) {
    const stored::Row row = keys.row(cell[i]);
    float* out = to + static_cast<size_t>(i) * stride;
#pragma GCC unroll 4
    for (int32_t v = 0; v < whole; ++v) store(out + v * lanes, keys.whole(row, v));
    for (int32_t v = whole; v < vectors; ++v) store(out + v * lanes, keys.vector(row, v));
  }
  for (int32_t i = count; i < rounded_up(count, pack_cells); ++i) {
    for (int32_t v = 0; v < vectors; ++v)
      store(to + static_cast<size_t>(i) * stride + v * lanes, zero());
  }
}

/// Writes the values of up to pack_cells cells in panels: panel p starts at p · panel_dims · block,
/// and a cell's row in it has panel_dims floats (fewer in the last panel). It goes panel by panel,
/// so that stores are contiguous. Adds 0 to `poison` when every value is finite, else NaN.
template <class Type>
KVC_INLINE void pack_value_cells(float* to, int32_t block, int32_t begin, stored::Reader<Type> values,
                                 const int32_t* cell, int32_t count, Vec (&poison)[value_vectors]) {
  const int32_t dims = rounded_up(values.rows.head_dim, 16);
  const int32_t whole = values.rows.head_dim / panel_dims * panel_dims;
  stored::Row row[pack_cells];
  for (int32_t i = 0; i < count; ++i) row[i] = values.row(cell[i]);
  for (int32_t d = 0; d < dims; d += panel_dims) {
    const int32_t width = smaller(panel_dims, dims - d);
    float* out = to + static_cast<size_t>(d) * static_cast<size_t>(block) + begin * width;
    if (d < whole) {
      for (int32_t i = 0; i < count; ++i, out += panel_dims) {
#pragma GCC unroll 4
        for (int32_t v = 0; v < value_vectors; ++v) {
          const Vec x = values.whole(row[i], d / lanes + v);
          poison[v] = fma(x, zero(), poison[v]);  // 0 · x is 0 for finite x only
          store(out + v * lanes, x);
        }
      }
      continue;
    }
    for (int32_t i = 0; i < count; ++i, out += width) {
      for (int32_t v = 0; v < width / lanes; ++v) {
        const Vec x = values.vector(row[i], d / lanes + v);
        poison[0] = fma(x, zero(), poison[0]);
        store(out + v * lanes, x);
      }
    }
  }
}

/// Writes the values of cells [begin, begin + count) of the block. Returns whether every one is
/// finite.
template <class Type>
[[gnu::noinline]] static bool pack_values(float* to, int32_t block, int32_t begin,
                                          stored::Reader<Type> values, const int32_t* cell,
                                          int32_t count) {
  Vec poison[value_vectors];
  for (Vec& x : poison) x = zero();
  for (int32_t i = 0; i < count; i += pack_cells) {
    pack_value_cells(to, block, begin + i, values, cell + i, smaller(pack_cells, count - i), poison);
  }
  for (int32_t v = 1; v < value_vectors; ++v) poison[0] = poison[0] + poison[v];
  return reduce_sum(poison[0]) == 0.0f;
}

KVC_INLINE void pack_keys(float* to, size_t stride, const Tile& tile, const int32_t* cell,
                          int32_t count) {
  stored::with_reader(tile.k, [&](auto keys) { pack_keys(to, stride, keys, cell, count); });
}

KVC_INLINE bool pack_values(float* to, int32_t block, int32_t begin, const Tile& tile,
                            const int32_t* cell, int32_t count) {
  return stored::with_reader(
      tile.v, [&](auto values) { return pack_values(to, block, begin, values, cell, count); });
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide
