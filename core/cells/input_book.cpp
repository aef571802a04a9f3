#include "core/cells/input_book.hpp"

#include <algorithm>
#include <new>

#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Layout -----------------------------------------------------------------------------------------------------------

/// Runs twice (see Carver).
void InputBook::carve(Carver& carver) {
  const auto sequences = static_cast<uint64_t>(rules_.max_sequences);
  const auto slots = static_cast<uint64_t>(rules_.n_slots);
  const auto batch = static_cast<uint64_t>(rules_.max_batch);
  sequences_ = carver.take<Sequence>(sequences, 64);
  slots_ = carver.take<Slot>(slots, 64);
  free_ = carver.take<int32_t>(slots, 64);
  freed_ = carver.take<int32_t>(slots, 64);
  plans_.carve(carver);
  copies_ = carver.take<Copy>(sequences, 64);
  batch_position_ = carver.take<int32_t>(batch, 64);
  batch_sequence_ = carver.take<int32_t>(batch, 64);
  batch_follower_ = carver.take<int32_t>(batch, 64);
  in_batch_ = carver.take<int32_t>(sequences, 64);
}

void InputBook::reset() {
  for (int32_t i = 0; i < rules_.max_sequences; ++i) new (&sequences_[i]) Sequence();
  for (int32_t slot = rules_.n_slots - 1; slot >= 0; --slot) free_[n_free_++] = slot;
}

// ---- Slots --------------------------------------------------------------------------------------------------------------

/// Changes how many sequences have the slot, and what follows from it.
void InputBook::change(int32_t index, int32_t then, int32_t held) {
  if (index < 0) return;
  Slot& slot = slots_[index];
  const auto count = [&](int32_t sign) {
    used_ += sign * weight(slot, 1);
    shared_ += sign * weight(slot, 2);
    n_free_at_commit_ += sign * (slot.n_then == 0 && slot.n_held > 0 ? 1 : 0);
  };
  count(-1);
  slot.n_then += then;
  slot.n_held += held;
  count(1);
  health_.expect(slot.n_then >= 0 && slot.n_held >= 0, "an input has fewer holders than none");
}

void InputBook::release_if_free(int32_t slot) {
  if (slot < 0 || !is_free(slot)) return;
  slots_[slot].length = 0;
  health_.expect(n_free_ < rules_.n_slots && n_freed_ < rules_.n_slots,
                 "more slots became free than there are");
  if (!health_.ok()) return;
  free_[n_free_++] = slot;
  freed_[n_freed_++] = slot;
}

void InputBook::set_length(int32_t index, int32_t length) {
  Slot& slot = slots_[index];
  used_ -= weight(slot, 1);
  shared_ -= weight(slot, 2);
  slot.length = length;
  used_ += weight(slot, 1);
  shared_ += weight(slot, 2);
}

/// No pass is open. The new input is counted before the old one is let go: what both are must never look free in between.
void InputBook::set_input(Sequence& sequence, const Input& input) {
  const int32_t before = sequence.then.slot;
  change(input.slot, 1, 0);
  change(before, -1, 0);
  sequence.held = sequence.then = input;
  release_if_free(before);
}

// ---- Planning -----------------------------------------------------------------------------------------------------------

Status InputBook::check_batch(const Batch& batch) const {
  n_carriers_ = 0;
  const auto note_carrier = [&](int32_t token, SequencePlans::Plan& plan) -> Status {
    if (batch.flags == nullptr || (batch.flags[token] & token_encoder_input) == 0)
      return Status::ok;
    if (plan.carrier >= 0) {
      return fail(Status::invalid_argument,
                  "tokens %d and %d of sequence %d both carry an encoder input; a sequence takes "
                  "one per pass",
                  plan.carrier, token, batch.sequence[token]);
    }
    plan.carrier = token;
    ++n_carriers_;
    return Status::ok;
  };
  return plans_.check_batch(
      batch, known_flags, [this](int32_t sequence) { return sequences_[sequence].next; },
      note_carrier);
}

Status InputBook::check_room(const Batch&) const {
  const int32_t room = n_free_ + n_free_at_commit_ * (planted(Bug::replaced_counted_twice) ? 2 : 1);
  if (n_carriers_ <= room) return Status::ok;
  return fail(Status::cache_full, "the batch carries %d encoder inputs, %d of %d slots are free",
              n_carriers_, room, rules_.n_slots);
}

// ---- A pass ---------------------------------------------------------------------------------------------------------------

