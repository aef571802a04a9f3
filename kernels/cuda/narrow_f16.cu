#include "kernels/cuda/narrow_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_f16_kernel(int32_t head_dim) {
  return narrow_instance_of<F16>(head_dim);
}

}  // namespace kvc::cuda
