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

const AttentionKernel* coded_kernel(StorageType type, int32_t head_dim, int32_t columns) {
  switch (type) {
    case StorageType::q8_0: return narrow_q8_0_kernel(head_dim, columns);
    case StorageType::int8: return narrow_int8_kernel(head_dim, columns);
    case StorageType::q4_0: return narrow_q4_0_kernel(head_dim, columns);
    case StorageType::nf4: return narrow_nf4_kernel(head_dim, columns);
    case StorageType::f8_e4m3: return narrow_f8_e4m3_kernel(head_dim, columns);
    case StorageType::f8_e5m2: return narrow_f8_e5m2_kernel(head_dim, columns);
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16: break;
  }
  return nullptr;
}

const AttentionKernel* narrow_codes_kernel(const AttentionArguments& a, int32_t columns) {
  const Coding &k = a.k.coding, &v = a.v.coding;
  const bool has_blocks = k.type != StorageType::nf4 || (k.block == 64 && v.block == 64);
  if (k.type != v.type || k.dim != v.dim || !has_blocks) return nullptr;
  return coded_kernel(k.type, k.dim, columns);
}

/// Whether K and V lie as kernels with tensor cores read them.
bool is_regular(const AttentionArguments& a) {
  return a.k.element == a.v.element && is_aligned(a.k) && is_aligned(a.v);
}

const AttentionKernel* narrow_kernel(const AttentionArguments& a) {
  if (!is_regular(a)) return nullptr;
  switch (a.k.element) {
    case Element::bf16: return narrow_bf16_kernel(a.k.dim, a.v.dim);
    case Element::f16: return narrow_f16_kernel(a.k.dim, a.v.dim);
    case Element::code: return narrow_codes_kernel(a, tile_columns);
    case Element::f32: break;
  }
  return nullptr;
}

constexpr int32_t wide_dims[] = {64, 128, 256};

/// By head dimension. [factors are rounded]
using WideKernels = const AttentionKernel* (*[2])(int32_t head_dim);
constexpr WideKernels wide_bf16 = {wide_bf16_kernel, wide_bf16_rounded_kernel},
                      wide_f16 = {wide_f16_kernel, wide_f16_rounded_kernel},
                      wide_sm90_bf16 = {wide_sm90_bf16_kernel, wide_sm90_bf16_rounded_kernel},
                      wide_sm90_f16 = {wide_sm90_f16_kernel, wide_sm90_f16_rounded_kernel};

/// The first of a device's own and of everybody's, if its blocks have the shared memory.
const AttentionKernel* wide_kernel(const WideKernels& own, const WideKernels& common, bool rounds,
                                   int32_t head_dim, const Abilities& abilities) {
  const AttentionKernel* kernel = abilities.is_sm90 ? own[rounds](head_dim) : nullptr;
  if (kernel == nullptr) kernel = common[rounds](head_dim);
  return kernel != nullptr && kernel->shared_bytes_max <= abilities.shared_bytes_max ? kernel
                                                                                     : nullptr;
}
const AttentionKernel* wide_kernel(Element element, bool rounds, int32_t head_dim,
                                   const Abilities& abilities) {
  switch (element) {
    case Element::bf16: return wide_kernel(wide_sm90_bf16, wide_bf16, rounds, head_dim, abilities);
    case Element::f16: return wide_kernel(wide_sm90_f16, wide_f16, rounds, head_dim, abilities);
    case Element::f32:
    case Element::code: break;
  }
  return nullptr;
}

}  // namespace

const AttentionKernel& narrow_kernel_for(const AttentionArguments& a) {
  const AttentionKernel* const narrow = narrow_kernel(a);
  if (narrow != nullptr) return *narrow;
  return a.has_codes() ? general_codes_kernel() : general_kernel();
}

const AttentionKernel& weights_kernel_for(const AttentionArguments& a) {
  return a.has_codes() ? weights_codes_kernel() : weights_kernel();
}

Error map_rows(const AttentionArguments& a, int32_t box_rows, MappedArguments* out) {
  const auto map = [&](const Numbers& of, RowMap* to) {
    return runtime::map_rows({.data = of.data,
                              .row_stride = of.row_stride,
                              .head_stride = of.head_stride,
                              .dim = of.dim,
                              .n_rows = of.n_cells,
                              .n_heads = a.shape.n_kv_heads,
                              .box_rows = box_rows},
                             to);
  };
  out->call = a;
  const Error e = map(a.k, &out->k);
  return e != Error::none ? e : map(a.v, &out->v);
}

Error launch(const AttentionKernel& what, const AttentionArguments& a, uint32_t blocks, Stream stream) {
  const Grid grid = {blocks, what.threads, what.shared_bytes(a)};
  if (what.box_rows == 0) return runtime::launch(what.kernel, grid, &a, stream);
  MappedArguments mapped;
  const Error e = map_rows(a, what.box_rows, &mapped);
  return e != Error::none ? e : runtime::launch(what.kernel, grid, &mapped, stream);
}

// Weights are written by a kernel that knows narrow tiles alone.

const AttentionKernel* medium_kernel_for(const AttentionArguments& a) {
  if (a.weights.data != nullptr || !is_regular(a)) return nullptr;
  switch (a.k.element) {
    case Element::bf16: return narrow_16_bf16_kernel(a.k.dim, a.v.dim);
    case Element::f16: return narrow_16_f16_kernel(a.k.dim, a.v.dim);
    case Element::code: return narrow_codes_kernel(a, medium_columns);
    case Element::f32: break;
  }
  return nullptr;
}

const AttentionKernel* wide_kernel_for(const AttentionArguments& a, const Abilities& abilities) {
  const bool is_whole = a.k.dim % 8 == 0 && a.v.dim % 8 == 0;
  if (a.weights.data != nullptr || !is_regular(a) || !is_whole) return nullptr;
  return wide_kernel(a.k.element, a.rounds != 0, std::max(a.k.dim, a.v.dim), abilities);
}

const AttentionKernel& kernel_for(const AttentionArguments& a, Width width,
                                  const Abilities& abilities) {
  switch (width) {
    case Width::wide: return *wide_kernel_for(a, abilities);
    case Width::medium: return *medium_kernel_for(a);
    case Width::narrow: break;
  }
  return narrow_kernel_for(a);
}

Error prepare_kernels(const Abilities& abilities) {
  for (const int32_t dim : wide_dims) {
    for (const Element element : {Element::bf16, Element::f16}) {
      for (const bool rounds : {false, true}) {
        const AttentionKernel* const kernel = wide_kernel(element, rounds, dim, abilities);
        if (kernel == nullptr) continue;
        int32_t n_blocks = 0;
        const Grid grid = {1, kernel->threads, kernel->shared_bytes_max};
        if (Error e = runtime::prepare(kernel->kernel, grid, &n_blocks); e != Error::none) return e;
      }
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
        narrow_f16_kernel(bounds.head_dim_k, bounds.head_dim_v),
        narrow_16_bf16_kernel(bounds.head_dim_k, bounds.head_dim_v),
        narrow_16_f16_kernel(bounds.head_dim_k, bounds.head_dim_v)}) {
    if (Error e = load(kernel); e != Error::none) return e;
  }
  if (bounds.head_dim_k != bounds.head_dim_v) return Error::none;
  for (int32_t type = 0; type < n_storage_types; ++type) {
    for (const int32_t columns : {tile_columns, medium_columns}) {
      const Error e = load(coded_kernel(static_cast<StorageType>(type), bounds.head_dim_k, columns));
      if (e != Error::none) return e;
    }
  }
  return Error::none;
}

}  // namespace kvc::cuda
