#include <algorithm>
#include <utility>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/book.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Stepping back --------------------------------------------------------------------------------------------------------

/// low() never falls as the position grows. So when the sequence cannot continue at the largest candidate, it cannot at a
/// smaller one either, down to keep_first, where low() does not count.
int32_t CellBook::best_continuation(int32_t index, int32_t want) const {
  const Sequence& sequence = sequences_[index];
  const int32_t candidate = std::min(want, sequence.next);
  if (can_continue(sequence, candidate)) return candidate;
  return std::min(candidate, rules_.visibility.keep_first);
}

/// Drops what lies at or behind `position`, where the sequence continues then.
void CellBook::cut(Sequence& sequence, int32_t position) {
  const int32_t kept = sequence.tokens.rank(position);
  health_.expect(sequence.tokens.n_hidden() == 0, "a cut while tokens are hidden");
  drop_tokens(sequence, kept, sequence.tokens.count());
  sequence.tokens.truncate(kept);
  sequence.next = position;
  if (position <= rules_.visibility.keep_first) sequence.lost_below = 0;
  if (kept == 0) sequence.may_be_pending = false;
  health_.expect(pool_.counts_are_possible(), "a cut gave back more cells than there are");
}

void CellBook::cut(int32_t index, int32_t position) {
  if (position < sequences_[index].next) cut(sequences_[index], position);
}

// ---- Copies -------------------------------------------------------------------------------------------------------------------

/// Owners of the source's cells are counted first: what both hold must never look free in between.
void CellBook::copy(const Sequence& source, int32_t count, int32_t next, Sequence& destination) {
  health_.expect(source.tokens.n_hidden() == 0 && count <= source.tokens.count(),
                 "a copy of tokens that are not visible");
  if (!health_.ok()) return;
  source.tokens.for_each_piece(
      0, count - (planted(Bug::uncounted_owner) && count > 0),
      [this](const int32_t* cells, const int32_t*, int32_t n) { pool_.add_owners(cells, n); });
  cut(destination, 0);
  destination.tokens.assign(source.tokens, count);
  mark_changed(destination);
  destination.next = next;
  const bool lost_nothing = next <= rules_.visibility.keep_first ||
                            planted(Bug::copy_without_lost_below);
  destination.lost_below = lost_nothing ? 0 : source.lost_below;
  destination.may_be_pending = source.may_be_pending;
  health_.expect(pool_.counts_are_possible(), "a copy shares more cells than there are");
}

void CellBook::copy_prefix(int32_t source, int32_t destination, int32_t position) {
  const Sequence& from = sequences_[source];
  copy(from, position < from.next ? from.tokens.rank(position) : from.tokens.count(), position,
       sequences_[destination]);
  mark_dirty(destination);
}

Status CellBook::check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const {
  if (Status s = check_arrays("n", n, {{"dst", destination}, {"src", source}}); s != Status::ok)
    return s;
  begin_plan();
  const auto planned = [this](int32_t sequence) -> SequencePlan& {
    SequencePlan& plan = plan_[sequence];
    if (plan.stamp != plan_stamp_) {
      plan.stamp = plan_stamp_;
      plan.source = -1;
      plan.uses = 0;
    }
    return plan;
  };
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_sequence_at("dst", i, destination[i], rules_.max_sequences); s != Status::ok)
      return s;
    if (Status s = check_sequence_at("src", i, source[i], rules_.max_sequences); s != Status::ok)
      return s;
    SequencePlan& plan = planned(destination[i]);
    if (plan.source >= 0) return destination_named_twice(i, destination[i]);
    plan.source = source[i];
    if (source[i] != destination[i]) ++planned(source[i]).uses;
  }
  return Status::ok;
}

