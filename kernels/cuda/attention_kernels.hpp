#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/general_layout.hpp"
#include "kernels/cuda/runtime.hpp"

/// Which attention kernels there are, and which of them serves a call.
namespace kvc::cuda {

struct AttentionKernel {
  Kernel kernel;
  uint32_t threads = 0;  // of a block
  size_t (*shared_bytes)(const AttentionArguments& a) = nullptr;
  size_t shared_bytes_max = 0;  // of any call
};

/// The fastest that can serve the narrow tiles of the call.
const AttentionKernel& kernel_for(const AttentionArguments& a);
/// The one that serves wide tiles, on a device whose blocks may have so much shared memory. Null: the call has none.
const AttentionKernel* wide_kernel_for(const AttentionArguments& a, size_t shared_bytes_max);
/// What writes the weights of the call.
const AttentionKernel& weights_kernel_for(const AttentionArguments& a);
/// To be called once on a device, the current one: allows kernels the shared memory that they need.
Error prepare_kernels(size_t shared_bytes_max);

/// Loads the kernels of calls under these bounds, on the current device.
Error load_kernels(const AttentionBounds& bounds);

inline size_t general_shared_bytes(const AttentionArguments& a) {
  return static_cast<size_t>(GeneralLayout{a.k.dim, a.v.dim, a.rope_dims}.bytes());
}

// By file: each is compiled for itself.
const AttentionKernel& general_kernel();
const AttentionKernel& weights_kernel();
// Of K or V that are codes.
const AttentionKernel& general_codes_kernel();
const AttentionKernel& weights_codes_kernel();
/// Null where there is none for these head dimensions.
const AttentionKernel* narrow_bf16_kernel(int32_t dim_k, int32_t dim_v);
const AttentionKernel* narrow_f16_kernel(int32_t dim_k, int32_t dim_v);
/// The same of codes, where K and V have one type and one head dimension; of nf4 in blocks of 64.
const AttentionKernel* narrow_q8_0_kernel(int32_t head_dim);
const AttentionKernel* narrow_int8_kernel(int32_t head_dim);
const AttentionKernel* narrow_q4_0_kernel(int32_t head_dim);
const AttentionKernel* narrow_nf4_kernel(int32_t head_dim);
const AttentionKernel* narrow_f8_e4m3_kernel(int32_t head_dim);
const AttentionKernel* narrow_f8_e5m2_kernel(int32_t head_dim);
/// Null where there is none for head dimensions that are so large. Rounded: factors are.
const AttentionKernel* wide_bf16_kernel(int32_t head_dim);
const AttentionKernel* wide_bf16_rounded_kernel(int32_t head_dim);
const AttentionKernel* wide_f16_kernel(int32_t head_dim);
const AttentionKernel* wide_f16_rounded_kernel(int32_t head_dim);

}  // namespace kvc::cuda
