#include "kernels/cuda/attention_kernels.hpp"

#include <algorithm>

namespace kvc::cuda {
namespace {

bool lie_on(int64_t alignment, const char* data, int64_t head_stride, int64_t row_stride) {
  const auto all = reinterpret_cast<uintptr_t>(data) | static_cast<uintptr_t>(head_stride) |
                   static_cast<uintptr_t>(row_stride);
  return all % static_cast<uintptr_t>(alignment) == 0;
}

/// Rows that lie on 16 bytes, which is what kernels with tensor cores load at a time, and scales that lie as they load those.
bool is_aligned(const Numbers& numbers) {
  if (!lie_on(16, numbers.data, numbers.head_stride, numbers.row_stride)) return false;
  if (numbers.element != Element::code || numbers.coding.block == 0) return true;
  return lie_on(16, numbers.scales, numbers.scale_head_stride, 0) &&
         lie_on(4, nullptr, 0, numbers.scale_row_stride);
}

const AttentionKernel* coded_kernel(StorageType type, int32_t head_dim) {
  switch (type) {
    case StorageType::q8_0: return narrow_q8_0_kernel(head_dim);
    case StorageType::int8: return narrow_int8_kernel(head_dim);
    case StorageType::q4_0: return narrow_q4_0_kernel(head_dim);
    case StorageType::nf4: return narrow_nf4_kernel(head_dim);
    case StorageType::f8_e4m3: return narrow_f8_e4m3_kernel(head_dim);
    case StorageType::f8_e5m2: return narrow_f8_e5m2_kernel(head_dim);
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16: break;
  }
  return nullptr;
}

const AttentionKernel* narrow_codes_kernel(const AttentionArguments& a) {
  const Coding &k = a.k.coding, &v = a.v.coding;
  const bool has_blocks = k.type != StorageType::nf4 || (k.block == 64 && v.block == 64);
  if (k.type != v.type || k.dim != v.dim || !has_blocks) return nullptr;
  return coded_kernel(k.type, k.dim);
}

const AttentionKernel* narrow_kernel(const AttentionArguments& a) {
  if (a.k.element != a.v.element || !is_aligned(a.k) || !is_aligned(a.v)) return nullptr;
  switch (a.k.element) {
    case Element::bf16: return narrow_bf16_kernel(a.k.dim, a.v.dim);
    case Element::f16: return narrow_f16_kernel(a.k.dim, a.v.dim);
    case Element::code: return narrow_codes_kernel(a);
    case Element::f32: break;
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
  const auto load = [](const AttentionKernel* kernel) -> Error {
    if (kernel == nullptr) return Error::none;
    int32_t n_blocks = 0;
    return runtime::prepare(kernel->kernel, {1, kernel->threads, 0}, &n_blocks);
  };
  for (const AttentionKernel* const kernel :
       {&general_kernel(), &weights_kernel(), &general_codes_kernel(), &weights_codes_kernel(),
        narrow_bf16_kernel(bounds.head_dim_k, bounds.head_dim_v),
        narrow_f16_kernel(bounds.head_dim_k, bounds.head_dim_v)}) {
    if (Error e = load(kernel); e != Error::none) return e;
  }
  if (bounds.head_dim_k != bounds.head_dim_v) return Error::none;
  for (int32_t type = 0; type < n_storage_types; ++type) {
    const Error e = load(coded_kernel(static_cast<StorageType>(type), bounds.head_dim_k));
    if (e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
