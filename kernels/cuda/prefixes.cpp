#include <algorithm>

#include "kernels/cuda/schedule.hpp"

/// Prefixes that lists share, as a schedule makes tiles of them.
namespace kvc::cuda {
namespace {

int32_t tiles_of(const TileShape& shape, int32_t n_rows) {
  return (n_rows + shape.rows() - 1) / shape.rows();
}

/// Tokens before `length` that any of these rows sees.
int32_t seen_before(const AttentionPlan& plan, int32_t first_row, int32_t end_row, int32_t length) {
  int32_t first_end = 0, begin = length, end = 0;
  for (int32_t r = first_row; r < end_row; ++r) {
    const AttentionRow& row = plan.rows[r];
    first_end = std::max(first_end, std::min(row.first_end, length));
    begin = std::min(begin, row.begin);
    end = std::max(end, std::min(row.end, length));
  }
  return first_end + std::max(0, end - std::max(begin, first_end));
}

}  // namespace

/// Those of the plan that pay, and whose results have room.
void Schedule::find_prefixes(const AttentionPlan& plan) {
  int64_t slots = 0;
  for (int32_t i = 0, row = 0; i < plan.n_shared; ++i) {
    const SharedPrefix& shared = plan.shared[i];
    Prefix prefix = {shared.list_begin, shared.list_end, 0, 0, shared.length};
    while (row < plan.n_rows && plan.rows[row].list < shared.list_begin) ++row;
    prefix.first_row = row;
    while (row < plan.n_rows && plan.rows[row].list < shared.list_end) ++row;
    prefix.end_row = row;
    if (!pays(plan, prefix)) continue;
    slots += slots_of(prefix);
    if (slots > n_prefix_slots_) return;
    prefixes_[n_prefixes_++] = prefix;
  }
}

/// Whether blocks read less of the prefix if they read it for all lists together: a third less, and enough for one more launch.
bool Schedule::pays(const AttentionPlan& plan, Prefix& prefix) const {
  int64_t alone = 0;
  for (int32_t first = prefix.first_row, end = first; first < prefix.end_row; first = end) {
    while (end < prefix.end_row && plan.rows[end].list == plan.rows[first].list) ++end;
    const TileShape shape = cut_.shape_of(cut_.width_of(end - first));
    alone += int64_t{tiles_of(shape, end - first)} * shape.head_blocks() *
             seen_before(plan, first, end, prefix.length);
  }
  const TileShape shape = cut_.shape_of(cut_.widest());
  const int32_t n_tiles = tiles_of(shape, prefix.end_row - prefix.first_row);
  prefix.n_seen = seen_before(plan, prefix.first_row, prefix.end_row, prefix.length);
  prefix.stretch = wide_stretch_of(prefix.n_seen, shape.n_kv_heads, n_tiles);
  const int64_t together = int64_t{n_tiles} * shape.head_blocks() * prefix.n_seen;
  return 2 * alone >= 3 * together &&
         (alone - together) * shape.n_kv_heads >= std::max<int64_t>(1, cut_.least_saved);
}

/// What its tiles leave at most: rows of some may see less.
int64_t Schedule::slots_of(const Prefix& prefix) const {
  const TileShape shape = cut_.shape_of(cut_.widest());
  const int32_t n_rows = prefix.end_row - prefix.first_row, n_whole = n_rows / shape.rows();
  const int64_t slots = int64_t{n_whole} * shape.slots(shape.rows()) +
                        shape.slots(n_rows % shape.rows());
  const int64_t n_parts = (int64_t{prefix.n_seen} + prefix.stretch - 1) / prefix.stretch;
  return n_parts * shape.turns() * slots;
}

void Schedule::add_prefixes(const AttentionPlan& plan) {
  const int32_t rows = cut_.shape_of(cut_.widest()).rows();
  for (int32_t i = 0; i < n_prefixes_; ++i) {
    Prefix& prefix = prefixes_[i];
    const Stretch stretch = {0, prefix.length};
    const int32_t list = plan.n_lists + i;
    add_ref(plan, prefix.list_begin, lists_[list], prefix.first_row, prefix.end_row, stretch);
    prefix.first_tile = n_tiles_;
    for (int32_t r = prefix.first_row; r < prefix.end_row; r += rows) {
      Tile& tile = add_tile(plan, r, std::min(rows, prefix.end_row - r), stretch);
      tile.list = list;
      tile.is_prefix = 1;
      add_parts(tile, cut_.widest(), prefix.stretch);
    }
  }
}

}  // namespace kvc::cuda
