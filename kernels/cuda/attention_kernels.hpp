#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/runtime.hpp"

/// Which attention kernels there are, and which of them serves a call.
namespace kvc::cuda {

struct AttentionKernel {
  Kernel kernel;
  uint32_t threads = 0;  // of a block
  size_t (*shared_bytes)(const AttentionArguments& a) = nullptr;
};

/// The fastest that can serve the call.
const AttentionKernel& kernel_for(const AttentionArguments& a);

// By file: each is compiled for itself.
const AttentionKernel& general_kernel();
const AttentionKernel& weights_kernel();
/// Null where there is none for these head dimensions.
const AttentionKernel* narrow_bf16_kernel(int32_t dim_k, int32_t dim_v);
const AttentionKernel* narrow_f16_kernel(int32_t dim_k, int32_t dim_v);

}  // namespace kvc::cuda
