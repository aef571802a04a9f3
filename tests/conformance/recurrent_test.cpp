// Recurrent caches: states by copy and in place, the convolution, draft states, checkpoints, and what the open pass does to
// them. What a state must be is computed from all tokens of its sequence (support/recurrent_rig.hpp).
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "support/random.hpp"
#include "support/recurrent_rig.hpp"

namespace {

using support::Put;
using Rig = support::RecurrentRig;
using Values = std::vector<int32_t>;
using Places = std::vector<int32_t>;

class Recurrent : public testing::Test {
 protected:
  support::Device device_;
  Rig rig_{device_};
};

TEST_F(Recurrent, TheStateIsWhatAllTokensMake) {
  rig_.create();
  rig_.pass({{0, 5}, {2, 7}, {0, 6}});
  rig_.expect_state(0, 2, {5, 6});
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  rig_.pass({{2, 8}, {0, 9}, {1, 1}, {0, 3}});
  rig_.pass({{1, 4}});  // commits the pass before
  rig_.expect_state(0, 4, {5, 6, 9, 3});
  rig_.expect_state(1, 2, {1, 4});
  rig_.expect_state(2, 2, {7, 8});
  rig_.expect_state(3, 0, {});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, InPlaceAndByCopyAreTheSame) {
  Rig other(device_);
  for (Rig* rig : {&rig_, &other}) {
    rig->recurrent.draft_states = 2;
    rig->recurrent.checkpoint_interval = 3;
    rig->recurrent.checkpoint_min_pos = KVC_NONE;
    rig->recurrent.checkpoints = 2;
    rig->create();
  }
  support::Random random(1);
  for (int32_t step = 0; step < 60; ++step) {
    std::vector<Rig::Token> tokens;
    for (int32_t i = random.between(1, 6); i > 0; --i)
      tokens.push_back({random.between(-1, 3), random.below(50)});
    rig_.pass(tokens, Put::by_copy);
    other.pass(tokens, Put::in_place);
    ASSERT_EQ(support::digest(rig_.cache), support::digest(other.cache)) << "step " << step;
    const int32_t sequence = random.below(4), want = random.below(step + 2);
    if (step % 5 == 4) {
      for (Rig* rig : {&rig_, &other})
        ASSERT_EQ(kvc_resume(rig->cache, sequence, want, nullptr), KVC_OK);
    }
    ASSERT_EQ(support::digest(rig_.cache), support::digest(other.cache)) << "step " << step;
    ASSERT_EQ(kvc_check(other.cache), KVC_OK) << support::last_message();
  }
}

TEST_F(Recurrent, LayoutListsSequencesAsTheyAppearAndPaddingLast) {
  rig_.recurrent.draft_states = 1;
  rig_.create();
  rig_.pass({{2, 1}});
  rig_.pass({{KVC_NONE, 0}, {3, 1}, {2, 1}, {3, 1}, {KVC_NONE, 0}, {3, 1}, {1, 1}, {2, 1}});
  const auto sequences = rig_.layout();
  ASSERT_EQ(sequences.size(), 3u);
  const int32_t wanted[3][5] = {{3, 3, 0, 0, 1}, {2, 2, 3, 1, 2}, {1, 1, 5, 3, 1}};
  for (size_t i = 0; i < 3; ++i) {
    const kvc_state_sequence& s = sequences[i];
    EXPECT_EQ((std::vector<int32_t>{s.sequence, s.n_tokens, s.first_token, s.first_row, s.n_rows}),
              std::vector<int32_t>(wanted[i], wanted[i] + 5))
        << "sequence " << i;
  }
  EXPECT_EQ(sequences[0].read_slot, 0) << "a new sequence begins with zeros";
  EXPECT_NE(sequences[1].read_slot, 0);
  Places order(8);
  int32_t n = 0;
  ASSERT_EQ(kvc_state_layout(rig_.cache, 0, nullptr, &n, order.data()), KVC_OK);
  EXPECT_EQ(order, (Places{1, 3, 5, 2, 7, 6, 0, 4}));
  EXPECT_EQ(rig_.slots().size(), 4u);
}

TEST_F(Recurrent, ASlotThatIsReadIsNeverWritten) {
  rig_.recurrent.draft_states = 3;
  rig_.create();
  rig_.pass({{0, 1}, {0, 2}});
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK) << support::last_message();
  for (int32_t copy = 1; copy < 4; ++copy)
    ASSERT_EQ(kvc_copy_prefix(rig_.cache, 0, copy, 2, nullptr), KVC_OK);
  rig_.pass({{0, 3}, {1, 4}, {2, 5}, {3, 6}, {3, 7}}, Put::in_place);
  std::set<int32_t> written;
  for (const int32_t slot : rig_.slots()) EXPECT_TRUE(written.insert(slot).second) << slot;
  for (const kvc_state_sequence& sequence : rig_.layout())
    EXPECT_EQ(written.count(sequence.read_slot), 0u);
  EXPECT_EQ(written.count(0), 0u) << "the slot of zeros";
  rig_.expect_state(0, 2, {1, 2});  // the checkpoint, whose slot all four share
  rig_.expect_state(3, 4, {1, 2, 6, 7});
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  for (int32_t copy = 0; copy < 4; ++copy) rig_.expect_state(copy, 2, {1, 2});
}

