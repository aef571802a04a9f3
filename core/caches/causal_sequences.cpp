#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

Status CausalCache::can_resume(int32_t sequence, int32_t want, int32_t* best) const {
  if (Status s = check_resume(sequence, want, bounds_.max_sequences); s != Status::ok) return s;
  *best = book_.best_continuation(sequence, want);
  return Status::ok;
}

Status CausalCache::resume(int32_t sequence, int32_t want, int32_t* got) {
  int32_t best = 0;
  if (Status s = can_resume(sequence, want, &best); s != Status::ok) return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  book_.cut(sequence, best);
  if (got != nullptr) *got = best;
  return clear_freed();
}

Status CausalCache::copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) {
  if (Status s = check_copy(source, destination, length, bounds_.max_sequences); s != Status::ok)
    return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  const int32_t best = book_.best_continuation(source, length);
  book_.copy_prefix(source, destination, best);
  if (got != nullptr) *got = best;
  return clear_freed();
}

Status CausalCache::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  if (Status s = book_.check_reorder(n, destination, source); s != Status::ok) return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  book_.reorder(n, destination, source);
  return clear_freed();
}

// ---- Removal -----------------------------------------------------------------------------------------------------------------

/// Everything that can refuse a removal, in the order of cache.h.
Status CausalCache::plan_removal(int32_t sequence, int32_t begin, int32_t end, Removal* removal) const {
  if (Status s = check_range(sequence, begin, end, bounds_.max_sequences); s != Status::ok)
    return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = book_.plan_removal(sequence, begin, end, removal); s != Status::ok) return s;
  if (removal->moves && !book_.keys_rotate() && !settings_.position_free && shift_.run == nullptr) {
    return fail(
        Status::not_supported,
        "positions from %d of sequence %d would move down by %d, and kvc does not know how their "
        "keys rotate: bind RoPE while the cache is empty (kvc_bind_rope), bind a shift function "
        "(kvc_bind_shift), or create the cache with KVC_CAUSAL_POSITION_FREE if keys carry no "
        "rotation",
        end, sequence, end - begin);
  }
  return shift_.run != nullptr ? check_shift_room(*removal) : Status::ok;
}

Status CausalCache::can_remove(int32_t sequence, int32_t begin, int32_t end) const {
  Removal removal;
  return plan_removal(sequence, begin, end, &removal);
}

Status CausalCache::remove(int32_t sequence, int32_t begin, int32_t end) {
  Removal removal;
  if (Status s = plan_removal(sequence, begin, end, &removal); s != Status::ok) return s;
  CellBook::Copies copies(book_);
  const bool shifts = removal.moves && shift_.run != nullptr;
  const auto use_copies = [&] {
    const int32_t first = book_.sequence(sequence).tokens.rank(end);
    book_.use_copies(sequence, first, end - begin, copies);
  };
  if (shifts) {
    if (Status s = make_shifted_copies(removal, copies); s != Status::ok) {
      if (planted(Bug::refused_shift_applied) && copies.first() >= 0) use_copies();
      copies.give_back();
      return clear_freed() == Status::ok ? s : health_.status();
    }
  }
  if (Status s = keep_pass(); s != Status::ok) return s;
  if (shifts) use_copies();
  book_.remove(removal);
  return clear_freed();
}

Status CausalCache::sequence_info(int32_t sequence, SequenceInfo* info) const {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  *info = book_.info(sequence);
  return Status::ok;
}

}  // namespace kvc
