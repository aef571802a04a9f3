#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/input_book.hpp"
#include "core/cells/scattered.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Stepping back --------------------------------------------------------------------------------------------------------

/// Between the first input and the newest one, tokens saw an input that has been replaced.
bool InputBook::can_continue(int32_t index, int32_t position) const {
  const Sequence& sequence = sequences_[index];
  if (position > sequence.next) return false;
  return !sequence.then.exists() || position > sequence.then.at || position <= sequence.then.first;
}

int32_t InputBook::best_continuation(int32_t index, int32_t want) const {
  const int32_t candidate = std::min(want, sequences_[index].next);
  if (can_continue(index, candidate) || planted(Bug::replaced_input_forgotten)) return candidate;
  return sequences_[index].then.first;
}

Input InputBook::cut(const Input& input, int32_t position) {
  return input.exists() && position <= input.first ? Input{} : input;
}

void InputBook::cut(int32_t index, int32_t position) {
  Sequence& sequence = sequences_[index];
  set_input(sequence, cut(sequence.then, position));
  sequence.next = position;
}

// ---- Copies -------------------------------------------------------------------------------------------------------------------

void InputBook::copy_prefix(int32_t source, int32_t destination, int32_t position) {
  const Input input = cut(sequences_[source].then, position);
  set_input(sequences_[destination], input);
  if (planted(Bug::shared_input_not_counted)) change(input.slot, -1, 0);
  sequences_[destination].next = position;
}

/// Every copy is counted before anything is let go, so no source loses its slot to an earlier destination.
void InputBook::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  for (int32_t i = 0; i < n; ++i) {
    copies_[i] = {sequences_[source[i]].then, sequences_[source[i]].next};
    change(copies_[i].input.slot, 1, 0);
  }
  for (int32_t i = 0; i < n; ++i) {
    Sequence& sequence = sequences_[destination[i]];
    const int32_t before = sequence.then.slot;
    change(before, -1, 0);
    sequence.held = sequence.then = copies_[i].input;
    sequence.next = copies_[i].next;
    release_if_free(before);
  }
}

// ---- Removal -----------------------------------------------------------------------------------------------------------------

Status InputBook::check_removal(int32_t index, int32_t begin, int32_t end) const {
  const Sequence& sequence = sequences_[index];
  if (begin == end || begin >= sequence.next) return Status::ok;
  const Input& input = sequence.then;
  if (end >= sequence.next) {
    if (can_continue(index, begin)) return Status::ok;
    return fail(
        Status::window_lost,
        "sequence %d cannot continue at %d: the input that was seen there was replaced at %d",
        index, begin, input.at);
  }
  const bool takes_input = input.exists() && begin <= input.at && input.at < end;
  if (!takes_input || input.first >= begin || planted(Bug::replaced_input_forgotten))
    return Status::ok;
  return fail(Status::window_lost,
              "sequence %d would lose its input of position %d, and the one before it was replaced",
              index, input.at);
}

void InputBook::remove(int32_t index, int32_t begin, int32_t end) {
  Sequence& sequence = sequences_[index];
  if (begin == end || begin >= sequence.next) return;
  if (end >= sequence.next) return cut(index, begin);
  const int32_t distance = end - begin;
  Input input = sequence.then;
  if (input.at >= end) {
    input.at -= distance;
    if (input.first >= begin && !planted(Bug::removal_keeps_first_input))
      input.first = std::max(begin, input.first - distance);
  } else if (input.at >= begin) {
    input = {};
  }
  set_input(sequence, input);
  sequence.next -= distance;
}

SequenceInfo InputBook::info(int32_t index) const {
  const Sequence& sequence = sequences_[index];
  const Input& input = sequence.then;
  return {.first = input.exists() ? input.at : sequence.next,
          .next = sequence.next,
          .count = input.exists() ? slots_[input.slot].length : 0,
          .room = INT32_MAX - 1 - sequence.next,
          .lost_below = 0};
}

// ---- Check ---------------------------------------------------------------------------------------------------------------------

Status InputBook::check(bool pass_is_open) const {
  uint64_t then = 0, held = 0, free_slots = 0;
  for (int32_t index = 0; index < rules_.max_sequences; ++index) {
    const Sequence& sequence = sequences_[index];
    const auto broken = [index](const char* what) {
      return fail(Status::internal, "sequence %d: %s", index, what);
    };
    for (const Input* input : {&sequence.held, &sequence.then}) {
      if (input->slot < -1 || input->slot >= rules_.n_slots)
        return broken("names a slot that does not exist");
      if (!input->exists()) continue;
      if (input->first < 0 || input->first > input->at)
        return broken("its first input lies behind its newest");
      if (input->at >= sequence.next) return broken("its input lies at or behind its next");
    }
    const bool carries = sequence.carrier >= 0;
    if (carries && !pass_is_open) return broken("carries an input while no pass is open");
    if (!carries && sequence.held.slot != sequence.then.slot)
      return broken("has two inputs and carries none");
    if (sequence.then.exists()) then += scattered(sequence.then.slot);
    if (carries && sequence.held.exists()) held += scattered(sequence.held.slot);
  }
  int64_t used = 0, shared = 0;
  int32_t n_free = 0, n_free_at_commit = 0;
  for (int32_t index = 0; index < rules_.n_slots; ++index) {
    const Slot& slot = slots_[index];
    if (slot.n_then < 0 || slot.n_held < 0)
      return fail(Status::internal, "slot %d has fewer holders than none", index);
    if (is_free(index) && slot.length != 0)
      return fail(Status::internal, "slot %d is free and has a length", index);
    then -= scattered(index) * static_cast<uint64_t>(slot.n_then);
    held -= scattered(index) * static_cast<uint64_t>(slot.n_held);
    used += weight(slot, 1);
    shared += weight(slot, 2);
    n_free_at_commit += slot.n_then == 0 && slot.n_held > 0;
    if (!is_free(index)) continue;
    ++n_free;
    free_slots += scattered(index);
  }
  if (then != 0 || held != 0)
    return fail(Status::internal, "holders of slots differ from what the sequences hold");
  if (n_free != n_free_ || n_free_at_commit != n_free_at_commit_)
    return fail(Status::internal, "%d free slots are counted, there are %d", n_free_, n_free);
  for (int32_t i = 0; i < n_free_; ++i) {
    if (free_[i] < 0 || free_[i] >= rules_.n_slots)
      return fail(Status::internal, "the list of free slots names one that does not exist");
    free_slots -= scattered(free_[i]);
  }
  if (free_slots != 0) return fail(Status::internal, "the list of free slots names others");
  if (used != used_ || shared != shared_)
    return fail(Status::internal, "positions in use are miscounted");
  return Status::ok;
}

}  // namespace kvc
