#pragma once
#include "kernels/cuda/kernel.cuh"

/// Work that is handed out to warps, however many there are.
namespace kvc::cuda {

struct Lane {
  int lane, warp, n_warps;  // warps of the whole grid
};
KVC_DEVICE Lane this_lane() {
  const int per_block = n_threads() / warp_lanes;
  return {thread_index() % warp_lanes, block_index() * per_block + thread_index() / warp_lanes,
          n_blocks() * per_block};
}

/// Calls per_row(index, head, lane) for the rows of this warp. A head's rows follow each other.
template <class PerRow>
KVC_DEVICE void for_rows(int n_rows, int n_heads, PerRow per_row) {
  const Lane here = this_lane();
  for (int64_t item = here.warp; item < int64_t{n_rows} * n_heads; item += here.n_warps)
    per_row(static_cast<int>(item % n_rows), static_cast<int>(item / n_rows), here.lane);
}

}  // namespace kvc::cuda
