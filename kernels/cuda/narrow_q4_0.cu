#include "kernels/cuda/narrow_codes_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_q4_0_kernel(int32_t head_dim) {
  return narrow_codes_instance_of<StorageType::q4_0>(head_dim);
}

}  // namespace kvc::cuda
