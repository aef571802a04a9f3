#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/scattered.hpp"
#include "core/cells/sequence_checks.hpp"
#include "core/cells/state_book.hpp"

namespace kvc {
namespace {

/// The first checkpoint behind a position.
const Checkpoint* first_behind(const Checkpoint* begin, const Checkpoint* end, int32_t position) {
  return std::upper_bound(begin, end, position, [](int32_t wanted, const Checkpoint& checkpoint) {
    return wanted < checkpoint.at;
  });
}

}  // namespace

// ---- Checkpoints ------------------------------------------------------------------------------------------------------------

/// The one that commit takes lies at next, where the sequence can continue anyhow.
int32_t StateBook::best_continuation(int32_t index, int32_t want) const {
  const Sequence& sequence = sequences_[index];
  if (want >= sequence.next) return sequence.next;
  const bool is_less = loses_lowest(sequence) && !planted(Bug::lost_checkpoint_found);
  const Checkpoint* begin = checkpoints(index) + (is_less ? 1 : 0);
  const Checkpoint* behind = first_behind(begin, checkpoints(index) + sequence.n_checkpoints, want);
  return behind == begin ? 0 : behind[-1].at;
}

int32_t StateBook::checkpoint_slot(int32_t index, int32_t at) const {
  const Checkpoint* begin = checkpoints(index);
  const Checkpoint* behind = first_behind(begin, begin + sequences_[index].n_checkpoints, at);
  health_.expect(behind != begin && behind[-1].at == at, "no checkpoint where one was found");
  return health_.ok() ? static_cast<int32_t>(behind[-1].slot) : zeros;
}

int32_t StateBook::list_checkpoints(int32_t index, int32_t capacity, int32_t* at) const {
  const Sequence& sequence = sequences_[index];
  int32_t n = 0;
  const auto add = [&](int32_t place) {
    if (n < capacity) at[n] = place;
    ++n;
  };
  for (int32_t i = loses_lowest(sequence) ? 1 : 0; i < sequence.n_checkpoints; ++i)
    add(checkpoints(index)[i].at);
  if (sequence.takes_checkpoint && !planted(Bug::coming_checkpoint_unlisted)) add(sequence.next);
  return n;
}

/// The state becomes a checkpoint; the lowest goes where there are as many as may be.
void StateBook::push_checkpoint(int32_t index) {
  Sequence& sequence = sequences_[index];
  Checkpoint* checkpoints = list(index);
  if (!keeps_apart()) change(sequence.slot, 1, 0);
  if (sequence.n_checkpoints == rules_.checkpoints) {
    const auto lowest = static_cast<int32_t>(checkpoints[0].slot);
    change(lowest, -1, 0);
    release_if_free(lowest);
    std::copy(checkpoints + 1, checkpoints + sequence.n_checkpoints, checkpoints);
    --sequence.n_checkpoints;
  }
  int32_t slot = sequence.slot;
  if (keeps_apart()) {
    slot = take_copy(sequence.slot, free_checkpoints_);
    change(slot, 1, 0);
  }
  Checkpoint& newest = checkpoints[sequence.n_checkpoints++];
  newest.at = sequence.next;
  newest.slot = static_cast<uint32_t>(slot) & INT32_MAX;
  newest.is_approximate = sequence.is_approximate;
}

void StateBook::take_checkpoint(int32_t index) {
  const Sequence& sequence = sequences_[index];
  const int32_t n = sequence.n_checkpoints;
  const bool has_one = n > 0 && checkpoints(index)[n - 1].at == sequence.next;
  if (sequence.next > 0 && !has_one) push_checkpoint(index);
}

void StateBook::forget_checkpoints(int32_t index) {
  for (int32_t i = 0; i < sequences_[index].n_checkpoints; ++i) {
    const auto slot = static_cast<int32_t>(checkpoints(index)[i].slot);
    change(slot, -1, 0);
    release_if_free(slot);
  }
  sequences_[index].n_checkpoints = 0;
}

// ---- States that a caller sets ----------------------------------------------------------------------------------------------

int32_t StateBook::take_own_slot(int32_t index) {
  Sequence& sequence = sequences_[index];
  const bool is_own = slots_[sequence.slot].n_then == 1 || planted(Bug::written_state_shared);
  if (sequence.slot != zeros && is_own) return sequence.slot;
  health_.expect(free_.n_freed == 0, "a slot is taken among those that became free");
  const int32_t own = take(free_);
  if (!health_.ok()) return sequence.slot;
  change(sequence.slot, -1, 0);
  sequence.slot = own;
  change(sequence.slot, 1, 0);
  return sequence.slot;
}

void StateBook::relabel(int32_t index, int32_t position) {
  if (position == 0) return cut(index, 0);
  if (!planted(Bug::label_keeps_checkpoints)) forget_checkpoints(index);
  sequences_[index].next = position;
}

int32_t StateBook::adopt(int32_t index, const StateBook& other, int32_t source, int32_t* from,
                         int32_t* to) {
  health_.expect(free_.n_freed == 0 && sequences_[index].next == 0,
                 "a sequence is replaced and not empty");
  int32_t n = 0;
  const auto own_copy = [&](int32_t slot, FreeSlots& pool) -> int32_t {
    if (slot == zeros) return zeros;
    for (int32_t i = 0; i < n; ++i) {
      if (from[i] == slot && &pool_of(to[i]) == &pool) return to[i];
    }
    const int32_t own = take(pool);
    if (!health_.ok()) return zeros;
    from[n] = slot;
    return to[n++] = own;
  };
  FreeSlots& of_checkpoints = keeps_apart() ? free_checkpoints_ : free_;
  Sequence sequence = other.sequences_[source];
  const int32_t n_left = std::max(sequence.n_checkpoints - rules_.checkpoints, 0);
  sequence.n_checkpoints -= n_left;
  if (planted(Bug::inserted_checkpoints_lost)) sequence.n_checkpoints = 0;
  sequence.slot = own_copy(sequence.slot, free_);
  for (int32_t i = 0; i < sequence.n_checkpoints; ++i) {
    Checkpoint& mine = list(index)[i] = other.checkpoints(source)[n_left + i];
    const int32_t slot = own_copy(static_cast<int32_t>(mine.slot), of_checkpoints);
    mine.slot = static_cast<uint32_t>(slot) & INT32_MAX;
  }
  own(sequence, list(index));
  sequences_[index] = sequence;
  return n;
}

// ---- Stepping back and copies ---------------------------------------------------------------------------------------------------

void StateBook::own(const Sequence& sequence, const Checkpoint* checkpoints) {
  change(sequence.slot, 1, 0);
  for (int32_t i = planted(Bug::shared_checkpoint_not_counted); i < sequence.n_checkpoints; ++i)
    change(static_cast<int32_t>(checkpoints[i].slot), 1, 0);
}

/// What the sequence holds goes. The numbers of it stay, and mean nothing.
void StateBook::disown(int32_t index) {
  const Sequence& sequence = sequences_[index];
  const auto drop = [this](int32_t slot) {
    change(slot, -1, 0);
    release_if_free(slot);
  };
  drop(sequence.slot);
  for (int32_t i = 0; i < sequence.n_checkpoints; ++i)
    drop(static_cast<int32_t>(checkpoints(index)[i].slot));
}

/// What a sequence is when it is cut to a position at which it can continue: the first n_checkpoints of its list are left.
StateBook::Sequence StateBook::cut_to(int32_t index, int32_t position) const {
  Sequence sequence = sequences_[index];
  if (position == sequence.next) return sequence;
  const Checkpoint* begin = checkpoints(index);
  const Checkpoint* behind = first_behind(begin, begin + sequence.n_checkpoints, position);
  sequence.next = position;
  sequence.n_checkpoints = static_cast<int32_t>(behind - begin);
  sequence.slot = position == 0 ? zeros : static_cast<int32_t>(behind[-1].slot);
  sequence.is_approximate = position != 0 && behind[-1].is_approximate;
  return sequence;
}

/// What continues from a checkpoint that lies apart has a state that is a copy of it.
void StateBook::make_own(Sequence* sequence) {
  if (is_checkpoints(sequence->slot)) sequence->slot = take_copy(sequence->slot, free_);
}

/// What stays is counted before anything is let go: it must never look free in between.
void StateBook::cut(int32_t index, int32_t position) {
  Sequence sequence = cut_to(index, position);
  if (planted(Bug::resume_keeps_later_checkpoints))
    sequence.n_checkpoints = sequences_[index].n_checkpoints;
  if (planted(Bug::resume_at_next_forgets) && position == sequences_[index].next)
    sequence.n_checkpoints = 0;
  make_own(&sequence);
  own(sequence, checkpoints(index));
  disown(index);
  sequences_[index] = sequence;
}

void StateBook::copy_prefix(int32_t source, int32_t destination, int32_t position) {
  Sequence sequence = cut_to(source, position);
  if (planted(Bug::copy_becomes_exact)) sequence.is_approximate = false;
  if (planted(Bug::copy_takes_later_checkpoints))
    sequence.n_checkpoints = sequences_[source].n_checkpoints;
  make_own(&sequence);
  own(sequence, checkpoints(source));
  disown(destination);
  std::copy_n(checkpoints(source), sequence.n_checkpoints, list(destination));
  sequences_[destination] = sequence;
}

/// Every copy is counted before anything is let go, so no source loses a slot to an earlier destination.
void StateBook::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  const auto copied = [this](int32_t i) {
    return copied_checkpoints_ + int64_t{i} * rules_.checkpoints;
  };
  for (int32_t i = 0; i < n; ++i) {
    copies_[i] = sequences_[source[i]];
    std::copy_n(checkpoints(source[i]), copies_[i].n_checkpoints, copied(i));
    own(copies_[i], copied(i));
  }
  for (int32_t i = 0; i < n; ++i) {
    disown(destination[i]);
    sequences_[destination[i]] = copies_[i];
    std::copy_n(copied(i), copies_[i].n_checkpoints, list(destination[i]));
  }
}

