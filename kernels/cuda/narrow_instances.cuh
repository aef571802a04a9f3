#pragma once
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/narrow_numbers.cuh"

namespace kvc::cuda {

template <class Keys, class Values>
const AttentionKernel* narrow_instance(const char* name) {
  using Layout = NarrowLayout<Keys, Values>;
  static const AttentionKernel made = {
      kernel<attend_narrow<Keys, Values>>(name), Layout::threads,
      [](const AttentionArguments&) { return static_cast<size_t>(Layout::bytes); }};
  return &made;
}

/// For tiles of `eights` times eight columns.
template <class T, int DK, int DV, int eights>
const AttentionKernel* narrow_instance(const char* name) {
  return narrow_instance<NumberKeys<T, DK>, NumberValues<T, DV, eights>>(name);
}

template <class T, int eights>
const AttentionKernel* narrow_instance_of(int32_t dim_k, int32_t dim_v) {
  if (dim_k == 192 && dim_v == 128) return narrow_instance<T, 192, 128, eights>("narrow_192_128");
  if (dim_k != dim_v) return nullptr;
  switch (dim_k) {
    case 64: return narrow_instance<T, 64, 64, eights>("narrow_64");
    case 80: return narrow_instance<T, 80, 80, eights>("narrow_80");
    case 96: return narrow_instance<T, 96, 96, eights>("narrow_96");
    case 112: return narrow_instance<T, 112, 112, eights>("narrow_112");
    case 128: return narrow_instance<T, 128, 128, eights>("narrow_128");
    case 192: return narrow_instance<T, 192, 192, eights>("narrow_192");
    case 256:  // sums of sixteen columns are more than there are registers
      if constexpr (eights == 1) return narrow_instance<T, 256, 256, eights>("narrow_256");
      return nullptr;
    default: return nullptr;
  }
}

}  // namespace kvc::cuda
