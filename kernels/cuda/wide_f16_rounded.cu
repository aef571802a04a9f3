#include "kernels/cuda/wide_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* wide_f16_rounded_kernel(int32_t head_dim) {
  return wide_instance_of<F16, 1>(head_dim);
}

}  // namespace kvc::cuda
