#pragma once
#include <cstdint>

#include "kernels/cuda/runtime.hpp"

/// Kernels that do nothing but what limits the others.
namespace bench_cuda {

struct ReadParams {
  const void* from;  // aligned to 16
  uint64_t bytes;    // a multiple of 16
  uint32_t* sink;
};
struct CopyParams {
  const void* from;
  void* to;
  uint64_t bytes;
};
struct MultiplyParams {
  uint32_t* sink;
  int32_t n_rounds;  // of multiply_chains products of 16 × 16 by 16 × 8, for each warp
};

inline constexpr int multiply_chains = 8;

kvc::cuda::Kernel read_kernel() noexcept;
kvc::cuda::Kernel copy_kernel() noexcept;
kvc::cuda::Kernel multiply_kernel() noexcept;

}  // namespace bench_cuda
