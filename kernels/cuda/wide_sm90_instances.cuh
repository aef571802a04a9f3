#pragma once
#include "kernels/cuda/wide_instances.cuh"
#include "kernels/cuda/wide_sm90.cuh"

namespace kvc::cuda {

/// As wide_shared_bytes().
template <class T, int D, int parts>
size_t wide_sm90_shared_bytes(const AttentionArguments& a) {
  const bool is_exact = a.q.element == a.k.element && a.rope_dims == 0;
  return static_cast<size_t>(WideSm90Layout<D, parts>::bytes(is_exact ? 1 : parts));
}

template <class T, int D, int parts>
const AttentionKernel* wide_sm90_instance(const char* name) {
  using Layout = WideSm90Layout<D, parts>;
  static const AttentionKernel made = {
      kernel<attend_wide_sm90<T, D, parts>>(name), Layout::threads, wide_sm90_shared_bytes<T, D, parts>,
      static_cast<size_t>(Layout::bytes(parts)), Layout::columns, Layout::tokens};
  return &made;
}

template <class T, int parts>
const AttentionKernel* wide_sm90_instance_of(int32_t head_dim) {
  if (head_dim <= 64) return wide_sm90_instance<T, 64, parts>("wide_sm90_64");
  if (head_dim <= 128) return wide_sm90_instance<T, 128, parts>("wide_sm90_128");
  return nullptr;
}

}  // namespace kvc::cuda
