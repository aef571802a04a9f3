#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"

/// The seam between the attention driver (attention.cpp) and the kernels compiled once per
/// instruction set.
///
/// A tile is some query rows of one KV head and a stretch of one sequence's tokens. The driver
/// passes queries in f32 and the numbers of cells; the kernel reads K and V from the cells and
/// updates the online softmax in (max, sum, o). Several tiles may follow one another over the same
/// state.
namespace kvc::cpu {

/// The cells of a tile that are visible to the rows of one token: indexes [0, first_end) and
/// [begin, end).
struct TileToken {
  int32_t first_end = 0;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t position = 0;
};

/// Where the rows of one KV head lie: the codes of cell c at codes + c · stride, its scales at scales + c · scale_stride. K and V
/// have a list of cells each, because the driver may put keys elsewhere, turned, while values stay where they are. What is
/// stored rotated meets queries that the driver has rotated, and a scale that is bound to an f8 head is in the queries or
/// multiplied in at the end: to a kernel a value is its code, or code · stored scale.
struct TileRows {
  const int32_t* cell = nullptr;  // [n_cells] of the tile
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  size_t stride = 0;
  size_t bytes = 0;  // of a row of codes
  size_t scale_stride = 0;
  StorageType type = StorageType::f32;
  int32_t head_dim = 0;
  int32_t block = 0;  // values that share a stored scale; 0: none is stored
};

/// Everything in units of log2: probabilities are 2^(score − max).
struct Tile {
  TileRows k;
  TileRows v;

  const int32_t* position = nullptr;  // [n_cells]; read only with slopes
  int32_t n_cells = 0;

  const float* q = nullptr;  // [n_rows][q_stride] 64-byte aligned; row = token · group + query head of the group
  const TileToken* token = nullptr;  // [n_rows / group]
  int32_t n_rows = 0;
  int32_t group = 0;     // query heads per KV head
  int32_t q_stride = 0;  // floats, k.head_dim rounded up to 16; the padding is zero
  // Cells that follow each other and meet the same queries are a run: those of cell i are at q + run[i] · n_rows · q_stride. Null: all
  // cells meet q. For the narrow kernel over numbers.
  const int32_t* run = nullptr;  // [n_cells] ascending
  // bf16 parts of a query, a key and a probability at most: 3 keeps f32, 2 is more than f16, 1 is bf16. A value has two at least.
  // For kernels that multiply parts.
  int32_t parts = 3;
  float scale = 1;  // scores are multiplied with it first; other than 1 only for kernels that do so (KernelTable)

  // Score of a row and a cell: x = q·k, where q carries scale · log2(e), or with a cap scale, or
  // scale / softcap where that is near enough to scale.
  float cap = 0;  // 0: score = x; else softcap · log2(e), score = cap · tanh(x · cap_inverse)
  float cap_inverse = 1;  // 1 / softcap, or 1 where q carries it
  // Then, with a bias, score += bias · log2(e); −infinity hides the cell from the row, whatever
  // score and value are.
  const float* bias = nullptr;  // [n_cells][bias_stride] row in the column, 64-byte aligned; may be null
  int32_t bias_stride = 0;  // n_rows rounded up to 16
  const float* slope = nullptr;  // [group] ALiBi slopes · log2(e), may be null: score −= slope · |position difference|

  float* max = nullptr;  // [n_rows] −infinity at first; room for n_rows rounded up to 16, 64-byte aligned
  float* sum = nullptr;  // [n_rows] 0 at first; likewise
  float* o = nullptr;  // [n_rows][o_stride] 64-byte aligned, 0 at first: Σ 2^(score − max) · v
  int32_t o_stride = 0;  // floats, v.head_dim rounded up to 16

  std::byte* scratch = nullptr;  // this thread's, tile_scratch_bytes of them, 4096-byte aligned
};

}  // namespace kvc::cpu
