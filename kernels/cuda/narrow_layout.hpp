#pragma once
#include "kernels/cuda/schedule.hpp"

namespace kvc::cuda {

/// Numbers that host and kernels agree on: parts, warps, and where things lie in a block's shared memory. `scaled`: of f16, which
/// has 11 bits where bf16 has 8.
template <int DK, int DV, bool scaled>
struct NarrowLayout {
  static constexpr int parts = scaled ? 2 : 3;  // 16-bit numbers that add up to one of f32
  static constexpr int n_warps = 4;
  static constexpr int threads = 32 * n_warps;
  static constexpr int blocks = DK <= 64    ? 4
                                : DK <= 128 ? 3
                                            : 2;  // that a multiprocessor has registers for
  static constexpr int row_floats = DV + 4;       // padded against bank conflicts

  static constexpr int fragments_at = item_bytes;
  static constexpr int rotation_at = fragments_at + DK / 16 * 32 * 2 * parts * 4;
  // Results take the place of what has been read then.
  static constexpr int rows_at = item_bytes;
  static constexpr int of_warps_at = rows_at + n_warps * tile_columns * row_floats * 4;
  static constexpr int merged_at = of_warps_at + n_warps * tile_columns * 2 * 4;
  static constexpr int flag_at = merged_at + 2 * tile_columns * 4;

  static constexpr int results_end = flag_at + 16;
  static constexpr int queries_end = rotation_at + DK * 8;
  static constexpr int bytes = results_end > queries_end ? results_end : queries_end;
};

}  // namespace kvc::cuda