// ---- The end of a pass --------------------------------------------------------------------------------------------------

TEST_F(Recurrent, CommitPrefixKeepsTheRowOfTheLastTokenAndRollsTheConvolutionBack) {
  rig_.recurrent.draft_states = 3;
  rig_.create();
  rig_.pass({{0, 1}, {1, 2}});
  rig_.pass({{0, 3}, {1, 4}, {0, 5}, {0, 6}, {1, 7}, {0, 8}});
  const int32_t sequence[] = {0, 1}, keep[] = {2, 0};
  ASSERT_EQ(kvc_commit_prefix(rig_.cache, 2, sequence, keep), KVC_OK) << support::last_message();
  EXPECT_EQ(rig_.next(0), 3);
  EXPECT_EQ(rig_.next(1), 1);
  rig_.expect_state(0, 3, {1, 3, 5});
  rig_.expect_state(1, 1, {2});
  rig_.pass({{0, 9}});
  rig_.expect_state(0, 4, {1, 3, 5, 9});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, WithoutDraftStatesAllOrNoneIsKept) {
  rig_.recurrent.draft_states = 1;
  rig_.create();
  rig_.pass({{0, 3}, {0, 5}, {0, 6}, {1, 2}, {1, 9}});
  const auto before = support::digest(rig_.cache);
  const auto commit = [&](int32_t sequence, int32_t keep) {
    return kvc_commit_prefix(rig_.cache, 1, &sequence, &keep);
  };
  EXPECT_EQ(commit(0, 2), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(support::digest(rig_.cache), before);
  const int32_t both[] = {0, 1}, keep[] = {1, 3};  // sequence 1 has two tokens
  EXPECT_EQ(kvc_commit_prefix(rig_.cache, 2, both, keep), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(support::digest(rig_.cache), before);
  ASSERT_EQ(commit(1, 1), KVC_OK) << support::last_message();
  rig_.expect_state(0, 3, {3, 5, 6});
  rig_.expect_state(1, 1, {2});
}

TEST_F(Recurrent, APartThatWasNotPutStaysAsItWas) {
  rig_.create();
  rig_.pass({{0, 1}, {1, 2}});
  ASSERT_EQ(rig_.begin({{0, 3}, {2, 4}}), KVC_OK);
  rig_.put_recurrent(1, Put::by_copy);
  rig_.put_conv(0);
  const auto state = [&](int32_t layer, int32_t part) { return rig_.state(layer, part, 0, 2); };
  const auto recurrent = state(0, KVC_PART_RECURRENT), conv = state(1, KVC_PART_CONV);
  EXPECT_EQ(recurrent, (std::vector<float>{1, 2, 3, 4, 5, 6})) << "as if the pass were committed";
  EXPECT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_E_BAD_STATE);
  const std::string message = support::last_message();
  EXPECT_EQ(message.rfind("0 of 2 layers were put with all of their parts", 0), 0u) << message;
  EXPECT_EQ(kvc_resume(rig_.cache, 0, 9, nullptr), KVC_E_BAD_STATE);
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK) << support::last_message();
  EXPECT_EQ(rig_.next(0), 2);
  EXPECT_EQ(state(0, KVC_PART_RECURRENT), recurrent);
  EXPECT_EQ(state(1, KVC_PART_CONV), conv);
  EXPECT_EQ(state(0, KVC_PART_CONV), (std::vector<float>{0, 1, 3, 0, 2, 4, 0, 3, 5}));
  EXPECT_EQ(rig_.state(0, KVC_PART_RECURRENT, 2, 1), std::vector<float>(Rig::state_size, 0.0f));
  EXPECT_EQ(rig_.state(0, KVC_PART_CONV, 2, 1), (std::vector<float>{0, 0, 4, 0, 0, 5, 0, 0, 6}));
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, AbortForgetsWhatWasWritten) {
  rig_.recurrent.checkpoint_interval = 1;
  rig_.recurrent.checkpoint_min_pos = KVC_NONE;
  rig_.recurrent.checkpoints = 1;
  rig_.create();
  rig_.pass({{0, 1}});
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  const auto before = support::digest(rig_.cache);
  rig_.pass({{0, 2}, {0, 3}, {1, 9}}, Put::in_place);
  EXPECT_NE(support::digest(rig_.cache), before);
  EXPECT_EQ(rig_.checkpoints(0), Places{3});
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  EXPECT_EQ(support::digest(rig_.cache), before);
  EXPECT_EQ(rig_.checkpoints(0), Places{1});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, PaddingChangesNothing) {
  Rig padded(device_);
  rig_.create();
  padded.create();
  rig_.pass({{0, 5}, {1, 6}, {0, 7}});
  padded.pass({{KVC_NONE, 0}, {0, 5}, {1, 6}, {KVC_NONE, 0}, {0, 7}, {KVC_NONE, 0}});
  EXPECT_EQ(support::digest(rig_.cache), support::digest(padded.cache));
  padded.pass({{KVC_NONE, 0}, {KVC_NONE, 0}}, Put::nothing);
  EXPECT_TRUE(padded.layout().empty());
  EXPECT_TRUE(padded.slots().empty());
  float none = 0;
  kvc_tensor empty = support::dense(&none, KVC_F32, {0, Rig::state_size});
  EXPECT_EQ(kvc_state_get(padded.cache, 0, KVC_PART_RECURRENT, &empty), KVC_OK);
  EXPECT_EQ(kvc_state_put(padded.cache, 0, KVC_PART_RECURRENT, &empty), KVC_OK);
  EXPECT_EQ(kvc_checkpoint_take(padded.cache, 0), KVC_OK) << "a pass of padding is fully put";
  padded.expect_state(0, 2, {5, 7});
}

