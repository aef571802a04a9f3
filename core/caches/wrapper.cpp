#include "core/caches/wrapper.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

#include "core/base/digest.hpp"
#include "core/base/planted.hpp"

namespace kvc {
namespace {

/// The order in which errors are looked for (semantics §1): the lower one counts when children refuse for several reasons.
int order_of(Status status) {
  switch (status) {
    case Status::invalid_argument: return 1;
    case Status::shape: return 2;
    case Status::device_mismatch: return 3;
    case Status::bad_state: return 4;
    case Status::window_lost: return 5;
    case Status::not_found: return 6;
    case Status::not_supported: return 7;
    case Status::cache_full: return 8;
    default: return 0;  // a child is broken
  }
}

}  // namespace

WrapperCache::WrapperCache(std::vector<std::shared_ptr<Cache>> children, std::vector<LayerPlace> layers)
    : children_(std::move(children)), layers_(std::move(layers)) {
  bounds_ = {};
  bounds_.n_layers = static_cast<int32_t>(layers_.size());
  bounds_.max_sequences = bounds_.max_batch = INT32_MAX;
  for (int32_t i = 0; i < n_children(); ++i) {
    const CacheBounds& of_child = child(i).bounds();
    if (of_child.max_sequences < bounds_.max_sequences) narrowest_ = i;
    bounds_.max_sequences = std::min(bounds_.max_sequences, of_child.max_sequences);
    bounds_.max_batch = std::min(bounds_.max_batch, of_child.max_batch);
    const KnownFlags known = child(i).known_flags();
    if ((known.bits & ~flag_bits_) == 0) continue;
    flag_bits_ |= known.bits;
    const size_t used = std::strlen(flag_names_);
    std::snprintf(flag_names_ + used, sizeof flag_names_ - used, "%s%s", used > 0 ? ", " : "",
                  known.names);
  }
}

const Health& WrapperCache::health() const {
  for (const std::shared_ptr<Cache>& c : children_) {
    if (!c->health().ok()) return c->health();
  }
  return health_;
}

// ---- Asking -------------------------------------------------------------------------------------------------------------

/// Asks every child. Of several refusals the first in the order of errors counts, of equals the first child's; the message
/// names the child.
template <class Ask>
Status WrapperCache::ask_all(Ask ask) const {
  Status worst = Status::ok;
  int32_t who = -1;
  char message[message_capacity];
  for (int32_t i = 0; i < n_children(); ++i) {
    const Status status = ask(std::as_const(child(i)));
    if (status == Status::ok ||
        (who >= 0 && (order_of(status) >= order_of(worst) || planted(Bug::first_refusal_counts))))
      continue;
    worst = status;
    who = i;
    copy_last_message(message, sizeof message);
  }
  return who < 0 ? Status::ok : fail(worst, "child %d of the wrapper: %s", who, message);
}

Status WrapperCache::need_fully_put() const {
  return ask_all([this](const Cache& c) {
    const bool skipped = planted(Bug::last_child_may_be_unput) && &c == children_.back().get();
    return skipped ? Status::ok : c.need_fully_put();
  });
}

/// What is the wrapper's own to check: no child may look at more tokens than all of them take, and a flag must be known to
/// some child.
Status WrapperCache::check_tokens(const Batch& batch) const {
  if (Status s = check_n_tokens(batch, bounds_.max_batch); s != Status::ok) return s;
  for (int32_t token = 0; batch.flags != nullptr && token < batch.n_tokens; ++token) {
    if (Status s = check_token_flags(batch, token, known_flags()); s != Status::ok) return s;
  }
  return Status::ok;
}

Status WrapperCache::can_begin(const Batch& batch, bool reserve) const {
  if (Status s = check_tokens(batch); s != Status::ok) return s;
  Batch for_child = batch;
  for_child.others_flags = planted(Bug::flags_of_others_refused) ? 0 : flag_bits_;
  const Status status = ask_all([&](const Cache& c) { return c.can_begin(for_child, reserve); });
  if (planted(Bug::first_child_commits_early) && status == Status::cache_full)
    return child(0).end_pass() == Status::ok ? status : Status::internal;
  return status;
}

Status WrapperCache::check_stream(const Batch& batch, bool reserve) const {
  return ask_all([&](const Cache& c) { return c.check_stream(batch, reserve); });
}

Status WrapperCache::need_no_recording(const char* call) const {
  return ask_all([&](const Cache& c) { return c.need_no_recording(call); });
}

Status WrapperCache::check_end(const char* call) const {
  return ask_all([&](const Cache& c) { return c.check_end(call); });
}

Status WrapperCache::fits(const Batch& batch, bool reserve) const {
  if (Status s = check_tokens(batch); s != Status::ok) return s;
  Batch for_child = batch;
  for_child.others_flags = flag_bits_;
  return ask_all([&](const Cache& c) { return c.fits(for_child, reserve); });
}

Status WrapperCache::check_distinct(int32_t n, const int32_t* sequence) const {
  return child(narrowest_).check_distinct(n, sequence);
}

Status WrapperCache::check_kept(int32_t sequence, int32_t keep) const {
  return ask_all([&](const Cache& c) { return c.check_kept(sequence, keep); });
}

/// Not the least of the children's places: that may be none for another child. Each is asked with what the last one returned,
/// until nobody returns less.
int32_t WrapperCache::best_continuation(int32_t sequence, int32_t want) const {
  int32_t best = want;
  for (const auto& c : children_) {
    if (planted(Bug::least_continuation))
      best = std::min(best, c->best_continuation(sequence, want));
  }
  if (planted(Bug::least_continuation)) return best;
  for (int32_t n_agreed = 0, i = 0; n_agreed < n_children(); i = (i + 1) % n_children()) {
    const int32_t of_child = child(i).best_continuation(sequence, best);
    n_agreed = of_child == best ? n_agreed + 1 : 1;
    best = of_child;
  }
  return best;
}

Status WrapperCache::check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const {
  return ask_all([&](const Cache& c) { return c.check_reorder(n, destination, source); });
}

Status WrapperCache::check_removal(int32_t sequence, int32_t begin, int32_t end) const {
  return ask_all([&](const Cache& c) { return c.check_removal(sequence, begin, end); });
}

SequenceInfo WrapperCache::info(int32_t sequence) const {
  SequenceInfo all = {};
  all.next = child(0).info(sequence).next;
  all.room = INT32_MAX;
  bool any_causal = false;
  for (const std::shared_ptr<Cache>& c : children_) {
    const SequenceInfo of_child = c->info(sequence);
    all.flags |= of_child.flags;
    all.room = std::min(all.room, of_child.room);
    if (c->causality() == nullptr) continue;
    all.first = std::max(all.first, of_child.first);
    all.lost_below = std::max(all.lost_below, of_child.lost_below);
    all.count = any_causal && !planted(Bug::count_of_last_child)
                    ? std::min(all.count, of_child.count)
                    : of_child.count;
    any_causal = true;
  }
  if (!any_causal) all.first = all.next;
  return all;
}

// ---- Doing --------------------------------------------------------------------------------------------------------------

/// Every child does it, also when one of them broke: it says so ever after, and the others stay in step.
template <class Do>
Status WrapperCache::do_all(Do work) {
  Status first = Status::ok;
  for (const std::shared_ptr<Cache>& c : children_) {
    const Status status = work(*c);
    if (first == Status::ok) first = status;
  }
  return first;
}

Status WrapperCache::open(const Batch& batch, bool reserve) {
  state_ = reserve ? CacheState::reserve : CacheState::pass;
  return do_all([&](Cache& c) { return c.open(batch, reserve); });
}

void WrapperCache::keep_added(int32_t sequence, int32_t keep) {
  for (const std::shared_ptr<Cache>& c : children_) c->keep_added(sequence, keep);
}

Status WrapperCache::end_pass() {
  n_committed_ += state_ == CacheState::pass ||
                  (state_ == CacheState::reserve && planted(Bug::reserve_pass_of_wrapper_counted));
  state_ = CacheState::idle;
  return do_all([](Cache& c) { return c.end_pass(); });
}

Status WrapperCache::drop_pass() {
  state_ = CacheState::idle;
  return do_all([](Cache& c) { return c.drop_pass(); });
}

Status WrapperCache::cut(int32_t sequence, int32_t position) {
  return do_all([&](Cache& c) { return c.cut(sequence, position); });
}

Status WrapperCache::copy(int32_t source, int32_t destination, int32_t position) {
  return do_all([&](Cache& c) { return c.copy(source, destination, position); });
}

Status WrapperCache::apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  if (planted(Bug::reorder_of_first_child)) return child(0).apply_reorder(n, destination, source);
  return do_all([&](Cache& c) { return c.apply_reorder(n, destination, source); });
}