// ---- Removal -----------------------------------------------------------------------------------------------------------------

Status StateBook::check_removal(int32_t index, int32_t begin, int32_t end) const {
  const Sequence& sequence = sequences_[index];
  if (begin == end || begin >= sequence.next) return Status::ok;
  if (end >= sequence.next) {
    const int32_t best = best_continuation(index, begin);
    if (best == begin) return Status::ok;
    return fail(
        Status::window_lost,
        "sequence %d cannot continue at %d: it has no checkpoint there; kvc_resume would find "
        "%d",
        index, begin, best);
  }
  if (rules_.approximate) return Status::ok;
  return fail(
      Status::not_supported,
      "positions [%d, %d) lie in the middle of sequence %d, whose state contains them: resume "
      "at or below %d and feed the rest again, or create the cache with %s",
      begin, end, index, begin, rules_.approximate_flag);
}

/// In the middle only labels change: a checkpoint at `begin` stays, one at `end` goes.
void StateBook::remove(int32_t index, int32_t begin, int32_t end) {
  Sequence& sequence = sequences_[index];
  if (begin == end || begin >= sequence.next) return;
  if (end >= sequence.next) return cut(index, begin);
  Checkpoint* checkpoints = list(index);
  int32_t n = 0;
  for (int32_t i = 0; i < sequence.n_checkpoints; ++i) {
    Checkpoint checkpoint = checkpoints[i];
    if (checkpoint.at > end - planted(Bug::checkpoint_at_end_stays)) {
      checkpoint.at -= end - begin;
      checkpoint.is_approximate = 1;
    } else if (checkpoint.at > begin - planted(Bug::checkpoint_at_begin_goes)) {
      const auto slot = static_cast<int32_t>(checkpoint.slot);
      change(slot, -1, 0);
      release_if_free(slot);
      continue;
    }
    checkpoints[n++] = checkpoint;
  }
  sequence.n_checkpoints = n;
  sequence.next -= end - begin;
  sequence.is_approximate = true;
}

