#include "core/cells/book.hpp"

#include <algorithm>
#include <new>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Layout -----------------------------------------------------------------------------------------------------------

/// Runs twice (see Carver).
void CellBook::carve(Carver& carver) {
  const auto sequences = static_cast<uint64_t>(rules_.max_sequences);
  const auto batch = static_cast<uint64_t>(rules_.max_batch);
  sequences_ = carver.take<Sequence>(sequences, 64);
  pool_.carve(carver, rules_.n_cells);
  plan_ = carver.take<SequencePlan>(sequences, 64);
  plan_order_ = carver.take<int32_t>(sequences, 64);
  touched_ = carver.take<int32_t>(sequences, 64);
  dirty_ = carver.take<int32_t>(sequences, 64);
  is_dirty_ = carver.take<uint8_t>(sequences, 64);
  blocks_ = carver.take<uint64_t>(batch, 64);
  batch_position_ = carver.take<int32_t>(batch, 64);
  batch_sequence_ = carver.take<int32_t>(batch, 64);
  batch_cell_ = carver.take<int32_t>(batch, 64);
  batch_follower_ = carver.take<int32_t>(batch, 64);
  is_changed_ = carver.take<uint8_t>(rules_.notes_changes ? sequences : 0, 64);
  changed_ = carver.take<int32_t>(rules_.notes_changes ? sequences : 0, 64);
  changes_ = carver.take<TokenRange>(rules_.notes_changes ? sequences : 0, 64);
  freed_ = carver.take<int32_t>(rules_.notes_freed ? static_cast<uint64_t>(rules_.n_cells) : 0, 64);

  const TokenSequence::Extent extent = sequence_extent();
  const CheckedSize entries = CheckedSize(static_cast<uint64_t>(extent.entries())) *
                              CheckedSize(sequences);
  token_cell_ = carver.take<int32_t>(entries, 64);
  token_position_ = carver.take<int32_t>(entries, 64);
  for (int32_t index = 0; sequences_ != nullptr && index < rules_.max_sequences; ++index) {
    Sequence& sequence = *new (&sequences_[index]) Sequence();
    sequence.tokens.attach(token_cell_, token_position_, extent.entries() * index, extent);
    sequence.home = home_block(index);
  }
}

void CellBook::reset() { pool_.reset(); }

TokenSequence::Extent CellBook::sequence_extent() const {
  const bool keeps_first = rules_.limited && !planted(Bug::keep_first_slides);
  const int32_t head_end = keeps_first ? rules_.visibility.keep_first : 0;
  return {head_end, std::min(head_end, rules_.n_cells),
          std::min(rules_.sequence_limit - head_end, rules_.n_cells)};
}

/// Each sequence has a part of the pool to begin in, so that sequences that grow together stay in long runs.
int32_t CellBook::home_block(int32_t sequence) const {
  const int64_t cell = int64_t{rules_.n_cells} * sequence / rules_.max_sequences;
  return static_cast<int32_t>(
      std::min<int64_t>((cell + CellPool::block_cells - 1) / CellPool::block_cells,
                        (rules_.n_cells - 1) / CellPool::block_cells));
}

// ---- Planning -----------------------------------------------------------------------------------------------------------

Status CellBook::check_distinct(int32_t n, const int32_t* sequence) const {
  if (n > rules_.max_sequences) return too_many_named(n, rules_.max_sequences);
  begin_plan();
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_sequence_at("sequence", i, sequence[i], rules_.max_sequences);
        s != Status::ok)
      return s;
    if (plan_[sequence[i]].stamp == plan_stamp_) return named_twice(sequence[i]);
    plan_[sequence[i]].stamp = plan_stamp_;
  }
  return Status::ok;
}

/// Forgets what the last plan found out, without touching every sequence.
void CellBook::begin_plan() const {
  n_planned_ = n_planned_tokens_ = 0;
  if (++plan_stamp_ != 0) return;
  for (int32_t i = 0; i < rules_.max_sequences; ++i)
    plan_[i].stamp = 0;  // wrapped: no old stamp may look fresh
  plan_stamp_ = 1;
}

