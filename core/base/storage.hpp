#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/tensor.hpp"

/// Storage formats: how a cache keeps the numbers of K and V. This is the one place that knows how many bytes a row takes.
/// (A caller's tensor has a DType; what a cache stores has a StorageType.)
namespace kvc {

enum class StorageType : uint8_t { f32, f16, bf16 };

/// A row is a whole number of blocks. The codes of all its blocks lie side by side.
struct StorageFormat {
  const char* name;
  int32_t block;        // elements
  int32_t block_bytes;  // of their codes
  DType element;        // of the codes, as a view shows them
};

/// Adding a StorageType without a format fails to compile (-Werror=switch).
constexpr StorageFormat format_of(StorageType type) {
  switch (type) {
    case StorageType::f32:
      return {.name = "f32", .block = 1, .block_bytes = 4, .element = DType::f32};
    case StorageType::f16:
      return {.name = "f16", .block = 1, .block_bytes = 2, .element = DType::f16};
    case StorageType::bf16:
      return {.name = "bf16", .block = 1, .block_bytes = 2, .element = DType::bf16};
  }
  __builtin_unreachable();
}

/// Bytes of the codes of one row: `head_dim` elements, a multiple of the format's block.
constexpr size_t row_bytes(StorageType type, int32_t head_dim) {
  const StorageFormat format = format_of(type);
  return static_cast<size_t>(head_dim / format.block) * static_cast<size_t>(format.block_bytes);
}

/// One layer's K, or its V: [n_heads][n_cells] rows.
struct Slab {
  std::byte* data = nullptr;
  size_t head_stride = 0;  // bytes from one head to the next
  size_t row_bytes = 0;    // bytes from one cell to the next
  int32_t n_heads = 0;
  int32_t n_cells = 0;
  int32_t head_dim = 0;  // elements of a row
  StorageType type = StorageType::f32;

  std::byte* head(int32_t index) const { return data + static_cast<size_t>(index) * head_stride; }
  std::byte* row(int32_t head_index, int32_t cell) const {
    return head(head_index) + static_cast<size_t>(cell) * row_bytes;
  }
  DType element() const { return format_of(type).element; }

  /// Cells [first_cell, first_cell + n) as [n, n_heads, head_dim], in the element type of the codes.
  Tensor view(int32_t first_cell, int64_t n) const {
    const auto element_bytes = static_cast<int64_t>(size_of(element()));
    Tensor view;
    view.data = row(0, first_cell);
    view.dtype = element();
    view.ndim = 3;
    view.shape[0] = n;
    view.shape[1] = n_heads;
    view.shape[2] = head_dim;
    view.stride[0] = static_cast<int64_t>(row_bytes) / element_bytes;
    view.stride[1] = static_cast<int64_t>(head_stride) / element_bytes;
    view.stride[2] = 1;
    return view;
  }
};

/// Where one layer's keys and values lie.
struct LayerStorage {
  Slab k;
  Slab v;
};

}  // namespace kvc
