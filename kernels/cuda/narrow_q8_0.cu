#include "kernels/cuda/narrow_codes_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_q8_0_kernel(int32_t head_dim, int32_t columns) {
  return narrow_codes_instance_of<StorageType::q8_0>(head_dim, columns);
}

}  // namespace kvc::cuda