Status CellBook::check_batch(const Batch& batch) const {
  if (Status s = check_n_tokens(batch, rules_.max_batch); s != Status::ok) return s;
  begin_plan();
  int32_t n_blocks = 0;
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const int32_t position = batch.position[i], sequence = batch.sequence[i];
    if (Status s = check_token_flags(batch, i, known_flags); s != Status::ok) return s;
    if (sequence == no_sequence) continue;
    ++n_planned_tokens_;
    if (Status s = check_token(batch, i, rules_.max_sequences); s != Status::ok) return s;
    SequencePlan& plan = plan_[sequence];
    const bool first = plan.stamp != plan_stamp_;
    const int32_t next = first ? sequences_[sequence].next : plan.last + 1;
    if (Status s = check_continues(batch, i, next, rules_.strict); s != Status::ok) return s;
    if (first) {
      plan.stamp = plan_stamp_;
      plan.first = position;
      plan.count = 0;
      plan.type = 0;
      plan_order_[n_planned_++] = sequence;
    }
    plan.last = position;
    ++plan.count;
    const uint32_t type = batch.flags != nullptr ? type_of_flags(batch.flags[i]) : 0;
    if (type != plan.type && type != 0)
      blocks_[n_blocks++] = uint64_t{type} << 32 | static_cast<uint32_t>(sequence);
    plan.type = type;
  }
  return check_blocks(n_blocks);
}

/// Each type names one block of consecutive tokens of a sequence: none begins twice.
Status CellBook::check_blocks(int32_t n_blocks) const {
  if (planted(Bug::type_begins_twice)) return Status::ok;
  std::sort(blocks_, blocks_ + n_blocks);
  const uint64_t* twice = std::adjacent_find(blocks_, blocks_ + n_blocks);
  if (twice == blocks_ + n_blocks) return Status::ok;
  return fail(
      Status::invalid_argument,
      "sequence %u has tokens of type %u in two places of the batch; tokens of one type must be "
      "consecutive tokens of their sequence",
      static_cast<uint32_t>(*twice), static_cast<uint32_t>(*twice >> 32));
}

Status CellBook::check_room(const Batch& batch) const {
  for (int32_t i = 0; i < n_planned_; ++i) {
    const Sequence& sequence = sequences_[plan_order_[i]];
    SequencePlan& plan = plan_[plan_order_[i]];
    plan.slides = tokens_to_slide(sequence, plan.first) -
                  sequence.tokens.n_hidden();  // those hidden go with the open pass
    const int64_t held = int64_t{sequence.tokens.count()} - plan.slides;
    if (held + plan.count > rules_.sequence_limit) {
      return fail(Status::cache_full,
                  "sequence %d holds %d positions of at most %d (%s), and the batch brings %d: %s",
                  plan_order_[i], static_cast<int32_t>(held), rules_.sequence_limit,
                  rules_.limited ? "memory + keep_first + 2 * max_batch" : "capacity", plan.count,
                  plan.count > rules_.sequence_limit
                      ? "create the cache with a larger capacity"
                      : "free positions first, with kvc_resume, or with kvc_remove where "
                        "kvc_can_remove allows it");
    }
  }
  const int32_t room = pool_.n_free() + pool_.n_free_at_commit();
  if (n_planned_tokens_ <= room) return Status::ok;
  int32_t first_without = 0;  // the token that would find no cell
  for (int32_t placed = 0;; ++first_without) {
    if (batch.sequence[first_without] != no_sequence && placed++ == room) break;
  }
  return fail(Status::cache_full,
              "sequence %d finds no cell: there are %d free cells of %d, and the batch brings %d "
              "tokens; %s",
              batch.sequence[first_without], room, rules_.n_cells, n_planned_tokens_,
              n_planned_tokens_ > rules_.n_cells
                  ? "create the cache with more cells, or bring fewer tokens at once"
                  : "empty a sequence that has ended with kvc_remove, or cut one with kvc_resume");
}

// ---- Sliding -------------------------------------------------------------------------------------------------------------

/// Positions below it (and not kept for ever) slide when the lowest position of the sequence's batch is `lowest`.
int64_t CellBook::slide_bound(int32_t lowest) const {
  return rules_.limited ? int64_t{lowest} - rules_.memory : INT64_MIN;
}

/// How many at the start of the ring, those included that are hidden already.
int32_t CellBook::tokens_to_slide(const Sequence& sequence, int32_t lowest) const {
  if (!rules_.limited) return 0;
  return std::max(sequence.tokens.n_hidden(), sequence.tokens.ring_rank(slide_bound(lowest)));
}

void CellBook::hide(Sequence& sequence, int32_t n) {
  if (n == 0) return;
  sequence.tokens.for_each_hidden(
      0, n, [this](const int32_t* cells, int32_t count) { pool_.hide(cells, count); });
  sequence.lost_below = std::max(sequence.lost_below, sequence.tokens.hidden_position(n - 1) + 1);
  sequence.tokens.hide(n);
}

