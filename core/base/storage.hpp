#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/status.hpp"
#include "core/base/tensor.hpp"

/// Storage types: how a cache keeps the numbers of K and V. This is the one place that knows how many bytes a row takes.
/// (A caller's tensor has a DType; what a cache stores has a StorageType.)
///
/// A vector of one token and head is a row of codes and, in a type with stored scales, a row of scales, apart in memory. For f32,
/// f16 and bf16 the codes are the numbers.
namespace kvc {

enum class StorageType : uint8_t { f32, f16, bf16, f8_e4m3, f8_e5m2, q8_0, q4_0, int8, nf4 };
inline constexpr int32_t n_storage_types = 9;
inline constexpr int32_t max_head_dim = 65536;

/// What every row of a type has in common.
struct StorageFormat {
  const char* name;
  DType code;              // element of a row of codes, as a view shows it
  int32_t codes_per_byte;  // 2 where two values share a byte, else 1
  DType scale;             // element of a row of scales; without meaning where none is stored
};

/// Adding a StorageType without a format fails to compile (-Werror=switch).
constexpr StorageFormat format_of(StorageType type) {
  switch (type) {
    case StorageType::f32: return {"f32", DType::f32, 1, DType::f32};
    case StorageType::f16: return {"f16", DType::f16, 1, DType::f16};
    case StorageType::bf16: return {"bf16", DType::bf16, 1, DType::bf16};
    case StorageType::f8_e4m3: return {"f8_e4m3", DType::f8_e4m3, 1, DType::f32};
    case StorageType::f8_e5m2: return {"f8_e5m2", DType::f8_e5m2, 1, DType::f32};
    case StorageType::q8_0: return {"q8_0", DType::i8, 1, DType::f16};
    case StorageType::q4_0: return {"q4_0", DType::u8, 2, DType::f16};
    case StorageType::int8: return {"int8", DType::i8, 1, DType::f32};
    case StorageType::nf4: return {"nf4", DType::u8, 2, DType::f32};
  }
  __builtin_unreachable();
}

/// The numbers themselves are stored: kvc_get() can lend them.
constexpr bool is_plain(StorageType type) { return type <= StorageType::bf16; }
/// Codes are multiplied with a scale that is bound per layer and KV head.
constexpr bool is_f8(StorageType type) {
  return type == StorageType::f8_e4m3 || type == StorageType::f8_e5m2;
}

/// How the vectors of K, or of V, are stored.
struct RowFormat {
  StorageType type = StorageType::f32;
  int32_t head_dim = 0;
  int32_t block = 0;     // values that share a stored scale; 0: none is stored
  int32_t rotation = 0;  // values per block of the Hadamard rotation, a power of two; 0: not rotated

  int32_t n_codes() const { return head_dim / format_of(type).codes_per_byte; }
  int32_t n_scales() const { return block == 0 ? 0 : head_dim / block; }
  size_t code_bytes() const {
    return static_cast<size_t>(n_codes()) * size_of(format_of(type).code);
  }
  size_t scale_bytes() const {
    return static_cast<size_t>(n_scales()) * size_of(format_of(type).scale);
  }
};

/// What a caller asks of a RowFormat. `block` 0 is the type's own; `name` is what messages call the type.
struct RowRequest {
  const char* name = "dtype";
  StorageType type = StorageType::f32;
  int32_t head_dim = 0;
  int32_t block = 0;
  bool rotate = false;
};

/// INVALID_ARGUMENT where the type takes no such dimension, block or rotation. The message names types that do.
Status resolve_row_format(const RowRequest& request, RowFormat* format);

/// Rows of bytes, [n_heads][n_cells]: the codes of a slab, or its scales.
struct Plane {
  std::byte* data = nullptr;
  size_t head_stride = 0;  // bytes from one head to the next
  size_t row_stride = 0;   // bytes from one cell to the next
  size_t row_bytes = 0;    // of a row, at most row_stride; 0: there are none

  std::byte* head(int32_t index) const { return data + static_cast<size_t>(index) * head_stride; }
  std::byte* row(int32_t head_index, int32_t cell) const {
    return head(head_index) + static_cast<size_t>(cell) * row_stride;
  }
};

/// A row of a slab.
struct StoredRow {
  std::byte* codes = nullptr;
  std::byte* scales = nullptr;  // null where none is stored
  float scale = 1;              // f8: what codes are multiplied with
};

/// One layer's K, or its V.
struct Slab {
  Plane codes;
  Plane scales;
  const float* head_scale = nullptr;  // [n_heads] f8: what codes are multiplied with; null: 1
  int32_t n_heads = 0;
  int32_t n_cells = 0;
  RowFormat format;

  int32_t head_dim() const { return format.head_dim; }
  StorageType type() const { return format.type; }
  std::byte* row(int32_t head, int32_t cell) const { return codes.row(head, cell); }
  float scale_of(int32_t head) const { return head_scale == nullptr ? 1.0f : head_scale[head]; }
  StoredRow stored(int32_t head, int32_t cell) const {
    return {row(head, cell), format.block == 0 ? nullptr : scales.row(head, cell), scale_of(head)};
  }
  /// From cell `first` on.
  Slab from_cell(int32_t first) const;

  /// Codes of cells [first_cell, first_cell + n) as [n, n_heads, n_codes].
  Tensor view(int32_t first_cell, int64_t n) const;
  /// Their scales as [n, n_heads, n_scales]; without data where none is stored.
  Tensor scale_view(int32_t first_cell, int64_t n) const;
};

/// Where one layer's keys and values lie.
struct LayerStorage {
  Slab k;
  Slab v;
  bool v_in_k = false;  // v's rows are parts of k's rows: nothing writes them on their own
};

}  // namespace kvc
