#include <algorithm>

#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {

// ---- Checks -----------------------------------------------------------------------------------------------------------

Status CausalCache::ready_in_pass() const {
  if (state_ == CacheState::idle) return fail(Status::bad_state, "no pass is open");
  return Status::ok;
}

Status CausalCache::check_layer(int32_t layer) const {
  if (layer >= 0 && layer < bounds_.n_layers) return Status::ok;
  return fail(Status::invalid_argument, "layer %d out of range [0, %d)", layer, bounds_.n_layers);
}

Status CausalCache::ready_for_layer(int32_t layer, bool needs_put) const {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  if (Status s = check_layer(layer); s != Status::ok) return s;
  if (needs_put && state_ == CacheState::pass && !layers_[layer].put) {
    return fail(Status::bad_state, "layer %d was not put in this pass", layer);
  }
  return Status::ok;
}

Status CausalCache::ready_to_end_pass() const {
  if (state_ != CacheState::pass || n_layers_put_ == bounds_.n_layers) return Status::ok;
  return fail(Status::bad_state, "the open pass has %d of %d layers put", n_layers_put_,
              bounds_.n_layers);
}

/// Forgets what the last plan found out, without touching every sequence.
void CausalCache::begin_plan() const {
  n_planned_ = 0;
  if (++plan_stamp_ != 0) return;
  for (int32_t i = 0; i < bounds_.max_sequences; ++i)
    plan_[i].stamp = 0;  // wrapped: no old stamp may look fresh
  plan_stamp_ = 1;
}

/// The batch against the bounds. Leaves per sequence what the rest of planning needs.
Status CausalCache::check_batch(const Batch& batch) const {
  if (batch.n_tokens < 1 || batch.n_tokens > bounds_.max_batch) {
    return fail(Status::invalid_argument, "%d tokens out of range [1, %d]", batch.n_tokens,
                bounds_.max_batch);
  }
  begin_plan();
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const int32_t position = batch.position[i], sequence = batch.sequence[i];
    if (sequence < 0 || sequence >= bounds_.max_sequences) {
      return fail(Status::invalid_argument, "token %d: sequence %d out of range [0, %d)", i,
                  sequence, bounds_.max_sequences);
    }
    if (position < 0 || position >= INT32_MAX - 1) {
      return fail(Status::invalid_argument, "token %d: position %d out of range [0, %d)", i,
                  position, INT32_MAX - 1);
    }
    SequencePlan& plan = plan_[sequence];
    const bool first = plan.stamp != plan_stamp_;
    const int32_t next = first ? sequences_[sequence].next : plan.last + 1;
    if (position < next || (bounds_.strict && position != next)) {
      return fail(Status::invalid_argument,
                  "token %d: position %d of sequence %d, which continues at %d%s", i, position,
                  sequence, next, bounds_.strict ? " (strict)" : "");
    }
    if (first) {
      plan.stamp = plan_stamp_;
      plan.first = position;
      plan.count = 0;
      plan_order_[n_planned_++] = sequence;
    }
    plan.last = position;
    ++plan.count;
  }
  return Status::ok;
}

Status CausalCache::check_room(const Batch& batch) const {
  for (int32_t i = 0; i < n_planned_; ++i) {
    const Sequence& sequence = sequences_[plan_order_[i]];
    SequencePlan& plan = plan_[plan_order_[i]];
    plan.slides = tokens_to_slide(sequence, plan.first) -
                  sequence.tokens.n_hidden();  // those hidden go with the open pass
    const int64_t held = int64_t{sequence.tokens.count()} - plan.slides;
    if (held + plan.count > sequence_limit_) {
      return fail(Status::cache_full,
                  "sequence %d holds %d positions of at most %d, the batch brings %d",
                  plan_order_[i], static_cast<int32_t>(held), sequence_limit_, plan.count);
    }
  }
  const int32_t room = pool_.n_free() + pool_.n_free_at_commit();
  if (batch.n_tokens > room) {
    return fail(Status::cache_full, "sequence %d: %d free cells of %d, the batch brings %d tokens",
                batch.sequence[room], room, bounds_.cells, batch.n_tokens);
  }
  return Status::ok;
}

Status CausalCache::plan_batch(const Batch& batch) const {
  if (Status s = check_batch(batch); s != Status::ok) return s;
  if (Status s = ready_to_end_pass(); s != Status::ok) return s;
  return check_room(batch);
}

Status CausalCache::fits(const Batch& batch) const {
  const std::lock_guard lock(plan_mutex_);
  return plan_batch(batch);
}

// ---- Sliding and placing ------------------------------------------------------------------------------------------------

