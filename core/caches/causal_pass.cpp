#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"
#include "core/caches/planted_scales.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

Status CausalCache::open_pass(const Batch& batch) {
  plan_.open(batch.n_tokens, batch.flags);
  pass_.open(batch.n_tokens, batch.replay || book_.n_in_batch() == 0, batch.replay);
  return device_info_.plans_ahead ? make_plan() : Status::ok;
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------------

/// With zero_on_free the cells that became free become zeros.
Status CausalCache::follow_book() {
  const int32_t n = book_.n_freed();
  for (int32_t layer = 0; n > 0 && layer < bounds_.n_layers - planted(Bug::last_layer_not_cleared);
       ++layer) {
    const ClearParams clear = {with_scales_unless(Bug::scales_not_cleared, layers_[layer].storage),
                               book_.freed(), n};
    if (Status s = health_.after(on_device_->clear(clear)); s != Status::ok) return s;
  }
  book_.forget_freed();
  return health_.status();
}

/// In a layer that was not put, the kept tokens hold zeros.
Status CausalCache::settle_unput() {
  if (pass_.is_fully_put() || planted(Bug::stale_layer)) return Status::ok;
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    if (pass_.was_put(layer)) continue;
    const ClearParams clear = {with_scales_unless(Bug::unput_scales_stale, layers_[layer].storage),
                               book_.batch_cell(), pass_.n_tokens()};
    if (Status s = health_.after(on_device_->clear(clear)); s != Status::ok) return s;
  }
  return Status::ok;
}

Status CausalCache::check_kept_tokens(int32_t index, int32_t n) const {
  const CellBook::Sequence& sequence = book_.sequence(index);
  if (n == sequence.n_added) return Status::ok;
  int32_t order = 0, saw_dropped = -1, last_kept = -1, first_dropped = -1;
  book_.for_each_added(sequence, [&](int32_t token) {
    if (order < n && plan_.sees_later(token) && saw_dropped < 0) saw_dropped = token;
    if (order == n - 1) last_kept = token;
    if (order == n) first_dropped = token;
    ++order;
  });
  if (saw_dropped >= 0) {
    return fail(
        Status::invalid_argument,
        "keep %d of sequence %d keeps token %d of the batch, which sees later tokens and saw "
        "one that would be dropped: keep all %d, or drop it too",
        n, index, saw_dropped, sequence.n_added);
  }
  if (last_kept >= 0 && plan_.same_block(last_kept, first_dropped) && !planted(Bug::type_cut_in_two)) {
    return fail(
        Status::invalid_argument,
        "keep %d of sequence %d keeps token %d of the batch, which has the type of token %d "
        "and saw it: keep or drop tokens of one type together",
        n, index, last_kept, first_dropped);
  }
  return Status::ok;
}

}  // namespace kvc
