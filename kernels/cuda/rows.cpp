#include "kernels/cuda/rows.hpp"

#include <algorithm>

#include "kernels/cuda/row_params.hpp"
#include "kernels/cuda/turn_tables.hpp"

namespace kvc::cuda {
namespace {

PlaneView plane_of(const Slab& slab) {
  const Plane& codes = slab.codes;
  return {reinterpret_cast<char*>(codes.data),
          static_cast<int64_t>(codes.head_stride),
          static_cast<int64_t>(codes.row_stride),
          slab.n_heads,
          static_cast<int32_t>(codes.row_bytes),
          slab.head_dim(),
          element_of(slab.type())};
}

/// V's plane where it is stored on its own.
PlaneView value_plane(const LayerStorage& storage) {
  return storage.v_in_k ? PlaneView{} : plane_of(storage.v);
}

/// A tensor without data is left out.
SideView side_of(const PlaneView& plane, const Tensor& rows) {
  if (rows.data == nullptr) return {};
  SideView side;
  side.plane = plane;
  side.rows = {static_cast<char*>(rows.data),
               rows.stride[0],
               rows.stride[1],
               rows.stride[2],
               rows.fold_stride,
               rows.fold,
               element_of(rows.dtype)};
  return side;
}

int64_t most_heads(const PlaneView& k, const PlaneView& v) {
  return std::max(k.n_heads, v.n_heads);
}

template <int32_t at_once>
Error store_cells(const Kernel& kernel, const SideView& k, const SideView& v,
                  const StoreParams& params, const Launcher& launcher) {
  StoreLaunch<at_once> launch;
  launch.k = k;
  launch.v = v;
  for (int32_t first = 0; first < params.n_tokens; first += at_once) {
    launch.first_row = first;
    launch.n_cells = std::min(at_once, params.n_tokens - first);
    std::copy_n(params.cell + first, launch.n_cells, launch.cell);
    const int64_t n_rows = launch.n_cells * most_heads(k.plane, v.plane);
    if (Error e = launcher.launch_rows(kernel, n_rows, &launch); e != Error::none) return e;
  }
  return Error::none;
}

template <int32_t at_once>
Error clear_cells(const Kernel& kernel, const ClearParams& params, const Launcher& launcher) {
  ClearLaunch<at_once> launch;
  launch.k = plane_of(params.storage.k);
  launch.v = value_plane(params.storage);
  for (int32_t first = 0; first < params.n_cells; first += at_once) {
    launch.n_cells = std::min(at_once, params.n_cells - first);
    std::copy_n(params.cell + first, launch.n_cells, launch.cell);
    const int64_t n_rows = launch.n_cells * most_heads(launch.k, launch.v);
    if (Error e = launcher.launch_rows(kernel, n_rows, &launch); e != Error::none) return e;
  }
  return Error::none;
}

/// What the pairs of one launch's tables turn, and with `writes_rest` everything that is not turned.
Error load_pairs(const LoadParams& params, TurnTables& tables, bool writes_rest, LoadLaunch& launch,
                 const Launcher& launcher) {
  launch.turn = tables.view();
  launch.writes_rest = writes_rest ? 1 : 0;
  const auto flush = [&]() -> Error {
    const int64_t n_rows = launch.n_cells * most_heads(launch.k.plane, launch.v.plane);
    const Error e = launcher.launch_rows(load_kernel(), n_rows, &launch);
    launch.n_cells = 0;
    tables.clear();
    return e;
  };
  for (int32_t i = 0; i < params.n_tokens; ++i) {
    const bool turns = params.rope.n_dims > 0 && params.offset != nullptr &&
                       params.offset[i] != 0 && params.cell[i] >= 0;
    int32_t table = turns ? tables.table_for(params.offset[i]) : -1;
    if (launch.n_cells == turned_cells || (turns && table < 0)) {
      if (Error e = flush(); e != Error::none) return e;
      table = turns ? tables.table_for(params.offset[i]) : -1;
    }
    launch.cell[launch.n_cells] = params.cell[i];
    launch.row[launch.n_cells] = params.row != nullptr ? params.row[i] : i;
    launch.table[launch.n_cells++] = static_cast<int16_t>(table);
  }
  return flush();
}

/// Copies in order. A launch works on all of its cells at once, so a cell that is written after it was read is another's.
Error copy_moved(const MoveParams& params, const Launcher& launcher) {
  MoveLaunch launch;
  launch.k = plane_of(params.storage.k);
  launch.v = value_plane(params.storage);
  const auto flush = [&]() -> Error {
    const int64_t n_rows = launch.n_cells * most_heads(launch.k, launch.v);
    const Error e = launcher.launch_rows(move_kernel(), n_rows, &launch);
    launch.n_cells = 0;
    return e;
  };
  for (int32_t i = 0; i < params.n_cells; ++i) {
    if (params.from[i] == params.to[i]) continue;
    int32_t* const end = launch.from + launch.n_cells;
    if (launch.n_cells == copied_cells || std::find(launch.from, end, params.to[i]) != end) {
      if (Error e = flush(); e != Error::none) return e;
    }
    launch.from[launch.n_cells] = params.from[i];
    launch.to[launch.n_cells++] = params.to[i];
  }
  return flush();
}

Error turn_moved(const MoveParams& params, const Launcher& launcher) {
  TurnLaunch launch;
  launch.k = plane_of(params.storage.k);
  for (int32_t pair = 0; pair < params.rope.n_dims / 2; pair += launch.turn.n_pairs) {
    TurnTables tables(params.rope, pair, launch.tables);
    launch.turn = tables.view();
    const auto flush = [&]() -> Error {
      const int64_t n_rows = int64_t{launch.n_cells} * launch.k.n_heads;
      const Error e = launcher.launch_rows(turn_kernel(), n_rows, &launch);
      launch.n_cells = 0;
      tables.clear();
      return e;
    };
    for (int32_t i = 0; i < params.n_cells; ++i) {
      if (params.offset[i] == 0) continue;
      int32_t table = tables.table_for(params.offset[i]);
      if (launch.n_cells == turned_cells || table < 0) {
        if (Error e = flush(); e != Error::none) return e;
        table = tables.table_for(params.offset[i]);
      }
      launch.cell[launch.n_cells] = params.to[i];
      launch.table[launch.n_cells++] = static_cast<int16_t>(table);
    }
    if (Error e = flush(); e != Error::none) return e;
  }
  return Error::none;
}

Error copy_raw(const RowBytes& rows, int32_t first, int32_t n, std::byte* packed, bool packs,
               const Launcher& launcher) {
  RawLaunch launch;
  launch.rows = reinterpret_cast<char*>(rows.plane.head(rows.head) + rows.first_byte);
  launch.row_stride = static_cast<int64_t>(rows.plane.row_stride);
  launch.packed = reinterpret_cast<char*>(packed);
  launch.n_bytes = static_cast<int32_t>(rows.n_bytes);
  launch.packs = packs ? 1 : 0;
  launch.n_cells = n;
  std::copy_n(rows.cell + first, n, launch.cell);
  return launcher.launch_rows(raw_kernel(), n, &launch);
}

}  // namespace

Error store_rows(const StoreParams& params, const Launcher& launcher) {
  const SideView k = side_of(plane_of(params.storage.k), params.k);
  const SideView v = side_of(value_plane(params.storage), params.v);
  return params.n_tokens <= few_cells
             ? store_cells<few_cells>(store_few_kernel(), k, v, params, launcher)
             : store_cells<many_cells>(store_many_kernel(), k, v, params, launcher);
}

Error clear_rows(const ClearParams& params, const Launcher& launcher) {
  return params.n_cells <= few_cells
             ? clear_cells<few_cells>(clear_few_kernel(), params, launcher)
             : clear_cells<many_cells>(clear_many_kernel(), params, launcher);
}

Error load_rows(const LoadParams& params, const Launcher& launcher) {
  LoadLaunch launch;
  launch.k = side_of(plane_of(params.storage.k), params.k);
  launch.v = side_of(plane_of(params.storage.v), params.v);
  int32_t pair = 0;
  do {
    TurnTables tables(params.rope, pair, launch.tables);
    if (Error e = load_pairs(params, tables, pair == 0, launch, launcher); e != Error::none)
      return e;
    pair = tables.next_pair();
  } while (params.offset != nullptr && pair < params.rope.n_dims / 2);
  return Error::none;
}

Error move_rows(const MoveParams& params, const Launcher& launcher) {
  if (Error e = copy_moved(params, launcher); e != Error::none) return e;
  return params.offset == nullptr ? Error::none : turn_moved(params, launcher);
}

Error copy_stretches(const CopyParams& params, const Launcher& launcher) {
  CopyLaunch launch;
  launch.from_k = plane_of(params.from.k);
  launch.to_k = plane_of(params.to.k);
  launch.from_v = value_plane(params.from);
  launch.to_v = value_plane(params.to);
  launch.exchanges = params.exchange ? 1 : 0;
  for (int32_t begin = 0; begin < params.n_stretches; begin += copied_stretches) {
    launch.n_stretches = std::min(copied_stretches, params.n_stretches - begin);
    launch.n_cells = 0;
    for (int32_t i = 0; i < launch.n_stretches; ++i) {
      const CellStretch& stretch = params.stretch[begin + i];
      launch.from[i] = stretch.from;
      launch.to[i] = stretch.to;
      launch.first[i] = launch.n_cells;
      launch.n_cells += stretch.n;
    }
    const int64_t n_rows = launch.n_cells * most_heads(launch.to_k, launch.to_v);
    if (Error e = launcher.launch_rows(copy_kernel(), n_rows, &launch); e != Error::none) return e;
  }
  return Error::none;
}

Error pack_rows(const RowBytes& rows, int32_t first, int32_t n, std::byte* packed,
                const Launcher& launcher) {
  return copy_raw(rows, first, n, packed, true, launcher);
}
Error unpack_rows(const RowBytes& rows, int32_t first, int32_t n, std::byte* packed,
                  const Launcher& launcher) {
  return copy_raw(rows, first, n, packed, false, launcher);
}

}  // namespace kvc::cuda
