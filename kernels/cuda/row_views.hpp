#pragma once
#include <algorithm>

#include "core/attention/params.hpp"
#include "kernels/cuda/row_params.hpp"

/// What a layer stores and what a tensor holds, as the kernels of rows see it.
namespace kvc::cuda {

inline PlaneView view_of(const Plane& plane, int32_t n_heads, DType dtype) {
  return {reinterpret_cast<char*>(plane.data),
          static_cast<int64_t>(plane.head_stride),
          static_cast<int64_t>(plane.row_stride),
          plane.row_bytes == 0 ? 0 : n_heads,
          static_cast<int32_t>(plane.row_bytes),
          static_cast<int32_t>(plane.row_bytes / size_of(dtype)),
          element_of(dtype)};
}
/// A row of numbers that are stored as they are, or of codes.
inline PlaneView codes_of(const Slab& slab) {
  return view_of(slab.codes, slab.n_heads, format_of(slab.type()).code);
}
inline PlaneView scales_of(const Slab& slab) {
  return view_of(slab.scales, slab.n_heads, format_of(slab.type()).scale);
}

/// V where it is stored on its own.
inline Planes planes_of(const LayerStorage& storage) {
  Planes planes;
  const auto add = [&](const PlaneView& plane) {
    if (plane.n_heads == 0) return;
    planes.plane[planes.n++] = plane;
    planes.n_heads = std::max(planes.n_heads, plane.n_heads);
  };
  add(codes_of(storage.k));
  add(scales_of(storage.k));
  if (storage.v_in_k) return planes;
  add(codes_of(storage.v));
  add(scales_of(storage.v));
  return planes;
}

inline RowsView view_of(const Tensor& rows) {
  return {static_cast<char*>(rows.data),
          rows.stride[0],
          rows.stride[1],
          rows.stride[2],
          rows.fold_stride,
          rows.fold,
          element_of(rows.dtype)};
}

}  // namespace kvc::cuda
