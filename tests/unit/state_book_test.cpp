// The book of states without a cache: it needs no device. Who owns which slot after each call, and that check() finds what is
// broken.
#include "core/cells/state_book.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using kvc::StateBook;
using kvc::Status;

kvc::StateRules rules() {
  kvc::StateRules rules;
  rules.max_sequences = 3;
  rules.max_batch = 8;
  rules.checkpoints = 2;
  rules.max_rows = 3;
  rules.n_slots = 1 + 3 * (1 + 2) + 8;
  rules.approximate = true;
  return rules;
}

class Books : public testing::Test {
 protected:
  explicit Books(const kvc::StateRules& given = rules()) : book_(given, health_) {
    kvc::Carver measure;
    book_.carve(measure);
    memory_.resize(measure.used().value() / sizeof(uint64_t) + 16);
    void* aligned = memory_.data();
    size_t space = memory_.size() * sizeof(uint64_t);
    kvc::Carver carver(std::align(64, measure.used().value(), aligned, space));
    book_.carve(carver);
    book_.reset();
  }

  /// Opens a pass of a token per entry.
  void open(const std::vector<int32_t>& sequences) {
    std::vector<int32_t> position, next(3);
    for (int32_t s = 0; s < 3; ++s) next[static_cast<size_t>(s)] = book_.sequence(s).next;
    for (const int32_t s : sequences) position.push_back(next[static_cast<size_t>(s)]++);
    kvc::Batch batch;
    batch.n_tokens = static_cast<int32_t>(sequences.size());
    batch.position = position.data();
    batch.sequence = sequences.data();
    ASSERT_EQ(book_.check_batch(batch), Status::ok) << kvc::last_message();
    book_.open_pass(batch);
    expect_sound(true);
  }
  void add(const std::vector<int32_t>& sequences) {
    open(sequences);
    book_.commit_pass();
    expect_sound(false);
  }
  void take(int32_t sequence) {
    book_.take_checkpoint(sequence);
    expect_sound(false);
  }
  void expect_sound(bool pass_is_open) {
    EXPECT_EQ(book_.check(pass_is_open), Status::ok) << kvc::last_message();
    EXPECT_TRUE(health_.ok());
    book_.forget_freed();  // as a cache does
    book_.forget_copies();
  }
  std::vector<int32_t> places(int32_t sequence) const {
    std::vector<int32_t> at(8);
    at.resize(static_cast<size_t>(book_.list_checkpoints(sequence, 8, at.data())));
    return at;
  }

  kvc::Health health_;
  StateBook book_;
  std::vector<uint64_t> memory_;
};

using Places = std::vector<int32_t>;

TEST_F(Books, AnEmptySequenceHasTheSlotOfZerosWhichIsNobodys) {
  EXPECT_EQ(book_.sequence(0).slot, StateBook::zeros);
  book_.copy_prefix(0, 1, 0);
  EXPECT_EQ(book_.used(), 0);
  add({0, 1});
  EXPECT_EQ(book_.used(), 2);
  book_.cut(0, 0);
  EXPECT_EQ(book_.sequence(0).slot, StateBook::zeros);
  EXPECT_EQ(book_.used(), 1);
  expect_sound(false);
}

TEST_F(Books, CheckpointsAndCopiesAreOwnersOfOneSlot) {
  add({0, 0});
  take(0);
  EXPECT_EQ(book_.used(), 1);
  EXPECT_EQ(book_.shared(), 1);
  book_.copy_prefix(0, 1, 2);
  book_.copy_prefix(0, 2, 2);
  EXPECT_EQ(book_.used(), 1) << "four more owners, no slot";
  EXPECT_EQ(book_.sequence(1).slot, book_.sequence(0).slot);
  book_.cut(0, 0);
  book_.cut(1, 0);
  EXPECT_EQ(book_.free_slots().n_freed, 0);
  book_.cut(2, 0);
  EXPECT_EQ(book_.free_slots().n_freed, 1) << "the last owner let go";
  expect_sound(false);
}

