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
  // That a multiprocessor has registers for: codes take half as many as numbers, and need as many more on their way.
  static constexpr int blocks = (Keys::dim <= 64    ? 4
                                 : Keys::dim <= 128 ? 3
                                                    : 2) +
                                (Keys::are_codes ? 1 : 0);
  static constexpr int query_floats = Keys::dim + 4;  // of a row, padded against bank conflicts
  static constexpr int row_floats = Values::dim + 4;  // likewise

  static constexpr int fragments_at = item_bytes;
  static constexpr int rotation_at = fragments_at + Keys::steps * 32 * 2 * parts * 4;
  static constexpr int queries_at = rotation_at + Keys::dim * 8;
  // Results take the place of what has been read then.
  static constexpr int rows_at = item_bytes;
  static constexpr int of_warps_at = rows_at + n_warps * tile_columns * row_floats * 4;
  static constexpr int merged_at = of_warps_at + n_warps * tile_columns * 2 * 4;
  static constexpr int flag_at = merged_at + 2 * tile_columns * 4;

  static constexpr int results_end = flag_at + 16;
  static constexpr int queries_end = queries_at + tile_columns * query_floats * 4;
  static constexpr int bytes = results_end > queries_end ? results_end : queries_end;
};

}  // namespace kvc::cuda