// ---- Checkpoints --------------------------------------------------------------------------------------------------------

TEST_F(Recurrent, PassesLeaveCheckpointsByDistance) {
  rig_.recurrent.checkpoints = 2;
  rig_.recurrent.checkpoint_interval = 4;
  rig_.recurrent.checkpoint_min_pos = 2;
  rig_.create();
  rig_.pass({{0, 1}, {0, 2}});
  EXPECT_EQ(rig_.checkpoints(0), Places{}) << "its last position is 1";
  rig_.pass({{0, 3}});
  EXPECT_EQ(rig_.checkpoints(0), Places{3});
  rig_.pass({{0, 4}, {0, 5}, {0, 6}});
  EXPECT_EQ(rig_.checkpoints(0), Places{3});
  rig_.pass({{0, 7}});
  EXPECT_EQ(rig_.checkpoints(0), (Places{3, 7}));
  rig_.pass({{0, 8}, {0, 9}, {0, 10}, {0, 11}, {0, 12}});
  EXPECT_EQ(rig_.checkpoints(0), (Places{7, 12})) << "the lowest went";
  EXPECT_EQ(rig_.best(0, 6), 0);
  EXPECT_EQ(rig_.best(0, 11), 7);
  rig_.expect_state(0, 7, {1, 2, 3, 4, 5, 6, 7});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, DefaultsAreThoseOfTheManual) {
  rig_.desc.max_batch = 2048;
  rig_.recurrent.checkpoint_interval = 0;
  rig_.create();
  const auto feed = [&](int32_t n) {
    rig_.pass(std::vector<Rig::Token>(static_cast<size_t>(n), Rig::Token{0, 1}));
  };
  feed(16);
  EXPECT_EQ(rig_.checkpoints(0), Places{});
  feed(1);
  EXPECT_EQ(rig_.checkpoints(0), Places{17});
  feed(1663);
  EXPECT_EQ(rig_.checkpoints(0), Places{17});
  feed(1);
  EXPECT_EQ(rig_.checkpoints(0), (Places{17, 17 + 1664}));
  for (int32_t i = 0; i < 30; ++i) {
    feed(1);
    ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  }
  EXPECT_EQ(rig_.checkpoints(0).size(), 24u);
}

TEST_F(Recurrent, ACheckpointIsTakenOncePerPlaceAndNeverOfNothing) {
  rig_.create();
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  EXPECT_EQ(rig_.checkpoints(0), Places{});
  rig_.pass({{0, 1}, {0, 2}});
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  const auto once = support::digest(rig_.cache);
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  EXPECT_EQ(support::digest(rig_.cache), once);
  EXPECT_EQ(rig_.checkpoints(0), Places{2});
}