SequenceInfo StateBook::info(int32_t index) const {
  const Sequence& sequence = sequences_[index];
  return {.first = sequence.next,
          .next = sequence.next,
          .count = 0,
          .room = INT32_MAX - 1 - sequence.next,
          .lost_below = 0,
          .flags = sequence.is_approximate ? sequence_approximate : 0};
}

// ---- Check ---------------------------------------------------------------------------------------------------------------------

Status StateBook::check_one(int32_t index, bool pass_is_open) const {
  const Sequence& sequence = sequences_[index];
  const auto broken = [index](const char* what) {
    return fail(Status::internal, "sequence %d: %s", index, what);
  };
  const bool is_in_pass = sequence.n_added > 0;
  if (is_in_pass && !pass_is_open) return broken("has tokens in a pass while none is open");
  if (sequence.slot < 0 || sequence.slot >= rules_.n_state_slots())
    return broken("names a slot that does not exist");
  if (sequence.n_checkpoints < 0 || sequence.n_checkpoints > rules_.checkpoints)
    return broken("has more checkpoints than it may have");
  const int32_t next = is_in_pass ? sequence.next_before : sequence.next;
  if (next == 0 && (sequence.slot != zeros || sequence.is_approximate))
    return broken("is empty and has a state");
  int32_t before = 0;
  for (int32_t i = 0; i < sequence.n_checkpoints; ++i) {
    const Checkpoint& checkpoint = checkpoints(index)[i];
    if (checkpoint.at <= before) return broken("its checkpoints do not ascend");
    if (checkpoint.at > next) return broken("has a checkpoint behind its next");
    if (static_cast<int32_t>(checkpoint.slot) >= rules_.n_slots)
      return broken("names a slot that does not exist");
    if (keeps_apart() && !is_checkpoints(static_cast<int32_t>(checkpoint.slot)))
      return broken("its checkpoint is in a slot for states");
    before = checkpoint.at;
  }
  return Status::ok;
}

