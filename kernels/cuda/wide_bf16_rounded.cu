#include "kernels/cuda/wide_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* wide_bf16_rounded_kernel(int32_t head_dim) {
  return wide_instance_of<Bf16, 1>(head_dim);
}

}  // namespace kvc::cuda