TEST_F(Recurrent, ResumeForgetsLaterCheckpointsAndACopyTakesEarlierOnes) {
  rig_.create();
  Values values;
  for (int32_t i = 1; i <= 4; ++i) {
    rig_.pass({{0, 2 * i}, {0, 2 * i + 1}});
    ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  }
  int32_t got = 0;
  ASSERT_EQ(kvc_copy_prefix(rig_.cache, 0, 1, 5, &got), KVC_OK);
  EXPECT_EQ(got, 4);
  EXPECT_EQ(rig_.checkpoints(1), (Places{2, 4}));
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 8, &got), KVC_OK);
  EXPECT_EQ(rig_.checkpoints(0), (Places{2, 4, 6, 8})) << "resume at next forgets nothing";
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 7, &got), KVC_OK);
  EXPECT_EQ(got, 6);
  EXPECT_EQ(rig_.checkpoints(0), (Places{2, 4, 6}));
  rig_.pass({{0, 20}, {1, 30}});
  rig_.expect_state(0, 7, {2, 3, 4, 5, 6, 7, 20});
  rig_.expect_state(1, 5, {2, 3, 4, 5, 30});
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 5, KVC_SEQ_END), KVC_E_WINDOW_LOST);
  ASSERT_EQ(kvc_remove(rig_.cache, 0, 4, KVC_SEQ_END), KVC_OK) << support::last_message();
  rig_.expect_state(0, 4, {2, 3, 4, 5});
  ASSERT_EQ(kvc_remove(rig_.cache, 0, 0, KVC_SEQ_END), KVC_OK);
  rig_.expect_state(0, 0, {});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, ReorderCopiesEachSourceAsItWas) {
  rig_.create();
  rig_.pass({{0, 1}, {1, 2}, {2, 3}});
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 1), KVC_OK);
  rig_.pass({{1, 5}});
  const int32_t dst[] = {1, 0, 3}, src[] = {0, 1, 1};
  ASSERT_EQ(kvc_reorder(rig_.cache, 3, dst, src), KVC_OK) << support::last_message();
  rig_.expect_state(0, 2, {2, 5});
  rig_.expect_state(1, 1, {1});
  rig_.expect_state(3, 2, {2, 5});
  rig_.expect_state(3, 1, {2});
  EXPECT_EQ(rig_.checkpoints(0), Places{1});
  EXPECT_EQ(rig_.checkpoints(1), Places{});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, AMiddleRemovalChangesLabelsAndMarksStates) {
  rig_.recurrent.flags = KVC_RECURRENT_APPROXIMATE;
  rig_.create();
  for (int32_t i = 1; i <= 5; ++i) {
    rig_.pass({{0, i}, {0, i}});
    ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
  }
  rig_.pass({{0, 6}, {0, 6}});
  ASSERT_EQ(kvc_remove(rig_.cache, 0, 4, 6), KVC_OK) << support::last_message();
  EXPECT_EQ(rig_.next(0), 10);
  EXPECT_EQ(rig_.checkpoints(0), (Places{2, 4, 6, 8})) << "at 4 it stays, at 6 it goes";
  EXPECT_EQ(support::sequence_info(rig_.cache, 0).flags, uint32_t{KVC_SEQUENCE_APPROXIMATE});
  rig_.expect_state(0, 10, {1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6});
  rig_.expect_state(0, 6, {1, 1, 2, 2, 3, 3, 4, 4});
  rig_.pass({{0, 7}});
  EXPECT_EQ(support::sequence_info(rig_.cache, 0).flags, uint32_t{KVC_SEQUENCE_APPROXIMATE});
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 7, nullptr), KVC_OK);
  EXPECT_EQ(support::sequence_info(rig_.cache, 0).flags, uint32_t{KVC_SEQUENCE_APPROXIMATE});
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 5, nullptr), KVC_OK);
  EXPECT_EQ(support::sequence_info(rig_.cache, 0).flags, 0u) << "exact again";
  rig_.expect_state(0, 4, {1, 1, 2, 2});
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
}

TEST_F(Recurrent, AMiddleRemovalNeedsTheFlag) {
  rig_.create();
  rig_.pass({{0, 1}, {0, 2}, {0, 3}});
  const auto before = support::digest(rig_.cache);
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 0, 1), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_can_remove(rig_.cache, 0, 0, 1), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(support::digest(rig_.cache), before) << "the pass is still open";
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 1, 1), KVC_OK) << "nothing is removed";
}

