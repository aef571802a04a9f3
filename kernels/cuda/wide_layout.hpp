#pragma once
#include "kernels/cuda/schedule.hpp"

namespace kvc::cuda {

/// Numbers that host and kernels agree on: warps, steps, and where things lie in a block's shared memory.
template <int D>
struct WideLayout {
  static constexpr int n_warps = 4;  // each has 16 columns
  static constexpr int threads = 32 * n_warps;
  static constexpr int tokens = D <= 64 ? 64 : 32;  // of a step
  static constexpr int blocks = D <= 128 ? 2 : 1;   // that a multiprocessor has registers for
  static constexpr int row_bytes = D * 2;
  static constexpr int plane_bytes = tokens * row_bytes;  // K of a step, or V
  static constexpr int n_stages = 2;  // steps: one is multiplied, one is on its way
  static constexpr int n_notes = 3;   // steps whose cells and positions are known: one more
  static constexpr int part_bytes = wide_columns * row_bytes;  // a part of the queries
  static constexpr int row_floats = D + 4;                     // padded against bank conflicts

  static constexpr int notes_at = item_bytes_of(wide_columns);
  static constexpr int stages_at = notes_at + n_notes * tokens * 2 * 4;
  static constexpr int fragments_at = stages_at + n_stages * 2 * plane_bytes;
  // Taken in turns with what is read while nothing of it is needed.
  static constexpr int rotation_at = stages_at;
  static constexpr int rows_at = stages_at;
  static constexpr int merged_at = notes_at;
  static constexpr int flag_at = merged_at + 2 * wide_columns * 4;

  static constexpr int bytes(int query_parts) { return fragments_at + query_parts * part_bytes; }

  static_assert(flag_at + 4 <= stages_at && stages_at % row_bytes == 0);
  static_assert(rows_at + wide_columns * row_floats * 4 <= bytes(1));
  static_assert(rotation_at + D * 8 <= fragments_at);
};

static_assert(WideLayout<256>::bytes(3) <= 163 << 10);  // what sm_80 gives a block

}  // namespace kvc::cuda
