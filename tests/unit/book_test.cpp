// The book of cells without a cache: it needs no device, others than sequences may hold its cells, and what changes in the
// token arrays is named completely.
#include "core/cells/book.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cells/sequence_checks.hpp"

namespace {

using kvc::Status;

/// A book over memory of its own.
class Fixture {
 public:
  explicit Fixture(kvc::BookRules rules) : book(rules, health) {
    kvc::Carver measure;
    book.carve(measure);
    memory_.resize(measure.used().value() / sizeof(uint64_t) + 16);
    void* aligned = memory_.data();
    size_t space = memory_.size() * sizeof(uint64_t);
    kvc::Carver carver(std::align(64, measure.used().value(), aligned, space));
    book.carve(carver);
    book.reset();
  }

  /// A pass of n tokens that continue a sequence, committed.
  Status add(int32_t sequence, int32_t n) {
    std::vector<int32_t> position, owner(static_cast<size_t>(n), sequence);
    for (int32_t i = 0; i < n; ++i) position.push_back(book.sequence(sequence).next + i);
    kvc::Batch batch;
    batch.n_tokens = n;
    batch.position = position.data();
    batch.sequence = owner.data();
    if (Status s = book.check_batch(batch); s != Status::ok) return s;
    if (Status s = book.check_room(batch); s != Status::ok) return s;
    book.open_pass(batch);
    book.commit_pass();
    return health.status();
  }
  Status remove(int32_t sequence, int32_t begin, int32_t end) {
    kvc::Removal removal;
    if (Status s = kvc::check_range(sequence, begin, end, book.rules().max_sequences); s != Status::ok)
      return s;
    if (Status s = book.plan_removal(sequence, begin, end, &removal); s != Status::ok) return s;
    book.remove(removal);
    return health.status();
  }

  kvc::Health health;
  kvc::CellBook book;

 private:
  std::vector<uint64_t> memory_;
};

kvc::BookRules small() {
  kvc::BookRules rules;
  rules.max_sequences = 4;
  rules.max_batch = 16;
  rules.n_cells = 64;
  rules.sequence_limit = 40;
  return rules;
}

struct Held final : kvc::CellHolder {
  std::vector<int32_t> cells;
  void for_each_held(Visit visit, void* context) const override {
    visit(context, cells.data(), static_cast<int32_t>(cells.size()));
  }
};

TEST(Book, LetsOthersHoldItsCells) {
  kvc::BookRules rules = small();
  rules.notes_freed = true;
  Fixture f(rules);
  ASSERT_EQ(f.add(0, 10), Status::ok);
  Held held;
  for (int32_t i = 2; i < 6; ++i) held.cells.push_back(f.book.sequence(0).tokens.at(i).cell);
  f.book.hold(held.cells.data(), 4);
  ASSERT_EQ(f.book.check(false, &held), Status::ok) << kvc::last_message();
  EXPECT_EQ(f.book.check(false), Status::internal);  // four owners too many

  ASSERT_EQ(f.remove(0, 0, 10), Status::ok);
  EXPECT_EQ(f.book.pool().n_free(), 60);
  EXPECT_EQ(f.book.n_freed(), 6);
  ASSERT_EQ(f.book.check(false, &held), Status::ok) << kvc::last_message();
  ASSERT_EQ(f.add(1, 16), Status::ok);  // takes none of those that are held
  for (int32_t i = 0; i < 16; ++i)
    EXPECT_FALSE(
        std::count(held.cells.begin(), held.cells.end(), f.book.sequence(1).tokens.at(i).cell));

  f.book.forget_freed();
  f.book.let_go(held.cells.data(), 4);
  EXPECT_EQ(f.book.n_freed(), 4);
  EXPECT_EQ(f.book.pool().n_free(), 48);
  EXPECT_EQ(f.book.check(false), Status::ok) << kvc::last_message();
}

/// A copy of the token arrays that is told of nothing but take_changes().
class Mirror {
 public:
  explicit Mirror(const kvc::CellBook& book)
      : cell_(static_cast<size_t>(book.n_token_entries()), -1), position_(cell_) {}

  void follow(kvc::CellBook& book) {
    const kvc::TokenArrays arrays = book.token_arrays();
    const kvc::TokenChanges changes = book.take_changes();
    for (int32_t i = 0; i < changes.n; ++i) {
      const kvc::TokenRange& range = changes.range[i];
      n_copied += range.end - range.begin;
      std::copy(arrays.cell + range.begin, arrays.cell + range.end, cell_.begin() + range.begin);
      std::copy(arrays.position + range.begin, arrays.position + range.end,
                position_.begin() + range.begin);
    }
  }
  void expect_equal(const kvc::CellBook& book) const {
    for (int32_t s = 0; s < book.rules().max_sequences; ++s) {
      const kvc::TokenList list = book.sequence(s).tokens.list(0);
      for (int32_t piece = 0, index = 0; piece < 3; ++piece) {
        for (int32_t i = 0; i < list.count[piece]; ++i, ++index) {
          const auto at = static_cast<size_t>(list.start[piece] + i);
          const kvc::Token token = book.sequence(s).tokens.at(index);
          ASSERT_EQ(cell_[at], token.cell) << "sequence " << s << " index " << index;
          ASSERT_EQ(position_[at], token.position) << "sequence " << s << " index " << index;
        }
      }
    }
  }

  int64_t n_copied = 0;

