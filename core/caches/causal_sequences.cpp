#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {

/// Everything that can refuse a removal, less what a shift function returns.
Status CausalCache::plan_removal(int32_t sequence, int32_t begin, int32_t end, Removal* removal) const {
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

Status CausalCache::check_removal(int32_t sequence, int32_t begin, int32_t end) const {
  Removal removal;
  return plan_removal(sequence, begin, end, &removal);
}

Status CausalCache::prepare_removal(int32_t sequence, int32_t begin, int32_t end) {
  removal_ = {};
  if (Status s = plan_removal(sequence, begin, end, &removal_); s != Status::ok) return s;
  if (!removal_.moves || shift_.run == nullptr) return Status::ok;
  const Status shifted = make_shifted_copies(removal_);
  if (shifted == Status::ok) return Status::ok;
  if (planted(Bug::refused_shift_applied) && copies_.first() >= 0) use_copies();
  const Status cancelled = cancel_removal();
  return cancelled == Status::ok ? shifted : cancelled;
}

Status CausalCache::apply_removal() {
  if (copies_.first() >= 0) use_copies();
  book_.remove(removal_);
  return follow_book();
}

Status CausalCache::cancel_removal() {
  copies_.give_back();
  return follow_book();
}

/// The shifted copies take the places of the originals.
void CausalCache::use_copies() {
  const int32_t first = book_.sequence(removal_.sequence).tokens.rank(removal_.end);
  book_.use_copies(removal_.sequence, first, removal_.end - removal_.begin, copies_);
}

}  // namespace kvc
