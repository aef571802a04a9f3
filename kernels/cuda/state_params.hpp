#pragma once
#include <cstdint>

#include "kernels/cuda/element.hpp"
#include "kernels/cuda/runtime.hpp"

namespace kvc {
class Carver;
}

/// What the kernels of states are launched with. As with rows, slots and tokens travel in the parameters, and a call with more of
/// them is several launches. Warps serve stretches of elements, so a state may be small or large.
namespace kvc::cuda {

inline constexpr int32_t launch_slots = 256;
inline constexpr int64_t stretch_elements = 1024, stretch_bytes = 4096;

/// A part of one layer's states: its elements in slot 0, and the bytes to the next slot.
struct SlotsView {
  char* data = nullptr;
  int64_t slot_bytes = 0;
  Element element = Element::f32;
};

/// One row of a tensor in the fewest dimensions, and where the next one begins; strides are in elements.
struct StateView {
  char* data = nullptr;
  int64_t row = 0;
  int64_t extent[8] = {}, stride[8] = {};
  int32_t ndim = 0;
  Element element = Element::f32;
};

/// Columns [first, first + n) of a convolution state. Column c is column c + n_tokens of the state before, or else an input: that of
/// ConvLaunch::token[tokens + c].
struct ConvPiece {
  int32_t to, from;  // slots
  int32_t first, n;
  int32_t n_tokens;
  int32_t tokens;
};

/// What the launches of a graph read of a pass, instead of their parameters. All are addresses in device memory.
struct PlannedStates {
  int32_t* n = nullptr;          // sequences, and rows
  int32_t* read_slot = nullptr;  // [sequences]
  int32_t* row_slot = nullptr;   // [rows]
  int32_t* order = nullptr;      // [tokens] what pieces name
  ConvPiece* piece = nullptr;    // [rows] whole ones

  /// For `most` of each.
  void carve(int32_t most, Carver& carver);
};

/// Slots beside rows of a tensor.
struct StateRowsLaunch {
  SlotsView slots;
  StateView rows;
  int64_t n_elements = 0;
  int32_t first_row = 0;  // of the tensor
  int32_t loads = 0;      // from slots, else it stores into them
  int32_t n_slots = 0;
  // Where a graph launches: how many slots there are, n_slots at most, and which. slot[] is not read.
  const int32_t* planned_n = nullptr;
  const int32_t* planned_slot = nullptr;
  int32_t slot[launch_slots];
};

inline constexpr int32_t launch_tokens = 2048;

struct ConvLaunch {
  SlotsView slots;
  char* x = nullptr;  // [tokens, channels]; strides are in elements
  int64_t token_stride = 0, channel_stride = 0;
  Element x_element = Element::f32;
  int32_t n_channels = 0;
  int32_t width = 0;
  int32_t most_columns = 0;  // of a piece
  int32_t n_pieces = 0;
  PlannedStates planned;  // where a graph launches: of pieces there are n_pieces at most. piece[] and token[] are not read
  ConvPiece piece[launch_slots];
  int32_t token[launch_tokens];
};

/// Slots that become copies of other ones.
struct StateCopyLaunch {
  SlotsView to, from;
  int64_t n_bytes = 0;
  int32_t n = 0;
  int32_t from_slot[launch_slots], to_slot[launch_slots];
};

struct StateClearLaunch {
  SlotsView slots;
  int64_t n_bytes = 0;
  int32_t n = 0;
  int32_t slot[launch_slots];
};

Kernel state_rows_kernel() noexcept;
Kernel conv_kernel() noexcept;
Kernel state_copy_kernel() noexcept;
Kernel state_clear_kernel() noexcept;

}  // namespace kvc::cuda
