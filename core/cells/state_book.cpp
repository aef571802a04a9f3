#include "core/cells/state_book.hpp"

#include <algorithm>
#include <new>

#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Layout -----------------------------------------------------------------------------------------------------------

/// Runs twice (see Carver).
void StateBook::carve(Carver& carver) {
  const auto sequences = static_cast<uint64_t>(rules_.max_sequences);
  const auto slots = static_cast<uint64_t>(rules_.n_slots);
  const auto batch = static_cast<uint64_t>(rules_.max_batch);
  const auto checkpoints = CheckedSize(sequences) *
                           CheckedSize(static_cast<uint64_t>(rules_.checkpoints));
  sequences_ = carver.take<Sequence>(sequences, 64);
  checkpoints_ = carver.take<Checkpoint>(checkpoints, 64);
  slots_ = carver.take<Slot>(slots, 64);
  free_.slot = carver.take<int32_t>(static_cast<uint64_t>(rules_.n_state_slots()), 64);
  free_checkpoints_.slot = carver.take<int32_t>(static_cast<uint64_t>(rules_.n_checkpoint_slots), 64);
  const uint64_t copied = keeps_apart() ? sequences : 0;
  copy_from_ = carver.take<int32_t>(copied, 64);
  copy_to_ = carver.take<int32_t>(copied, 64);
  plans_.carve(carver);
  row_list_.carve(carver);
  copies_ = carver.take<Sequence>(sequences, 64);
  copied_checkpoints_ = carver.take<Checkpoint>(checkpoints, 64);
  batch_position_ = carver.take<int32_t>(batch, 64);
  batch_follower_ = carver.take<int32_t>(batch, 64);
  row_slot_ = carver.take<int32_t>(batch, 64);
  in_batch_ = carver.take<int32_t>(sequences, 64);
}

void StateBook::reset() {
  for (int32_t i = 0; i < rules_.max_sequences; ++i) new (&sequences_[i]) Sequence();
  for (int32_t slot = rules_.n_slots - 1; slot > zeros; --slot) {
    FreeSlots& pool = pool_of(slot);
    pool.slot[pool.n++] = slot;
  }
}

// ---- Slots ------------------------------------------------------------------------------------------------------------

/// Changes how many owners the slot has, and what follows from it.
void StateBook::change(int32_t index, int32_t then, int32_t held) {
  if (index == zeros) return;
  Slot& slot = slots_[index];
  used_ -= slot.n_then > 0;
  shared_ -= slot.n_then > 1;
  slot.n_then += then;
  slot.n_held += held;
  used_ += slot.n_then > 0;
  shared_ += slot.n_then > 1;
  health_.expect(slot.n_then >= 0 && slot.n_held >= 0, "a state has fewer owners than none");
}

void StateBook::release_if_free(int32_t slot) {
  if (slot == zeros || !is_free(slot)) return;
  FreeSlots& pool = pool_of(slot);
  const int32_t most = is_checkpoints(slot) ? rules_.n_checkpoint_slots : rules_.n_state_slots() - 1;
  health_.expect(pool.n < most, "more slots became free than there are");
  if (!health_.ok()) return;
  pool.slot[pool.n++] = slot;
  ++pool.n_freed;
}

/// Takes a free slot, which the caller counts. One that has just become free is no longer listed: it is written.
int32_t StateBook::take(FreeSlots& pool) {
  health_.expect(pool.n > 0, "no free slot where there is always one");
  if (!health_.ok()) return zeros;
  pool.n_freed -= pool.n_freed > 0;
  return pool.slot[--pool.n];
}

/// Takes a slot that becomes a copy of another one.
int32_t StateBook::take_copy(int32_t slot, FreeSlots& pool) {
  const int32_t to = take(pool);
  health_.expect(n_slot_copies_ < rules_.max_sequences, "more copies of slots than sequences");
  if (!health_.ok()) return zeros;
  copy_from_[n_slot_copies_] = slot;
  copy_to_[n_slot_copies_++] = to;
  return to;
}

// ---- Planning -----------------------------------------------------------------------------------------------------------

Status StateBook::check_batch(const Batch& batch) const {
  const auto next_of = [this](int32_t sequence) { return sequences_[sequence].next; };
  if (batch.rows != nullptr) {
    if (Status s = row_list_.read(*batch.rows, next_of); s != Status::ok) return s;
  }
  return plans_.check_batch(list_of(batch), known_flags, next_of,
                            [](int32_t, SequencePlans::Plan&) { return Status::ok; });
}

// ---- A pass ---------------------------------------------------------------------------------------------------------------

/// check_batch() has just planned it.
void StateBook::open_pass(const Batch& given) {
  const Batch batch = list_of(given);
  n_in_batch_ = n_rows_ = 0;
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const int32_t index = batch.sequence[i];
    batch_position_[i] = index != no_sequence ? batch.position[i] : 0;
    batch_follower_[i] = -1;
    if (index == no_sequence) continue;
    Sequence& sequence = sequences_[index];
    if (sequence.n_added == 0) {
      in_batch_[n_in_batch_++] = index;
      sequence.next_before = sequence.next;
      sequence.first_added = i;
    } else {
      batch_follower_[sequence.last_added] = i;
    }
    sequence.last_added = i;
    ++sequence.n_added;
    sequence.next = batch.position[i] + 1;
  }
  for (int32_t i = 0; i < n_in_batch_; ++i) {
    Sequence& sequence = sequences_[in_batch_[i]];
    sequence.first_row = n_rows_;
    sequence.n_rows = rows_for(sequence.n_added);
    health_.expect(free_.n >= sequence.n_rows && free_.n_freed == 0,
                   "no free slot where there is always one");
    if (!health_.ok()) return;
    for (int32_t row = 0; row < sequence.n_rows; ++row) {
      row_slot_[n_rows_] = take(free_);
      change(row_slot_[n_rows_++], 0, 1);
    }
    sequence.n_kept = sequence.n_added;
    plan_end(in_batch_[i], 1);
  }
}