// What the commit of the open pass does, its checkpoints included, is what const calls return before it.
TEST_F(Recurrent, QueriesReturnWhatTheCommitLeaves) {
  rig_.recurrent.checkpoints = 2;
  rig_.recurrent.checkpoint_interval = 2;
  rig_.recurrent.checkpoint_min_pos = KVC_NONE;
  rig_.create();
  const auto answers = [&] {
    std::vector<int64_t> all;
    for (int32_t s = 0; s < 4; ++s) {
      const kvc_sequence_info info = support::sequence_info(rig_.cache, s);
      for (const int32_t value : {info.first, info.next, info.count, info.room})
        all.push_back(value);
      for (const int32_t at : rig_.checkpoints(s)) {
        all.push_back(at);
        for (int32_t layer = 0; layer < Rig::n_layers; ++layer)
          all.push_back(static_cast<int64_t>(rig_.state(layer, KVC_PART_RECURRENT, s, at)[0]));
      }
      for (int32_t want = 0; want < 30; ++want) all.push_back(rig_.best(s, want));
    }
    const kvc_stats stats = support::stats(rig_.cache);
    all.push_back(static_cast<int64_t>(stats.cells_used));
    all.push_back(static_cast<int64_t>(stats.cells_shared));
    return all;
  };
  support::Random random(3);
  for (int32_t step = 0; step < 40; ++step) {
    std::vector<Rig::Token> tokens;
    for (int32_t i = random.between(1, 4); i > 0; --i)
      tokens.push_back({random.below(4), random.below(50)});
    rig_.pass(tokens, random.pick({Put::by_copy, Put::nothing}));
    const auto open = answers();
    ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
    ASSERT_EQ(answers(), open) << "step " << step;
    ASSERT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
    const int32_t source = random.below(4), target = (source + random.between(1, 3)) % 4;
    ASSERT_EQ(kvc_copy_prefix(rig_.cache, source, target, random.below(12), nullptr), KVC_OK);
  }
}

// ---- Reserve passes -----------------------------------------------------------------------------------------------------

TEST_F(Recurrent, AReservePassHasTheLargestLayoutAndKeepsNothing) {
  rig_.recurrent.draft_states = 3;
  rig_.create();
  rig_.pass({{0, 1}, {1, 2}});
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  const auto before = support::digest(rig_.cache);
  ASSERT_EQ(kvc_begin(rig_.cache, 9, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  const auto sequences = rig_.layout();
  ASSERT_EQ(sequences.size(), 4u);
  Places order(9);
  int32_t n = 0, first_row = 0;
  ASSERT_EQ(kvc_state_layout(rig_.cache, 0, nullptr, &n, order.data()), KVC_OK);
  EXPECT_EQ(order, (Places{0, 4, 8, 1, 5, 2, 6, 3, 7}));
  for (int32_t i = 0, token = 0; i < 4; ++i) {
    const kvc_state_sequence& sequence = sequences[static_cast<size_t>(i)];
    EXPECT_EQ(sequence.sequence, i);
    EXPECT_EQ(sequence.n_tokens, i == 0 ? 3 : 2);
    EXPECT_EQ(sequence.first_token, token);
    EXPECT_EQ(sequence.first_row, first_row);
    EXPECT_EQ(sequence.n_rows, sequence.n_tokens);
    token += sequence.n_tokens;
    first_row += sequence.n_rows;
  }
  const std::vector<int32_t> slots = rig_.slots();
  EXPECT_EQ(slots.size(), 9u);
  EXPECT_EQ(std::set<int32_t>(slots.begin(), slots.end()).size(), 9u);
  std::vector<float> rows(size_t{9} * Rig::state_size, 5.0f);
  const kvc_tensor from = support::dense(rows.data(), KVC_F32, {9, Rig::state_size});
  kvc_tensor into = support::dense(rows.data(), KVC_F32, {4, Rig::state_size});
  EXPECT_EQ(kvc_state_put(rig_.cache, 0, KVC_PART_RECURRENT, &from), KVC_OK);
  EXPECT_EQ(kvc_state_get(rig_.cache, 0, KVC_PART_RECURRENT, &into), KVC_OK);
  EXPECT_EQ(rows, std::vector<float>(rows.size(), 5.0f)) << "get does nothing";
  EXPECT_EQ(kvc_state_done(rig_.cache, 1, KVC_PART_CONV), KVC_OK);
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  EXPECT_EQ(support::digest(rig_.cache), before);
}

}  // namespace
