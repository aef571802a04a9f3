#include "core/base/storage.hpp"

#include <initializer_list>

namespace kvc {
namespace {

constexpr int32_t ggml_block = 32;  // of q8_0 and q4_0

/// nf4's own choice: the largest of 64, 32 and 16 that divides the dimension; 0: none does.
int32_t nf4_block(int32_t head_dim) {
  for (const int32_t block : {64, 32, 16}) {
    if (head_dim % block == 0) return block;
  }
  return 0;
}

Status check_block(const RowRequest& r) {
  if (r.block == 0) return Status::ok;
  if (r.type != StorageType::nf4) {
    return fail(Status::invalid_argument,
                "block %d of %s, which is %s: only nf4 has a choice of values per scale, for the "
                "others it must be 0",
                r.block, r.name, format_of(r.type).name);
  }
  if (r.block == 16 || r.block == 32 || r.block == 64 || r.block == 128) return Status::ok;
  return fail(Status::invalid_argument,
              "block %d of %s: nf4 has 16, 32, 64 or 128 values per scale; 0 is the largest of 64, "
              "32 and 16 that divides head_dim",
              r.block, r.name);
}

int32_t block_of(const RowRequest& r) {
  switch (r.type) {
    case StorageType::q8_0:
    case StorageType::q4_0: return ggml_block;
    case StorageType::int8: return r.head_dim;
    case StorageType::nf4: return r.block != 0 ? r.block : nf4_block(r.head_dim);
    default: return 0;
  }
}

Status check_head_dim(const RowRequest& r, int32_t block) {
  if (r.type == StorageType::nf4 && (block == 0 || r.head_dim % block != 0)) {
    return fail(Status::invalid_argument,
                "%s is nf4, and head_dim %d is no multiple of %d values per scale: int8, f8_e4m3 "
                "and f8_e5m2 take any dimension",
                r.name, r.head_dim, block == 0 ? 16 : block);
  }
  if (block != 0 && r.head_dim % block != 0) {
    return fail(
        Status::invalid_argument,
        "%s is %s, which takes multiples of %d, and head_dim is %d: int8, f8_e4m3 and f8_e5m2 "
        "take any dimension, nf4 multiples of 16",
        r.name, format_of(r.type).name, block, r.head_dim);
  }
  return Status::ok;
}

Status check_rotation(const RowRequest& r) {
  if (!r.rotate) return Status::ok;
  if (is_plain(r.type) || is_f8(r.type)) {
    return fail(
        Status::invalid_argument,
        "%s is %s, which gains nothing from a rotation: q8_0, q4_0, int8 and nf4 can be stored "
        "rotated",
        r.name, format_of(r.type).name);
  }
  if (r.head_dim % 2 == 0) return Status::ok;
  return fail(Status::invalid_argument,
              "%s cannot be stored rotated: head_dim %d is odd, and a rotation takes pairs", r.name,
              r.head_dim);
}

}  // namespace

Status resolve_row_format(const RowRequest& request, RowFormat* format) {
  if (Status s = check_block(request); s != Status::ok) return s;
  const int32_t block = block_of(request);
  if (Status s = check_head_dim(request, block); s != Status::ok) return s;
  if (Status s = check_rotation(request); s != Status::ok) return s;
  format->type = request.type;
  format->head_dim = request.head_dim;
  format->block = block;
  format->rotation = request.rotate ? request.head_dim & -request.head_dim : 0;
  return Status::ok;
}

Slab Slab::from_cell(int32_t first) const {
  Slab rest = *this;
  rest.codes.data = codes.row(0, first);
  if (scales.data != nullptr) rest.scales.data = scales.row(0, first);
  rest.n_cells = n_cells - first;
  return rest;
}

namespace {

Tensor view_of(const Plane& plane, DType element, int32_t first_cell, int64_t n, int32_t n_heads,
               int32_t n_elements) {
  const auto bytes = static_cast<int64_t>(size_of(element));
  Tensor view;
  view.data = plane.row(0, first_cell);
  view.dtype = element;
  view.ndim = 3;
  view.shape[0] = n;
  view.shape[1] = n_heads;
  view.shape[2] = n_elements;
  view.stride[0] = static_cast<int64_t>(plane.row_stride) / bytes;
  view.stride[1] = static_cast<int64_t>(plane.head_stride) / bytes;
  view.stride[2] = 1;
  return view;
}

}  // namespace

Tensor Slab::view(int32_t first_cell, int64_t n) const {
  return view_of(codes, format_of(format.type).code, first_cell, n, n_heads, format.n_codes());
}

Tensor Slab::scale_view(int32_t first_cell, int64_t n) const {
  if (format.block == 0) return {};
  return view_of(scales, format_of(format.type).scale, first_cell, n, n_heads, format.n_scales());
}

}  // namespace kvc