/// Positions below it (and not kept for ever) slide when the lowest position of the sequence's batch is `lowest`.
int64_t CausalCache::slide_bound(int32_t lowest) const {
  return settings_.limited ? int64_t{lowest} - settings_.memory : INT64_MIN;
}

/// How many at the start of the ring, those included that are hidden already.
int32_t CausalCache::tokens_to_slide(const Sequence& sequence, int32_t lowest) const {
  if (!settings_.limited) return 0;
  return std::max(sequence.tokens.n_hidden(), sequence.tokens.ring_rank(slide_bound(lowest)));
}

void CausalCache::hide(Sequence& sequence, int32_t n) {
  if (n == 0) return;
  sequence.tokens.for_each_hidden(
      0, n, [this](const int32_t* cells, int32_t count) { pool_.hide(cells, count); });
  sequence.lost_below = std::max(sequence.lost_below, sequence.tokens.hidden_position(n - 1) + 1);
  sequence.tokens.hide(n);
}

/// Hides only the first n again.
void CausalCache::show(Sequence& sequence, int32_t n) {
  sequence.tokens.for_each_hidden(
      n, sequence.tokens.n_hidden(),
      [this](const int32_t* cells, int32_t count) { pool_.show(cells, count); });
  sequence.tokens.hide(n);
  if (!planted(Bug::lost_below_after_abort)) sequence.lost_below = sequence.lost_below_before;
  if (n > 0)
    sequence.lost_below = std::max(sequence.lost_below, sequence.tokens.hidden_position(n - 1) + 1);
}

void CausalCache::mark_dirty(int32_t sequence) {
  if (is_dirty_[sequence] != 0 || !settings_.limited) return;
  is_dirty_[sequence] = 1;
  dirty_[n_dirty_++] = sequence;
}

/// Remembers what abort brings back and puts out of sight what slides.
void CausalCache::open_sequence(int32_t index, int32_t n_slide) {
  Sequence& sequence = sequences_[index];
  sequence.next_before = sequence.next;
  sequence.lost_below_before = sequence.lost_below;
  sequence.n_added = 0;
  sequence.first_added = sequence.last_added = -1;
  expect(can_continue(sequence, sequence.next), "a sequence cannot continue at its next");
  hide(sequence, n_slide);
  if (planted(Bug::slid_freed_at_begin)) drop_slid(sequence);
  touched_[n_touched_++] = index;
}

/// Each sequence has a part of the pool to begin in, so that sequences that grow together stay in long runs.
int32_t CausalCache::home_block(int32_t sequence) const {
  const int64_t cell = int64_t{bounds_.cells} * sequence / bounds_.max_sequences;
  return static_cast<int32_t>(
      std::min<int64_t>((cell + CellPool::block_cells - 1) / CellPool::block_cells,
                        (bounds_.cells - 1) / CellPool::block_cells));
}

