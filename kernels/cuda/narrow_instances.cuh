#pragma once
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/narrow.cuh"

namespace kvc::cuda {

template <class T, int D>
const AttentionKernel* narrow_instance(const char* name) {
  using Layout = NarrowLayout<D, T::has_small_range>;
  static const AttentionKernel made = {
      kernel<attend_narrow<T, D>>(name), Layout::threads,
      [](const AttentionArguments&) { return static_cast<size_t>(Layout::bytes); }};
  return &made;
}

template <class T>
const AttentionKernel* narrow_instance_of(int32_t head_dim) {
  switch (head_dim) {
    case 64: return narrow_instance<T, 64>("narrow_64");
    case 128: return narrow_instance<T, 128>("narrow_128");
    case 256: return narrow_instance<T, 256>("narrow_256");
    default: return nullptr;
  }
}

}  // namespace kvc::cuda
