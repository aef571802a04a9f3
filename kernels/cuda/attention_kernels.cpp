#include "kernels/cuda/attention_kernels.hpp"

#include <algorithm>

namespace kvc::cuda {
namespace {

/// Rows that lie on 16 bytes, which is what kernels with tensor cores load at a time.
bool is_aligned(const Numbers& numbers) {
  const auto all = reinterpret_cast<uintptr_t>(numbers.data) |
                   static_cast<uintptr_t>(numbers.head_stride) |
                   static_cast<uintptr_t>(numbers.row_stride);
  return all % 16 == 0;
}

const AttentionKernel* narrow_kernel(const AttentionArguments& a) {
  if (a.k.element != a.v.element || !is_aligned(a.k) || !is_aligned(a.v)) return nullptr;
  switch (a.k.element) {
    case Element::bf16: return narrow_bf16_kernel(a.k.dim, a.v.dim);
    case Element::f16: return narrow_f16_kernel(a.k.dim, a.v.dim);
    case Element::f32:
    case Element::code: break;
  }
  return nullptr;
}

constexpr int32_t wide_dims[] = {64, 128, 256};

}  // namespace

const AttentionKernel& kernel_for(const AttentionArguments& a) {
  const AttentionKernel* const narrow = narrow_kernel(a);
  if (narrow != nullptr) return *narrow;
  return a.has_codes() ? general_codes_kernel() : general_kernel();
}

const AttentionKernel& weights_kernel_for(const AttentionArguments& a) {
  return a.has_codes() ? weights_codes_kernel() : weights_kernel();
}

/// Weights are written by a kernel that knows narrow tiles alone.
const AttentionKernel* wide_kernel_for(const AttentionArguments& a, size_t shared_bytes_max) {
  const bool is_whole = a.k.dim % 8 == 0 && a.v.dim % 8 == 0;
  if (a.weights.data != nullptr || a.k.element != a.v.element || !is_whole) return nullptr;
  if (!is_aligned(a.k) || !is_aligned(a.v)) return nullptr;
  const int32_t dim = std::max(a.k.dim, a.v.dim);
  const bool rounds = a.rounds != 0;
  const AttentionKernel* kernel = nullptr;
  if (a.k.element == Element::bf16)
    kernel = rounds ? wide_bf16_rounded_kernel(dim) : wide_bf16_kernel(dim);
  if (a.k.element == Element::f16)
    kernel = rounds ? wide_f16_rounded_kernel(dim) : wide_f16_kernel(dim);
  return kernel != nullptr && kernel->shared_bytes_max <= shared_bytes_max ? kernel : nullptr;
}

Error prepare_kernels(size_t shared_bytes_max) {
  for (const int32_t dim : wide_dims) {
    for (const AttentionKernel* const kernel : {wide_bf16_kernel(dim), wide_bf16_rounded_kernel(dim),
                                                wide_f16_kernel(dim), wide_f16_rounded_kernel(dim)}) {
      if (kernel->shared_bytes_max > shared_bytes_max) continue;
      int32_t n_blocks = 0;
      const Grid grid = {1, kernel->threads, kernel->shared_bytes_max};
      if (Error e = runtime::prepare(kernel->kernel, grid, &n_blocks); e != Error::none) return e;
    }
  }
  return Error::none;
}

/// Their shared memory is what blocks have unasked.
Error load_kernels(const AttentionBounds& bounds) {
  const AttentionKernel* const kernels[] = {&general_kernel(),
                                            &weights_kernel(),
                                            &general_codes_kernel(),
                                            &weights_codes_kernel(),
                                            narrow_bf16_kernel(bounds.head_dim_k, bounds.head_dim_v),
                                            narrow_f16_kernel(bounds.head_dim_k, bounds.head_dim_v)};
  for (const AttentionKernel* kernel : kernels) {
    if (kernel == nullptr) continue;
    int32_t n_blocks = 0;
    const Error e = runtime::prepare(kernel->kernel, {1, kernel->threads, 0}, &n_blocks);
    if (e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
