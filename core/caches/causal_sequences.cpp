#include <algorithm>
#include <utility>

#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {

Status CausalCache::check_sequence(int32_t sequence) const {
  if (sequence >= 0 && sequence < bounds_.max_sequences) return Status::ok;
  return fail(Status::invalid_argument, "sequence %d out of range [0, %d)", sequence,
              bounds_.max_sequences);
}

// ---- Stepping back --------------------------------------------------------------------------------------------------------

bool CausalCache::can_continue(const Sequence& sequence, int32_t position) const {
  if (position == 0) return true;
  if (position > sequence.next) return false;
  if (!settings_.limited || position <= settings_.visibility.keep_first) return true;
  return settings_.visibility.low(position) >= sequence.lost_below;
}

/// low() never falls as the position grows. So when the largest candidate cannot be continued at, no smaller one can, down
/// to keep_first, where low() is not asked.
int32_t CausalCache::best_continuation(const Sequence& sequence, int32_t want) const {
  const int32_t candidate = std::min(want, sequence.next);
  if (can_continue(sequence, candidate)) return candidate;
  return std::min(candidate, settings_.visibility.keep_first);
}

Status CausalCache::can_resume(int32_t sequence, int32_t want, int32_t* best) const {
  if (Status s = check_sequence(sequence); s != Status::ok) return s;
  if (want < 0) return fail(Status::invalid_argument, "position %d is negative", want);
  *best = best_continuation(sequences_[sequence], want);
  return Status::ok;
}

/// Drops what lies at or behind `position`, where the sequence continues then. No pass is open.
void CausalCache::cut(Sequence& sequence, int32_t position) {
  const int32_t kept = sequence.tokens.rank(position);
  expect(sequence.tokens.n_hidden() == 0, "a cut while tokens are out of sight");
  drop_tokens(sequence, kept, sequence.tokens.count());
  sequence.tokens.truncate(kept);
  sequence.next = position;
  if (position <= settings_.visibility.keep_first) sequence.lost_below = 0;
  if (kept == 0) sequence.may_owe = false;
  expect(pool_.counts_are_possible(), "a cut gave back more cells than there are");
}

