#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/transformer.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

Status TransformerCache::open_pass(const Batch& batch) {
  plan_.open(*batch.rows);
  const bool nothing_to_put = std::all_of(book_.batch_cell(), book_.batch_cell() + batch.n_tokens,
                                          [](int32_t cell) { return cell < 0; });
  pass_.open(batch.n_tokens, batch.replay || nothing_to_put, batch.replay);
  return device_info_.plans_ahead ? make_plan() : Status::ok;
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------------

Status TransformerCache::clear(int32_t layer, const int32_t* cell, int32_t n) {
  return health_.after(on_device_->clear({layers_[layer].storage, cell, n}));
}

/// With zero_on_free what became free becomes zeros.
Status TransformerCache::follow_book() {
  constexpr int32_t at_once = 256;
  int32_t cell[at_once], n = 0;
  const auto flush = [&] {
    for (int32_t layer = 0; n > 0 && health_.ok() && layer < bounds_.n_layers; ++layer)
      (void)clear(layer, cell, n);
    n = 0;
  };
  book_.for_each_freed([&](int32_t freed) {
    cell[n++] = freed;
    if (n == at_once) flush();
  });
  flush();
  return health_.status();
}

/// In a layer that was not put, the kept tokens hold zeros.
Status TransformerCache::settle_unput() {
  if (pass_.is_fully_put()) return Status::ok;
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    if (pass_.was_put(layer)) continue;
    if (Status s = clear(layer, book_.batch_cell(), pass_.n_tokens()); s != Status::ok) return s;
  }
  return Status::ok;
}

Status TransformerCache::check_kept_tokens(int32_t index, int32_t n) const {
  const int32_t n_added = book_.sequence(index).n_added, first = index * q_len();
  if (n == n_added) return Status::ok;
  for (int32_t kept = 0; kept < n; ++kept) {
    if (plan_.sees_later(first + kept)) {
      return fail(Status::invalid_argument,
                  "keep %d of row %d keeps its token %d, which sees later ones and saw one that "
                  "would be dropped: keep all %d, or drop it too",
                  n, index, kept, n_added);
    }
    for (int32_t dropped = n; dropped < n_added; ++dropped) {
      if (!plan_.same_type(first + kept, first + dropped) || planted(Bug::kept_type_unasked))
        continue;
      return fail(Status::invalid_argument,
                  "keep %d of row %d keeps its token %d, which has the type of token %d and saw "
                  "it: keep or drop tokens of one type together",
                  n, index, kept, dropped);
    }
  }
  return Status::ok;
}

// ---- Constants and attention ----------------------------------------------------------------------------------------------

Status TransformerCache::check_scales(bool of_k, bool of_v) const {
  if (Status s = pass_.need_no_pass("kvc_bind_scales"); s != Status::ok) return s;
  if (Status s = need_empty("kvc_bind_scales"); s != Status::ok) return s;
  return layers_.check_scales(of_k, of_v);
}

Status TransformerCache::make_plan() {
  if (plan_.is_made()) return Status::ok;
  const AttentionPlan& plan = plan_.make();
  health_.expect(plan.n_rows + plan.n_padding == pass_.n_tokens(),
                 "the attention plan misses tokens of the batch");
  if (!health_.ok()) return health_.status();
  const TokenRange all = {0, plan_.n_entries()};
  const bool tells = device_info_.follows_tokens && !entries_are_told_;
  entries_are_told_ = true;
  const Status begun = on_device_->begin_pass(plan, {&all, tells ? 1 : 0}, stream_);
  if (begun != Status::ok || !pass_.is_replay()) return health_.after(begun);
  return health_.after(pass_recorder()->replay(plan, book_.batch_cell(), pass_.n_tokens()));
}

Status TransformerCache::check_attends() const {
  if (bounds_.value_heads == bounds_.n_kv_heads) return Status::ok;
  return fail(Status::not_supported,
              "value_heads is %d and n_kv_heads %d: kvc_attention needs as many heads of V as of K",
              bounds_.value_heads, bounds_.n_kv_heads);
}

Status TransformerCache::prepare(int32_t layer, const AttentionTensors& tensors,
                                 const AttentionOperator** op, AttentionParams* params) {
  *op = operator_;
  if (recorder_ != nullptr) {
    params->plan.columns_by_list = true;
    params->plan.seen_words = plan_.seen_words();
    return layers_.describe_recorded(layer, tensors, visibility_of(book_.rules()),
                                     feature_transformer, op, params);
  }
  if (Status s = make_plan(); s != Status::ok) return s;
  params->plan = plan_.made();
  bool one_each = true;
  for (int32_t row = 0; row < bounds_.max_sequences; ++row)
    one_each &= book_.sequence(row).n_added <= 1;
  if (Status s = layers_.describe_call(layer, tensors, one_each, op, params); s != Status::ok)
    return s;
  params->n_columns = book_.rules().columns;
  params->features = feature_transformer |
                     needed_features(*params, visibility_of(book_.rules()), plan_.any_sees_later());
  return check_operator(**op, params->features, params->storage);
}

/// A ring of length 1 has reach 0, and is limited all the same.
Visibility TransformerCache::visibility_of(const RowRules& rules) {
  Visibility visibility;
  visibility.reach = rules.reach == RowRules::no_limit ? 0 : std::max(rules.reach, 1);
  return visibility;
}

}  // namespace kvc