int32_t StateBook::kept_slot(const Sequence& sequence) const {
  const bool one_for_all = sequence.n_rows < sequence.n_added;
  const int32_t n = planted(Bug::last_row_kept) ? sequence.n_added : sequence.n_kept;
  return row_slot_[sequence.first_row + (one_for_all ? 0 : n - 1)];
}

/// Whether the end of the pass leaves a checkpoint by itself.
bool StateBook::wants_checkpoint(int32_t index) const {
  const Sequence& sequence = sequences_[index];
  if (rules_.checkpoints == 0 || rules_.checkpoint_interval == 0) return false;
  if (sequence.next <= rules_.checkpoint_min_pos - planted(Bug::early_checkpoint)) return false;
  const int32_t n = sequence.n_checkpoints;
  const int32_t interval = rules_.checkpoint_interval + planted(Bug::long_interval);
  return n == 0 || sequence.next - interval >= checkpoints(index)[n - 1].at;
}

/// Counts what the commit will do for a sequence that keeps a token; with sign −1 takes that back.
void StateBook::plan_end(int32_t index, int32_t sign) {
  Sequence& sequence = sequences_[index];
  if (sequence.n_kept == 0) return;
  if (sign > 0) sequence.takes_checkpoint = wants_checkpoint(index);
  const bool shares = sequence.takes_checkpoint && !keeps_apart();
  change(kept_slot(sequence), sign * (shares ? 2 : 1), 0);
  if (sequence.takes_checkpoint && keeps_apart()) n_coming_ += sign;
  change(sequence.slot, -sign, sign);
  if (loses_lowest(sequence)) change(checkpoints(index)[0].slot, -sign, sign);
  if (sign < 0) sequence.takes_checkpoint = false;
}

Status StateBook::check_kept(int32_t index, int32_t n) const {
  const Sequence& sequence = sequences_[index];
  if (n == 0 || n == sequence.n_added || sequence.n_rows == sequence.n_added) return Status::ok;
  return fail(
      Status::not_supported,
      "sequence %d has %d tokens in the pass, more than draft_states %d + 1, so there is no "
      "state behind its first %d: keep all or none, or abort and run the pass again",
      index, sequence.n_added, rules_.max_rows - 1, n);
}

/// Keeps the first n tokens of those that the pass added to the sequence.
void StateBook::keep_added(int32_t index, int32_t n) {
  Sequence& sequence = sequences_[index];
  if (n == sequence.n_kept) return;
  plan_end(index, -1);
  sequence.n_kept = n;
  sequence.next = sequence.next_before;
  int32_t token = sequence.first_added;
  for (int32_t i = 0; i < n; ++i, token = batch_follower_[token])
    sequence.next = batch_position_[token] + 1;
  plan_end(index, 1);
}

/// What plan_end() counted happens.
void StateBook::commit(int32_t index) {
  Sequence& sequence = sequences_[index];
  if (sequence.n_kept == 0) return;
  const int32_t before = sequence.slot;
  sequence.slot = kept_slot(sequence);
  change(before, 0, -1);
  release_if_free(before);
  if (!sequence.takes_checkpoint) return;
  if (loses_lowest(sequence)) {
    change(checkpoints(index)[0].slot, 1, -1);  // push_checkpoint() lets it go
  }
  // It counts the new one, too.
  if (keeps_apart()) {
    --n_coming_;
  } else {
    change(sequence.slot, -1, 0);
  }
  push_checkpoint(index);
}

/// The sequence is in no pass any more: its rows go, but for those that somebody owns now.
void StateBook::let_go(int32_t index) {
  Sequence& sequence = sequences_[index];
  for (int32_t row = 0; row < sequence.n_rows; ++row) {
    const int32_t slot = row_slot_[sequence.first_row + row];
    change(slot, 0, -1);
    release_if_free(slot);
  }
  sequence.n_added = sequence.n_kept = sequence.n_rows = 0;
  sequence.takes_checkpoint = false;
}

void StateBook::commit_pass() {
  for (int32_t i = 0; i < n_in_batch_; ++i) {
    commit(in_batch_[i]);
    let_go(in_batch_[i]);
  }
  n_in_batch_ = n_rows_ = 0;
}

void StateBook::abort_pass() {
  for (int32_t i = 0; i < n_in_batch_; ++i) {
    Sequence& sequence = sequences_[in_batch_[i]];
    plan_end(in_batch_[i], -1);
    sequence.next = sequence.next_before;
    let_go(in_batch_[i]);
  }
  n_in_batch_ = n_rows_ = 0;
}

}  // namespace kvc
