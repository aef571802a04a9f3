#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace kvc {

/// Element types of tensors by their DLPack number: code | bits << 8 | lanes << 16.
enum class DType : uint32_t {
  f32 = 2 | 32 << 8 | 1 << 16,
  f16 = 2 | 16 << 8 | 1 << 16,
  bf16 = 4 | 16 << 8 | 1 << 16,
  boolean = 6 | 8 << 8 | 1 << 16,
  // Of codes alone.
  i8 = 0 | 8 << 8 | 1 << 16,
  u8 = 1 | 8 << 8 | 1 << 16,
  f8_e4m3 = 10 | 8 << 8 | 1 << 16,
  f8_e5m2 = 12 | 8 << 8 | 1 << 16,
};

/// Bytes of an element.
constexpr size_t size_of(DType dtype) { return (static_cast<uint32_t>(dtype) >> 8 & 0xff) / 8; }

/// A strided view of at most eight dimensions. The boundary has checked it: data is not null, aligned to its element,
/// shape and strides (in elements) describe memory that the caller named.
struct Tensor {
  void* data = nullptr;
  int64_t shape[8] = {};
  int64_t stride[8] = {};
  int32_t ndim = 0;
  DType dtype = DType::f32;

  bool is_empty() const {
    return std::any_of(shape, shape + ndim, [](int64_t extent) { return extent == 0; });
  }

  /// The same tensor from row `row` of its first dimension on; without data it stays as it is.
  Tensor from_row(int64_t row) const {
    Tensor rest = *this;
    if (data != nullptr)
      rest.data = static_cast<std::byte*>(data) +
                  row * stride[0] * static_cast<int64_t>(size_of(dtype));
    return rest;
  }
};

}  // namespace kvc