TEST_F(Books, RowsAreFreeSlots) {
  add({0, 1});
  book_.copy_prefix(0, 2, 1);
  open({0, 0, 1, 2, 0});
  std::set<int32_t> written;
  for (int32_t row = 0; row < book_.n_rows(); ++row) {
    EXPECT_TRUE(written.insert(book_.row_slot(row)).second);
    EXPECT_NE(book_.row_slot(row), StateBook::zeros);
  }
  EXPECT_EQ(written.size(), 5u);
  for (int32_t s = 0; s < 3; ++s) EXPECT_EQ(written.count(book_.sequence(s).slot), 0u);
  const int32_t second = book_.row_slot(1);
  book_.keep_added(0, 2);
  expect_sound(true);
  book_.commit_pass();
  EXPECT_EQ(book_.sequence(0).slot, second);
  EXPECT_EQ(book_.sequence(0).next, 3);
  EXPECT_EQ(book_.used(), 3);
  expect_sound(false);
}

TEST_F(Books, AbortBringsEveryOwnerBack) {
  add({0});
  take(0);
  add({0});
  take(0);
  const int32_t slot = book_.sequence(0).slot;
  open({0, 1, 0});
  book_.abort_pass();
  expect_sound(false);
  EXPECT_EQ(book_.sequence(0).slot, slot);
  EXPECT_EQ(places(0), (Places{1, 2}));
  EXPECT_EQ(book_.used(), 2);
  EXPECT_EQ(book_.sequence(1).next, 0);
}

TEST_F(Books, AFullListLosesItsLowest) {
  for (int32_t i = 0; i < 4; ++i) {
    add({0});
    take(0);
  }
  EXPECT_EQ(places(0), (Places{3, 4}));
  EXPECT_EQ(book_.used(), 2);
  book_.cut(0, 3);
  EXPECT_EQ(places(0), Places{3});
  EXPECT_EQ(book_.used(), 1);
  expect_sound(false);
}

TEST_F(Books, AMiddleRemovalDropsWhatLiesInIt) {
  add({0, 0});
  take(0);
  add({0, 0});
  take(0);
  add({0, 0});
  book_.remove(0, 2, 4);
  EXPECT_EQ(places(0), Places{2}) << "at its begin it stays, at its end it goes";
  EXPECT_EQ(book_.sequence(0).next, 4);
  EXPECT_TRUE(book_.sequence(0).is_approximate);
  EXPECT_FALSE(book_.checkpoints(0)[0].is_approximate);
  expect_sound(false);
}

kvc::StateRules rules_apart() {
  kvc::StateRules apart = rules();
  apart.n_checkpoint_slots = 3 * 2;
  return apart;
}

/// Checkpoints have slots apart.
class BooksApart : public Books {
 protected:
  BooksApart() : Books(rules_apart()) {}

  using Copies = std::vector<std::pair<int32_t, int32_t>>;
  Copies copies() const {
    Copies list;
    for (int32_t i = 0; i < book_.n_slot_copies(); ++i)
      list.emplace_back(book_.copy_from()[i], book_.copy_to()[i]);
    return list;
  }
  int32_t checkpoint(int32_t sequence, int32_t at) const {
    return book_.checkpoint_slot(sequence, at);
  }
};

TEST_F(BooksApart, ACheckpointIsACopyOfTheState) {
  add({0, 0});
  const int32_t state = book_.sequence(0).slot;
  book_.take_checkpoint(0);
  EXPECT_EQ(book_.used(), 2);
  EXPECT_EQ(book_.shared(), 0);
  EXPECT_TRUE(book_.is_checkpoints(checkpoint(0, 2)));
  EXPECT_EQ(copies(), (Copies{{state, checkpoint(0, 2)}}));
  book_.take_checkpoint(0);
  EXPECT_EQ(book_.n_slot_copies(), 1) << "there is one already";
  expect_sound(false);
}

TEST_F(BooksApart, WhoStepsBackGetsAStateOfItsOwn) {
  add({0, 0});
  take(0);
  add({0});
  const int32_t later = book_.sequence(0).slot;
  book_.cut(0, 2);
  EXPECT_EQ(copies(), (Copies{{checkpoint(0, 2), book_.sequence(0).slot}}));
  EXPECT_FALSE(book_.is_checkpoints(book_.sequence(0).slot));
  EXPECT_NE(book_.sequence(0).slot, later) << "which may be read still";
  EXPECT_EQ(book_.free_slots().n_freed, 1);
  expect_sound(false);
  add({0});
  book_.copy_prefix(0, 1, 2);
  EXPECT_EQ(copies(), (Copies{{checkpoint(0, 2), book_.sequence(1).slot}}));
  EXPECT_EQ(checkpoint(1, 2), checkpoint(0, 2)) << "they share it";
  expect_sound(false);
  book_.copy_prefix(0, 2, 3);
  EXPECT_EQ(book_.n_slot_copies(), 0);
  EXPECT_EQ(book_.sequence(2).slot, book_.sequence(0).slot);
  expect_sound(false);
}

