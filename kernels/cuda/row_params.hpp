#pragma once
#include <cstdint>

#include "kernels/cuda/element.hpp"
#include "kernels/cuda/runtime.hpp"

/// What the kernels of rows are launched with. Cells and what else the host knows of them travel in the parameters: nothing has
/// to be copied before, and nothing has to stay. A call with more of them is several launches.
namespace kvc::cuda {

/// Rows of a slab's codes, or of its scales: [n_heads][cells].
struct PlaneView {
  char* data = nullptr;
  int64_t head_stride = 0;  // bytes, and so is row_stride
  int64_t row_stride = 0;
  int32_t n_heads = 0;  // 0: there are none
  int32_t row_bytes = 0;
  int32_t dim = 0;  // elements of a row
  Element element = Element::f32;
};

/// A tensor [rows, heads, dim]; strides are in elements.
struct RowsView {
  char* data = nullptr;
  int64_t row = 0, head = 0, dim = 0;
  int64_t fold_stride = 0;  // from row to row of a batch, where `fold` is not 0: so many tokens have each
  int32_t fold = 0;
  Element element = Element::f32;
};

/// What a layer stores: codes and scales of K and of V.
struct Planes {
  PlaneView plane[4];
  int32_t n = 0;
  int32_t n_heads = 0;  // of the plane that has most
};

/// A plane, and rows of its elements.
struct SideView {
  PlaneView plane;  // n_heads 0: left out
  RowsView rows;
};

/// Which dimensions keys are turned in, and which of their pairs a launch turns.
struct TurnView {
  int32_t first_dim = 0, n_dims = 0;
  int32_t halves = 0;  // pairs are (i, i + n_dims / 2), else (2i, 2i + 1)
  int32_t first_pair = 0, n_pairs = 0;
};

inline constexpr int32_t few_cells = 256, many_cells = 7680;

/// What the puts of a graph read: at [0] how many cells the pass has, and the cells from here on.
inline constexpr int32_t planned_cells = 4;

template <int32_t n>
struct StoreLaunch {
  SideView side[4];
  int32_t n_sides = 0;
  int32_t n_heads = 0;    // of the side that has most
  int32_t first_row = 0;  // of the tensors
  int32_t n_cells = 0;
  const int32_t* planned = nullptr;  // where a graph launches: its cells, n_cells at most; cell[] is not read
  int32_t cell[n];                   // −1: the row is not read
};

template <int32_t n>
struct ClearLaunch {
  Planes planes;
  int32_t n_cells = 0;
  int32_t cell[n];  // −1: none
};

inline constexpr int32_t turned_cells = 1024, turn_floats = 3072;

/// Tokens whose keys a launch turns, each by a table of its own or one that it shares: n_pairs cosines, then n_pairs sines.
struct LoadedTokens {
  TurnView turn;
  int32_t n_cells = 0;
  /// Whether the launch writes what no table turns. Keys with more pairs than a table holds take several launches.
  int32_t writes_rest = 1;
  int32_t cell[turned_cells];   // −1: zeros
  int32_t row[turned_cells];    // of the tensors
  int16_t table[turned_cells];  // −1: the key is not turned
  float tables[turn_floats];
};

struct LoadLaunch {
  SideView k, v;
  LoadedTokens tokens;
};

/// Keys that are turned where they are.
struct TurnLaunch {
  PlaneView k;
  TurnView turn;
  int32_t n_cells = 0;
  int32_t cell[turned_cells];
  int16_t table[turned_cells];
  float tables[turn_floats];
};

inline constexpr int32_t copied_cells = 256;

/// Cells that are copied within a layer. None of `to` is also one of `from`.
struct MoveLaunch {
  Planes planes;
  int32_t n_cells = 0;
  int32_t from[copied_cells], to[copied_cells];
};

inline constexpr int32_t copied_stretches = 256;

/// Stretches of cells that are copied, or exchanged, between layers that store in the same way.
struct CopyLaunch {
  Planes source, target;
  int32_t exchanges = 0;
  int32_t n_stretches = 0;
  int32_t n_cells = 0;  // of all stretches
  int32_t from[copied_stretches], to[copied_stretches];
  int32_t first[copied_stretches];  // cells of the stretches before
};

/// Stored bytes of rows of one head, from cells to where they lie close together, or back.
struct RawLaunch {
  char* rows = nullptr;  // of the head; the first byte that is wanted of cell 0
  int64_t row_stride = 0;
  char* packed = nullptr;  // [n_cells][n_bytes]
  int32_t n_bytes = 0;
  int32_t packs = 0;  // else it unpacks
  int32_t n_cells = 0;
  int32_t cell[many_cells];
};

// Warps of such a launch serve a row each, of all heads.
Kernel store_few_kernel() noexcept;
Kernel store_many_kernel() noexcept;
Kernel clear_few_kernel() noexcept;
Kernel clear_many_kernel() noexcept;
Kernel load_kernel() noexcept;
Kernel turn_kernel() noexcept;
Kernel move_kernel() noexcept;
Kernel copy_kernel() noexcept;
Kernel raw_kernel() noexcept;

}  // namespace kvc::cuda
