#include "kernels/cuda/wide_sm90_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* wide_sm90_f16_rounded_kernel(int32_t head_dim) {
  return wide_sm90_instance_of<F16, 1>(head_dim);
}

}  // namespace kvc::cuda
