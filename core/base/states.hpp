#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"

/// Plain structs that say what a copy of states means. The cache fills them in, kernels only read them. Whoever fills them has
/// checked everything; a kernel checks nothing.
namespace kvc {

/// One part of one layer's states: n_elements of every slot, side by side.
struct StatePart {
  std::byte* data = nullptr;  // of slot 0
  size_t slot_bytes = 0;      // from one slot to the next
  int64_t n_elements = 0;
  int32_t n_slots = 0;
  StorageType type = StorageType::f32;
  bool is_pinned = false;  // in Place::pinned, else in the device's memory

  std::byte* slot(int32_t index) const { return data + static_cast<size_t>(index) * slot_bytes; }
  DType element() const { return format_of(type).code; }
  size_t bytes() const { return static_cast<size_t>(n_elements) * size_of(element()); }
};

/// The dims of one state of a part. Their product is n_elements.
struct StateShape {
  int64_t extent[8] = {};
  int32_t ndim = 0;
  int64_t n_elements = 0;
  DType dtype = DType::f32;
};

/// Rows of a tensor beside slots of a part: row i goes to slot[i], or comes from there, converted.
struct StateRows {
  StatePart part;
  const int32_t* slot = nullptr;  // [n_rows]
  int32_t n_rows = 0;
  Tensor row;              // the first row: any shape of part.n_elements elements, any strides
  int64_t row_stride = 0;  // elements from one row to the next
};

/// A convolution state to be made: the last columns of those in slot `from`, followed by the inputs of n_tokens tokens.
struct ConvRow {
  int32_t to = 0;
  int32_t from = 0;
  int32_t first_token = 0;  // in ConvRows::order
  int32_t n_tokens = 0;
};

struct ConvRows {
  StatePart part;  // [n_channels, width]
  int32_t n_channels = 0;
  int32_t width = 0;
  const ConvRow* row = nullptr;  // [n_rows] no `to` is any `from`
  int32_t n_rows = 0;
  const int32_t* order = nullptr;  // tokens as rows of x, sequence by sequence
  Tensor x;                        // [n_tokens, n_channels] f32, f16 or bf16, any strides
};

/// Where a pass reads states and writes them.
struct StatePass {
  const int32_t* read_slot = nullptr;  // [n_sequences]
  int32_t n_sequences = 0;
  const int32_t* row_slot = nullptr;  // [n_rows]
  int32_t n_rows = 0;
  const ConvRow* conv_row = nullptr;  // [n_rows]; null: there is no convolution
  int32_t width = 0;                  // of it
  const int32_t* order = nullptr;     // [n_tokens] as in ConvRows
  int32_t n_tokens = 0;
};

/// Slots whose part becomes a copy of other slots' part, of another cache that is laid out alike or of this one.
struct StateCopies {
  StatePart part;
  const StatePart* source = nullptr;  // null: part
  const int32_t* from = nullptr;      // [n]
  const int32_t* to = nullptr;        // [n] no slot named twice, none of them a `from`
  int32_t n = 0;
};

/// Slots of which n_bytes become zeros.
struct StateClears {
  std::byte* data = nullptr;  // of slot 0
  size_t slot_bytes = 0;
  size_t n_bytes = 0;
  const int32_t* slot = nullptr;  // [n]
  int32_t n = 0;
};

}  // namespace kvc
