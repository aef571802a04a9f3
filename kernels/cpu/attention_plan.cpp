#include "kernels/cpu/attention_plan.hpp"

#include <algorithm>
#include <climits>

#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {
namespace {

/// Tiles are made smaller down to this when there would be few of them.
constexpr int32_t tile_rows_min = 192;

/// A call is cut until its largest item is about this share of it.
constexpr int64_t items_wanted = 64;

/// A tile reads each cell once and computes with it once per row; reading costs as much as this many rows.
constexpr int64_t rows_per_read = 6;

/// A prefix shorter than this is not worth the merging.
constexpr int32_t shared_prefix_min = 128;

/// Stretches are multiples of the kernels' steps: strips of 12 cells, blocks of 64, blocks of 96 or 128 (a last one of 256
/// may be half).
constexpr int32_t narrow_step = 12;
constexpr int32_t medium_step = 64;
constexpr int32_t wide_step = 384;

struct Range {
  int32_t first_end = 0;
  int32_t begin = 0;
  int32_t end = 0;
};

/// What a row sees of [low, high).
Range clamp(const AttentionRow& row, int32_t low, int32_t high) {
  const auto inside = [low, high](int32_t index) { return std::clamp(index, low, high); };
  Range range{inside(row.first_end), inside(row.begin), inside(row.end)};
  range.end = std::max(range.begin, range.end);
  return range;
}

class Planner {
 public:
  Planner(const AttentionParams& params, WorkPlan& work)
      : plan_(params.plan), settings_(params.settings), work_(work) {
    const StorageType k = params.storage.k.type(), v = params.storage.v.type();
    medium_rows_min_ = kernels().medium_tile_rows_min(k, v);
    wide_rows_min_ = kernels().wide_tile_rows_min(k, v);
    group_ = params.constants.n_q_heads / params.storage.k.n_heads;
    const int32_t rows_max = settings_.block_q > 0 ? settings_.block_q : tile_rows_max;
    work_.n_pieces = (group_ + rows_max - 1) / rows_max;
    work_.piece_heads = (group_ + work_.n_pieces - 1) / work_.n_pieces;
    n_heads_ = static_cast<int64_t>(params.storage.k.n_heads) * work_.n_pieces;
  }

  void run() {
    make_tiles();
    work_.n_units = 0;
    for (int32_t wave = 0; wave < work_.n_waves; ++wave) {
      choose_units(wave);
      make_units(wave);
    }
    work_.waves[work_.n_waves].unit = work_.n_units;
  }

 private:
  int32_t step_for(int32_t n_rows) const {
    if (n_rows < medium_rows_min_) return narrow_step;
    return n_rows < wide_rows_min_ ? medium_step : wide_step;
  }

  /// Tokens of a tile, by the rows that it is cut from.
  int32_t tokens_at_once(int32_t n_rows) const {
    if (settings_.block_q > 0) return settings_.block_q / work_.piece_heads;
    int32_t rows = kernels().wide_tile_rows;
    while (rows > tile_rows_min && int64_t{n_rows} * group_ * n_heads_ < items_wanted * rows)
      rows /= 2;
    return std::max(1, rows / work_.piece_heads);
  }

  void add_tiles(int32_t row, int32_t n_rows, int32_t list, int32_t low, int32_t high, bool shared) {
    const int32_t tokens_max = tokens_at_once(n_rows);
    const int32_t n_parts = (n_rows + tokens_max - 1) / tokens_max;
    for (int32_t part = 0; part < n_parts; ++part) {
      const int32_t begin = static_cast<int32_t>(int64_t{n_rows} * part / n_parts);
      const int32_t end = static_cast<int32_t>(int64_t{n_rows} * (part + 1) / n_parts);
      WorkTile& tile = work_.tiles[work_.n_tiles++];
      tile = WorkTile{};
      tile.row = row + begin;
      tile.n_tokens = end - begin;
      tile.list = list;
      tile.low = low;
      tile.high = high;
      tile.shared = shared;
      measure(tile);
      set_stretches(tile, n_parts);
      // Windows and chunks may hide all of a prefix: its rows then have the tile over the rest alone.
      if (shared && tile.n_seen == 0) --work_.n_tiles;
    }
  }

  void measure(WorkTile& tile) const {
    tile.first_end = tile.low;
    tile.begin = INT_MAX;
    tile.end = tile.low;
    for (int32_t i = 0; i < tile.n_tokens; ++i) {
      const Range range = clamp(plan_.rows[tile.row + i], tile.low, tile.high);
      tile.first_end = std::max(tile.first_end, range.first_end);
      if (range.begin < range.end) {
        tile.begin = std::min(tile.begin, range.begin);
        tile.end = std::max(tile.end, range.end);
      }
    }
    if (tile.begin == INT_MAX) tile.begin = tile.end = tile.first_end;
    tile.begin = std::max(tile.begin, tile.first_end);
    tile.end = std::max(tile.end, tile.begin);
    tile.n_seen = tile.first_end - tile.low + tile.end - tile.begin;
  }

