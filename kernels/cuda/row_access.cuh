#pragma once
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/row_params.hpp"
#include "kernels/cuda/warps.cuh"

/// Where rows lie, and how keys are turned.
namespace kvc::cuda {

KVC_DEVICE char* row_of(const PlaneView& plane, int head, int64_t cell) {
  return plane.data + head * plane.head_stride + cell * plane.row_stride;
}
KVC_DEVICE ElementRow stored_row(const PlaneView& plane, int head, int64_t cell) {
  return {row_of(plane, head, cell), 1, plane.element};
}
KVC_DEVICE ElementRow tensor_row(const RowsView& rows, int head, int64_t row) {
  const int64_t before = rows.fold == 0
                             ? row * rows.row
                             : row / rows.fold * rows.fold_stride + row % rows.fold * rows.row;
  const int64_t element = before + head * rows.head;
  return {rows.data + element * element_bytes(rows.element), rows.dim, rows.element};
}

/// The cells of a launch that stores, and how many there are.
struct StoredCells {
  const int32_t* cell;
  int n;
};
template <class Launch>
KVC_DEVICE StoredCells stored_cells(const Launch& params) {
  if (params.planned == nullptr) return {params.cell, params.n_cells};
  const int n = *params.planned;
  return {params.planned + planned_cells, n < params.n_cells ? n : params.n_cells};
}

/// Of a pair of dimensions; a and b are their numbers before, and so on.
KVC_DEVICE float turned_first(float a, float b, float cosine, float sine) {
  return subtract_rounded(multiply_rounded(a, cosine), multiply_rounded(b, sine));
}
KVC_DEVICE float turned_second(float a, float b, float cosine, float sine) {
  return add_rounded(multiply_rounded(a, sine), multiply_rounded(b, cosine));
}

/// Calls store(dim, number) for the pairs of a row that the launch turns. load(dim) is what they are before.
template <class Load, class Store>
KVC_DEVICE void turn_pairs(const TurnView& turn, const float* table, int lane, Load load, Store store) {
  for (int i = lane; i < turn.n_pairs; i += warp_lanes) {
    const int pair = turn.first_pair + i;
    const int first = turn.first_dim + (turn.halves != 0 ? pair : 2 * pair);
    const int second = first + (turn.halves != 0 ? turn.n_dims / 2 : 1);
    const float a = load(first), b = load(second);
    const float cosine = table[i], sine = table[turn.n_pairs + i];
    store(first, turned_first(a, b, cosine, sine));
    store(second, turned_second(a, b, cosine, sine));
  }
}

}  // namespace kvc::cuda