/// Tokens [begin, end) of the batch, which belong to one sequence.
void CausalCache::place(const Batch& batch, int32_t begin, int32_t end) {
  const int32_t index = batch.sequence[begin];
  Sequence& sequence = sequences_[index];
  if (sequence.tokens.stored() + (end - begin) > sequence_limit_)
    return poison("a sequence stores more than its limit");
  if (sequence.last_added >= 0)
    batch_follower_[sequence.last_added] = begin;
  else
    sequence.first_added = begin;
  for (int32_t i = begin; i < end;) {
    // As many at a time as lie in a row and go to the same part of the sequence.
    const bool to_head = batch.position[i] < sequence.tokens.head_capacity();
    int32_t stop = to_head ? i + 1 : end;
    while (stop < end && to_head && batch.position[stop] < sequence.tokens.head_capacity()) ++stop;
    if (stop - i > sequence.tokens.room(to_head))  // a write beyond it would hit its neighbour
      return poison("a part of a sequence has no room left");
    const CellPool::Stretch cells = pool_.take(sequence.tokens.last_cell(), sequence.home, stop - i,
                                               batch.position + i);
    expect(cells.count > 0, "no free cell where one was counted");
    if (health_ != Status::ok) return;
    sequence.tokens.append(cells.first, batch.position + i, cells.count, to_head);
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
  expect(sequence.next > sequence.next_before, "a pass did not move its sequence on");
}

Status CausalCache::begin(const Batch& batch, bool reserve) {
  if (reserve) {
    if (batch.n_tokens < 1 || batch.n_tokens > bounds_.max_batch) {
      return fail(Status::invalid_argument, "%d tokens out of range [1, %d]", batch.n_tokens,
                  bounds_.max_batch);
    }
    if (Status s = ready_to_end_pass(); s != Status::ok) return s;
    if (Status s = keep_pass(); s != Status::ok) return s;
    state_ = CacheState::reserve;
    n_tokens_ = batch.n_tokens;
    return Status::ok;
  }
  const std::lock_guard lock(plan_mutex_);
  if (Status s = plan_batch(batch); s != Status::ok) {
    if (planted(Bug::failed_begin_commits) && s == Status::cache_full && keep_pass() != Status::ok)
      return Status::internal;
    return s;
  }
  if (Status s = keep_pass(); s != Status::ok) return s;

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

  std::fill_n(except_, batch.n_tokens / 64 + 1, uint64_t{0});
  for (int32_t i = 0; i < batch.n_tokens;) {
    int32_t end = i + 1;
    while (end < batch.n_tokens && batch.sequence[end] == batch.sequence[i]) ++end;
    place(batch, i, end);
    i = end;
  }
  for (int32_t i = 0; batch.sees_later != nullptr && i < batch.n_tokens; ++i) {
    if ((batch.sees_later[i] & 1u) != 0) except_[i / 64] |= uint64_t{1} << (i % 64);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) layers_[layer].put = false;
  n_layers_put_ = 0;
  n_tokens_ = batch.n_tokens;
  state_ = CacheState::pass;
  attention_planned_ = history_spanned_ = false;
  expect(pool_.counts_are_possible(), "more cells taken than free");
  return health_;
}

// ---- Put and the except set -------------------------------------------------------------------------------------------------

Status CausalCache::put(int32_t layer, const Tensor& k, const Tensor& v) {
  if (Status s = ready_for_layer(layer, false); s != Status::ok) return s;
  if (state_ == CacheState::reserve) return Status::ok;
  Layer& l = layers_[layer];
  if (planted(Bug::second_put_ignored) && l.put) return Status::ok;
  if (Status s = backend_->store({l.storage, batch_cell_, n_tokens_, k, v}); s != Status::ok)
    return health_ = s;
  n_layers_put_ += !l.put;
  l.put = true;
  return Status::ok;
}

Status CausalCache::set_causal(int32_t n_except, const int32_t* except) {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  if (n_except < 0 || (n_except > 0 && except == nullptr)) {
    return fail(Status::invalid_argument, "%d indexes of the except set%s", n_except,
                n_except > 0 ? ", and none given" : "");
  }
  for (int32_t i = 0; i < n_except; ++i) {
    if (except[i] < 0 || except[i] >= n_tokens_) {
      return fail(Status::invalid_argument, "index %d out of range [0, %d)", except[i], n_tokens_);
    }
  }
  if (state_ == CacheState::reserve) return Status::ok;
  if (!planted(Bug::except_set_adds)) std::fill_n(except_, n_tokens_ / 64 + 1, uint64_t{0});
  for (int32_t i = 0; i < n_except; ++i) except_[except[i] / 64] |= uint64_t{1} << (except[i] % 64);
  attention_planned_ = history_spanned_ = false;
  return Status::ok;
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------------

/// Cells that just became free. With zero_on_free they become zeros, a few hundred at a time.
void CausalCache::note_freed(int32_t cell) {
  freed_[n_freed_++] = cell;
  if (n_freed_ == freed_capacity && flush_freed() != Status::ok)
    expect(false, "cells could not be cleared");
}

Status CausalCache::flush_freed() {
  for (int32_t layer = 0;
       layer < bounds_.n_layers - planted(Bug::last_layer_not_cleared) && n_freed_ > 0; ++layer) {
    if (Status s = backend_->clear({layers_[layer].storage, freed_, n_freed_}); s != Status::ok)
      return health_ = s;
  }
  n_freed_ = 0;
  return health_;
}

/// The tokens in sight at [begin, end) lose their owner; the sequence still has to forget them.
void CausalCache::drop_tokens(Sequence& sequence, int32_t begin, int32_t end) {
  sequence.tokens.for_each_piece(
      begin, end, [this](const int32_t* cells, const int32_t*, int32_t count) {
        pool_.drop_owners(cells, count, [this](int32_t cell) { release(cell); });
      });
}

/// Takes back the last n tokens that the open pass added to a sequence.
void CausalCache::drop_added(Sequence& sequence, int32_t n) {
  const int32_t kept = sequence.tokens.count() - n;
  expect(n <= sequence.n_added && kept >= 0, "more tokens to take back than were added");
  if (health_ != Status::ok) return;
  drop_tokens(sequence, kept, kept + n);
  sequence.tokens.truncate(kept);
  sequence.n_added -= n;
}

/// In a layer that was not put, the kept tokens hold zeros.
Status CausalCache::clear_missing_layers() {
  if (n_layers_put_ == bounds_.n_layers || planted(Bug::stale_layer)) return Status::ok;
  int32_t n = 0;
  for (int32_t i = 0; i < n_tokens_; ++i) {
    if (batch_cell_[i] >= 0) batch_cell_[n++] = batch_cell_[i];
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    if (layers_[layer].put) continue;
    if (Status s = backend_->clear({layers_[layer].storage, batch_cell_, n}); s != Status::ok)
      return health_ = s;
  }
  return Status::ok;
}

void CausalCache::close_pass() {
  n_touched_ = n_in_batch_ = n_tokens_ = 0;
  state_ = CacheState::idle;
  attention_planned_ = history_spanned_ = false;
}

/// What the pass put out of sight is gone.
void CausalCache::drop_slid(Sequence& sequence) {
  if (sequence.tokens.n_hidden() == 0) return;
  sequence.tokens.for_each_hidden(
      0, sequence.tokens.n_hidden(), [this](const int32_t* cells, int32_t count) {
        pool_.drop_hidden(cells, count, [this](int32_t cell) { release(cell); });
      });
  sequence.tokens.drop_hidden();
}

Status CausalCache::keep_pass() {
  if (state_ != CacheState::pass) {
    close_pass();
    return Status::ok;
  }
  if (Status s = clear_missing_layers(); s != Status::ok) return s;
  for (int32_t i = 0; i < n_touched_; ++i) {
    Sequence& sequence = sequences_[touched_[i]];
    drop_slid(sequence);
    if (sequence.n_added > 0) mark_dirty(touched_[i]);
    sequence.n_added = 0;
  }
  expect(pool_.n_free_at_commit() == 0 && pool_.counts_are_possible(),
         "hidden cells outlived their pass");
  ++n_passes_;
  close_pass();
  return flush_freed();
}

Status CausalCache::commit() {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  return keep_pass();
}

Status CausalCache::commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep) {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  if (n < 0 || (n > 0 && (sequence == nullptr || keep == nullptr))) {
    return fail(Status::invalid_argument, "%d sequences to keep a prefix of%s", n,
                n > 0 ? ", and none given" : "");
  }
  if (n > bounds_.max_sequences)
    return fail(Status::invalid_argument, "%d sequences of %d named", n, bounds_.max_sequences);
  const std::lock_guard lock(plan_mutex_);
  begin_plan();
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_sequence(sequence[i]); s != Status::ok) return s;
    SequencePlan& plan = plan_[sequence[i]];
    if (plan.stamp == plan_stamp_)
      return fail(Status::invalid_argument, "sequence %d is named twice", sequence[i]);
    plan.stamp = plan_stamp_;
    if (keep[i] < 0)
      return fail(Status::invalid_argument, "%d tokens of sequence %d", keep[i], sequence[i]);
    if (state_ == CacheState::reserve) continue;
    const Sequence& kept = sequences_[sequence[i]];
    if (keep[i] > kept.n_added) {
      return fail(Status::invalid_argument, "%d tokens of sequence %d, which has %d in the pass",
                  keep[i], sequence[i], kept.n_added);
    }
    int32_t token = kept.first_added;
    for (int32_t k = 0; k < keep[i] && keep[i] < kept.n_added; ++k, token = batch_follower_[token]) {
      if (in_except_set(token)) {
        return fail(Status::invalid_argument,
                    "token %d of the except set saw a token that is dropped", token);
      }
    }
  }
  for (int32_t i = 0; i < n && state_ == CacheState::pass; ++i)
    keep_added(sequences_[sequence[i]], keep[i]);
  return keep_pass();
}

/// Keeps the first n tokens that the open pass added. One that keeps none slides as if it had not been in the batch.
void CausalCache::keep_added(Sequence& sequence, int32_t n) {
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
  show(sequence,
       std::min(sequence.tokens.n_hidden(),
                settings_.limited ? sequence.tokens.ring_rank(slide_bound(sequence.next)) : 0));
}

Status CausalCache::abort() {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  if (state_ == CacheState::reserve) {
    close_pass();
    return Status::ok;
  }
  for (int32_t i = 0; i < n_touched_; ++i) {
    Sequence& sequence = sequences_[touched_[i]];
    drop_added(sequence, sequence.n_added);
    if (planted(Bug::abort_loses_slid)) drop_slid(sequence);
    show(sequence, 0);
    sequence.next = sequence.next_before;
    mark_dirty(touched_[i]);
  }
  expect(pool_.n_free_at_commit() == 0 && pool_.counts_are_possible(),
         "hidden cells outlived their pass");
  close_pass();
  return flush_freed();
}

}  // namespace kvc