/// Hides only the first n again.
void CellBook::show(Sequence& sequence, int32_t n) {
  sequence.tokens.for_each_hidden(
      n, sequence.tokens.n_hidden(),
      [this](const int32_t* cells, int32_t count) { pool_.show(cells, count); });
  sequence.tokens.hide(n);
  if (!planted(Bug::lost_below_after_abort)) sequence.lost_below = sequence.lost_below_before;
  if (n > 0)
    sequence.lost_below = std::max(sequence.lost_below, sequence.tokens.hidden_position(n - 1) + 1);
}

void CellBook::mark_dirty(int32_t sequence) {
  if (is_dirty_[sequence] != 0 || !rules_.limited) return;
  is_dirty_[sequence] = 1;
  dirty_[n_dirty_++] = sequence;
}

void CellBook::mark_changed(const Sequence& sequence) {
  const auto index = static_cast<int32_t>(&sequence - sequences_);
  if (!rules_.notes_changes || is_changed_[index] != 0) return;
  is_changed_[index] = 1;
  changed_[n_changed_++] = index;
}

TokenChanges CellBook::take_changes() {
  const int32_t n = n_changed_;
  for (int32_t i = 0; i < n; ++i) {
    TokenSequence& tokens = sequences_[changed_[i]].tokens;
    changes_[i] = tokens.changes();
    tokens.forget_changes();
    is_changed_[changed_[i]] = 0;
  }
  n_changed_ = 0;
  return {changes_, n};
}

// ---- Opening a pass ----------------------------------------------------------------------------------------------------

/// Notes what abort brings back and hides what slides.
void CellBook::open_sequence(int32_t index, int32_t n_slide) {
  Sequence& sequence = sequences_[index];
  sequence.next_before = sequence.next;
  sequence.lost_below_before = sequence.lost_below;
  sequence.n_added = 0;
  sequence.first_added = sequence.last_added = -1;
  health_.expect(can_continue(sequence, sequence.next), "a sequence cannot continue at its next");
  hide(sequence, n_slide);
  if (planted(Bug::slid_freed_at_begin)) drop_slid(sequence);
  touched_[n_touched_++] = index;
}

void CellBook::open_pass(const Batch& batch) {
  n_touched_ = 0;
  for (int32_t i = 0; i < n_planned_; ++i)
    open_sequence(plan_order_[i], plan_[plan_order_[i]].slides);
  n_in_batch_ = n_touched_;
  for (int32_t i = 0; i < n_dirty_; ++i) {
    const int32_t index = dirty_[i];
    is_dirty_[index] = 0;
    if (planted(Bug::missed_slide) || plan_[index].stamp == plan_stamp_) continue;
    // One of which nothing slides stays so until it is put, copied or moved: abort need not remember it.
    const int32_t n_slide = tokens_to_slide(sequences_[index], sequences_[index].next);
    if (n_slide > 0) open_sequence(index, n_slide);
  }
  n_dirty_ = 0;
  for (int32_t i = 0; i < batch.n_tokens;) {
    int32_t end = i + 1;
    while (end < batch.n_tokens && batch.sequence[end] == batch.sequence[i]) ++end;
    if (batch.sequence[i] == no_sequence)
      note_padding(i, end);
    else
      place(batch, i, end);
    i = end;
  }
  health_.expect(pool_.counts_are_possible(), "more cells taken than free");
}

void CellBook::note_padding(int32_t begin, int32_t end) {
  std::fill(batch_position_ + begin, batch_position_ + end, 0);
  std::fill(batch_sequence_ + begin, batch_sequence_ + end, no_sequence);
  std::fill(batch_cell_ + begin, batch_cell_ + end, -1);
  std::fill(batch_follower_ + begin, batch_follower_ + end, -1);
}

