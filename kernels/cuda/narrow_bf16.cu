#include "kernels/cuda/narrow_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_bf16_kernel(int32_t dim_k, int32_t dim_v) {
  return narrow_instance_of<Bf16, 1>(dim_k, dim_v);
}

}  // namespace kvc::cuda
