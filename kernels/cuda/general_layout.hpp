#pragma once
#include <cstdint>

#include "kernels/cuda/schedule.hpp"

namespace kvc::cuda {

inline constexpr int general_threads = 128;
inline constexpr int general_chunk = 16;  // dimensions that are summed at a time, so that chains of additions stay short

KVC_BOTH constexpr int padded_dim(int dim) {
  return (dim + general_chunk - 1) / general_chunk * general_chunk;
}

/// Shared memory of a block.
struct GeneralLayout {
  int32_t dim_k, dim_v, rope_dims;

  KVC_BOTH constexpr int queries() const { return item_bytes; }
  KVC_BOTH constexpr int scores() const { return queries() + padded_dim(dim_k) * tile_columns * 4; }
  KVC_BOTH constexpr int sums() const { return scores() + general_threads * tile_columns * 4; }
  KVC_BOTH constexpr int cells() const { return sums() + dim_v * tile_columns * 4; }
  KVC_BOTH constexpr int weights() const { return cells() + general_threads * 4; }
  KVC_BOTH constexpr int rotation() const { return weights() + 3 * tile_columns * 4 + 32; }
  KVC_BOTH constexpr int bytes() const { return rotation() + rope_dims * 8; }
};

}  // namespace kvc::cuda