/// Tokens [begin, end) of the batch, which belong to one sequence.
void CellBook::place(const Batch& batch, int32_t begin, int32_t end) {
  const int32_t index = batch.sequence[begin];
  Sequence& sequence = sequences_[index];
  if (sequence.tokens.stored() + (end - begin) > rules_.sequence_limit)
    return health_.poison("a sequence stores more than its limit");
  if (sequence.last_added >= 0)
    batch_follower_[sequence.last_added] = begin;
  else
    sequence.first_added = begin;
  for (int32_t i = begin; i < end;) {
    // As many at a time as lie in a row and go to the same part of the sequence.
    const bool to_head = sequence.tokens.belongs_in_head(batch.position[i]);
    int32_t stop = to_head ? i + 1 : end;
    while (stop < end && to_head && sequence.tokens.belongs_in_head(batch.position[stop])) ++stop;
    if (stop - i > sequence.tokens.room(to_head))  // a write beyond it would hit its neighbour
      return health_.poison("a part of a sequence has no room left");
    const CellPool::Stretch cells = pool_.take(sequence.tokens.last_cell(), sequence.home, stop - i,
                                               batch.position + i);
    health_.expect(cells.count > 0, "no free cell where one was counted");
    if (!health_.ok()) return;
    sequence.tokens.append(cells.first, batch.position + i, cells.count, to_head);
    mark_changed(sequence);
    const auto note = [&](int32_t n) {
      batch_position_[i + n] = batch.position[i + n];
      batch_sequence_[i + n] = index;
      batch_cell_[i + n] = cells.first + n;
      batch_follower_[i + n] = i + n + 1;
    };
    CellPool::for_each(cells.count, note);
    i += cells.count;
  }
  batch_follower_[end - 1] = -1;
  sequence.last_added = end - 1;
  sequence.n_added += end - begin;
  sequence.next = batch.position[end - 1] + 1;
  health_.expect(sequence.next > sequence.next_before, "a pass did not move its sequence on");
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------

void CellBook::note_freed(int32_t cell) {
  if (!rules_.notes_freed) return;
  if (n_freed_ == rules_.n_cells) return health_.poison("more cells became free than there are");
  freed_[n_freed_++] = cell;
}

/// The visible tokens [begin, end) lose their owner; the sequence still has to forget them.
void CellBook::drop_tokens(Sequence& sequence, int32_t begin, int32_t end) {
  sequence.tokens.for_each_piece(
      begin, end, [this](const int32_t* cells, const int32_t*, int32_t count) {
        pool_.drop_owners(cells, count, [this](int32_t cell) { note_freed(cell); });
      });
}

/// Takes back the last n tokens that the open pass added to a sequence.
void CellBook::drop_added(Sequence& sequence, int32_t n) {
  const int32_t kept = sequence.tokens.count() - n;
  health_.expect(n <= sequence.n_added && kept >= 0, "more tokens to take back than were added");
  if (!health_.ok()) return;
  drop_tokens(sequence, kept, kept + n);
  sequence.tokens.truncate(kept);
  sequence.n_added -= n;
}

void CellBook::keep_added(int32_t index, int32_t n) {
  Sequence& sequence = sequences_[index];
  if (n == sequence.n_added) return;
  if (planted(Bug::one_token_too_many)) ++n;
  int32_t token = sequence.first_added;
  for (int32_t i = 0; token >= 0; ++i, token = batch_follower_[token]) {
    if (i >= n)
      batch_cell_[token] = -1;
    else
      sequence.next = batch_position_[token] + 1;
  }
  drop_added(sequence, sequence.n_added - n);
  if (n > 0) return;
  sequence.next = sequence.next_before;
  show(sequence, std::min(sequence.tokens.n_hidden(),
                          rules_.limited ? sequence.tokens.ring_rank(slide_bound(sequence.next)) : 0));
}

/// What the pass hid is gone.
void CellBook::drop_slid(Sequence& sequence) {
  if (sequence.tokens.n_hidden() == 0) return;
  sequence.tokens.for_each_hidden(
      0, sequence.tokens.n_hidden(), [this](const int32_t* cells, int32_t count) {
        pool_.drop_hidden(cells, count, [this](int32_t cell) { note_freed(cell); });
      });
  sequence.tokens.drop_hidden();
}

void CellBook::commit_pass() {
  for (int32_t i = 0; i < n_touched_; ++i) {
    Sequence& sequence = sequences_[touched_[i]];
    drop_slid(sequence);
    if (sequence.n_added > 0) mark_dirty(touched_[i]);
    sequence.n_added = 0;
  }
  end_pass();
}

void CellBook::abort_pass() {
  for (int32_t i = 0; i < n_touched_; ++i) {
    Sequence& sequence = sequences_[touched_[i]];
    drop_added(sequence, sequence.n_added);
    if (planted(Bug::abort_loses_slid)) drop_slid(sequence);
    show(sequence, 0);
    sequence.next = sequence.next_before;
    mark_dirty(touched_[i]);
  }
  end_pass();
}

void CellBook::end_pass() {
  health_.expect(pool_.n_free_at_commit() == 0 && pool_.counts_are_possible(),
                 "hidden cells outlived their pass");
  n_touched_ = n_in_batch_ = 0;
}

}  // namespace kvc