 private:
  std::vector<int32_t> cell_, position_;
};

TEST(Book, NamesWhatChanges) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  struct Case {
    bool limited;
    int32_t keep_first, n_cells;
  };
  for (const auto [limited, keep_first, n_cells] :
       {Case{false, 0, 200}, Case{true, 3, 200}, Case{false, 0, 30}, Case{true, 3, 30},
        Case{true, 60, 30}}) {  // from here on fewer cells than a sequence may hold, or keeps first
    SCOPED_TRACE("cells " + std::to_string(n_cells) + " keep_first " + std::to_string(keep_first));
    kvc::BookRules rules = small();
    rules.notes_changes = true;
    rules.limited = limited;
    rules.visibility.reach = limited ? 10 : 0;
    rules.visibility.keep_first = keep_first;
    rules.memory = 12;
    rules.sequence_limit = 12 + keep_first + 2 * rules.max_batch;
    rules.n_cells = n_cells;
    Fixture f(rules);
    Mirror mirror(f.book);
    int32_t succeeded = 0;
    for (int32_t i = 0; i < 3000; ++i) {
      const int32_t s = below(4), other = below(4);
      const int32_t next = f.book.sequence(s).next;
      Status status = Status::ok;
      switch (below(8)) {
        case 0:
        case 1: status = f.add(s, 1 + below(16)); break;
        case 2: status = f.remove(s, below(next + 1), next); break;
        case 3: status = f.remove(s, next / 2, next / 2 + below(4)); break;
        case 4:
          if (s != other) f.book.copy_prefix(s, other, f.book.best_continuation(s, next));
          break;
        case 5: {
          const int32_t to[] = {0, 1, 2}, from[] = {1, 2, 0};
          status = f.book.check_reorder(3, to, from);
          if (status == Status::ok) f.book.reorder(3, to, from);
          break;
        }
        case 6: {  // a cell of its own for a token that is shared
          const int32_t count = f.book.sequence(s).tokens.count();
          if (count == 0 || f.book.pool().n_free() == 0) break;
          const int32_t index = below(count);
          const kvc::Token token = f.book.sequence(s).tokens.at(index);
          if (f.book.pool().owners(token.cell) > 1) f.book.take_own_cell(s, index, token);
          break;
        }
        case 7: {  // other cells for all tokens from an index on
          const int32_t count = f.book.sequence(s).tokens.count(), first = below(count + 1);
          if (first == count || f.book.pool().n_free() < count - first) break;
          kvc::CellBook::Copies copies(f.book);
          copies.take(count - first, 0);
          f.book.use_copies(s, first, 0, copies);
          break;
        }
      }
      succeeded += status == Status::ok;
      ASSERT_EQ(f.book.check(false), Status::ok) << kvc::last_message();
      if (below(3) > 0) continue;  // changes pile up
      mirror.follow(f.book);
      mirror.expect_equal(f.book);
      if (::testing::Test::HasFatalFailure()) return;
    }
    EXPECT_GT(succeeded, 1000);
  }
}

// Entries for more tokens than there are cells would never be used. What a sequence may hold, and what is said when it
// holds too much, is as before.
TEST(Book, HasNoMoreEntriesThanCells) {
  kvc::BookRules rules = small();
  rules.sequence_limit = 1 << 30;
  rules.n_cells = 24;
  EXPECT_EQ(Fixture(rules).book.n_token_entries(), 4 * 24);
  rules.limited = true;
  rules.memory = 1 << 28;
  rules.visibility = {1 << 28, 0, 5};
  EXPECT_EQ(Fixture(rules).book.n_token_entries(), 4 * (5 + 24));
  rules.visibility.keep_first = 1 << 20;
  Fixture f(rules);
  EXPECT_EQ(f.book.n_token_entries(), 4 * (24 + 24));
  ASSERT_EQ(f.add(0, 16), Status::ok);
  ASSERT_EQ(f.add(0, 8), Status::ok);  // all cells, all in the head
  f.book.copy_prefix(0, 1, 24);        // and all of them shared
  f.book.copy_prefix(0, 2, 24);
  EXPECT_EQ(f.book.info(1).room, 0);
  EXPECT_EQ(f.add(1, 1), Status::cache_full);
  EXPECT_NE(std::string(kvc::last_message()).find("0 free cells of 24"), std::string::npos)
      << kvc::last_message();
  EXPECT_EQ(f.book.check(false), Status::ok) << kvc::last_message();

  rules = small();
  rules.n_cells = 41;  // more than the limit of 40: the limit counts
  Fixture limited(rules);
  EXPECT_EQ(limited.book.n_token_entries(), 4 * 40);
  for (int32_t i = 0; i < 5; ++i) ASSERT_EQ(limited.add(0, 8), Status::ok);
  EXPECT_EQ(limited.add(0, 1), Status::cache_full);
  EXPECT_NE(std::string(kvc::last_message()).find("40 positions of at most 40"), std::string::npos)
      << kvc::last_message();
}

TEST(Book, NamesNoMoreThanATokenOfDecode) {
  kvc::BookRules rules = small();
  rules.notes_changes = true;
  Fixture f(rules);
  Mirror mirror(f.book);
  ASSERT_EQ(f.add(0, 16), Status::ok);
  mirror.follow(f.book);
  EXPECT_EQ(mirror.n_copied, 16);
  ASSERT_EQ(f.add(0, 1), Status::ok);
  mirror.follow(f.book);
  EXPECT_EQ(mirror.n_copied, 17);
}

}  // namespace
