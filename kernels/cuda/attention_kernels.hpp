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
  int32_t columns = 0;          // of the tiles that it serves
  int32_t box_rows = 0;  // its parameters are MappedArguments with such boxes; 0: AttentionArguments
};

/// What a kernel is told that copies rows of consecutive cells at once. The maps are those of the cache's memory, so they are right for
/// each pass that a graph replays.
struct MappedArguments {
  AttentionArguments call;
  RowMap k, v;
};
Error map_rows(const AttentionArguments& a, int32_t box_rows, MappedArguments* out);

/// On the current device.
Error launch(const AttentionKernel& what, const AttentionArguments& a, uint32_t blocks, Stream stream);

/// What kernels may use of a device.
struct Abilities {
  size_t shared_bytes_max = 0;  // that a block may ask for
  bool is_sm90 = false;         // of compute capability 9.0
};

/// The fastest that can serve the narrow tiles of the call.
const AttentionKernel& narrow_kernel_for(const AttentionArguments& a);
/// The one that serves medium tiles. Null: the call has none.
const AttentionKernel* medium_kernel_for(const AttentionArguments& a);
/// The one that serves wide tiles on such a device. Null: the call has none.
const AttentionKernel* wide_kernel_for(const AttentionArguments& a, const Abilities& abilities);
/// The same of a width that the call has.
const AttentionKernel& kernel_for(const AttentionArguments& a, Width width,
                                  const Abilities& abilities);
/// What writes the weights of the call.
const AttentionKernel& weights_kernel_for(const AttentionArguments& a);
/// To be called once on a device, the current one: allows kernels the shared memory that they need.
Error prepare_kernels(const Abilities& abilities);

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
// Of medium tiles.
const AttentionKernel* narrow_16_bf16_kernel(int32_t dim_k, int32_t dim_v);
const AttentionKernel* narrow_16_f16_kernel(int32_t dim_k, int32_t dim_v);
/// Of codes, where K and V have one type and one head dimension, in tiles of 8 columns or 16; of nf4 in blocks of 64.
const AttentionKernel* narrow_q8_0_kernel(int32_t head_dim, int32_t columns);
const AttentionKernel* narrow_int8_kernel(int32_t head_dim, int32_t columns);
const AttentionKernel* narrow_q4_0_kernel(int32_t head_dim, int32_t columns);
const AttentionKernel* narrow_nf4_kernel(int32_t head_dim, int32_t columns);
const AttentionKernel* narrow_f8_e4m3_kernel(int32_t head_dim, int32_t columns);
const AttentionKernel* narrow_f8_e5m2_kernel(int32_t head_dim, int32_t columns);
/// Null where there is none for head dimensions that are so large. Rounded: factors are.
const AttentionKernel* wide_bf16_kernel(int32_t head_dim);
const AttentionKernel* wide_bf16_rounded_kernel(int32_t head_dim);
const AttentionKernel* wide_f16_kernel(int32_t head_dim);
const AttentionKernel* wide_f16_rounded_kernel(int32_t head_dim);
// The same for devices of compute capability 9.0.
const AttentionKernel* wide_sm90_bf16_kernel(int32_t head_dim);
const AttentionKernel* wide_sm90_bf16_rounded_kernel(int32_t head_dim);
const AttentionKernel* wide_sm90_f16_kernel(int32_t head_dim);
const AttentionKernel* wide_sm90_f16_rounded_kernel(int32_t head_dim);

}  // namespace kvc::cuda
