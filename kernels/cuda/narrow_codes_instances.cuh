#pragma once
#include "kernels/cuda/narrow_codes.cuh"
#include "kernels/cuda/narrow_instances.cuh"

namespace kvc::cuda {

template <StorageType type, int dim>
const AttentionKernel* narrow_codes_instance(int32_t columns, const char* name) {
  using Keys = CodedKeys<type, dim>;
  return columns == tile_columns ? narrow_instance<Keys, CodedValues<type, dim, 1>>(name)
                                 : narrow_instance<Keys, CodedValues<type, dim, 2>>(name);
}

template <StorageType type>
const AttentionKernel* narrow_codes_instance_of(int32_t head_dim, int32_t columns) {
  switch (head_dim) {
    case 64: return narrow_codes_instance<type, 64>(columns, "narrow_codes_64");
    case 128: return narrow_codes_instance<type, 128>(columns, "narrow_codes_128");
    default: return nullptr;
  }
}

}  // namespace kvc::cuda
