#include "kernels/cuda/schedule.hpp"

#include <algorithm>

namespace kvc::cuda {
namespace {

constexpr int32_t parts_wanted = 256;  // of one sequence, over its KV heads
constexpr int64_t stretch_min = 128;
constexpr int64_t slots_wanted = 16384;
constexpr int32_t long_stretch = 4096;

size_t rounded_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// Every row and every padding token may become a tile.
size_t rows_begin(const AttentionBounds& bounds) {
  return rounded_up(static_cast<size_t>(bounds.max_batch) * sizeof(Tile));
}
size_t lists_begin(const AttentionBounds& bounds) {
  return rows_begin(bounds) + rounded_up(static_cast<size_t>(bounds.max_batch) * sizeof(TileRow));
}
size_t segments_begin(const AttentionBounds& bounds) {
  return lists_begin(bounds) + rounded_up(static_cast<size_t>(bounds.max_batch) * sizeof(ListRef));
}

/// An older token may owe what no neighbour does, and lies in one list. Tokens of the pass owe nothing: they lie in several lists
/// where these begin with chunks, as one segment of each.
size_t segments_max(const AttentionBounds& bounds) {
  return static_cast<size_t>(bounds.n_token_entries) + 2 * static_cast<size_t>(bounds.max_batch);
}

int64_t parts_of(int64_t n_seen, int64_t stretch) {
  return std::max<int64_t>(1, (n_seen + stretch - 1) / stretch);
}

/// Of a tile that sees up to so many tokens: where stretches double, one that sees less has more parts.
int64_t parts_max(int64_t n_seen, int32_t n_kv_heads) {
  const int64_t of_stretches = (n_seen + stretch_min - 1) / stretch_min;
  return std::max<int64_t>(
      1, std::min<int64_t>(of_stretches, (parts_wanted + n_kv_heads - 1) / n_kv_heads));
}

bool is_wide(const TileShape& narrow, int32_t n_rows) {
  return int64_t{n_rows} * narrow.group > narrow_columns_max;
}

/// Slots that the results of one tile take at most.
int64_t slots_of_a_tile(const AttentionBounds& bounds) {
  const int32_t group = std::max(1, bounds.max_q_heads / bounds.n_kv_heads);
  const TileShape narrow = {bounds.n_kv_heads, group};
  const TileShape wide = {bounds.n_kv_heads, group, wide_columns};
  // Layers with fewer query heads may have more rows in a tile.
  const int64_t columns = std::min<int64_t>(int64_t{bounds.max_batch} * group, wide_columns);
  const int64_t of_wide = wide.turns() * ((columns + tile_columns - 1) / tile_columns);
  const int64_t of_a_part = is_wide(narrow, bounds.max_batch)
                                ? std::max<int64_t>(narrow.turns(), of_wide)
                                : narrow.turns();
  return of_a_part * parts_max(bounds.n_token_entries, bounds.n_kv_heads);
}

}  // namespace

int32_t stretch_of(int64_t n_seen, int32_t n_kv_heads) {
  const int64_t work = n_seen * n_kv_heads;
  int64_t stretch = work <= 16384 ? stretch_min : 256;
  while (stretch * parts_wanted < work) stretch *= 2;
  return static_cast<int32_t>(std::min<int64_t>(stretch, 1 << 30));
}

int32_t wide_stretch_of(int64_t n_seen, int32_t n_kv_heads, int32_t n_tiles) {
  const int32_t alone = stretch_of(n_seen, n_kv_heads);
  int64_t stretch = alone;
  while (stretch < long_stretch && stretch * parts_wanted < n_seen * n_kv_heads * n_tiles)
    stretch *= 2;
  return static_cast<int32_t>(stretch);
}

Schedule::Schedule(const AttentionBounds& bounds, std::byte* memory)
    : n_slots_(n_slots(bounds)),
      rows_at_(rows_begin(bounds)),
      lists_at_(lists_begin(bounds)),
      segments_at_(segments_begin(bounds)),
      block_(memory),
      waves_(reinterpret_cast<Wave*>(block_ + block_bytes(bounds))),
      tiles_(reinterpret_cast<Tile*>(block_)),
      rows_(reinterpret_cast<TileRow*>(block_ + rows_at_)),
      lists_(reinterpret_cast<ListRef*>(block_ + lists_at_)),
      segments_(reinterpret_cast<Segment*>(block_ + segments_at_)) {}

/// Each tile may be a wave.
size_t Schedule::host_bytes(const AttentionBounds& bounds) {
  return block_bytes(bounds) + rounded_up((static_cast<size_t>(bounds.max_batch) + 1) * sizeof(Wave));
}

size_t Schedule::block_bytes(const AttentionBounds& bounds) {
  return segments_begin(bounds) + rounded_up(segments_max(bounds) * sizeof(Segment));
}

int64_t Schedule::n_slots(const AttentionBounds& bounds) {
  if (bounds.n_kv_heads == 0) return 0;
  const int64_t of_a_tile = slots_of_a_tile(bounds);
  return std::min(of_a_tile * bounds.max_batch, std::max(of_a_tile, slots_wanted));
}

/// A wave is full, but for the last, when the next tile finds no room.
int32_t Schedule::most_waves(const AttentionBounds& bounds, int32_t n_tokens) {
  if (bounds.n_kv_heads == 0) return 0;
  const int64_t n_slots = Schedule::n_slots(bounds), of_a_tile = slots_of_a_tile(bounds);
  const int64_t all = of_a_tile * n_tokens;
  if (all <= n_slots) return 1;
  return static_cast<int32_t>(std::min<int64_t>(n_tokens, 1 + all / (n_slots - of_a_tile + 1)));
}

/// Wide tiles come first: a launch serves tiles of one width, and those of long prompts take longest.
void Schedule::cut(const AttentionPlan& plan, const TileShape& narrow, bool has_wide) {
  narrow_ = narrow;
  has_wide_ = has_wide;
  n_tiles_ = n_rows_ = n_segments_ = n_waves_ = n_parts_ = 0;
  slots_taken_ = 0;
  if (has_wide) add_lists(plan, true);
  add_lists(plan, false);
  for (int32_t i = 0; i < plan.n_padding; i += narrow.rows())
    add_padding(plan, i, std::min(narrow.rows(), plan.n_padding - i));
  n_lists_ = plan.n_lists;
  is_cut_ = true;
}

/// Rows of one list follow one another.
void Schedule::add_lists(const AttentionPlan& plan, bool are_wide) {
  const int32_t rows = are_wide ? wide_shape().rows() : narrow_.rows();
  for (int32_t first = 0, end = 0; first < plan.n_rows; first = end) {
    const int32_t list = plan.rows[first].list;
    while (end < plan.n_rows && plan.rows[end].list == list) ++end;
    if ((has_wide_ && is_wide(narrow_, end - first)) != are_wide) continue;
    add_list(plan, list, first, end);
    const int32_t n_wide = are_wide ? (end - first + rows - 1) / rows : 0;
    for (int32_t r = first; r < end; r += rows) {
      add_tile(plan, r, std::min(rows, end - r));
      add_parts(tiles_[n_tiles_ - 1], n_wide);
    }
  }
}

std::array<Schedule::Array, 4> Schedule::arrays() const {
  const auto bytes = [](int32_t n, size_t size) { return static_cast<size_t>(n) * size; };
  return {{{tiles_at(), bytes(n_tiles_, sizeof(Tile))},
           {rows_at_, bytes(n_rows_, sizeof(TileRow))},
           {lists_at_, bytes(n_lists_, sizeof(ListRef))},
           {segments_at_, bytes(n_segments_, sizeof(Segment))}}};
}

/// A list, and the segments of what its rows see.
void Schedule::add_list(const AttentionPlan& plan, int32_t index, int32_t first_row, int32_t end_row) {
  const TokenList& list = plan.lists[index];
  ListRef& made = lists_[index];
  std::copy_n(list.start, 3, made.start);
  std::copy_n(list.count, 3, made.count);
  made.first_cell = list.first_cell;
  made.first_position = list.first_position;
  made.first_segment = n_segments_;
  segments_[n_segments_++] = {0, 0};
  if (list.has_pending) {
    int32_t first_end = 0, begin = INT32_MAX, end = 0;
    for (int32_t r = first_row; r < end_row; ++r) {
      first_end = std::max(first_end, plan.rows[r].first_end);
      begin = std::min(begin, plan.rows[r].begin);
      end = std::max(end, plan.rows[r].end);
    }
    begin = std::max(begin, first_end);
    add_segments(plan, list, 0, first_end);
    add_segments(plan, list, begin, end);
  }
  made.n_segments = n_segments_ - made.first_segment;
}

void Schedule::add_segments(const AttentionPlan& plan, const TokenList& list, int32_t begin,
                            int32_t end) {
  int32_t start = 0;  // of the piece
  for (int32_t piece = 0; piece < 3; start += list.count[piece++]) {
    const int32_t last = std::min(end, start + list.count[piece]);
    for (int32_t index = std::max(begin, start); index < last; ++index) {
      const int64_t at = list.start[piece] + index - start;
      const int32_t position = list.first_position + plan.tokens.position[at];
      const int32_t offset = position - plan.rotated_for[list.first_cell + plan.tokens.cell[at]];
      if (offset == segments_[n_segments_ - 1].offset) continue;
      // The first segment of the list, {0, 0}, gives way where it has no tokens.
      if (index == 0) --n_segments_;
      segments_[n_segments_++] = {index, offset};
    }
  }
}

void Schedule::add_tile(const AttentionPlan& plan, int32_t first_row, int32_t n_rows) {
  Tile& tile = tiles_[n_tiles_++];
  tile = {};
  tile.list = plan.rows[first_row].list;
  tile.first_row = n_rows_;
  tile.n_rows = n_rows;
  tile.begin = tile.all_first_end = tile.all_end = INT32_MAX;
  for (int32_t r = first_row; r < first_row + n_rows; ++r) {
    const AttentionRow& row = plan.rows[r];
    tile.first_end = std::max(tile.first_end, row.first_end);
    tile.begin = std::min(tile.begin, row.begin);
    tile.end = std::max(tile.end, row.end);
    tile.all_first_end = std::min(tile.all_first_end, row.first_end);
    tile.all_begin = std::max(tile.all_begin, row.begin);
    tile.all_end = std::min(tile.all_end, row.end);
  }
  if (tile.begin <= tile.first_end) tile.begin = tile.first_end = 0;
  const auto seen = [&tile](int32_t index) {
    return index < tile.begin ? std::min(index, tile.first_end)
                              : index - (tile.begin - tile.first_end);
  };
  for (int32_t r = first_row; r < first_row + n_rows; ++r) {
    const AttentionRow& row = plan.rows[r];
    rows_[n_rows_++] = {row.token, row.position, row.first_end, seen(row.begin), seen(row.end)};
  }
  tile.all_begin = seen(tile.all_begin);
  tile.all_end = seen(tile.all_end);
  tile.n_seen = seen(tile.end);
}

/// Padding tokens see nothing, and so get zeros.
void Schedule::add_padding(const AttentionPlan& plan, int32_t first, int32_t n) {
  Tile& tile = tiles_[n_tiles_++];
  tile = {};
  tile.first_row = n_rows_;
  tile.n_rows = n;
  for (int32_t i = first; i < first + n; ++i) rows_[n_rows_++] = {plan.padding[i], 0, 0, 0, 0};
  add_parts(tile, 0);
}

void Schedule::add_parts(Tile& tile, int32_t n_wide) {
  const TileShape shape = n_wide > 0 ? wide_shape() : narrow_;
  tile.stretch = n_wide > 0 ? wide_stretch_of(tile.n_seen, shape.n_kv_heads, n_wide)
                            : stretch_of(tile.n_seen, shape.n_kv_heads);
  tile.n_parts = static_cast<int32_t>(parts_of(tile.n_seen, tile.stretch));
  tile.first_part = n_parts_;
  n_parts_ += tile.n_parts;
  const int64_t slots = tile.n_parts > 1
                            ? int64_t{tile.n_parts} * shape.turns() * shape.slots(tile.n_rows)
                            : 0;
  const bool is_first = n_waves_ == 0 || wave(n_waves_ - 1).is_wide != (n_wide > 0);
  if (is_first || slots_taken_ + slots > n_slots_) {
    waves_[n_waves_++] = {tile.first_part, 0, n_wide > 0};
    slots_taken_ = 0;
  }
  tile.first_slot = static_cast<int32_t>(slots_taken_);
  slots_taken_ += slots;
  waves_[n_waves_ - 1].n_parts += tile.n_parts;
}

}  // namespace kvc::cuda
