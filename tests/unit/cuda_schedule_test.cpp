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

/// Lists of random lengths, with random rows each; some see a window. Neighbours may share what is before their rows.
struct Plan {
  std::vector<AttentionRow> rows;
  std::vector<TokenList> lists;
  std::vector<SharedPrefix> shared;
  std::vector<int32_t> padding;
  AttentionBounds bounds;

  Plan(Random& random, int32_t n_lists, int32_t n_kv_heads, int32_t group) {
    const int32_t longest = random.below(2) == 0 ? 300 : 40000;
    const int32_t most_rows = random.pick({1, 3, 8, 200});
    for (int32_t l = 0; l < n_lists; ++l) {
      TokenList list;
      list.start[0] = bounds.n_token_entries;
      list.count[0] = list.total = 1 + random.below(longest);
      bounds.n_token_entries += list.total;
      const int32_t n = 1 + random.below(std::min(list.total, most_rows));
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
    bounds.shares_prefixes = random.below(4) != 0;
    for (int32_t l = 0; bounds.shares_prefixes && l + 1 < n_lists;) {
      const int32_t end = std::min(n_lists, l + 2 + random.below(20));
      int32_t length = INT32_MAX;
      for (int32_t i = l; i < end; ++i)
        length = std::min(length, lists[static_cast<size_t>(i)].total - rows_of(i));
      if (length > 0) shared.push_back({l, end, 1 + random.below(length)});
      l = end + random.below(2);
    }
    bounds.max_batch = static_cast<int32_t>(rows.size() + padding.size());
    bounds.n_kv_heads = n_kv_heads;
    bounds.max_q_heads = n_kv_heads * group;
  }

  AttentionPlan view() const {
    AttentionPlan plan;
    plan.rows = rows.data();
    plan.lists = lists.data();
    plan.shared = shared.data();
    plan.n_shared = static_cast<int32_t>(shared.size());
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

/// Waves take all parts in order, and each has room for what its tiles leave behind. What tiles of prefixes leave stays.
void check_waves(const Schedule& schedule, const AttentionBounds& bounds, const Cut& cut,
                 int32_t n_tokens) {
  int32_t tile = 0, part = 0, n_waves[widths.size()] = {};
  int64_t most_taken = 0, of_prefixes = 0, first_of_prefixes = Schedule::n_slots(bounds);
  for (int32_t w = 0; w < schedule.n_waves(); ++w) {
    const Wave& wave = schedule.wave(w);
    const TileShape shape = schedule.shape_of(wave);
    ASSERT_EQ(wave.first_part, part);
    ASSERT_EQ(shape, cut.shape_of(wave.width));
    ++n_waves[static_cast<size_t>(wave.width)];
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
      const int64_t slots = int64_t{t.n_parts} * shape.turns() * shape.slots(t.n_rows);
      if (t.is_prefix != 0) {
        if (of_prefixes == 0) first_of_prefixes = t.first_slot;
        ASSERT_EQ(t.first_slot, first_of_prefixes + of_prefixes);
        of_prefixes += slots;
      } else if (t.n_parts > 1 || t.prefix_columns != 0) {
        ASSERT_EQ(t.first_slot, taken);
        taken += slots;
      }
      if (t.prefix_columns != 0) {
        ASSERT_LT(schedule.tiles()[t.prefix_tile].first_part, wave.first_part) << "the same launch";
      }
    }
    most_taken = std::max(most_taken, taken);
    ASSERT_EQ(part, wave.first_part + wave.n_parts);
  }
  ASSERT_EQ(tile, schedule.n_tiles());
  for (const Width width : widths) {
    ASSERT_LE(n_waves[static_cast<size_t>(width)], Schedule::most_waves(bounds, cut, width, n_tokens));
    ASSERT_LE(Schedule::most_waves(bounds, cut, width, n_tokens), Schedule::most_waves(bounds));
  }
  ASSERT_LE(most_taken, first_of_prefixes);
  ASSERT_LE(first_of_prefixes + of_prefixes, Schedule::n_slots(bounds));
}

/// How many tokens a row of a tile sees there.
int32_t seen_by(const TileRow& row) { return row.first_end + row.end - row.begin; }

/// What a row sees is in the tile of its list and, where that shares a prefix, in one of those of the prefix.
void check_what_is_seen(const Schedule& schedule, const Plan& plan) {
  const int32_t group = plan.bounds.max_q_heads / plan.bounds.n_kv_heads;
  for (int32_t i = 0; i < schedule.n_tiles(); ++i) {
    const Tile& tile = schedule.tiles()[i];
    for (int32_t r = 0; tile.is_prefix == 0 && r < tile.n_rows; ++r) {
      const TileRow& row = schedule.rows()[tile.first_row + r];
      int32_t n_seen = seen_by(row);
      if (tile.prefix_columns != 0) {
        const TileShape shape = {plan.bounds.n_kv_heads, group, tile.prefix_columns};
        const int32_t at = tile.prefix_row + r;
        const Tile& prefix = schedule.tiles()[tile.prefix_tile + at / shape.rows()];
        ASSERT_EQ(prefix.is_prefix, 1);
        const TileRow& there = schedule.rows()[prefix.first_row + at % shape.rows()];
        ASSERT_EQ(there.token, row.token);
        n_seen += seen_by(there);
      }
      if (row.token >= static_cast<int32_t>(plan.rows.size())) continue;  // padding
      const AttentionRow& wanted = plan.rows[static_cast<size_t>(row.token)];
      ASSERT_EQ(n_seen, wanted.end - wanted.begin) << "token " << row.token;
    }
  }
}

/// Each row and each padding token is in one tile, whose width its list decides.
void check_rows(const Schedule& schedule, const Plan& plan, const Cut& cut) {
  std::vector<int32_t> times(static_cast<size_t>(plan.bounds.max_batch), 0);
  const int32_t group = plan.bounds.max_q_heads / plan.bounds.n_kv_heads;
  for (int32_t w = 0, i = 0; w < schedule.n_waves(); ++w) {
    const Wave& wave = schedule.wave(w);
    for (; i < schedule.n_tiles() && schedule.tiles()[i].first_part < wave.first_part + wave.n_parts;
         ++i) {
      const Tile& tile = schedule.tiles()[i];
      if (tile.is_prefix != 0) continue;
      for (int32_t r = tile.first_row; r < tile.first_row + tile.n_rows; ++r) {
        const int32_t token = schedule.rows()[r].token;
        ++times[static_cast<size_t>(token)];
        const bool is_padding = token >= static_cast<int32_t>(plan.rows.size());
        const int32_t columns = is_padding
                                    ? std::min(group, medium_columns)
                                    : plan.rows_of(plan.rows[static_cast<size_t>(token)].list) * group;
        const Width width = cut.wide > 0 && columns > 16    ? Width::wide
                            : cut.has_medium && columns > 8 ? Width::medium
                                                            : Width::narrow;
        ASSERT_EQ(wave.width, width) << "token " << token;
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

bool has_prefix(const Schedule& schedule) {
  return std::any_of(schedule.tiles(), schedule.tiles() + schedule.n_tiles(),
                     [](const Tile& tile) { return tile.is_prefix != 0; });
}

TEST(CudaSchedule, TakesEveryRowOnceAndHasRoom) {
  int32_t n_shared = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const int32_t n_kv_heads = 1 + random.below(8),
                  group = 1 + random.below(random.below(2) == 0 ? 8 : 80);
    const Plan plan(random, 1 + random.below(random.pick({6, 40})), n_kv_heads, group);
    OwnSchedule schedule(plan.bounds);
    const auto n_tokens = static_cast<int32_t>(plan.rows.size() + plan.padding.size());
    for (const int32_t wide : {wide_columns, wide_columns_max, 0}) {
      for (const bool has_medium : {false, true}) {
        for (const int64_t least_saved : {shares_nothing, int64_t{1}}) {
          const Cut cut = {{n_kv_heads, group}, has_medium, wide, least_saved};
          schedule.cut(plan.view(), cut);
          check_waves(schedule, plan.bounds, cut, n_tokens);
          check_rows(schedule, plan, cut);
          check_what_is_seen(schedule, plan);
          if (HasFatalFailure()) return;
          if (has_prefix(schedule)) ++n_shared;
        }
      }
    }
  }
  EXPECT_GT(n_shared, 50);
}

/// Sequences on one prompt, of which each has `n_rows` rows.
struct OnOnePrompt {
  std::vector<AttentionRow> rows;
  std::vector<TokenList> lists;
  SharedPrefix shared;
  AttentionBounds bounds;

  explicit OnOnePrompt(int32_t n_rows, int32_t prompt = 4096, int32_t n_lists = 32)
      : shared{0, n_lists, prompt} {
    constexpr int32_t own = 100;
    for (int32_t list = 0; list < n_lists; ++list) {
      TokenList tokens;
      tokens.total = tokens.count[0] = prompt + own + n_rows;
      for (int32_t i = 0; i < n_rows; ++i)
        rows.push_back({.token = list * n_rows + i, .list = list, .end = prompt + own + 1 + i});
      lists.push_back(tokens);
    }
    bounds = {.n_token_entries = n_lists * (prompt + own + n_rows), .max_batch = n_lists * n_rows};
    bounds.max_q_heads = 32;
    bounds.n_kv_heads = 8;
    bounds.shares_prefixes = true;
  }
  AttentionPlan view() const {
    AttentionPlan plan;
    plan.rows = rows.data();
    plan.lists = lists.data();
    plan.shared = &shared;
    plan.n_rows = static_cast<int32_t>(rows.size());
    plan.n_lists = static_cast<int32_t>(lists.size());
    plan.n_shared = 1;
    return plan;
  }
};

/// Tokens that all blocks of a KV head read.
int64_t tokens_read(const Schedule& schedule) {
  int64_t n = 0;
  for (int32_t i = 0; i < schedule.n_tiles(); ++i) n += schedule.tiles()[i].n_seen;
  return n;
}

TEST(CudaSchedule, ReadsAPromptOnceForManySequences) {
  const OnOnePrompt batch(1);
  OwnSchedule schedule(batch.bounds);
  const TileShape narrow = {8, 4};
  schedule.cut(batch.view(), {narrow, true, wide_columns});
  EXPECT_EQ(tokens_read(schedule), 32 * (4096 + 101));
  EXPECT_EQ(schedule.n_waves(), 1);
  schedule.cut(batch.view(), {narrow, true, wide_columns, 132 * 128});
  EXPECT_EQ(tokens_read(schedule), 2 * 4096 + 32 * 101);  // 128 columns are two wide tiles
  EXPECT_EQ(schedule.n_waves(), 2);
  EXPECT_EQ(schedule.wave(0).n_parts * schedule.shape_of(schedule.wave(0)).turns(), 256);
  schedule.cut(batch.view(), {narrow, true, 0, 132 * 128});
  EXPECT_EQ(tokens_read(schedule), 8 * 4096 + 32 * 101);  // eight medium ones
  EXPECT_EQ(schedule.n_waves(), 2);
  schedule.cut(batch.view(), {narrow, false, 0, 132 * 128});
  EXPECT_EQ(tokens_read(schedule), 16 * 4096 + 32 * 101);  // and sixteen narrow ones
}

/// Lists whose own tiles are full have little to gain, and those whose windows have left the prompt nothing.
TEST(CudaSchedule, SharesWhatPays) {
  const auto shares = [](const OnOnePrompt& batch, int64_t least_saved = 1) {
    OwnSchedule schedule(batch.bounds);
    schedule.cut(batch.view(), {{8, 4}, true, wide_columns, least_saved});
    return has_prefix(schedule);
  };
  EXPECT_TRUE(shares(OnOnePrompt(1)));
  EXPECT_TRUE(shares(OnOnePrompt(5)));
  EXPECT_FALSE(shares(OnOnePrompt(12)));  // 32 tiles of 48 columns, or 24 of 64
  EXPECT_TRUE(shares(OnOnePrompt(1), 30 * 4096 * 8));
  EXPECT_FALSE(shares(OnOnePrompt(1), 30 * 4096 * 8 + 1));
  OnOnePrompt windows(1);
  for (AttentionRow& row : windows.rows) row.begin = row.end - 100;
  EXPECT_FALSE(shares(windows));
  OnOnePrompt partly(1);
  for (AttentionRow& row : partly.rows) row.begin = row.list % 2 == 0 ? 2000 : row.end - 10;
  EXPECT_TRUE(shares(partly));
  // 32 parts of 4 tiles in 64 slots each are all that has room.
  EXPECT_TRUE(shares(OnOnePrompt(2, 1 << 17)));
  EXPECT_FALSE(shares(OnOnePrompt(2, 1 << 17, 33)));
}

TEST(CudaSchedule, CutsAListAloneAsBesideOthers) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const int32_t n_kv_heads = 1 + random.below(8), group = 1 + random.below(8);
    const Plan plan(random, 5, n_kv_heads, group);
    OwnSchedule beside(plan.bounds);
    const Cut cut = {{n_kv_heads, group}, seed % 2 == 0, seed % 3 == 0 ? 0 : wide_columns};
    beside.cut(plan.view(), cut);
    for (int32_t list = 0; list < 5; ++list) {
      Plan alone = plan;
      std::erase_if(alone.rows, [&](const AttentionRow& row) { return row.list != list; });
      alone.padding.clear();
      OwnSchedule schedule(alone.bounds);
      schedule.cut(alone.view(), cut);
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
          for (const int32_t wide : {0, wide_columns, wide_columns_max}) {
            const Cut cut = {{1, group}, true, wide};
            schedule.cut(plan, cut);
            SCOPED_TRACE("tokens " + std::to_string(n_tokens) + " group " + std::to_string(group) +
                         " of " + std::to_string(max_group) + " rows " + std::to_string(n_rows) +
                         " columns " + std::to_string(wide));
            check_waves(schedule, bounds, cut, n_rows);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

}  // namespace