/// Several copies as if at once, without spare memory: a destination whose own content nobody waits for is overwritten
/// first; what remains are cycles, whose sequences change places.
void CellBook::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  for (int32_t i = 0; planted(Bug::reorder_one_by_one) && i < n; ++i) {
    const Sequence& original = sequences_[source[i]];
    plan_[destination[i]].source = -1;
    if (source[i] != destination[i])
      copy(original, original.tokens.count(), original.next, sequences_[destination[i]]);
  }
  for (int32_t i = 0; i < n; ++i) {
    // Follow the chain: each copy may free its source to be overwritten in turn.
    int32_t to = destination[i];
    while (plan_[to].uses == 0 && plan_[to].source >= 0 && plan_[to].source != to) {
      const int32_t from = std::exchange(plan_[to].source, -1);
      const Sequence& original = sequences_[from];
      copy(original, original.tokens.count(), original.next, sequences_[to]);
      mark_dirty(to);
      --plan_[from].uses;
      to = from;
    }
  }
  for (int32_t i = 0; i < n; ++i) {
    if (plan_[destination[i]].source >= 0 && plan_[destination[i]].source != destination[i])
      rotate_cycle(destination[i]);
  }
}

void CellBook::rotate_cycle(int32_t start) {
  int32_t to = start;
  while (true) {
    const int32_t from = std::exchange(plan_[to].source, -1);
    mark_dirty(to);
    if (from == start) return;
    std::swap(sequences_[to], sequences_[from]);
    mark_changed(sequences_[to]);  // what was noted of them has changed places, too
    mark_changed(sequences_[from]);
    to = from;
  }
}

// ---- Removal -----------------------------------------------------------------------------------------------------------------------

/// The new lost_below for a range that ends before `next` (semantics §2, remove), or WINDOW_LOST.
Status CellBook::check_middle_removal(const Sequence& sequence, int32_t begin, int32_t end,
                                      int32_t* lost_below) const {
  const int32_t distance = end - begin;
  const int32_t keep_first = rules_.visibility.keep_first;
  *lost_below = 0;
  if (!rules_.limited) return Status::ok;
  const int32_t before = sequence.lost_below;
  if (begin < keep_first && before > 0) {
    if (end < before) {
      return fail(
          Status::window_lost,
          "positions from %d would move below keep_first %d, but those below %d have slid out: "
          "remove only positions from %d on, or compute the sequence anew",
          end, keep_first, before, keep_first);
    }
  } else {
    *lost_below = before <= begin || planted(Bug::removal_keeps_lost_below)
                      ? before
                      : std::max(begin, before - distance);
  }
  const int32_t next = sequence.next - distance;
  if (next > keep_first && rules_.visibility.low(next) < *lost_below) {
    return fail(
        Status::window_lost,
        "the next token, at %d, would need positions from %d, but those below %d have slid out: "
        "remove fewer positions, or compute the sequence anew",
        next, rules_.visibility.low(next), *lost_below);
  }
  return Status::ok;
}

Status CellBook::plan_removal(int32_t index, int32_t begin, int32_t end, Removal* removal) const {
  const Sequence& sequence = sequences_[index];
  *removal = {.sequence = index, .begin = begin, .end = end};
  removal->nothing = begin == end || begin >= sequence.next;
  removal->to_the_end = end >= sequence.next;
  if (removal->nothing) return Status::ok;
  if (!removal->to_the_end) {
    removal->moves = sequence.tokens.rank(end) < sequence.tokens.count();
    return check_middle_removal(sequence, begin, end, &removal->lost_below);
  }
  if (can_continue(sequence, begin)) return Status::ok;
  return fail(
      Status::window_lost,
      "a token at %d of sequence %d would need positions from %d, but those below %d have slid "
      "out: kvc_can_resume finds where the sequence can continue",
      begin, index, rules_.visibility.low(begin), sequence.lost_below);
}

void CellBook::remove_middle(Sequence& sequence, const Removal& removal) {
  const int32_t first = sequence.tokens.rank(removal.begin), last = sequence.tokens.rank(removal.end);
  health_.expect(first <= last && sequence.tokens.n_hidden() == 0,
                 "a removal of tokens out of order");
  if (!health_.ok()) return;
  drop_tokens(sequence, first, last);
  const int32_t distance = removal.end - removal.begin, keep_first = rules_.visibility.keep_first;
  sequence.tokens.erase(first, last, distance, keep_first);
  mark_changed(sequence);
  sequence.next -= distance - planted(Bug::removal_next_short);
  sequence.lost_below = sequence.next <= keep_first ? 0 : removal.lost_below;
  sequence.may_be_pending = sequence.tokens.count() > 0 &&
                            (sequence.may_be_pending || (removal.moves && keys_rotate_));
  health_.expect(pool_.counts_are_possible(), "a removal gave back more cells than there are");
}

