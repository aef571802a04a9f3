#include "kernels/cuda/general.cuh"

#include "kernels/cuda/attention_kernels.hpp"

namespace kvc::cuda {

const AttentionKernel& general_codes_kernel() {
  static const AttentionKernel made = {kernel<attend_general<true>>("general_codes"), general_threads,
                                       general_shared_bytes};
  return made;
}

const AttentionKernel& weights_codes_kernel() {
  static const AttentionKernel made = {kernel<write_weights<true>>("weights_codes"), general_threads,
                                       general_shared_bytes};
  return made;
}

}  // namespace kvc::cuda
