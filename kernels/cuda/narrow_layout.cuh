#pragma once
#include "kernels/cuda/narrow_factors.cuh"
#include "kernels/cuda/schedule.hpp"

namespace kvc::cuda {

/// Numbers that host and kernels agree on: warps, and where things lie in a block's shared memory.
template <class Keys, class Values>
struct NarrowLayout {
  static constexpr int parts = parts_of<typename Keys::Factor>;
  static constexpr int n_warps = 4;
  static constexpr int threads = 32 * n_warps;
  static constexpr int eights = Values::eights;  // of columns
  static constexpr int columns = eights * tile_columns;
  // That a multiprocessor has registers for. Codes take half as many as numbers, and need as many more on their way. Sums of sixteen
  // columns take as many again as those of eight.
  static constexpr int more_of_codes = Keys::are_codes ? 1 : 0;
  static constexpr int blocks = eights > 1 ? (Keys::dim <= 64 ? 3 + more_of_codes : 2)
                                           : (Keys::dim <= 64    ? 4
                                              : Keys::dim <= 128 ? 3
                                                                 : 2) +
                                                 more_of_codes;
  static constexpr int query_floats = Keys::dim + 4;  // of a row, padded against bank conflicts
  static constexpr int row_floats = Values::dim + 4;  // likewise

  static constexpr int fragments_at = item_bytes_of(columns);
  static constexpr int rotation_at = fragments_at + eights * Keys::steps * 32 * 2 * parts * 4;
  static constexpr int queries_at = rotation_at + Keys::dim * 8;
  // Results take the place of what has been read then. Those of eight columns lie behind those of the eight before.
  static constexpr int n_rows = (n_warps + eights - 1) * tile_columns;
  static constexpr int rows_at = item_bytes_of(columns);
  static constexpr int of_warps_at = rows_at + n_rows * row_floats * 4;
  static constexpr int merged_at = of_warps_at + n_rows * 2 * 4;
  static constexpr int flag_at = merged_at + 2 * columns * 4;

  static constexpr int results_end = flag_at + 16;
  static constexpr int queries_end = queries_at + columns * query_floats * 4;
  static constexpr int bytes = results_end > queries_end ? results_end : queries_end;
  static_assert(bytes <= 48 << 10);  // what a block has unasked
};

}  // namespace kvc::cuda
