#pragma once
#include "kernels/cuda/code_params.hpp"
#include "kernels/cuda/encode.cuh"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/row_access.cuh"

/// A warp serves one row of one head, of K and of V. Its numbers are in shared memory meanwhile.
namespace kvc::cuda {

KVC_DEVICE float* numbers_of_warp(int warp_floats) {
  return reinterpret_cast<float*>(shared_memory()) + thread_index() / warp_lanes * warp_floats;
}
KVC_DEVICE void rotate_row(const Coding& coding, float* numbers, bool back, int lane) {
  if (coding.rotation == 0) return;
  rotate(
      1, coding.dim, coding.rotation, back, {lane, warp_lanes},
      [&](int, int i) -> float& { return numbers[i]; }, [] { sync_warp(); });
}

template <int32_t n>
KVC_GLOBAL void encode_rows(KVC_PARAMS(EncodeLaunch<n>) params) {
  float* const numbers = numbers_of_warp(params.warp_floats);
  const StoredCells cells = stored_cells(params);
  for_rows(cells.n, params.n_heads, [&](int index, int head, int lane) {
    const int cell = cells.cell[index];
    if (cell < 0) return;
    for (int i = 0; i < params.n_sides; ++i) {
      const CodedView& side = params.side[i];
      if (head >= side.codes.n_heads) continue;
      const ElementRow from = tensor_row(side.rows, head, params.first_row + index);
      for (int dim = lane; dim < side.coding.dim; dim += warp_lanes)
        numbers[dim] = load_element(from.data, from.element, dim * from.stride);
      sync_warp();
      rotate_row(side.coding, numbers, false, lane);
      encode_row(side.coding, row_of(side.codes, head, cell), row_of(side.scales, head, cell),
                 side.head_scale[head], numbers, lane);
      sync_warp();
    }
  });
}

KVC_GLOBAL void decode_rows(KVC_PARAMS(DecodeLaunch) params) {
  const LoadedTokens& tokens = params.tokens;
  const TurnView& turn = tokens.turn;
  float* const numbers = numbers_of_warp(params.warp_floats);
  const auto load = [&](const CodedView& side, int index, int head, int lane, int table) {
    if (head >= side.codes.n_heads) return;
    const int cell = tokens.cell[index];
    const CodedRow from = {row_of(side.codes, head, cell < 0 ? 0 : cell),
                           row_of(side.scales, head, cell < 0 ? 0 : cell),
                           side.head_scale[head]};
    for (int dim = lane; dim < side.coding.dim; dim += warp_lanes)
      numbers[dim] = cell < 0 ? 0.0f : decode_number(side.coding, from, dim);
    sync_warp();
    if (cell >= 0) rotate_row(side.coding, numbers, true, lane);
    if (table >= 0)
      turn_pairs(
          turn, tokens.tables + table * 2 * turn.n_pairs, lane,
          [&](int dim) { return numbers[dim]; },
          [&](int dim, float number) { numbers[dim] = number; });
    sync_warp();
    const ElementRow to = tensor_row(side.rows, head, tokens.row[index]);
    for (int dim = lane; dim < side.coding.dim; dim += warp_lanes)
      store_element(to.data, to.element, dim * to.stride, numbers[dim]);
    sync_warp();
  };
  const int n_heads = params.k.codes.n_heads > params.v.codes.n_heads ? params.k.codes.n_heads
                                                                      : params.v.codes.n_heads;
  for_rows(tokens.n_cells, n_heads, [&](int index, int head, int lane) {
    load(params.k, index, head, lane, tokens.table[index]);
    load(params.v, index, head, lane, -1);
  });
}

}  // namespace kvc::cuda
