#include "kernels/cuda/attention_kernels.hpp"

namespace kvc::cuda {
namespace {

/// Rows that lie on 16 bytes, which is what narrow kernels load at a time.
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

}  // namespace

const AttentionKernel& kernel_for(const AttentionArguments& a) {
  const AttentionKernel* const narrow = narrow_kernel(a);
  return narrow != nullptr ? *narrow : general_kernel();
}

}  // namespace kvc::cuda