/// Adds the owners that a sequence gives to slots.
void StateBook::count_owners(int32_t index, uint64_t* then, uint64_t* held) const {
  const Sequence& sequence = sequences_[index];
  const auto add = [](int32_t slot, uint64_t* sum) { *sum += slot == zeros ? 0 : scattered(slot); };
  for (int32_t row = 0; row < sequence.n_rows; ++row)
    add(row_slot_[sequence.first_row + row], held);
  add(sequence.slot, sequence.n_kept > 0 ? held : then);
  for (int32_t i = 0; i < sequence.n_checkpoints; ++i) {
    const bool goes = i == 0 && loses_lowest(sequence);
    add(static_cast<int32_t>(checkpoints(index)[i].slot), goes ? held : then);
  }
  if (sequence.n_kept > 0) add(kept_slot(sequence), then);
  if (sequence.takes_checkpoint && !keeps_apart()) add(kept_slot(sequence), then);
}

Status StateBook::check(bool pass_is_open) const {
  uint64_t then = 0, held = 0, free_slots = 0;
  int32_t coming = 0;
  for (int32_t index = 0; index < rules_.max_sequences; ++index) {
    if (Status s = check_one(index, pass_is_open); s != Status::ok) return s;
    count_owners(index, &then, &held);
    coming += keeps_apart() && sequences_[index].takes_checkpoint;
  }
  int32_t n_free = 0, used = 0, shared = 0;
  for (int32_t index = zeros + 1; index < rules_.n_slots; ++index) {
    const Slot& slot = slots_[index];
    if (slot.n_then < 0 || slot.n_held < 0)
      return fail(Status::internal, "slot %d has fewer owners than none", index);
    then -= scattered(index) * static_cast<uint64_t>(slot.n_then);
    held -= scattered(index) * static_cast<uint64_t>(slot.n_held);
    used += slot.n_then > 0;
    shared += slot.n_then > 1;
    if (!is_free(index)) continue;
    ++n_free;
    free_slots += scattered(index);
  }
  if (then != 0 || held != 0)
    return fail(Status::internal, "owners of slots differ from what the sequences own");
  if (n_free != free_.n + free_checkpoints_.n) {
    return fail(Status::internal, "%d free slots are counted, there are %d",
                free_.n + free_checkpoints_.n, n_free);
  }
  for (const FreeSlots* pool : {&free_, &free_checkpoints_}) {
    for (int32_t i = 0; i < pool->n; ++i) {
      const int32_t slot = pool->slot[i];
      const bool is_there = is_checkpoints(slot) == (pool == &free_checkpoints_);
      if (slot <= zeros || slot >= rules_.n_slots || !is_there)
        return fail(Status::internal, "a list of free slots names one that is never free there");
      free_slots -= scattered(slot);
    }
  }
  if (free_slots != 0) return fail(Status::internal, "the list of free slots names others");
  if (used != used_ || shared != shared_ || coming != n_coming_)
    return fail(Status::internal, "slots in use are miscounted");
  return Status::ok;
}

}  // namespace kvc
