#include "kernels/cuda/coded_rows.hpp"

#include <algorithm>

#include "kernels/cuda/code_params.hpp"
#include "kernels/cuda/load_tokens.hpp"
#include "kernels/cuda/row_views.hpp"

namespace kvc::cuda {
namespace {

/// Heads from `first` on. A tensor without data is left out.
CodedView side_of(const Slab& slab, const Tensor& rows, int32_t first) {
  CodedView side;
  if (rows.data == nullptr || is_plain(slab.type()) || first >= slab.n_heads) return side;
  const auto from_first = [&](PlaneView plane) {
    if (plane.n_heads == 0) return plane;
    plane.data += first * plane.head_stride;
    plane.n_heads = std::min(slab.n_heads - first, coded_heads);
    return plane;
  };
  side.codes = from_first(codes_of(slab));
  side.scales = from_first(scales_of(slab));
  side.coding = coding_of(slab.format);
  side.rows = view_of(rows);
  side.rows.data += first * rows.stride[1] * static_cast<int64_t>(size_of(rows.dtype));
  for (int32_t head = 0; head < side.codes.n_heads; ++head)
    side.head_scale[head] = slab.scale_of(first + head);
  return side;
}

template <int32_t at_once>
Error launch_encoding(const Kernel& kernel, const EncodeLaunch<at_once>& launch,
                      const Launcher& launcher) {
  return launcher.launch_rows(kernel, int64_t{launch.n_cells} * launch.n_heads, &launch,
                              static_cast<size_t>(launch.warp_floats) * sizeof(float));
}

template <int32_t at_once>
Error encode_heads(const Kernel& kernel, EncodeLaunch<at_once>& launch, const StoreParams& params,
                   const Launcher& launcher) {
  for (int32_t first = 0; first < params.n_tokens; first += at_once) {
    launch.first_row = first;
    launch.n_cells = std::min(at_once, params.n_tokens - first);
    std::copy_n(params.cell + first, launch.n_cells, launch.cell);
    if (Error e = launch_encoding(kernel, launch, launcher); e != Error::none) return e;
  }
  return Error::none;
}

/// Calls per_heads(launch) for as many heads at a time as a launch has room for.
template <int32_t at_once, class PerHeads>
Error encode_all(const StoreParams& params, PerHeads per_heads) {
  const LayerStorage& storage = params.storage;
  EncodeLaunch<at_once> launch;
  for (int32_t head = 0; head < std::max(storage.k.n_heads, storage.v.n_heads); head += coded_heads) {
    launch.n_sides = launch.n_heads = launch.warp_floats = 0;
    const auto add = [&](const CodedView& side) {
      if (side.codes.n_heads == 0) return;
      launch.side[launch.n_sides++] = side;
      launch.n_heads = std::max(launch.n_heads, side.codes.n_heads);
      launch.warp_floats = std::max(launch.warp_floats, side.coding.dim);
    };
    add(side_of(storage.k, params.k, head));
    if (!storage.v_in_k) add(side_of(storage.v, params.v, head));
    if (launch.n_sides == 0) continue;
    if (Error e = per_heads(launch); e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace

Error encode_rows(const StoreParams& params, const Launcher& launcher) {
  const auto with = [&](const Kernel& kernel) {
    return [&, kernel](auto& launch) { return encode_heads(kernel, launch, params, launcher); };
  };
  return params.n_tokens <= few_cells ? encode_all<few_cells>(params, with(encode_few_kernel()))
                                      : encode_all<most_encoded>(params, with(encode_many_kernel()));
}

Error record_encoding(const StoreParams& params, const int32_t* planned, const Launcher& launcher) {
  return encode_all<few_cells>(params, [&](EncodeLaunch<few_cells>& launch) {
    launch.n_cells = params.n_tokens;
    launch.planned = planned;
    return launch_encoding(encode_few_kernel(), launch, launcher);
  });
}

Error decode_rows(const LoadParams& params, const Launcher& launcher) {
  const LayerStorage& storage = params.storage;
  DecodeLaunch launch;
  for (int32_t head = 0; head < std::max(storage.k.n_heads, storage.v.n_heads); head += coded_heads) {
    launch.k = side_of(storage.k, params.k, head);
    launch.v = side_of(storage.v, params.v, head);
    const int32_t n_heads = std::max(launch.k.codes.n_heads, launch.v.codes.n_heads);
    if (n_heads == 0) continue;
    launch.warp_floats = std::max(launch.k.coding.dim, launch.v.coding.dim);
    const Error e = load_tokens(params, launch.tokens, [&] {
      return launcher.launch_rows(decode_kernel(), int64_t{launch.tokens.n_cells} * n_heads,
                                  &launch, static_cast<size_t>(launch.warp_floats) * sizeof(float));
    });
    if (e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
