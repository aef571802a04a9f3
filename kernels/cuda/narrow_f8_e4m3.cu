#include "kernels/cuda/narrow_codes_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_f8_e4m3_kernel(int32_t head_dim, int32_t columns) {
  return narrow_codes_instance_of<StorageType::f8_e4m3>(head_dim, columns);
}

}  // namespace kvc::cuda