/// The callers' shift functions are asked last: each works on copies, which all children give back when one refuses.
Status WrapperCache::prepare_removal(int32_t sequence, int32_t begin, int32_t end) {
  if (Status s = check_removal(sequence, begin, end);
      s != Status::ok && !planted(Bug::shift_functions_asked_first))
    return s;
  for (int32_t i = 0; i < n_children(); ++i) {
    const Status refused = child(i).prepare_removal(sequence, begin, end);
    if (refused == Status::ok) continue;
    char message[message_capacity];
    copy_last_message(message, sizeof message);
    for (int32_t before = planted(Bug::copies_of_first_child_kept); before < i; ++before) {
      if (Status s = child(before).cancel_removal(); s != Status::ok) return s;
    }
    return fail(refused, "child %d of the wrapper: %s", i, message);
  }
  return Status::ok;
}

Status WrapperCache::apply_removal() {
  return do_all([](Cache& c) { return c.apply_removal(); });
}

Status WrapperCache::cancel_removal() {
  return do_all([](Cache& c) { return c.cancel_removal(); });
}

// ---- Facets -------------------------------------------------------------------------------------------------------------

Causality* WrapperCache::causality() {
  const auto has = [](const std::shared_ptr<Cache>& c) { return c->causality() != nullptr; };
  return std::any_of(children_.begin(), children_.end(), has) ? this : nullptr;
}

