#pragma once
#include <cstdint>

#include "kernels/cuda/runtime.hpp"

/// What the kernels are launched with that bring a pass to the device, and that show which cells it sees. As with rows,
/// everything travels in the parameters.
namespace kvc::cuda {

/// Entries of the token arrays whose cells, and whose positions, follow each other.
struct TokenRun {
  int64_t begin = 0;  // the first of them
  int32_t cell = 0;
  int32_t position = 0;
  int32_t n = 0;
};

inline constexpr int32_t most_runs = 1024;
inline constexpr int32_t run_entries = 1024;  // longer runs are cut, so that all warps have work

struct TokenLaunch {
  int32_t* cell = nullptr;
  int32_t* position = nullptr;
  int32_t n_runs = 0;
  TokenRun run[most_runs];
};

inline constexpr int32_t upload_bytes = 32256;

struct UploadLaunch {
  char* to = nullptr;  // aligned to 16
  int32_t n_bytes = 0;
  alignas(16) char bytes[upload_bytes];
};

/// A mask [tokens, columns]; strides are in elements.
struct MaskView {
  char* data = nullptr;
  int64_t token = 0, column = 0;
  int64_t fold_stride = 0;
  int32_t fold = 0;
  int32_t element_bytes = 0;
  int32_t n_columns = 0;
};

struct MaskFillLaunch {
  MaskView mask;
  uint32_t value = 0;
  int32_t n_tokens = 0;
};

/// What a token sees: the entries [0, first_end) and [begin, end) of a list that lies in up to three pieces.
struct MaskRow {
  int64_t start[3];
  int32_t count[3];
  int32_t first_cell;    // added to every cell that the arrays name
  int32_t first_column;  // the cell of column 0
  int32_t token;
  int32_t first_end, begin, end;
};

inline constexpr int32_t mask_rows = 400;

struct MaskLaunch {
  MaskView mask;
  uint32_t visible = 0;
  const int32_t* cell = nullptr;  // the token array
  const uint64_t* seen = nullptr;  // [tokens][seen_words] a bit per cell of the list; null: the rows name no more than is seen
  int64_t seen_words = 0;
  int32_t n_rows = 0;
  MaskRow row[mask_rows];
};

Kernel tokens_kernel() noexcept;
Kernel upload_kernel() noexcept;
Kernel mask_fill_kernel() noexcept;
Kernel mask_kernel() noexcept;

}  // namespace kvc::cuda