TEST_F(BooksApart, AFullListGivesItsLowestSlotToTheNewest) {
  for (int32_t i = 0; i < 2; ++i) {
    add({0, 1, 2});
    for (int32_t s = 0; s < 3; ++s) take(s);
  }
  EXPECT_EQ(book_.free_checkpoint_slots().n, 0);
  const int32_t lowest = checkpoint(0, 1);
  add({0});
  book_.take_checkpoint(0);
  EXPECT_EQ(checkpoint(0, 3), lowest);
  EXPECT_EQ(book_.free_checkpoint_slots().n_freed, 0) << "it is written";
  EXPECT_EQ(places(0), (Places{2, 3}));
  expect_sound(false);
}

TEST_F(BooksApart, CheckFindsWhatLiesInTheWrongPlace) {
  add({0});
  take(0);
  auto& sequence = const_cast<StateBook::Sequence&>(book_.sequence(0));
  auto& label = const_cast<kvc::Checkpoint&>(book_.checkpoints(0)[0]);
  const auto expect_broken = [&](const char* word) {
    EXPECT_EQ(book_.check(false), Status::internal);
    EXPECT_NE(std::string(kvc::last_message()).find(word), std::string::npos) << kvc::last_message();
  };
  const kvc::Checkpoint whole = label;
  label.slot = static_cast<uint32_t>(sequence.slot) & INT32_MAX;
  expect_broken("slot for states");
  label = whole;
  const int32_t state = sequence.slot;
  sequence.slot = checkpoint(0, 1);
  expect_broken("does not exist");
  sequence.slot = state;
  expect_sound(false);
}

/// The slot that a commit will take counts from the begin of its pass on.
class BooksApartByThemselves : public Books {
 protected:
  BooksApartByThemselves() : Books(by_themselves()) {}

 private:
  static kvc::StateRules by_themselves() {
    kvc::StateRules rules = rules_apart();
    rules.checkpoint_interval = 1;
    return rules;
  }
};

TEST_F(BooksApartByThemselves, CommitsCopyTheStatesThatTheyKeep) {
  open({0, 1, 0});
  EXPECT_EQ(book_.used(), 4);
  book_.keep_added(1, 0);
  EXPECT_EQ(book_.used(), 2);
  book_.commit_pass();
  EXPECT_EQ(book_.n_slot_copies(), 1);
  EXPECT_EQ(book_.copy_from()[0], book_.sequence(0).slot);
  EXPECT_EQ(book_.used(), 2);
  expect_sound(false);
  open({0, 1});
  book_.abort_pass();
  EXPECT_EQ(book_.n_slot_copies(), 0);
  EXPECT_EQ(book_.used(), 2);
  expect_sound(false);
}

TEST_F(Books, CheckFindsWhatIsBroken) {
  add({0, 1});
  take(0);
  const auto expect_broken = [&](const char* word) {
    EXPECT_EQ(book_.check(false), Status::internal);
    EXPECT_NE(std::string(kvc::last_message()).find(word), std::string::npos) << kvc::last_message();
  };
  auto& sequence = const_cast<StateBook::Sequence&>(book_.sequence(0));
  auto& checkpoint = const_cast<kvc::Checkpoint&>(book_.checkpoints(0)[0]);
  const StateBook::Sequence whole = sequence;
  const kvc::Checkpoint label = checkpoint;
  sequence.slot = book_.sequence(1).slot;
  expect_broken("owners");
  sequence.slot = 999;
  expect_broken("does not exist");
  sequence = whole;
  sequence.next = 0;
  expect_broken("empty");
  sequence = whole;
  sequence.n_checkpoints = 3;
  expect_broken("more checkpoints");
  sequence = whole;
  sequence.n_added = 1;
  expect_broken("no");
  sequence = whole;
  checkpoint.at = 2;
  expect_broken("behind");
  checkpoint.at = 0;
  expect_broken("ascend");
  checkpoint = label;
  expect_sound(false);
}

}  // namespace
