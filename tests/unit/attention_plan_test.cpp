// How a batch is cut into work: what its parts need of the workspace, and that prefixes are shared however many rows share them.
#include <gtest/gtest.h>

#include <vector>

#include "kernels/cpu/attention_plan.hpp"

namespace {

using namespace kvc;

/// Groups of sequences on a prefix each; every sequence has some tokens in the pass, and some of its own before them.
struct Batch {
  struct Group {
    int32_t n_lists = 0;
    int32_t tokens = 1;  // of a list
    int32_t prefix = 1000;
  };

  explicit Batch(const std::vector<Group>& groups, int32_t n_slots_max = cpu::slots_max) {
    for (const Group& group : groups) {
      const auto first = static_cast<int32_t>(lists.size());
      for (int32_t l = 0; l < group.n_lists; ++l) {
        TokenList list;
        list.count[0] = list.total = group.prefix + 3 + group.tokens;
        for (int32_t t = 0; t < group.tokens; ++t) {
          const auto token = static_cast<int32_t>(rows.size());
          rows.push_back({.token = token,
                          .list = static_cast<int32_t>(lists.size()),
                          .end = group.prefix + 4 + t});
        }
        lists.push_back(list);
      }
      if (group.n_lists > 1)
        shared.push_back({first, static_cast<int32_t>(lists.size()), group.prefix});
    }
    AttentionParams params;
    params.constants.n_q_heads = params.storage.k.n_heads = 8;
    params.plan.rows = rows.data();
    params.plan.lists = lists.data();
    params.plan.shared = shared.data();
    params.plan.n_rows = static_cast<int32_t>(rows.size());
    params.plan.n_lists = static_cast<int32_t>(lists.size());
    params.plan.n_shared = static_cast<int32_t>(shared.size());
    Carver measure;
    work.place(measure, params.plan.n_rows);
    memory.resize(static_cast<size_t>(measure.used().value()) + 64);
    Carver carver(memory.data());
    work.place(carver, params.plan.n_rows);
    work.n_slots_max = n_slots_max;
    cpu::make_work_plan(params, work);
  }

  /// The cells that each row's tiles see, and what those over shared prefixes see of them.
  void count(std::vector<int32_t>* all, std::vector<int32_t>* through_sharing) const {
    all->assign(rows.size(), 0);
    through_sharing->assign(rows.size(), 0);
    for (int32_t i = 0; i < work.n_tiles; ++i) {
      const cpu::WorkTile& tile = work.tiles[i];
      for (int32_t t = 0; t < tile.n_tokens; ++t) {
        const auto row = static_cast<size_t>(tile.row + t);
        const int32_t end = std::min(rows[row].end, tile.high);
        (*all)[row] += std::max(0, end - tile.low);
        if (tile.shared) (*through_sharing)[row] += std::max(0, end - tile.low);
      }
    }
  }

  void expect_slots_suffice() const {
    for (int32_t wave = 0; wave < work.n_waves; ++wave) {
      std::vector<int32_t> users(static_cast<size_t>(work.n_slots_max), 0);
      for (int32_t r = work.waves[wave].row; r < work.waves[wave + 1].row; ++r) {
        const cpu::WorkRow& row = work.rows[r];
        for (int32_t i = 0; row.n_partials > 1 && i < row.n_partials; ++i)
          ++users.at(static_cast<size_t>(row.slot + i));
      }
      for (const int32_t n : users) EXPECT_LE(n, 1) << "a slot with two users in wave " << wave;
    }
  }

  std::vector<AttentionRow> rows;
  std::vector<TokenList> lists;
  std::vector<SharedPrefix> shared;
  std::vector<std::byte> memory;
  cpu::WorkPlan work;
};

const std::vector<Batch::Group> batches[] = {{{256, 1}},
                                             {{257, 1}},
                                             {{1024, 1}},
                                             {{3000, 1}},
                                             {{200, 8}},
                                             {{2, 700}},
                                             {{1, 5}, {300, 1}, {1, 400}, {200, 2}, {1, 1}},
                                             {{200, 1}, {200, 1}, {200, 1}, {200, 1}}};

TEST(AttentionPlan, RowsOnOnePrefixShareItHoweverManyTheyAre) {
  for (const auto& groups : batches) {
    for (const int32_t n_slots : {cpu::slots_max, 7, 4}) {
      const Batch batch(groups, n_slots);
      std::vector<int32_t> all, through_sharing;
      batch.count(&all, &through_sharing);
      for (size_t r = 0; r < batch.rows.size(); ++r) {
        const auto list = batch.rows[r].list;
        int32_t prefix = 0;
        for (const SharedPrefix& s : batch.shared)
          if (list >= s.list_begin && list < s.list_end) prefix = s.length;
        ASSERT_EQ(all[r], batch.rows[r].end) << "row " << r;
        ASSERT_EQ(through_sharing[r], prefix) << "row " << r << " with " << n_slots << " slots";
      }
      batch.expect_slots_suffice();
    }
  }
}

TEST(AttentionPlan, APrefixIsReadOncePerAsManyRowsAsHaveSlots) {
  const Batch batch({{1024, 1}});
  EXPECT_EQ(batch.work.n_waves, 4);
}

TEST(AttentionPlan, UnitsOfAllWavesAreInOrderAndHaveRoom) {
  for (const auto& groups : batches) {
    const Batch batch(groups);
    const cpu::WorkPlan& work = batch.work;
    EXPECT_LE(work.n_units, 6 * static_cast<int32_t>(batch.rows.size()) + cpu::slots_max);
    EXPECT_EQ(work.waves[0].unit, 0);
    EXPECT_EQ(work.waves[work.n_waves].unit, work.n_units);
    int32_t n_units = 0;
    for (int32_t i = 0; i < work.n_tiles; ++i) n_units += work.tiles[i].n_units();
    EXPECT_EQ(n_units, work.n_units);
    for (int32_t wave = 0; wave < work.n_waves; ++wave) {
      for (int32_t u = work.waves[wave].unit; u < work.waves[wave + 1].unit; ++u) {
        EXPECT_GE(work.units[u].tile, work.waves[wave].tile);
        EXPECT_LT(work.units[u].tile, work.waves[wave + 1].tile);
      }
    }
  }
}

TEST(AttentionPlan, TooFewSlotsForTwoRowsShareNothing) {
  const Batch batch({{20, 1}}, 3);
  std::vector<int32_t> all, through_sharing;
  batch.count(&all, &through_sharing);
  for (const int32_t n : through_sharing) EXPECT_EQ(n, 0);
  EXPECT_EQ(batch.work.n_waves, 1);
}

}  // namespace
