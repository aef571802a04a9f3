#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/runtime.hpp"

namespace kvc::cuda {

/// Where the launches of a cache go.
struct Launcher {
  Stream stream = nullptr;
  int32_t most_blocks = 1;  // of a launch: as many as the device works on at a time

  /// A warp for each of so many rows, or for several of them, with `warp_bytes` of shared memory each.
  Error launch_rows(const Kernel& kernel, int64_t n_rows, const void* params,
                    size_t warp_bytes = 0) const {
    constexpr int64_t block_rows = 4;
    const int64_t wanted = (n_rows + block_rows - 1) / block_rows;
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>(wanted, most_blocks));
    if (blocks == 0) return Error::none;
    const auto warps = static_cast<uint32_t>(std::min(n_rows, block_rows));
    return runtime::launch(kernel, {blocks, warps * 32, warps * warp_bytes}, params, stream);
  }
};

}  // namespace kvc::cuda