Status CausalCache::resume(int32_t sequence, int32_t want, int32_t* got) {
  int32_t best = 0;
  if (Status s = can_resume(sequence, want, &best); s != Status::ok) return s;
  if (Status s = ready_to_end_pass(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  if (best < sequences_[sequence].next) cut(sequences_[sequence], best);
  if (got != nullptr) *got = best;
  return flush_freed();
}

// ---- Copies -------------------------------------------------------------------------------------------------------------------

/// Owners of the source's cells are counted first: what both hold must never look free in between.
void CausalCache::copy(const Sequence& source, int32_t count, int32_t next, Sequence& destination) {
  expect(source.tokens.n_hidden() == 0 && count <= source.tokens.count(),
         "a copy of tokens that are not in sight");
  if (health_ != Status::ok) return;
  source.tokens.for_each_piece(
      0, count - (planted(Bug::uncounted_owner) && count > 0),
      [this](const int32_t* cells, const int32_t*, int32_t n) { pool_.add_owners(cells, n); });
  cut(destination, 0);
  destination.tokens.assign(source.tokens, count);
  destination.next = next;
  destination.lost_below = next <= settings_.visibility.keep_first ||
                                   planted(Bug::copy_without_lost_below)
                               ? 0
                               : source.lost_below;
  destination.may_owe = source.may_owe;
  expect(pool_.counts_are_possible(), "a copy shares more cells than there are");
}

Status CausalCache::copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) {
  if (Status s = check_sequence(source); s != Status::ok) return s;
  if (Status s = check_sequence(destination); s != Status::ok) return s;
  if (source == destination)
    return fail(Status::invalid_argument, "sequence %d cannot be copied to itself", source);
  if (length < 0) return fail(Status::invalid_argument, "length %d is negative", length);
  if (Status s = ready_to_end_pass(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  const Sequence& from = sequences_[source];
  const int32_t best = best_continuation(from, length);
  copy(from, best < from.next ? from.tokens.rank(best) : from.tokens.count(), best,
       sequences_[destination]);
  mark_dirty(destination);
  if (got != nullptr) *got = best;
  return flush_freed();
}

Status CausalCache::plan_reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  if (n < 0 || (n > 0 && (destination == nullptr || source == nullptr))) {
    return fail(Status::invalid_argument, "%d copies%s", n, n > 0 ? ", and none given" : "");
  }
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
    if (Status s = check_sequence(destination[i]); s != Status::ok) return s;
    if (Status s = check_sequence(source[i]); s != Status::ok) return s;
    SequencePlan& plan = planned(destination[i]);
    if (plan.source >= 0)
      return fail(Status::invalid_argument, "destination %d is named twice", destination[i]);
    plan.source = source[i];
    if (source[i] != destination[i]) ++planned(source[i]).uses;
  }
  return ready_to_end_pass();
}

/// Several copies as if at once, without spare memory: a destination whose own content nobody waits for is overwritten
/// first; what remains are cycles, whose sequences change places.
Status CausalCache::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  const std::lock_guard lock(plan_mutex_);
  if (Status s = plan_reorder(n, destination, source); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
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
  return flush_freed();
}

void CausalCache::rotate_cycle(int32_t start) {
  int32_t to = start;
  while (true) {
    const int32_t from = std::exchange(plan_[to].source, -1);
    mark_dirty(to);
    if (from == start) return;
    std::swap(sequences_[to], sequences_[from]);
    to = from;
  }
}

// ---- Removal -----------------------------------------------------------------------------------------------------------------------

/// semantics §2, remove, for a range that ends before `next`: the new lost_below, or why not.
Status CausalCache::check_middle_removal(const Sequence& sequence, int32_t begin, int32_t end,
                                         int32_t* lost_below) const {
  const int32_t distance = end - begin;
  const int32_t keep_first = settings_.visibility.keep_first;
  *lost_below = 0;
  if (settings_.limited) {
    const int32_t before = sequence.lost_below;
    if (begin < keep_first && before > 0) {
      if (end < before) {
        return fail(Status::window_lost,
                    "positions from %d move below %d, but those up to %d have slid out", end,
                    keep_first, before);
      }
    } else {
      *lost_below = before <= begin || planted(Bug::removal_keeps_lost_below)
                        ? before
                        : std::max(begin, before - distance);
    }
    const int32_t next = sequence.next - distance;
    if (next > keep_first && settings_.visibility.low(next) < *lost_below) {
      return fail(Status::window_lost,
                  "a token at %d would need positions from %d, but those below %d have slid out",
                  next, settings_.visibility.low(next), *lost_below);
    }
  }
  const bool moves = sequence.tokens.rank(end) < sequence.tokens.count();
  if (moves && !has_rope_ && !settings_.position_free && shift_.run == nullptr) {
    return fail(Status::not_supported,
                "positions from %d would move, and nothing says how keys turn", end);
  }
  return Status::ok;
}

void CausalCache::remove_middle(Sequence& sequence, int32_t begin, int32_t end, int32_t lost_below) {
  const int32_t first = sequence.tokens.rank(begin), last = sequence.tokens.rank(end);
  expect(first <= last && sequence.tokens.n_hidden() == 0, "a removal of tokens out of order");
  if (health_ != Status::ok) return;
  drop_tokens(sequence, first, last);
  const bool moves = last < sequence.tokens.count();
  sequence.tokens.erase(first, last, end - begin, settings_.visibility.keep_first);
  sequence.next -= end - begin - planted(Bug::removal_next_short);
  sequence.lost_below = sequence.next <= settings_.visibility.keep_first ? 0 : lost_below;
  sequence.may_owe = sequence.tokens.count() > 0 && (sequence.may_owe || (moves && has_rope_));
  expect(pool_.counts_are_possible(), "a removal gave back more cells than there are");
}

Status CausalCache::remove(int32_t index, int32_t begin, int32_t end) {
  if (Status s = check_sequence(index); s != Status::ok) return s;
  if (begin < 0 || end < begin)
    return fail(Status::invalid_argument, "positions [%d, %d) are no range", begin, end);
  if (Status s = ready_to_end_pass(); s != Status::ok) return s;
  Sequence& sequence = sequences_[index];
  const bool nothing = begin == end || begin >= sequence.next;
  const bool to_the_end = end >= sequence.next;
  int32_t lost_below = 0;
  if (!nothing && to_the_end && !can_continue(sequence, begin)) {
    return fail(Status::window_lost,
                "a token at %d of sequence %d would need positions from %d, but those below %d "
                "have slid out",
                begin, index, settings_.visibility.low(begin), sequence.lost_below);
  }
  if (!nothing && !to_the_end) {
    if (Status s = check_middle_removal(sequence, begin, end, &lost_below); s != Status::ok)
      return s;
  }
  Copies copies(*this);
  const bool shifts = !nothing && !to_the_end && shift_.run != nullptr;
  const int32_t first_moved = shifts ? sequence.tokens.rank(end) : 0;
  if (shifts) {
    if (Status s = make_shifted_copies(sequence, first_moved, end - begin, copies); s != Status::ok) {
      if (planted(Bug::refused_shift_applied) && copies.first() >= 0)
        use_shifted_copies(sequence, first_moved, end - begin, copies);
      return s;
    }
  }
  if (Status s = keep_pass(); s != Status::ok) return s;
  if (nothing) return Status::ok;
  if (shifts) use_shifted_copies(sequence, first_moved, end - begin, copies);
  if (to_the_end)
    cut(sequence, begin);
  else
    remove_middle(sequence, begin, end, lost_below);
  return flush_freed();
}

Status CausalCache::sequence_info(int32_t index, SequenceInfo* info) const {
  if (Status s = check_sequence(index); s != Status::ok) return s;
  const Sequence& sequence = sequences_[index];
  const int32_t count = sequence.tokens.count();
  info->first = count > 0 ? sequence.tokens.at(0).position : sequence.next;
  info->next = sequence.next;
  info->count = count;
  info->room = std::min(sequence_limit_ - count, pool_.n_free() + pool_.n_free_at_commit());
  info->lost_below = sequence.lost_below;
  return Status::ok;
}

}  // namespace kvc