/// The batch is the same for all, so what one child refuses the first refuses.
Status WrapperCache::set_causal(int32_t n_except, const int32_t* except) {
  return do_all([&](Cache& c) {
    const bool skipped = planted(Bug::except_set_of_first_child) && &c != children_[0].get();
    return c.causality() == nullptr || skipped ? Status::ok
                                               : c.causality()->set_causal(n_except, except);
  });
}

bool WrapperCache::has_checkpoints() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const std::shared_ptr<Cache>& c) { return c->checkpoints() != nullptr; });
}

Status WrapperCache::check_checkpoint(int32_t sequence) const {
  return ask_all([&](const Cache& c) {
    return c.checkpoints() == nullptr ? Status::ok : c.checkpoints()->check_checkpoint(sequence);
  });
}

Status WrapperCache::take_checkpoint(int32_t sequence) {
  return do_all([&](Cache& c) {
    const bool skipped = planted(Bug::checkpoint_of_last_child) && &c != children_.back().get();
    return c.checkpoints() == nullptr || skipped ? Status::ok
                                                 : c.checkpoints()->take_checkpoint(sequence);
  });
}

// ---- Rows ---------------------------------------------------------------------------------------------------------------

bool WrapperCache::has_rows() const {
  return std::all_of(children_.begin(), children_.end(), [this](const std::shared_ptr<Cache>& c) {
    return c->rows() != nullptr && c->bounds().max_sequences == bounds_.max_sequences;
  });
}

bool WrapperCache::takes_lists() const {
  return std::all_of(children_.begin(), children_.end(),
                     [](const std::shared_ptr<Cache>& c) { return c->takes_lists(); });
}

bool WrapperCache::has_starts() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const std::shared_ptr<Cache>& c) { return c->rows()->has_starts(); });
}

int32_t WrapperCache::starts(int32_t row) const {
  for (const std::shared_ptr<Cache>& c : children_) {
    if (c->rows()->has_starts()) return c->rows()->starts(row);
  }
  return 0;
}

/// Starts are for the children that have them. Without any, all refuse what they refuse.
const int32_t* WrapperCache::starts_for(const Cache& of_child, const int32_t* starts) const {
  return of_child.rows()->has_starts() || !has_starts() ? starts : nullptr;
}

Status WrapperCache::check_set(int32_t row_begin, int32_t n, const int32_t* index,
                               const int32_t* starts) const {
  return ask_all([&](const Cache& c) {
    return c.rows()->check_set(row_begin, n, index, starts_for(c, starts));
  });
}

Status WrapperCache::apply_set(int32_t row_begin, int32_t n, const int32_t* index,
                               const int32_t* starts) {
  return do_all(
      [&](Cache& c) { return c.rows()->apply_set(row_begin, n, index, starts_for(c, starts)); });
}

Status WrapperCache::check_insert(const Cache& other, int32_t slot) const {
  const auto* const from = dynamic_cast<const WrapperCache*>(&other);
  if (from == nullptr || from->n_children() != n_children()) {
    return fail(Status::invalid_argument,
                "other is no wrapper of %d children: a wrapper takes rows of one that is like it",
                n_children());
  }
  return ask_all(
      [&](const Cache& c) { return c.rows()->check_insert(*from->twin_of(*this, c), slot); });
}

/// The child that stands where `child` stands in the other wrapper.
const Cache* WrapperCache::twin_of(const WrapperCache& other, const Cache& child) const {
  size_t index = 0;
  while (other.children_[index].get() != &child) ++index;
  return children_[index].get();
}

Status WrapperCache::apply_insert(const Cache& other, int32_t slot) {
  const auto& from = static_cast<const WrapperCache&>(other);
  return do_all([&](Cache& c) { return c.rows()->apply_insert(*from.twin_of(*this, c), slot); });
}

// ---- Watching -----------------------------------------------------------------------------------------------------------

CacheStats WrapperCache::stats() const {
  CacheStats stats = {};
  stats.state = health().ok() ? state_ : CacheState::poisoned;
  stats.passes = n_committed_;
  return stats;
}

Status WrapperCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  for (int32_t i = 0; i < n_children() - planted(Bug::digest_without_last_child); ++i) {
    struct {
      uint64_t child, of_child[2];
    } part = {static_cast<uint64_t>(i), {}};
    if (Status s = child(i).digest(part.of_child); s != Status::ok) return s;
    sum.add(Digest().update(&part, sizeof part));
  }
  sum.copy_to(out);
  return Status::ok;
}

Status WrapperCache::check() const {
  if (Status s = ask_all([](const Cache& c) { return c.check(); }); s != Status::ok) return s;
  for (int32_t sequence = 0; sequence < bounds_.max_sequences; ++sequence) {
    const int32_t next = child(0).info(sequence).next;
    for (int32_t i = 1; i < n_children(); ++i) {
      const int32_t of_child = child(i).info(sequence).next;
      if (of_child == next) continue;
      return fail(Status::internal, "sequence %d continues at %d in child 0 and at %d in child %d",
                  sequence, next, of_child, i);
    }
  }
  return Status::ok;
}

}  // namespace kvc
