#pragma once
#include "kernels/cuda/schedule.hpp"

namespace kvc::cuda {

/// Numbers that host and kernels agree on: groups of warps, steps, and where things lie in a block's shared memory. K, V and
/// queries lie there in planes of 64 dims, lines of 128 bytes, as matrix_at() wants them.
template <int D, int parts>
struct WideSm90Layout {
  static constexpr int group_threads = 128;  // four warps
  static constexpr int group_columns = 64;   // of one that multiplies
  static constexpr int multiplying = 2 * group_threads;
  static constexpr int threads = multiplying + group_threads;  // the last group copies
  static constexpr int columns = 2 * group_columns;
  // As many in all as the threads have at first, 168 each. Copying takes few.
  static constexpr int registers_to_copy = 40, registers_to_multiply = 232;

  static constexpr int tokens = 64;  // of a step
  static constexpr int n_planes = D / 64;
  static constexpr int plane_bytes = tokens * 128;
  static constexpr int side_bytes = n_planes * plane_bytes;  // K of a step, or V
  static constexpr int n_stages = 3;  // steps: one is weighed, the keys of one are multiplied, one is on its way
  static constexpr int query_plane_bytes = group_columns * 128;
  static constexpr int part_bytes = 2 * n_planes * query_plane_bytes;  // of the queries of both groups
  static constexpr int row_floats = D + 4;  // padded against bank conflicts

  static constexpr int barriers_at = item_bytes_of(columns);
  static constexpr int notes_at = barriers_at + 2 * n_stages * 8;
  static constexpr int merged_at = notes_at + n_stages * tokens * 2 * 4;
  static constexpr int flag_at = merged_at + 2 * columns * 4;
  static constexpr int rotations_at = flag_at + 16;  // a table of each group
  static constexpr int stages_at = (rotations_at + 2 * D * 8 + 1023) / 1024 * 1024;
  static constexpr int queries_at = stages_at + n_stages * 2 * side_bytes;
  // Taken in turns with what is read while nothing of it is needed.
  static constexpr int rows_at = stages_at;

  static constexpr int bytes(int query_parts) { return queries_at + query_parts * part_bytes; }

  static_assert(columns <= wide_columns_max && rotations_at % 16 == 0);
  static_assert(group_threads * registers_to_copy + multiplying * registers_to_multiply ==
                168 * threads);
  static_assert(rows_at + columns * row_floats * 4 <= bytes(1));
  static_assert(bytes(parts) <= 227 << 10);  // what sm_90 gives a block
};

}  // namespace kvc::cuda