/// check_batch() has just planned it.
void InputBook::open_pass(const Batch& batch) {
  n_in_batch_ = 0;
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const int32_t index = batch.sequence[i];
    batch_position_[i] = index != no_sequence ? batch.position[i] : 0;
    batch_sequence_[i] = index;
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
    if (plans_[index].carrier != i) continue;
    health_.expect(n_free_ > 0, "no free slot where one was counted");
    if (!health_.ok()) return;
    const int32_t slot = free_[--n_free_];
    change(slot, 1, 0);
    change(sequence.held.slot, -1, 1);
    sequence.carrier = i;
    sequence.then = {batch.position[i], slot,
                     sequence.held.exists() ? sequence.held.first : batch.position[i]};
  }
}

int32_t InputBook::seen_slot(int32_t token) const {
  const int32_t index = batch_sequence_[token];
  if (index == no_sequence) return -1;
  const Sequence& sequence = sequences_[index];
  const bool before = sequence.carrier >= 0 && batch_position_[token] < sequence.then.at;
  return before && !planted(Bug::input_seen_early) ? sequence.held.slot : sequence.then.slot;
}

Status InputBook::check_share(int32_t index, int32_t source, bool was_put) const {
  if (Status s = check_sequence(index, rules_.max_sequences); s != Status::ok) return s;
  if (Status s = check_sequence(source, rules_.max_sequences, "source"); s != Status::ok) return s;
  if (source == index)
    return fail(Status::invalid_argument, "sequence and source are both %d; they must differ", index);
  const Sequence& sequence = sequences_[index];
  if (sequence.carrier < 0)
    return fail(Status::invalid_argument,
                "sequence %d carries no encoder input in this pass: one of its tokens must be "
                "flagged with KVC_TOKEN_ENCODER_INPUT in kvc_begin",
                index);
  if (was_put)
    return fail(Status::bad_state,
                "a layer of the input of sequence %d was put already: kvc_encoder_share comes "
                "before its puts",
                index);
  if (sequence.shares)
    return fail(Status::bad_state,
                "kvc_encoder_share was called for sequence %d in this pass already", index);
  if (n_sharing(sequence.then.slot) > 1)
    return fail(Status::bad_state,
                "another sequence shares the input of sequence %d (kvc_encoder_share), which must "
                "put it itself",
                index);
  if (!sequences_[source].then.exists())
    return fail(
        Status::not_found,
        "sequence %d neither holds nor carries an encoder input that sequence %d could share",
        source, index);
  return Status::ok;
}

void InputBook::share(int32_t index, int32_t source) {
  Sequence& sequence = sequences_[index];
  const Sequence& from = sequences_[source];
  const bool takes_held = planted(Bug::share_takes_replaced_input) && from.held.exists();
  const int32_t own = sequence.then.slot, taken = takes_held ? from.held.slot : from.then.slot;
  change(taken, 1, 0);
  change(own, -1, 0);
  sequence.then.slot = taken;
  sequence.shares = true;
  release_if_free(own);
}

/// What the sequence carries in the open pass is as if it never had been.
void InputBook::forget_carried(Sequence& sequence) {
  if (sequence.carrier < 0) return;
  const int32_t carried = sequence.then.slot;
  change(carried, -1, 0);
  change(sequence.held.slot, 1, -1);
  sequence.then = sequence.held;
  sequence.carrier = -1;
  sequence.shares = false;
  release_if_free(carried);
}

/// Keeps the first n tokens of those that the pass added to the sequence.
void InputBook::keep_added(int32_t index, int32_t n) {
  Sequence& sequence = sequences_[index];
  if (n == sequence.n_added) return;
  sequence.next = sequence.next_before;
  bool keeps_carrier = false;
  int32_t token = sequence.first_added;
  for (int32_t i = 0; i < n; ++i, token = batch_follower_[token]) {
    sequence.next = batch_position_[token] + 1;
    keeps_carrier = keeps_carrier || token == sequence.carrier;
  }
  if (!keeps_carrier && !planted(Bug::dropped_input_kept)) forget_carried(sequence);
}

void InputBook::commit_pass() {
  for (int32_t i = 0; i < n_in_batch_; ++i) {
    Sequence& sequence = sequences_[in_batch_[i]];
    if (sequence.carrier >= 0) {
      const int32_t replaced = sequence.held.slot;
      change(replaced, 0, -1);
      sequence.held = sequence.then;
      release_if_free(replaced);
    }
    sequence.carrier = -1;
    sequence.shares = false;
    sequence.n_added = 0;
  }
  n_in_batch_ = 0;
  health_.expect(n_free_at_commit_ == 0, "a replaced input outlived its pass");
}

void InputBook::abort_pass() {
  for (int32_t i = 0; i < n_in_batch_; ++i) {
    Sequence& sequence = sequences_[in_batch_[i]];
    forget_carried(sequence);
    if (planted(Bug::abort_forgets_held_input)) set_input(sequence, {});
    sequence.next = sequence.next_before;
    sequence.n_added = 0;
  }
  n_in_batch_ = 0;
}

}  // namespace kvc
