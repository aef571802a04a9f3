#pragma once
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/wide.cuh"

namespace kvc::cuda {

/// 16-bit numbers that add up to one of f32.
template <class T>
inline constexpr int wide_parts = T::has_small_range ? 2 : 3;

/// Queries that are as K is stored, and owe no rotation, take one part.
template <class T, int D, int parts>
size_t wide_shared_bytes(const AttentionArguments& a) {
  const bool is_exact = a.q.element == a.k.element && a.rope_dims == 0;
  return static_cast<size_t>(WideLayout<D>::bytes(is_exact ? 1 : parts));
}

template <class T, int D, int parts>
const AttentionKernel* wide_instance(const char* name) {
  static const AttentionKernel made = {
      kernel<attend_wide<T, D, parts>>(name), WideLayout<D>::threads,
      wide_shared_bytes<T, D, parts>, static_cast<size_t>(WideLayout<D>::bytes(parts)),
      wide_columns};
  return &made;
}

template <class T, int parts>
const AttentionKernel* wide_instance_of(int32_t head_dim) {
  if (head_dim <= 64) return wide_instance<T, 64, parts>("wide_64");
  if (head_dim <= 128) return wide_instance<T, 128, parts>("wide_128");
  if (head_dim <= 256) return wide_instance<T, 256, parts>("wide_256");
  return nullptr;
}

}  // namespace kvc::cuda
