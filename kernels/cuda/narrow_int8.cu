#include "kernels/cuda/narrow_codes_instances.cuh"

namespace kvc::cuda {

const AttentionKernel* narrow_int8_kernel(int32_t head_dim, int32_t columns) {
  return narrow_codes_instance_of<StorageType::int8>(head_dim, columns);
}

}  // namespace kvc::cuda