void CellBook::remove(const Removal& removal) {
  if (removal.nothing) return;
  if (removal.to_the_end)
    cut(sequences_[removal.sequence], removal.begin);
  else
    remove_middle(sequences_[removal.sequence], removal);
}

// ---- Other cells for the same tokens ------------------------------------------------------------------------------------------

void CellBook::Copies::give_back() {
  for (int32_t cell = std::exchange(first_, -1); cell >= 0;) {
    const int32_t next = next_of(cell);
    book_.pool_.drop_owners(&cell, 1, [this](int32_t freed) { book_.note_freed(freed); });
    cell = next;
  }
  last_ = -1;
}

void CellBook::Copies::take(int32_t count, int32_t home) {
  constexpr int32_t none[CellPool::block_cells] = {};
  while (count > 0) {
    const CellPool::Stretch stretch = book_.pool_.take(
        last_, home, std::min(count, CellPool::block_cells), none);
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      if (last_ >= 0)
        book_.pool_.set_rotated_for(last_, cell);
      else
        first_ = cell;
      book_.pool_.set_rotated_for(cell, -1);
      last_ = cell;
    }
    count -= stretch.count;
  }
}

void CellBook::use_copies(int32_t index, int32_t first, int32_t distance, Copies& copies) {
  TokenSequence& tokens = sequences_[index].tokens;
  int32_t cell = copies.first();
  copies.keep();
  mark_changed(sequences_[index]);
  for (int32_t i = first; i < tokens.count(); ++i) {
    const Token token = tokens.at(i);
    const int32_t next = copies.next_of(cell);
    pool_.set_rotated_for(cell, token.position - distance);
    tokens.set_cell(i, cell);
    pool_.drop_owners(&token.cell, 1, [this](int32_t freed) { note_freed(freed); });
    cell = next;
  }
}

int32_t CellBook::take_own_cell(int32_t index, int32_t at, Token token) {
  Sequence& sequence = sequences_[index];
  const int32_t rotated_for = pool_.rotated_for(token.cell);
  const CellPool::Stretch copy = pool_.take(token.cell, sequence.home, 1, &rotated_for);
  pool_.drop_owners(&token.cell, 1, [](int32_t) {});  // it is shared: somebody still holds it
  sequence.tokens.set_cell(at, copy.first);
  mark_changed(sequence);
  return copy.first;
}

// ---- Reading ---------------------------------------------------------------------------------------------------------------------

SequenceInfo CellBook::info(int32_t index) const {
  const Sequence& sequence = sequences_[index];
  const int32_t count = sequence.tokens.count();
  SequenceInfo info;
  info.first = count > 0 ? sequence.tokens.at(0).position : sequence.next;
  info.next = sequence.next;
  info.count = count;
  info.room = std::min(rules_.sequence_limit - count, pool_.n_free() + pool_.n_free_at_commit());
  info.lost_below = sequence.lost_below;
  return info;
}

int32_t CellBook::runs(int32_t index, int32_t capacity, Run* runs) const {
  const TokenSequence& tokens = sequences_[index].tokens;
  int32_t found = 0;
  Run run = {};
  for (int32_t i = 0; i < tokens.count(); ++i) {
    const Token token = tokens.at(i);
    const int32_t offset = offset_of(token);
    if (found > 0 && token.cell == run.cell + run.length &&
        token.position == run.position + run.length && offset == run.offset) {
      ++run.length;
    } else {
      run = {token.cell, 1, token.position, offset};
      ++found;
    }
    if (found <= capacity) runs[found - 1] = run;
  }
  return found;
}

}  // namespace kvc