  /// The rows of the lists from `list` on that a shared prefix covers, or 0 when sharing would not pay.
  int32_t shared_rows(const SharedPrefix& shared, int32_t row) const {
    if (shared.length < shared_prefix_min) return 0;
    int32_t end = row;
    while (end < plan_.n_rows && plan_.rows[end].list >= shared.list_begin &&
           plan_.rows[end].list < shared.list_end)
      ++end;
    return end - row >= 2 && plan_.rows[end - 1].list != plan_.rows[row].list ? end - row : 0;
  }

  void begin_wave(int32_t row) {
    work_.waves[work_.n_waves++] = WorkWave{.row = row, .tile = work_.n_tiles};
    n_slots_ = 0;
  }

  /// The tiles over the rest of the lists of rows [row, end), behind what they share.
  void add_lists(int32_t row, int32_t end, int32_t shared_length) {
    while (row < end) {
      const int32_t list = plan_.rows[row].list;
      int32_t next = row;
      while (next < end && plan_.rows[next].list == list) ++next;
      add_tiles(row, next - row, list, shared_length, plan_.lists[list].total, false);
      row = next;
    }
  }

  /// Rows [row, row + n_rows) share a prefix. Each of them needs two slots, so many rows become several parts, about equally large,
  /// that each read the prefix once.
  void add_sharing(int32_t row, int32_t n_rows, int32_t length) {
    const int32_t rows_max = work_.n_slots_max / 2;
    const int32_t n_parts = (n_rows + rows_max - 1) / rows_max;
    for (int32_t part = 0; part < n_parts; ++part) {
      const int32_t begin = row + static_cast<int32_t>(int64_t{n_rows} * part / n_parts);
      const int32_t end = row + static_cast<int32_t>(int64_t{n_rows} * (part + 1) / n_parts);
      const int32_t n_slots = 2 * (end - begin);
      if (n_slots_ + n_slots > work_.n_slots_max) begin_wave(begin);
      n_slots_ += n_slots;
      add_tiles(begin, end - begin, plan_.rows[begin].list, 0, length, true);
      add_lists(begin, end, length);
    }
  }

  void make_tiles() {
    work_.n_tiles = work_.n_waves = 0;
    begin_wave(0);
    // A prefix that is read once for all is a stretch of its own, which nobody asked for.
    const bool shares = work_.n_slots_max >= 4 && settings_.stretches == 0;
    int32_t next_shared = shares ? 0 : plan_.n_shared;
    for (int32_t row = 0; row < plan_.n_rows;) {
      const int32_t list = plan_.rows[row].list;
      while (next_shared < plan_.n_shared && plan_.shared[next_shared].list_end <= list)
        ++next_shared;
      if (next_shared < plan_.n_shared && plan_.shared[next_shared].list_begin <= list) {
        const SharedPrefix& shared = plan_.shared[next_shared++];
        if (const int32_t n_rows = shared_rows(shared, row); n_rows > 0) {
          add_sharing(row, n_rows, shared.length);
          row += n_rows;
          continue;
        }
      }
      int32_t end = row;
      while (end < plan_.n_rows && plan_.rows[end].list == list) ++end;
      add_lists(row, end, 0);
      row = end;
    }
    work_.waves[work_.n_waves] = WorkWave{.row = plan_.n_rows, .tile = work_.n_tiles};
  }

  int64_t cost_of(const WorkTile& tile) const {
    return int64_t{tile.n_seen} * (rows_per_read + int64_t{tile.n_tokens} * work_.piece_heads);
  }

  /// How many stretches a tile has: so many that one list alone keeps all threads busy. It follows from the list's own rows
  /// and history, so that a token has the same bits whatever else is in the batch.
  void set_stretches(WorkTile& tile, int32_t n_tiles_of_list) const {
    if (settings_.stretches > 0) {
      tile.stretch_cells = std::max(1, (tile.n_seen + settings_.stretches - 1) / settings_.stretches);
      tile.n_stretches = std::max(1, (tile.n_seen + tile.stretch_cells - 1) / tile.stretch_cells);
      return;
    }
    const int64_t items = n_tiles_of_list * n_heads_;
    const int64_t by_items = (items_wanted + items - 1) / items;
    const int64_t by_cells = std::max(1, tile.n_seen / stretch_cells_min);
    const auto n = static_cast<int32_t>(std::min(by_items, by_cells));
    const int32_t step = step_for(tile.n_tokens * work_.piece_heads);
    const int32_t cells = (tile.n_seen + n - 1) / n;
    tile.stretch_cells = std::max(1, (cells + step - 1) / step) * step;
    tile.n_stretches = std::max(1, (tile.n_seen + tile.stretch_cells - 1) / tile.stretch_cells);
  }

