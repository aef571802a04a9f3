#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/matrix_softmax.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/stored_rows.hpp"

/// Keys and values of a block as operands of AMX: keys → A [16 cells][32 dimensions], values → A [16
/// dimensions][32 cells].
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

/// What is packed of a row: its codes, where their scale comes after the product, else its numbers.
template <class Type>
KVC_INLINE Vec packed_vector(stored::Reader<Type> reader, stored::Row row, int32_t index) {
  if constexpr (scaled_after<Type>) return reader.codes(row, index);
  return reader.vector(row, index);
}

/// Packs the keys of up to 16 cells; rows of the others become 0.
template <int32_t parts, class Type>
KVC_INLINE void pack_key_cells(std::byte* to, stored::Reader<Type> keys, const int32_t* cell,
                               int32_t count, int32_t dims, Magnitudes& magnitudes) {
  for (int32_t i = 0; i < amx_rows; ++i) {
    const stored::Row row = i < count ? keys.row(cell[i]) : stored::Row{};
    std::byte* out = to + i * 64;
    for (int32_t d = 0; d < dims; d += amx_depth, out += parts * amx_tile_bytes) {
      const Vec x = i < count ? packed_vector(keys, row, d / lanes) : zero();
      const Vec y = i < count ? packed_vector(keys, row, d / lanes + 1) : zero();
      magnitudes.add(x);
      magnitudes.add(y);
      store_parts<parts>(out, x, y);
    }
  }
}

/// Writes the 16 × 16 pairs of a tile of B as a tile of A.
KVC_INLINE void transpose_pairs(std::byte* to, const std::byte* from) {
  for (int32_t i = 0; i < 16; i += 4, to += 4 * 64) {
    Vec x[4];
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j)
      x[j] = load_quads(reinterpret_cast<const float*>(from) + j * 16 + i, 4 * 16);
    transpose_quads(x[0], x[1], x[2], x[3]);
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) store(reinterpret_cast<float*>(to + j * 64), x[j]);
  }
}

/// Packs the values of up to 32 cells; those of the others become 0.
template <int32_t parts, class Type>
KVC_INLINE void pack_value_cells(std::byte* to, size_t side_bytes, stored::Reader<Type> values,
                                 const int32_t* cell, int32_t count, Magnitudes& magnitudes) {
  constexpr int32_t half = amx_depth / 2;
  const int32_t n_vectors = rounded_up(values.rows.head_dim, 16) / lanes;
  stored::Row row[amx_depth];
  for (int32_t i = 0; i < amx_depth && i < count; ++i) row[i] = values.row(cell[i]);
  alignas(64) std::byte pairs[parts * amx_tile_bytes];  // [part][pair of cells][dimension]
  for (int32_t v = 0; v < n_vectors; ++v, to += side_bytes) {
    for (int32_t i = 0; i < half; ++i) {
      const Vec x = i < count ? packed_vector(values, row[i], v) : zero();
      const Vec y = i + half < count ? packed_vector(values, row[i + half], v) : zero();
      magnitudes.add(x);
      magnitudes.add(y);
      store_parts<parts>(pairs + i * 64, x, y);
    }
#pragma GCC unroll 3
    for (size_t part = 0; part < parts; ++part)
      transpose_pairs(to + part * amx_tile_bytes, pairs + part * amx_tile_bytes);
  }
}

/// Writes the scales of cells [begin, begin + count), times `factor`, and zeros up to `end`.
template <class Type>
KVC_INLINE void place_scales(float* to, stored::Reader<Type> rows, const int32_t* cell, Range range,
                             int32_t count, float factor, Magnitudes& magnitudes) {
  for (int32_t i = range.begin; i < range.end; ++i) {
    float scale = 0;
    if (i < count) __builtin_memcpy(&scale, rows.row(cell[i]).scales, sizeof scale);
    magnitudes.add(broadcast(scale));
    to[i] = scale * factor;
  }
}

/// Keys of a range of the block's cells. Returns whether AMX can multiply them. Where scores are
/// scaled after the product, it must stay in range without.
template <int32_t parts, class Type>
[[gnu::noinline]] static bool pack_keys(const Tile& tile, const Block& block,
                                        stored::Reader<Type> keys, Range range, int32_t dims) {
  constexpr float limit = 0x1p60f;
  const int32_t* cell = tile.k.cell + block.begin;
  const size_t side_bytes = static_cast<size_t>(dims / amx_depth) * parts * amx_tile_bytes;
  Magnitudes magnitudes;
  if constexpr (scaled_after<Type>)
    place_scales(block.score_scale, keys, cell, range, block.n_cells, tile.scale, magnitudes);
  for (int32_t i = range.begin; i < range.end; i += amx_rows) {
    pack_key_cells<parts>(block.keys + static_cast<size_t>(i / amx_rows) * side_bytes, keys,
                          cell + i, block.n_cells - i, dims, magnitudes);
  }
  return are_suited(magnitudes) && (!block.scales_scores || magnitudes.largest() < limit);
}

/// The same of values; `n_steps` is 32 cells each of the largest block.
template <int32_t parts, class Type>
[[gnu::noinline]] static bool pack_values(const Tile& tile, const Block& block,
                                          stored::Reader<Type> values, Range range, size_t n_steps) {
  constexpr size_t step_bytes = parts * amx_tile_bytes;
  const int32_t* cell = tile.v.cell + block.begin;
  Magnitudes magnitudes;
  if constexpr (scaled_after<Type>)
    place_scales(block.value_scale, values, cell, range, block.n_cells, 1.0f, magnitudes);
  for (int32_t i = range.begin; i < range.end; i += amx_depth) {
    pack_value_cells<parts>(block.values + static_cast<size_t>(i / amx_depth) * step_bytes,
                            n_steps * step_bytes, values, cell + i, block.n_cells - i, magnitudes);
  }
  return are_suited(magnitudes);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
