#include "kernels/cuda/general.cuh"

#include "kernels/cuda/attention_kernels.hpp"

namespace kvc::cuda {

const AttentionKernel& general_kernel() {
  static const AttentionKernel made = {kernel<attend_general<false>>("general"), general_threads,
                                       general_shared_bytes};
  return made;
}

const AttentionKernel& weights_kernel() {
  static const AttentionKernel made = {kernel<write_weights<false>>("weights"), general_threads,
                                       general_shared_bytes};
  return made;
}

}  // namespace kvc::cuda
