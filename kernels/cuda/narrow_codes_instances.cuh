#pragma once
#include "kernels/cuda/narrow_codes.cuh"
#include "kernels/cuda/narrow_instances.cuh"

namespace kvc::cuda {

template <StorageType type>
const AttentionKernel* narrow_codes_instance_of(int32_t head_dim) {
  switch (head_dim) {
    case 64: return narrow_instance<CodedKeys<type, 64>, CodedValues<type, 64>>("narrow_codes_64");
    case 128: return narrow_instance<CodedKeys<type, 128>, CodedValues<type, 128>>("narrow_codes_128");
    default: return nullptr;
  }
}

}  // namespace kvc::cuda
