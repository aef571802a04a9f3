#include "kernels/cuda/rows.hpp"

#include <algorithm>

#include "kernels/cuda/coded_rows.hpp"
#include "kernels/cuda/load_tokens.hpp"
#include "kernels/cuda/row_views.hpp"

namespace kvc::cuda {
namespace {

/// A tensor without data is left out, and so are codes, which coded_rows.hpp reads and writes.
SideView side_of(const Slab& slab, const Tensor& rows) {
  if (rows.data == nullptr || !is_plain(slab.type())) return {};
  return {codes_of(slab), view_of(rows)};
}

/// The sides of a launch that stores.
struct Sides {
  SideView side[4];
  int32_t n = 0;
  int32_t n_heads = 0;

  void add(const SideView& more) {
    if (more.plane.n_heads == 0) return;
    side[n++] = more;
    n_heads = std::max(n_heads, more.plane.n_heads);
  }
  void add_as_it_is(const PlaneView& plane, const Tensor& rows) {
    if (rows.data != nullptr) add({plane, view_of(rows)});
  }
};

Sides sides_of(const StoreParams& params) {
  Sides sides;
  sides.add(side_of(params.storage.k, params.k));
  if (!params.storage.v_in_k) sides.add(side_of(params.storage.v, params.v));
  return sides;
}

Sides sides_of(const StoreCodesParams& params) {
  Sides sides;
  sides.add_as_it_is(codes_of(params.storage.k), params.k);
  sides.add_as_it_is(scales_of(params.storage.k), params.k_scales);
  if (params.storage.v_in_k) return sides;
  sides.add_as_it_is(codes_of(params.storage.v), params.v);
  sides.add_as_it_is(scales_of(params.storage.v), params.v_scales);
  return sides;
}

template <int32_t at_once>
StoreLaunch<at_once> store_launch(const Sides& sides) {
  StoreLaunch<at_once> launch;
  std::copy(sides.side, sides.side + sides.n, launch.side);
  launch.n_sides = sides.n;
  launch.n_heads = sides.n_heads;
  return launch;
}

template <int32_t at_once>
Error store_cells(const Kernel& kernel, const Sides& sides, const int32_t* cell, int32_t n,
                  const Launcher& launcher) {
  StoreLaunch<at_once> launch = store_launch<at_once>(sides);
  for (int32_t first = 0; first < n; first += at_once) {
    launch.first_row = first;
    launch.n_cells = std::min(at_once, n - first);
    std::copy_n(cell + first, launch.n_cells, launch.cell);
    const int64_t n_rows = int64_t{launch.n_cells} * launch.n_heads;
    if (Error e = launcher.launch_rows(kernel, n_rows, &launch); e != Error::none) return e;
  }
  return Error::none;
}

Error store_sides(const Sides& sides, const int32_t* cell, int32_t n, const Launcher& launcher) {
  return n <= few_cells ? store_cells<few_cells>(store_few_kernel(), sides, cell, n, launcher)
                        : store_cells<many_cells>(store_many_kernel(), sides, cell, n, launcher);
}

/// Blocks know the cells once they run.
Error record_sides(const Sides& sides, int32_t n_tokens, const int32_t* planned,
                   const Launcher& launcher) {
  StoreLaunch<few_cells> launch = store_launch<few_cells>(sides);
  launch.n_cells = n_tokens;
  launch.planned = planned;
  const int64_t n_rows = int64_t{launch.n_cells} * launch.n_heads;
  return launcher.launch_rows(store_few_kernel(), n_rows, &launch);
}

template <int32_t at_once>
Error clear_cells(const Kernel& kernel, const ClearParams& params, const Launcher& launcher) {
  ClearLaunch<at_once> launch;
  launch.planes = planes_of(params.storage);
  for (int32_t first = 0; first < params.n_cells; first += at_once) {
    launch.n_cells = std::min(at_once, params.n_cells - first);
    std::copy_n(params.cell + first, launch.n_cells, launch.cell);
    const int64_t n_rows = int64_t{launch.n_cells} * launch.planes.n_heads;
    if (Error e = launcher.launch_rows(kernel, n_rows, &launch); e != Error::none) return e;
  }
  return Error::none;
}

/// Copies in order. A launch works on all of its cells at once, so a cell that is written after it was read is another's.
Error copy_moved(const MoveParams& params, const Launcher& launcher) {
  MoveLaunch launch;
  launch.planes = planes_of(params.storage);
  const auto flush = [&]() -> Error {
    const int64_t n_rows = int64_t{launch.n_cells} * launch.planes.n_heads;
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
  launch.k = codes_of(params.storage.k);
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
  const Error stored = store_sides(sides_of(params), params.cell, params.n_tokens, launcher);
  if (stored != Error::none) return stored;
  return encode_rows(params, launcher);
}

Error store_codes(const StoreCodesParams& params, const Launcher& launcher) {
  return store_sides(sides_of(params), params.cell, params.n_tokens, launcher);
}

Error record_store(const StoreParams& params, const int32_t* planned, const Launcher& launcher) {
  const Error e = record_sides(sides_of(params), params.n_tokens, planned, launcher);
  return e == Error::none ? record_encoding(params, planned, launcher) : e;
}

Error record_store_codes(const StoreCodesParams& params, const int32_t* planned,
                         const Launcher& launcher) {
  return record_sides(sides_of(params), params.n_tokens, planned, launcher);
}

Error clear_rows(const ClearParams& params, const Launcher& launcher) {
  return params.n_cells <= few_cells
             ? clear_cells<few_cells>(clear_few_kernel(), params, launcher)
             : clear_cells<many_cells>(clear_many_kernel(), params, launcher);
}

Error load_rows(const LoadParams& params, const Launcher& launcher) {
  LoadLaunch launch;
  launch.k = side_of(params.storage.k, params.k);
  launch.v = side_of(params.storage.v, params.v);
  const int32_t n_heads = std::max(launch.k.plane.n_heads, launch.v.plane.n_heads);
  if (n_heads == 0) return decode_rows(params, launcher);
  const Error e = load_tokens(params, launch.tokens, [&] {
    return launcher.launch_rows(load_kernel(), int64_t{launch.tokens.n_cells} * n_heads, &launch);
  });
  return e == Error::none ? decode_rows(params, launcher) : e;
}

Error move_rows(const MoveParams& params, const Launcher& launcher) {
  if (Error e = copy_moved(params, launcher); e != Error::none) return e;
  return params.offset == nullptr ? Error::none : turn_moved(params, launcher);
}

Error copy_stretches(const CopyParams& params, const Launcher& launcher) {
  CopyLaunch launch;
  launch.source = planes_of(params.from);
  launch.target = planes_of(params.to);
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
    const int64_t n_rows = int64_t{launch.n_cells} * launch.target.n_heads;
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
