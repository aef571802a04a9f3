/// How the plan of a pass is cut into tiles, parts and waves: nothing twice, nothing left out, nothing without room, and all of it by
/// what a list is alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cuda/schedule.hpp"
#include "support/random.hpp"

namespace {

using namespace kvc;
using namespace kvc::cuda;
using support::Random;

/// Lists of random lengths, with random rows each; some see a window.
struct Plan {
  std::vector<AttentionRow> rows;
  std::vector<TokenList> lists;
  std::vector<int32_t> padding;
  AttentionBounds bounds;

  Plan(Random& random, int32_t n_lists, int32_t n_kv_heads, int32_t group) {
    const int32_t longest = random.below(2) == 0 ? 300 : 40000;
    for (int32_t l = 0; l < n_lists; ++l) {
      TokenList list;
      list.start[0] = bounds.n_token_entries;
      list.count[0] = list.total = 1 + random.below(longest);
      bounds.n_token_entries += list.total;
      const int32_t n = 1 + random.below(std::min(list.total, random.below(3) == 0 ? 200 : 8));
      for (int32_t i = 0; i < n; ++i) {
        AttentionRow row;
        row.token = static_cast<int32_t>(rows.size());
        row.list = l;
        row.end = list.total - n + 1 + i;
        row.begin = l % 3 == 1 ? std::max(0, row.end - 50) : 0;
        rows.push_back(row);
      }
      lists.push_back(list);
    }
    for (int32_t i = random.below(20); i > 0; --i)
      padding.push_back(static_cast<int32_t>(rows.size() + padding.size()));
    bounds.max_batch = static_cast<int32_t>(rows.size() + padding.size());
    bounds.n_kv_heads = n_kv_heads;
    bounds.max_q_heads = n_kv_heads * group;
  }

