#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/storage.hpp"

/// Slabs over a test's own memory.

/// The storage type whose codes are elements of this type.
constexpr kvc::StorageType stored_as(kvc::DType dtype) {
  if (dtype == kvc::DType::f16) return kvc::StorageType::f16;
  return dtype == kvc::DType::bf16 ? kvc::StorageType::bf16 : kvc::StorageType::f32;
}

/// `gap` bytes lie between two heads.
inline kvc::Slab make_slab(std::byte* data, kvc::DType dtype, int32_t n_heads, int32_t n_cells,
                           int32_t head_dim, size_t gap = 0) {
  const kvc::RowFormat format = {.type = stored_as(dtype), .head_dim = head_dim};
  const size_t row_bytes = format.code_bytes();
  kvc::Slab slab;
  slab.codes = {.data = data,
                .head_stride = row_bytes * static_cast<size_t>(n_cells) + gap,
                .row_stride = row_bytes,
                .row_bytes = row_bytes};
  slab.n_heads = n_heads;
  slab.n_cells = n_cells;
  slab.format = format;
  return slab;
}
