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
  i32 = 0 | 32 << 8 | 1 << 16,  // of attention masks alone
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
  // Of a batch of rows whose tokens are no evenly spaced list: the dimension of tokens counts through rows of `fold` tokens,
  // which lie fold_stride elements apart. 0: it is one list.
  int32_t fold = 0;
  int64_t fold_stride = 0;

  bool is_empty() const {
    return std::any_of(shape, shape + ndim, [](int64_t extent) { return extent == 0; });
  }

  /// The first element along the first dimension, which goes.
  Tensor first_of_all() const {
    Tensor rest = *this;
    --rest.ndim;
    for (int32_t d = 0; d < rest.ndim; ++d) {
      rest.shape[d] = shape[d + 1];
      rest.stride[d] = stride[d + 1];
    }
    return rest;
  }

  /// Elements from the first token to another; `dim` is the dimension of tokens.
  int64_t token_offset(int64_t token, int32_t dim = 0) const {
    if (fold == 0) return token * stride[dim];
    return token / fold * fold_stride + token % fold * stride[dim];
  }

  /// The same tensor from row `row` of its first dimension on; without data it stays as it is.
  Tensor from_row(int64_t row) const {
    Tensor rest = *this;
    if (data != nullptr)
      rest.data = static_cast<std::byte*>(data) +
                  row * stride[0] * static_cast<int64_t>(size_of(dtype));
    return rest;
  }
  /// Bytes from the first element to the last.
  int64_t span_bytes() const {
    int64_t last = ndim > 0 ? token_offset(shape[0] - 1) : 0;
    for (int32_t d = 1; d < ndim; ++d) last += (shape[d] - 1) * stride[d];
    return (last + 1) * static_cast<int64_t>(size_of(dtype));
  }
};

/// Whether the spans of two tensors meet. One that is folded has its tokens in the first dimension.
inline bool overlap(const Tensor& a, const Tensor& b) {
  if (a.is_empty() || b.is_empty()) return false;
  const auto* a_begin = static_cast<const std::byte*>(a.data);
  const auto* b_begin = static_cast<const std::byte*>(b.data);
  return a_begin < b_begin + b.span_bytes() && b_begin < a_begin + a.span_bytes();
}

}  // namespace kvc
