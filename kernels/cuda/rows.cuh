#pragma once
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/row_params.hpp"
#include "kernels/cuda/warps.cuh"

/// A warp serves one row of one head, of K and of V: it moves 16 bytes per lane where addresses allow.
namespace kvc::cuda {

KVC_DEVICE int most_heads(const PlaneView& k, const PlaneView& v) {
  return k.n_heads > v.n_heads ? k.n_heads : v.n_heads;
}
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

// ---- Into cells -------------------------------------------------------------------------------------------------------------

template <int32_t n>
KVC_GLOBAL void store_rows(KVC_PARAMS(StoreLaunch<n>) params) {
  const auto store = [&](const SideView& side, int index, int head, int lane) {
    if (head >= side.plane.n_heads) return;
    convert_row(stored_row(side.plane, head, params.cell[index]),
                tensor_row(side.rows, head, params.first_row + index), side.plane.dim, lane,
                warp_lanes);
  };
  const int n_heads = most_heads(params.k.plane, params.v.plane);
  for_rows(params.n_cells, n_heads, [&](int index, int head, int lane) {
    if (params.cell[index] < 0) return;
    store(params.k, index, head, lane);
    store(params.v, index, head, lane);
  });
}

template <int32_t n>
KVC_GLOBAL void clear_rows(KVC_PARAMS(ClearLaunch<n>) params) {
  const auto clear = [&](const PlaneView& plane, int index, int head, int lane) {
    if (head < plane.n_heads)
      clear_bytes(row_of(plane, head, params.cell[index]), plane.row_bytes, lane, warp_lanes);
  };
  for_rows(params.n_cells, most_heads(params.k, params.v), [&](int index, int head, int lane) {
    if (params.cell[index] < 0) return;
    clear(params.k, index, head, lane);
    clear(params.v, index, head, lane);
  });
}

// ---- Turned by positions ------------------------------------------------------------------------------------------------------

/// Of a pair of dimensions; a and b are their numbers before, and so on.
KVC_DEVICE float turned_first(float a, float b, float cosine, float sine) {
  return subtract_rounded(multiply_rounded(a, cosine), multiply_rounded(b, sine));
}
KVC_DEVICE float turned_second(float a, float b, float cosine, float sine) {
  return add_rounded(multiply_rounded(a, sine), multiply_rounded(b, cosine));
}

KVC_DEVICE int first_of_pair(const TurnView& turn, int pair) {
  return turn.first_dim + (turn.halves != 0 ? pair : 2 * pair);
}
KVC_DEVICE int partner_distance(const TurnView& turn) {
  return turn.halves != 0 ? turn.n_dims / 2 : 1;
}

/// Calls store(dim, number) for the pairs of a row that the launch turns.
template <class Store>
KVC_DEVICE void turn_pairs(const TurnView& turn, const ElementRow& from, const float* table, int lane,
                           Store store) {
  for (int i = lane; i < turn.n_pairs; i += warp_lanes) {
    const int first = first_of_pair(turn, turn.first_pair + i);
    const int second = first + partner_distance(turn);
    const float a = load_element(from.data, from.element, first);
    const float b = load_element(from.data, from.element, second);
    const float cosine = table[i], sine = table[turn.n_pairs + i];
    store(first, turned_first(a, b, cosine, sine));
    store(second, turned_second(a, b, cosine, sine));
  }
}

KVC_GLOBAL void turn_rows(KVC_PARAMS(TurnLaunch) params) {
  for_rows(params.n_cells, params.k.n_heads, [&](int index, int head, int lane) {
    const ElementRow row = stored_row(params.k, head, params.cell[index]);
    const float* const table = params.tables + params.table[index] * 2 * params.turn.n_pairs;
    turn_pairs(params.turn, row, table, lane, [&](int dim, float number) {
      store_element(row.data, row.element, dim, number);
    });
  });
}

// ---- Out of cells -------------------------------------------------------------------------------------------------------------

/// A part of a row, or zeros.
KVC_DEVICE void load_dims(const ElementRow& to, const ElementRow& from, bool zeros, int begin, int end,
                          int lane) {
  const ElementRow part = {to.data + begin * to.stride * element_bytes(to.element), to.stride,
                           to.element};
  if (zeros) {
    for (int i = lane; i < end - begin; i += warp_lanes)
      store_element(part.data, part.element, i * part.stride, 0.0f);
  } else {
    const ElementRow source = {from.data + begin * element_bytes(from.element), 1, from.element};
    convert_row(part, source, end - begin, lane, warp_lanes);
  }
}

KVC_GLOBAL void load_rows(KVC_PARAMS(LoadLaunch) params) {
  const auto load = [&](const SideView& side, int index, int head, int lane, int table) {
    if (head >= side.plane.n_heads) return;
    const int cell = params.cell[index];
    const ElementRow from = stored_row(side.plane, head, cell < 0 ? 0 : cell);
    const ElementRow to = tensor_row(side.rows, head, params.row[index]);
    const TurnView& turn = params.turn;
    const int turned_end = turn.first_dim + turn.n_dims;
    if (params.writes_rest != 0) {
      load_dims(to, from, cell < 0, 0, table < 0 ? side.plane.dim : turn.first_dim, lane);
      if (table >= 0) load_dims(to, from, false, turned_end, side.plane.dim, lane);
    }
    if (table < 0) return;
    turn_pairs(turn, from, params.tables + table * 2 * turn.n_pairs, lane, [&](int dim, float number) {
      store_element(to.data, to.element, dim * to.stride, number);
    });
  };
  const int n_heads = most_heads(params.k.plane, params.v.plane);
  for_rows(params.n_cells, n_heads, [&](int index, int head, int lane) {
    load(params.k, index, head, lane, params.table[index]);
    load(params.v, index, head, lane, -1);
  });
}

// ---- From cells to cells ------------------------------------------------------------------------------------------------------

KVC_GLOBAL void move_rows(KVC_PARAMS(MoveLaunch) params) {
  const auto move = [&](const PlaneView& plane, int index, int head, int lane) {
    if (head < plane.n_heads)
      copy_bytes(row_of(plane, head, params.to[index]), row_of(plane, head, params.from[index]),
                 plane.row_bytes, lane, warp_lanes);
  };
  for_rows(params.n_cells, most_heads(params.k, params.v), [&](int index, int head, int lane) {
    move(params.k, index, head, lane);
    move(params.v, index, head, lane);
  });
}

KVC_GLOBAL void copy_rows(KVC_PARAMS(CopyLaunch) params) {
  const auto copy = [&](const PlaneView& from, const PlaneView& to, int64_t cell, int64_t at, int head,
                        int lane) {
    if (head >= to.n_heads) return;
    char* const source = row_of(from, head, cell);
    char* const target = row_of(to, head, at);
    if (params.exchanges != 0) {
      exchange_bytes(target, source, to.row_bytes, lane, warp_lanes);
    } else {
      copy_bytes(target, source, to.row_bytes, lane, warp_lanes);
    }
  };
  for_rows(params.n_cells, most_heads(params.to_k, params.to_v), [&](int index, int head, int lane) {
    int stretch = 0;
    while (stretch + 1 < params.n_stretches && params.first[stretch + 1] <= index) ++stretch;
    const int rest = index - params.first[stretch];
    copy(params.from_k, params.to_k, params.from[stretch] + rest, params.to[stretch] + rest, head, lane);
    copy(params.from_v, params.to_v, params.from[stretch] + rest, params.to[stretch] + rest, head, lane);
  });
}

// ---- As bytes -----------------------------------------------------------------------------------------------------------------

/// First bytes and numbers of bytes are any, so a lane takes one at a time: digests and snapshots are bound by the way to the
/// host.
KVC_GLOBAL void copy_raw(KVC_PARAMS(RawLaunch) params) {
  for_rows(params.n_cells, 1, [&](int index, int, int lane) {
    char* const row = params.rows + params.cell[index] * params.row_stride;
    char* const packed = params.packed + static_cast<int64_t>(index) * params.n_bytes;
    for (int i = lane; i < params.n_bytes; i += warp_lanes) {
      if (params.packs != 0) {
        packed[i] = row[i];
      } else {
        row[i] = packed[i];
      }
    }
  });
}

}  // namespace kvc::cuda
