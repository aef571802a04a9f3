#pragma once
#include "kernels/cuda/row_access.cuh"

/// A warp serves one row of one head, of K and of V: it moves 16 bytes per lane where addresses allow.
namespace kvc::cuda {

KVC_DEVICE int most_heads(const PlaneView& k, const PlaneView& v) {
  return k.n_heads > v.n_heads ? k.n_heads : v.n_heads;
}

// ---- Into cells -------------------------------------------------------------------------------------------------------------

template <int32_t n>
KVC_GLOBAL void store_rows(KVC_PARAMS(StoreLaunch<n>) params) {
  const StoredCells cells = stored_cells(params);
  for_rows(cells.n, params.n_heads, [&](int index, int head, int lane) {
    const int cell = cells.cell[index];
    if (cell < 0) return;
    for (int i = 0; i < params.n_sides; ++i) {
      const SideView& side = params.side[i];
      if (head >= side.plane.n_heads) continue;
      convert_row(stored_row(side.plane, head, cell),
                  tensor_row(side.rows, head, params.first_row + index), side.plane.dim, lane,
                  warp_lanes);
    }
  });
}

template <int32_t n>
KVC_GLOBAL void clear_rows(KVC_PARAMS(ClearLaunch<n>) params) {
  for_rows(params.n_cells, params.planes.n_heads, [&](int index, int head, int lane) {
    if (params.cell[index] < 0) return;
    for (int i = 0; i < params.planes.n; ++i) {
      const PlaneView& plane = params.planes.plane[i];
      if (head < plane.n_heads)
        clear_bytes(row_of(plane, head, params.cell[index]), plane.row_bytes, lane, warp_lanes);
    }
  });
}

// ---- Turned where they are ----------------------------------------------------------------------------------------------------

KVC_GLOBAL void turn_rows(KVC_PARAMS(TurnLaunch) params) {
  for_rows(params.n_cells, params.k.n_heads, [&](int index, int head, int lane) {
    const ElementRow row = stored_row(params.k, head, params.cell[index]);
    const float* const table = params.tables + params.table[index] * 2 * params.turn.n_pairs;
    turn_pairs(
        params.turn, table, lane, [&](int dim) { return load_element(row.data, row.element, dim); },
        [&](int dim, float number) { store_element(row.data, row.element, dim, number); });
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
  const LoadedTokens& tokens = params.tokens;
  const auto load = [&](const SideView& side, int index, int head, int lane, int table) {
    if (head >= side.plane.n_heads) return;
    const int cell = tokens.cell[index];
    const ElementRow from = stored_row(side.plane, head, cell < 0 ? 0 : cell);
    const ElementRow to = tensor_row(side.rows, head, tokens.row[index]);
    const TurnView& turn = tokens.turn;
    const int turned_end = turn.first_dim + turn.n_dims;
    if (tokens.writes_rest != 0) {
      load_dims(to, from, cell < 0, 0, table < 0 ? side.plane.dim : turn.first_dim, lane);
      if (table >= 0) load_dims(to, from, false, turned_end, side.plane.dim, lane);
    }
    if (table < 0) return;
    turn_pairs(
        turn, tokens.tables + table * 2 * turn.n_pairs, lane,
        [&](int dim) { return load_element(from.data, from.element, dim); },
        [&](int dim, float number) {
          store_element(to.data, to.element, dim * to.stride, number);
        });
  };
  const int n_heads = most_heads(params.k.plane, params.v.plane);
  for_rows(tokens.n_cells, n_heads, [&](int index, int head, int lane) {
    load(params.k, index, head, lane, tokens.table[index]);
    load(params.v, index, head, lane, -1);
  });
}

// ---- From cells to cells ------------------------------------------------------------------------------------------------------

KVC_GLOBAL void move_rows(KVC_PARAMS(MoveLaunch) params) {
  for_rows(params.n_cells, params.planes.n_heads, [&](int index, int head, int lane) {
    for (int i = 0; i < params.planes.n; ++i) {
      const PlaneView& plane = params.planes.plane[i];
      if (head < plane.n_heads)
        copy_bytes(row_of(plane, head, params.to[index]), row_of(plane, head, params.from[index]),
                   plane.row_bytes, lane, warp_lanes);
    }
  });
}

KVC_GLOBAL void copy_rows(KVC_PARAMS(CopyLaunch) params) {
  for_rows(params.n_cells, params.target.n_heads, [&](int index, int head, int lane) {
    int stretch = 0;
    while (stretch + 1 < params.n_stretches && params.first[stretch + 1] <= index) ++stretch;
    const int rest = index - params.first[stretch];
    for (int i = 0; i < params.target.n; ++i) {
      const PlaneView& plane = params.target.plane[i];
      if (head >= plane.n_heads) continue;
      char* const source = row_of(params.source.plane[i], head, params.from[stretch] + rest);
      char* const target = row_of(plane, head, params.to[stretch] + rest);
      if (params.exchanges != 0) {
        exchange_bytes(target, source, plane.row_bytes, lane, warp_lanes);
      } else {
        copy_bytes(target, source, plane.row_bytes, lane, warp_lanes);
      }
    }
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