  /// Hands the stretches of long tiles out one by one, as far as there are slots; those of other tiles stay with one thread,
  /// which folds them as they would be merged.
  void choose_units(int32_t wave) {
    WorkWave& w = work_.waves[wave];
    const int32_t end = work_.waves[wave + 1].tile;
    for (int32_t i = w.tile; i < end; ++i) w.cost += cost_of(work_.tiles[i]) * n_heads_;
    // Tiles that stay whole have slots enough: a prefix is shared by as many rows only as that allows.
    const bool all = settings_.stretches > 0 && settings_.side_by_side;
    const bool none = settings_.stretches > 0 && !settings_.side_by_side;
    const int64_t least = all ? 1 : std::max<int64_t>(1, w.cost / items_wanted);
    for (int64_t item_cost = least;; item_cost *= 2) {
      for (int32_t i = w.tile; i < end; ++i) {
        WorkTile& tile = work_.tiles[i];
        tile.is_split = !none && tile.n_stretches > 1 && cost_of(tile) > item_cost;
      }
      if (assign_slots(wave)) return;
    }
  }

  bool assign_slots(int32_t wave) {
    WorkWave& w = work_.waves[wave];
    const WorkWave& next = work_.waves[wave + 1];
    for (int32_t i = w.row; i < next.row; ++i) work_.rows[i] = WorkRow{};
    for (int32_t i = w.tile; i < next.tile; ++i) {
      const WorkTile& tile = work_.tiles[i];
      for (int32_t t = 0; t < tile.n_tokens; ++t) {
        WorkRow& row = work_.rows[tile.row + t];
        row.n_partials += tile.n_units();
        if (tile.shared) row.n_shared_partials = tile.n_units();
      }
    }
    int64_t n_slots = 0;
    w.n_counters = 0;
    for (int32_t i = w.row; i < next.row; ++i) {
      WorkRow& row = work_.rows[i];
      if (row.n_partials < 2) continue;
      row.slot = static_cast<int32_t>(n_slots);
      row.counter = w.n_counters++;
      n_slots += row.n_partials;
      if (n_slots > work_.n_slots_max) return false;
    }
    return true;
  }

  void make_units(int32_t wave) {
    const int32_t first = work_.waves[wave].unit = work_.n_units;
    for (int32_t i = work_.waves[wave].tile; i < work_.waves[wave + 1].tile; ++i) {
      const WorkTile& tile = work_.tiles[i];
      for (int32_t u = 0; u < tile.n_units(); ++u) {
        const int32_t cells = tile.is_split
                                  ? std::min(tile.stretch_cells, tile.n_seen - u * tile.stretch_cells)
                                  : tile.n_seen;
        const int64_t per_cell = rows_per_read + int64_t{tile.n_tokens} * work_.piece_heads;
        work_.units[work_.n_units++] = WorkUnit{.cost = cells * per_cell, .tile = i, .index = u};
      }
    }
    const auto longer = [](const WorkUnit& a, const WorkUnit& b) {
      if (a.cost != b.cost) return a.cost > b.cost;
      return a.tile != b.tile ? a.tile < b.tile : a.index < b.index;
    };
    std::sort(work_.units + first, work_.units + work_.n_units, longer);
  }

  const AttentionPlan& plan_;
  const OperatorSettings& settings_;
  WorkPlan& work_;
  int32_t group_ = 1;
  int32_t medium_rows_min_ = 0;
  int32_t wide_rows_min_ = 0;
  int64_t n_heads_ = 1;
  int32_t n_slots_ = 0;  // that the wave needs at least
};

}  // namespace

void WorkPlan::place(Carver& carver, int32_t n_rows) {
  const auto count = static_cast<uint64_t>(n_rows);
  tiles = carver.take<WorkTile>(2 * count);
  // The slots of a wave and of the next exceed slots_max, unless it is the last: waves × slots_max is at most 4 × rows more.
  units = carver.take<WorkUnit>(6 * count + slots_max);
  rows = carver.take<WorkRow>(count);
  waves = carver.take<WorkWave>(count + 1);
}

int32_t slots_for(size_t slot_bytes) {
  const size_t fitting = slot_bytes_max / slot_bytes;
  return fitting < slots_max ? static_cast<int32_t>(fitting) : slots_max;
}

void make_work_plan(const AttentionParams& params, WorkPlan& work) { Planner(params, work).run(); }

}  // namespace kvc::cpu