  AttentionPlan view() const {
    AttentionPlan plan;
    plan.rows = rows.data();
    plan.lists = lists.data();
    plan.padding = padding.data();
    plan.n_rows = static_cast<int32_t>(rows.size());
    plan.n_lists = static_cast<int32_t>(lists.size());
    plan.n_padding = static_cast<int32_t>(padding.size());
    return plan;
  }
  int32_t rows_of(int32_t list) const {
    return static_cast<int32_t>(std::count_if(
        rows.begin(), rows.end(), [&](const AttentionRow& row) { return row.list == list; }));
  }
};

/// Waves take all parts in order, and each has room for what its tiles leave behind.
void check_waves(const Schedule& schedule, const AttentionBounds& bounds) {
  int32_t tile = 0, part = 0;
  for (int32_t w = 0; w < schedule.n_waves(); ++w) {
    const Wave& wave = schedule.wave(w);
    const TileShape shape = schedule.shape_of(wave);
    ASSERT_EQ(wave.first_part, part);
    ASSERT_EQ(shape.columns, wave.is_wide ? wide_columns : tile_columns);
    int64_t taken = 0;
    for (; tile < schedule.n_tiles() &&
           schedule.tiles()[tile].first_part < wave.first_part + wave.n_parts;
         ++tile) {
      const Tile& t = schedule.tiles()[tile];
      ASSERT_EQ(t.first_part, part);
      ASSERT_LE(t.n_rows * shape.heads(), shape.columns);
      ASSERT_GE(int64_t{t.n_parts} * t.stretch, t.n_seen);
      ASSERT_LT(int64_t{t.n_parts - 1} * t.stretch, std::max(1, t.n_seen));
      part += t.n_parts;
      if (t.n_parts == 1) continue;
      ASSERT_EQ(t.first_slot, taken);
      taken += int64_t{t.n_parts} * shape.turns() * shape.slots(t.n_rows);
    }
    ASSERT_LE(taken, Schedule::n_slots(bounds));
    ASSERT_EQ(part, wave.first_part + wave.n_parts);
  }
  ASSERT_EQ(tile, schedule.n_tiles());
}

/// Each row and each padding token is in one tile, whose width its list decides.
void check_rows(const Schedule& schedule, const Plan& plan, bool has_wide) {
  std::vector<int32_t> times(static_cast<size_t>(plan.bounds.max_batch), 0);
  const int32_t group = plan.bounds.max_q_heads / plan.bounds.n_kv_heads;
  for (int32_t w = 0, i = 0; w < schedule.n_waves(); ++w) {
    const Wave& wave = schedule.wave(w);
    for (; i < schedule.n_tiles() && schedule.tiles()[i].first_part < wave.first_part + wave.n_parts;
         ++i) {
      const Tile& tile = schedule.tiles()[i];
      for (int32_t r = tile.first_row; r < tile.first_row + tile.n_rows; ++r) {
        const int32_t token = schedule.rows()[r].token;
        ++times[static_cast<size_t>(token)];
        const bool is_padding = token >= static_cast<int32_t>(plan.rows.size());
        const bool is_wide = has_wide && !is_padding &&
                             plan.rows_of(plan.rows[static_cast<size_t>(token)].list) * group >
                                 narrow_columns_max;
        ASSERT_EQ(wave.is_wide, is_wide) << "token " << token;
      }
    }
  }
  for (const int32_t n : times) ASSERT_EQ(n, 1);
}

/// What a tile does, wherever its parts and slots lie.
std::vector<int32_t> work_of(const Tile& t) {
  return {t.n_rows,    t.first_end, t.begin,  t.end,     t.all_first_end,
          t.all_begin, t.all_end,   t.n_seen, t.stretch, t.n_parts};
}
std::vector<std::vector<int32_t>> work_of(const Schedule& schedule, int32_t list) {
  std::vector<std::vector<int32_t>> work;
  for (int32_t i = 0; i < schedule.n_tiles(); ++i) {
    const Tile& tile = schedule.tiles()[i];
    if (tile.list == list && tile.n_seen > 0) work.push_back(work_of(tile));
  }
  return work;
}

/// One in memory of its own.
struct OnHost {
  std::vector<std::byte> memory;
};
class OwnSchedule : private OnHost, public Schedule {
 public:
  explicit OwnSchedule(const AttentionBounds& bounds)
      : OnHost{std::vector<std::byte>(host_bytes(bounds))}, Schedule(bounds, memory.data()) {}
};

TEST(CudaSchedule, TakesEveryRowOnceAndHasRoom) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const int32_t n_kv_heads = 1 + random.below(8),
                  group = 1 + random.below(random.below(2) == 0 ? 8 : 80);
    const Plan plan(random, 1 + random.below(6), n_kv_heads, group);
    OwnSchedule schedule(plan.bounds);
    for (const bool has_wide : {true, false}) {
      schedule.cut(plan.view(), {n_kv_heads, group}, has_wide);
      check_waves(schedule, plan.bounds);
      check_rows(schedule, plan, has_wide);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaSchedule, CutsAListAloneAsBesideOthers) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const int32_t n_kv_heads = 1 + random.below(8), group = 1 + random.below(8);
    const Plan plan(random, 5, n_kv_heads, group);
    OwnSchedule beside(plan.bounds);
    beside.cut(plan.view(), {n_kv_heads, group}, true);
    for (int32_t list = 0; list < 5; ++list) {
      Plan alone = plan;
      std::erase_if(alone.rows, [&](const AttentionRow& row) { return row.list != list; });
      alone.padding.clear();
      OwnSchedule schedule(alone.bounds);
      schedule.cut(alone.view(), {n_kv_heads, group}, true);
      ASSERT_EQ(work_of(schedule, list), work_of(beside, list)) << "list " << list;
    }
  }
}

/// The bounds of a cache are those of its longest list and its largest group; what is there may be less of both.
TEST(CudaSchedule, HasRoomForLessThanTheBounds) {
  for (const int32_t n_tokens : {128, 16384, 16385, 65536, 65537, 300000}) {
    for (const int32_t max_group : {1, 9, 64, 65, 128}) {
      for (const int32_t n_rows : {1, 2, 70}) {
        AttentionBounds bounds;
        bounds.n_token_entries = n_tokens + 1;
        bounds.max_batch = n_rows;
        bounds.n_kv_heads = 1;
        bounds.max_q_heads = max_group;
        OwnSchedule schedule(bounds);
        TokenList list;
        list.count[0] = list.total = n_tokens;
        std::vector<AttentionRow> rows(static_cast<size_t>(n_rows));
        for (AttentionRow& row : rows) row.end = n_tokens;
        AttentionPlan plan;
        plan.rows = rows.data();
        plan.lists = &list;
        plan.n_rows = n_rows;
        plan.n_lists = 1;
        for (int32_t group = 1; group <= max_group; ++group) {
          schedule.cut(plan, {1, group}, true);
          SCOPED_TRACE("tokens " + std::to_string(n_tokens) + " group " + std::to_string(group) +
                       " of " + std::to_string(max_group) + " rows " + std::to_string(n_rows));
          check_waves(schedule, bounds);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

}  // namespace
