#include "kernels/cuda/schedule.hpp"

#include <algorithm>

namespace kvc::cuda {
namespace {

constexpr int32_t parts_wanted = 256;  // of one sequence, over its KV heads
constexpr int64_t stretch_min = 128;
constexpr int64_t slots_wanted = 16384;
constexpr int64_t prefix_slots_wanted = 8192;
constexpr int32_t long_stretch = 4096;

size_t rounded_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

/// At least two lists share one, and each is of one.
size_t prefixes_max(const AttentionBounds& bounds) {
  return bounds.shares_prefixes ? static_cast<size_t>(bounds.max_batch) / 2 : 0;
}
/// A row is in a tile of its list, and may be in one of a prefix.
size_t tile_rows_max(const AttentionBounds& bounds) {
  return static_cast<size_t>(bounds.max_batch) * (prefixes_max(bounds) > 0 ? 2 : 1);
}
size_t lists_max(const AttentionBounds& bounds) {
  return static_cast<size_t>(bounds.max_batch) + prefixes_max(bounds);
}

/// Every row and every padding token may become a tile.
size_t rows_begin(const AttentionBounds& bounds) {
  return rounded_up(tile_rows_max(bounds) * sizeof(Tile));
}
size_t lists_begin(const AttentionBounds& bounds) {
  return rows_begin(bounds) + rounded_up(tile_rows_max(bounds) * sizeof(TileRow));
}
size_t segments_begin(const AttentionBounds& bounds) {
  return lists_begin(bounds) + rounded_up(lists_max(bounds) * sizeof(ListRef));
}

/// An older token may owe what no neighbour does, and lies in one list, or in one prefix. Tokens of the pass owe nothing: they lie in
/// several lists where these begin with chunks, as one segment of each.
size_t segments_max(const AttentionBounds& bounds) {
  return static_cast<size_t>(bounds.n_token_entries) + 2 * lists_max(bounds);
}
/// Each tile of a list may be a wave, and so may those of prefixes together.
size_t waves_max(const AttentionBounds& bounds) {
  return static_cast<size_t>(bounds.max_batch) + 1;
}
size_t prefixes_begin(const AttentionBounds& bounds) {
  return Schedule::block_bytes(bounds) + rounded_up(waves_max(bounds) * sizeof(Wave));
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

/// Slots that a part of a tile of this shape takes at most, in all turns.
int64_t slots_of_a_part(const TileShape& shape, int64_t n_rows) {
  return int64_t{shape.turns()} *
         shape.slots(static_cast<int32_t>(std::min<int64_t>(n_rows, shape.rows())));
}

/// The same of any shape.
int64_t slots_of_a_part(const AttentionBounds& bounds) {
  const int32_t group = std::max(1, bounds.max_q_heads / bounds.n_kv_heads);
  int64_t most = 0;
  for (const int32_t width : {tile_columns, medium_columns, wide_columns, wide_columns_max}) {
    const TileShape shape = {bounds.n_kv_heads, group, width};
    // Layers with fewer query heads may have more rows in a tile.
    const int64_t columns = std::min<int64_t>(int64_t{bounds.max_batch} * group, width);
    most = std::max(most, shape.turns() * ((columns + tile_columns - 1) / tile_columns));
  }
  return most;
}

/// Parts of a tile, at most.
int64_t parts_max(const AttentionBounds& bounds) {
  return parts_max(bounds.n_token_entries, bounds.n_kv_heads);
}

/// Slots that the results of one tile of a list take at most.
int64_t slots_of_a_tile(const AttentionBounds& bounds) {
  return slots_of_a_part(bounds) * parts_max(bounds);
}

/// Launches that lists with `slots` slots in all, and up to `of_a_tile` in a tile, need at most: one is full when the next tile finds
/// no room.
int64_t launches_of(int64_t slots, int64_t of_a_tile, int64_t n_slots) {
  return slots <= n_slots ? 1 : 1 + slots / (n_slots - of_a_tile + 1);
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
    : n_own_slots_(n_own_slots(bounds)),
      n_prefix_slots_(n_prefix_slots(bounds)),
      rows_at_(rows_begin(bounds)),
      lists_at_(lists_begin(bounds)),
      segments_at_(segments_begin(bounds)),
      block_(memory),
      waves_(reinterpret_cast<Wave*>(block_ + block_bytes(bounds))),
      prefixes_(reinterpret_cast<Prefix*>(block_ + prefixes_begin(bounds))),
      tiles_(reinterpret_cast<Tile*>(block_)),
      rows_(reinterpret_cast<TileRow*>(block_ + rows_at_)),
      lists_(reinterpret_cast<ListRef*>(block_ + lists_at_)),
      segments_(reinterpret_cast<Segment*>(block_ + segments_at_)) {}

size_t Schedule::host_bytes(const AttentionBounds& bounds) {
  return prefixes_begin(bounds) + rounded_up(prefixes_max(bounds) * sizeof(Prefix));
}

size_t Schedule::block_bytes(const AttentionBounds& bounds) {
  return segments_begin(bounds) + rounded_up(segments_max(bounds) * sizeof(Segment));
}

int64_t Schedule::n_slots(const AttentionBounds& bounds) {
  return n_own_slots(bounds) + n_prefix_slots(bounds);
}

/// Of tiles of lists: those of a launch.
int64_t Schedule::n_own_slots(const AttentionBounds& bounds) {
  if (bounds.n_kv_heads == 0) return 0;
  const int64_t of_a_tile = slots_of_a_tile(bounds);
  return std::min(of_a_tile * bounds.max_batch, std::max(of_a_tile, slots_wanted));
}

/// Of tiles of prefixes, which stay until all launches have come. A prefix that finds no room is not shared.
int64_t Schedule::n_prefix_slots(const AttentionBounds& bounds) {
  if (bounds.n_kv_heads == 0 || prefixes_max(bounds) == 0) return 0;
  return std::min(slots_of_a_tile(bounds) * bounds.max_batch, prefix_slots_wanted);
}

/// A launch ends where the next tile finds no room, and before tiles that need prefixes. A tile takes no more slots than its tokens would
/// in tiles of their own.
int32_t Schedule::most_waves(const AttentionBounds& bounds, const Cut& cut, Width width,
                             int32_t n_tokens) {
  const bool may_share = cut.least_saved != shares_nothing && prefixes_max(bounds) > 0 &&
                         n_tokens > 1 && width == cut.widest();
  const int32_t of_prefixes = may_share ? 1 : 0;
  if (bounds.n_kv_heads == 0 || !cut.may_have(width, n_tokens)) return of_prefixes;
  const TileShape shape = cut.shape_of(width);
  const int64_t most_parts = parts_max(bounds);
  const int64_t of_lists = launches_of(n_tokens * slots_of_a_part(shape, 1) * most_parts,
                                       slots_of_a_part(shape, n_tokens) * most_parts,
                                       n_own_slots(bounds));
  return of_prefixes + static_cast<int32_t>(std::min<int64_t>(n_tokens, of_lists));
}

int32_t Schedule::most_waves(const AttentionBounds& bounds) {
  if (bounds.n_kv_heads == 0) return 0;
  const int64_t of_a_tile = slots_of_a_tile(bounds);
  const int64_t of_lists = launches_of(of_a_tile * bounds.max_batch, of_a_tile, n_own_slots(bounds));
  return (prefixes_max(bounds) > 0 ? 1 : 0) +
         static_cast<int32_t>(std::min<int64_t>(bounds.max_batch, of_lists));
}

/// What shares prefixes comes in a launch behind theirs.
void Schedule::cut(const AttentionPlan& plan, const Cut& cut) {
  cut_ = cut;
  n_tiles_ = n_rows_ = n_segments_ = n_waves_ = n_parts_ = n_prefixes_ = 0;
  slots_taken_ = prefix_slots_taken_ = 0;
  ends_wave_ = false;
  find_prefixes(plan);
  for (const Width width : widths) {
    const bool has_prefixes = width == cut.widest() && n_prefixes_ > 0;
    if (has_prefixes) add_prefixes(plan);
    add_lists(plan, width, false);
    ends_wave_ = has_prefixes;
    add_lists(plan, width, true);
  }
  add_padding(plan);
  n_lists_ = plan.n_lists + n_prefixes_;
  is_cut_ = true;
}

/// Rows of one list follow one another.
void Schedule::add_lists(const AttentionPlan& plan, Width width, bool share) {
  const Prefix* prefix = prefixes_;
  for (int32_t first = 0, end = 0; first < plan.n_rows; first = end) {
    const int32_t list = plan.rows[first].list;
    while (end < plan.n_rows && plan.rows[end].list == list) ++end;
    while (prefix < prefixes_ + n_prefixes_ && prefix->list_end <= list) ++prefix;
    const bool shares = prefix < prefixes_ + n_prefixes_ && prefix->list_begin <= list;
    if (cut_.width_of(end - first) == width && shares == share)
      add_list(plan, list, first, end, share ? prefix : nullptr);
  }
}

/// A list, or what is behind the prefix that it shares.
void Schedule::add_list(const AttentionPlan& plan, int32_t list, int32_t first_row, int32_t end_row,
                        const Prefix* prefix) {
  const Stretch own = {.begin = prefix != nullptr ? prefix->length : 0};
  add_ref(plan, list, lists_[list], first_row, end_row, own);
  const Width width = cut_.width_of(end_row - first_row);
  const TileShape shape = cut_.shape_of(width);
  const int32_t n_tiles = (end_row - first_row + shape.rows() - 1) / shape.rows();
  for (int32_t r = first_row; r < end_row; r += shape.rows()) {
    Tile& tile = add_tile(plan, r, std::min(shape.rows(), end_row - r), own);
    tile.list = list;
    if (prefix != nullptr) {
      tile.prefix_columns = cut_.shape_of(cut_.widest()).columns;
      tile.prefix_tile = prefix->first_tile;
      tile.prefix_row = r - prefix->first_row;
    }
    add_parts(tile, width,
              width == Width::wide ? wide_stretch_of(tile.n_seen, shape.n_kv_heads, n_tiles)
                                   : stretch_of(tile.n_seen, shape.n_kv_heads));
  }
}

std::array<Schedule::Array, 4> Schedule::arrays() const {
  const auto bytes = [](int32_t n, size_t size) { return static_cast<size_t>(n) * size; };
  return {{{tiles_at(), bytes(n_tiles_, sizeof(Tile))},
           {rows_at_, bytes(n_rows_, sizeof(TileRow))},
           {lists_at_, bytes(n_lists_, sizeof(ListRef))},
           {segments_at_, bytes(n_segments_, sizeof(Segment))}}};
}

/// What a row sees of a stretch of its list, counted from there.
AttentionRow Schedule::within(AttentionRow row, const Stretch& stretch) {
  for (int32_t* const index : {&row.first_end, &row.begin, &row.end})
    *index = std::clamp(*index, stretch.begin, stretch.end) - stretch.begin;
  return row;
}

/// The stretch of a list, and the segments of what its rows see there.
void Schedule::add_ref(const AttentionPlan& plan, int32_t index, ListRef& made, int32_t first_row,
                       int32_t end_row, const Stretch& stretch) {
  const TokenList& list = plan.lists[index];
  std::copy_n(list.start, 3, made.start);
  std::copy_n(list.count, 3, made.count);
  for (int32_t piece = 0, left = stretch.begin; piece < 3; ++piece) {
    const int32_t n = std::min(left, made.count[piece]);
    made.start[piece] += n;
    made.count[piece] -= n;
    left -= n;
  }
  made.first_cell = list.first_cell;
  made.first_position = list.first_position;
  made.first_segment = n_segments_;
  segments_[n_segments_++] = {0, 0};
  if (list.has_pending) {
    int32_t first_end = 0, begin = INT32_MAX, end = 0;
    for (int32_t r = first_row; r < end_row; ++r) {
      const AttentionRow row = within(plan.rows[r], stretch);
      first_end = std::max(first_end, row.first_end);
      begin = std::min(begin, row.begin);
      end = std::max(end, row.end);
    }
    begin = std::max(begin, first_end);
    add_segments(plan, made, 0, first_end);
    add_segments(plan, made, begin, end);
  }
  made.n_segments = n_segments_ - made.first_segment;
}

void Schedule::add_segments(const AttentionPlan& plan, const ListRef& list, int32_t begin,
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

Tile& Schedule::add_tile(const AttentionPlan& plan, int32_t first_row, int32_t n_rows,
                         const Stretch& stretch) {
  Tile& tile = tiles_[n_tiles_++];
  tile = {};
  tile.first_row = n_rows_;
  tile.n_rows = n_rows;
  tile.begin = tile.all_first_end = tile.all_end = INT32_MAX;
  for (int32_t r = first_row; r < first_row + n_rows; ++r) {
    const AttentionRow row = within(plan.rows[r], stretch);
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
    const AttentionRow row = within(plan.rows[r], stretch);
    rows_[n_rows_++] = {row.token, row.position, row.first_end, seen(row.begin), seen(row.end)};
  }
  tile.all_begin = seen(tile.all_begin);
  tile.all_end = seen(tile.all_end);
  tile.n_seen = seen(tile.end);
  return tile;
}

/// Padding tokens see nothing, and so get zeros.
void Schedule::add_padding(const AttentionPlan& plan) {
  const Width width = cut_.width_of_padding();
  const int32_t most_rows = cut_.shape_of(width).rows();
  for (int32_t first = 0; first < plan.n_padding; first += most_rows) {
    Tile& tile = tiles_[n_tiles_++];
    tile = {};
    tile.first_row = n_rows_;
    tile.n_rows = std::min(most_rows, plan.n_padding - first);
    for (int32_t i = first; i < first + tile.n_rows; ++i)
      rows_[n_rows_++] = {plan.padding[i], 0, 0, 0, 0};
    add_parts(tile, width, stretch_of(0, cut_.narrow.n_kv_heads));
  }
}

void Schedule::add_parts(Tile& tile, Width width, int32_t stretch) {
  const TileShape shape = cut_.shape_of(width);
  tile.stretch = stretch;
  tile.n_parts = static_cast<int32_t>(parts_of(tile.n_seen, tile.stretch));
  tile.first_part = n_parts_;
  n_parts_ += tile.n_parts;
  const int64_t slots = tile.is_whole()
                            ? 0
                            : int64_t{tile.n_parts} * shape.turns() * shape.slots(tile.n_rows);
  const bool has_room = tile.is_prefix != 0 || slots_taken_ + slots <= n_own_slots_;
  if (n_waves_ == 0 || wave(n_waves_ - 1).width != width || ends_wave_ || !has_room) {
    waves_[n_waves_++] = {tile.first_part, 0, width};
    slots_taken_ = 0;
    ends_wave_ = false;
  }
  int64_t& taken = tile.is_prefix != 0 ? prefix_slots_taken_ : slots_taken_;
  tile.first_slot = static_cast<int32_t>(taken + (tile.is_prefix != 0 ? n_own_slots_ : 0));
  taken += slots;
  waves_[n_waves_ - 1].n_parts += tile.n_parts;
}

}  // namespace kvc::cuda
