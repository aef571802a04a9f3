#include "kernels/cuda/general.cuh"

#include "kernels/cuda/attention_kernels.hpp"

namespace kvc::cuda {
namespace {

size_t shared_bytes(const AttentionArguments& a) {
  return static_cast<size_t>(GeneralLayout{a.k.dim, a.v.dim, a.rope_dims}.bytes());
}

}  // namespace

const AttentionKernel& general_kernel() {
  static const AttentionKernel made = {kernel<attend_general>("general"), general_threads,
                                       shared_bytes};
  return made;
}

const AttentionKernel& weights_kernel() {
  static const AttentionKernel made = {kernel<write_weights>("weights"), general_threads,
                                       shared_bytes};
  return made;
}

}  // namespace kvc::cuda
