#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/matrix_softmax.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/stored_rows.hpp"

/// Keys and values of a block as operands of AMX: keys → A [16 cells][32 dimensions], values → B [32
/// cells][16 dimensions].
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

/// What is packed of a row: its codes, where their scale comes after the product, else its numbers.
template <class Type>
KVC_INLINE Vec packed_vector(stored::Reader<Type> reader, stored::Row row, int32_t index) {
  if constexpr (scaled_after<Type>) return reader.codes(row, index);
  return reader.vector(row, index);
}

/// Packs the keys of up to 16 cells; rows of the others become 0.
template <class Type>
KVC_INLINE void pack_key_cells(std::byte* to, stored::Reader<Type> keys, const int32_t* cell,
                               int32_t count, int32_t dims, Magnitudes& magnitudes) {
  for (int32_t i = 0; i < amx_rows; ++i) {
    const stored::Row row = i < count ? keys.row(cell[i]) : stored::Row{};
    std::byte* out = to + i * 64;
    for (int32_t d = 0; d < dims; d += amx_depth, out += parts_of<Type> * amx_tile_bytes) {
      const Vec x = i < count ? packed_vector(keys, row, d / lanes) : zero();
      const Vec y = i < count ? packed_vector(keys, row, d / lanes + 1) : zero();
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
      const Vec x = i < count ? packed_vector(values, first, v) : zero();
      const Vec y = j < count ? packed_vector(values, second, v) : zero();
      magnitudes.add(x);
      magnitudes.add(y);
      store_parts<parts_of<Type>>(out, x, y);
    }
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
template <class Type>
[[gnu::noinline]] static bool pack_keys(const Tile& tile, const Block& block,
                                        stored::Reader<Type> keys, Range range, int32_t dims) {
  constexpr float limit = 0x1p60f;
  const int32_t* cell = tile.k.cell + block.begin;
  const size_t side_bytes = static_cast<size_t>(dims / amx_depth) * parts_of<Type> * amx_tile_bytes;
  Magnitudes magnitudes;
  if constexpr (scaled_after<Type>)
    place_scales(block.score_scale, keys, cell, range, block.n_cells, tile.scale, magnitudes);
  for (int32_t i = range.begin; i < range.end; i += amx_rows) {
    pack_key_cells(block.keys + static_cast<size_t>(i / amx_rows) * side_bytes, keys, cell + i,
                   block.n_cells - i, dims, magnitudes);
  }
  return are_suited(magnitudes) && (!block.scales_scores || magnitudes.largest() < limit);
}

/// The same of values; `n_steps` is 32 cells each of the largest block.
template <class Type>
[[gnu::noinline]] static bool pack_values(const Tile& tile, const Block& block,
                                          stored::Reader<Type> values, Range range, size_t n_steps) {
  constexpr size_t step_bytes = parts_of<Type> * amx_tile_bytes;
  const int32_t* cell = tile.v.cell + block.begin;
  Magnitudes magnitudes;
  if constexpr (scaled_after<Type>)
    place_scales(block.value_scale, values, cell, range, block.n_cells, 1.0f, magnitudes);
  for (int32_t i = range.begin; i < range.end; i += amx_depth) {
    pack_value_cells(block.values + static_cast<size_t>(i / amx_depth) * step_bytes,
                     n_steps * step_bytes, values, cell + i, block.n_cells - i, magnitudes);
  }
  return are_suited(magnitudes);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
