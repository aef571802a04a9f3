#include <algorithm>

#include "core/attention/operator.hpp"
#include "core/base/planted.hpp"
#include "core/caches/encoder.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- The plan -------------------------------------------------------------------------------------------------------------

/// Rows grouped by the input that they see, so that the tokens of all sequences that share one read it together.
Status EncoderCache::make_plan() {
  if (is_planned_) return Status::ok;
  plan_ = {};
  plan_.rows = rows_;
  plan_.lists = lists_;
  plan_.padding = padding_;
  plan_.tokens = {entries_, entries_};
  const auto list_of = [this](int32_t token) -> int32_t* {
    const int32_t slot = book_.seen_slot(token);
    return slot < 0 || book_.length(slot) == 0 ? nullptr : &list_of_[slot];
  };
  // list_of_ is 0 for every slot between plans: a slot without a list.
  for (int32_t token = 0; token < pass_.n_tokens(); ++token) {
    int32_t* const list = list_of(token);
    if (list == nullptr) {
      padding_[plan_.n_padding++] = token;
      continue;
    }
    if (*list == 0) {
      const int32_t slot = book_.seen_slot(token);
      TokenList& made = lists_[plan_.n_lists] = {};
      made.count[0] = made.total = book_.length(slot);
      made.first_cell = slot * bounds_.capacity;
      list_end_[plan_.n_lists] = 0;
      *list = ++plan_.n_lists;
    }
    ++list_end_[*list - 1];
  }
  for (int32_t i = 0; i < plan_.n_lists; ++i) {  // counts become where each list's rows begin
    const int32_t count = list_end_[i];
    list_end_[i] = plan_.n_rows;
    plan_.n_rows += count;
  }
  for (int32_t token = 0; token < pass_.n_tokens(); ++token) {
    int32_t* const list = list_of(token);
    if (list == nullptr) continue;
    AttentionRow& row = rows_[list_end_[*list - 1]++];
    row = {};
    row.token = token;
    row.position = book_.batch_position()[token];
    row.sequence = book_.batch_sequence()[token];
    row.list = *list - 1;
    row.end = lists_[row.list].total;
  }
  for (int32_t i = 0; i < plan_.n_lists; ++i) list_of_[lists_[i].first_cell / bounds_.capacity] = 0;
  is_planned_ = true;
  has_one_each_ = true;
  for (int32_t i = 0; i < book_.n_in_batch(); ++i)
    has_one_each_ &= book_.sequence(book_.in_batch(i)).n_added == 1;
  const TokenRange all = {0, bounds_.capacity};
  const bool tells = device_info_.follows_tokens && !entries_are_told_;
  entries_are_told_ = true;
  const Status begun = on_device_->begin_pass(plan_, {&all, tells ? 1 : 0}, stream_);
  if (begun != Status::ok || !pass_.is_replay()) return health_.after(begun);
  return health_.after(pass_recorder()->replay(plan_, nullptr, pass_.n_tokens()));
}

// ---- Constants and attention ----------------------------------------------------------------------------------------------

Status EncoderCache::check_binding(const AttentionConstants& constants) const {
  if (Status s = pass_.need_no_pass("kvc_bind_attention"); s != Status::ok) return s;
  if (constants.slopes != nullptr) {
    return fail(Status::not_supported,
                "an encoder cache (KVC_ENCODER) takes no alibi_slopes: its keys have no positions, "
                "so no distance");
  }
  return Status::ok;
}

/// In put_attention() the tensors were read against the history that expect_rows() announced.
Status EncoderCache::prepare(int32_t layer, const AttentionTensors& tensors,
                             const AttentionOperator** op, AttentionParams* params) {
  *op = operator_;
  if (recorder_ != nullptr)
    return layers_.describe_recorded(layer, tensors, Visibility{}, 0, op, params);
  if (Status s = make_plan(); s != Status::ok) return s;
  params->plan = plan_;
  if (Status s = layers_.describe_call(layer, tensors, has_one_each_, op, params); s != Status::ok)
    return s;
  span(&params->first_column, &params->n_columns);
  params->features = needed_features(*params, Visibility{}, true);
  return check_operator(**op, params->features, params->storage);
}

void EncoderCache::expect_rows(int64_t rows) {
  if (pass_.is_reserve()) return;
  const int32_t sequence = only_carrying();
  if (any_put(sequence) || (rows == 0 && planted(Bug::refused_put_keeps_length))) return;
  set_length(book_.sequence(sequence).then.slot, static_cast<int32_t>(rows));
}

Status EncoderCache::check_scales(bool of_k, bool of_v) const {
  if (Status s = pass_.need_no_pass("kvc_bind_scales"); s != Status::ok) return s;
  if (Status s = need_empty("kvc_bind_scales"); s != Status::ok) return s;
  return layers_.check_scales(of_k, of_v);
}

// ---- Reading --------------------------------------------------------------------------------------------------------------

/// The cells of all inputs that the batch sees. Needs a plan.
void EncoderCache::span(int32_t* first, int32_t* cells) const {
  int32_t low = plan_.n_lists > 0 ? INT32_MAX : 0, high = 0;
  for (int32_t i = 0; i < plan_.n_lists; ++i) {
    low = std::min(low, lists_[i].first_cell);
    high = std::max(high, lists_[i].first_cell + lists_[i].total);
  }
  *first = low;
  *cells = high - low;
}

Status EncoderCache::history(int32_t layer, int32_t* first, int32_t* cells) {
  if (Status s = ready_for_layer(layer, false); s != Status::ok) return s;
  *first = 0;
  *cells = bounds_.cells;
  if (pass_.is_reserve()) return Status::ok;
  if (Status s = make_plan(); s != Status::ok) return s;
  if (!pass_.is_replay()) span(first, cells);
  return Status::ok;
}

Status EncoderCache::get(int32_t layer, Tensor* k, Tensor* v) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  if (Status s = layers_.check_lendable(k != nullptr, v != nullptr); s != Status::ok) return s;
  int32_t first = 0, cells = 0;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  const LayerStorage& storage = layers_[layer].storage;
  if (k != nullptr) *k = storage.k.view(first, cells);
  if (v != nullptr) *v = storage.v.view(first, cells);
  return Status::ok;
}

Status EncoderCache::get_codes(int32_t layer, Codes* codes) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  int32_t first = 0, cells = 0;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  *codes = layers_.codes(layer, first, cells);
  return Status::ok;
}

/// What no token of the batch sees is zeros.
Status EncoderCache::get_copy(int32_t layer, const Tensor& k, const Tensor& v) {
  if (Status s = need_no_recording("kvc_get_copy"); s != Status::ok) return s;
  int32_t first = 0, columns = 0;
  if (Status s = history(layer, &first, &columns); s != Status::ok) return s;
  if (pass_.is_reserve()) return Status::ok;
  constexpr int32_t at_once = 256;
  int32_t cell[at_once];
  const auto load = [&](const LayerStorage& storage, const int32_t* cells, int32_t row, int32_t n) {
    LoadParams params;
    params.storage = storage;
    params.cell = cells;
    params.n_tokens = n;
    params.k = k.from_row(row);
    params.v = v.from_row(row);
    return health_.after(on_device_->load(params));
  };
  std::fill_n(cell, at_once, -1);
  for (int32_t row = 0; row < columns; row += at_once) {
    const Status s = load(layers_[layer].storage, cell, row, std::min(at_once, columns - row));
    if (s != Status::ok) return s;
  }
  for (int32_t i = 0; i < plan_.n_lists; ++i) {
    const TokenList& list = plan_.lists[i];
    const Status s = load(storage_at(layer, list.first_cell / bounds_.capacity), entries_,
                          list.first_cell - first, list.total);
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

Status EncoderCache::mask(int32_t layer, const Tensor& into) {
  if (Status s = need_no_recording("kvc_mask"); s != Status::ok) return s;
  int32_t first = 0, cells = 0;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  MaskParams params;
  params.into = into;
  params.first_column = first;
  params.all_visible = pass_.is_reserve();
  if (pass_.is_open()) params.plan = plan_;
  return health_.after(on_device_->write_mask(params));
}

/// Whether a slot holds K and V of a layer: in the open pass a layer of an input may not have been put yet.
bool EncoderCache::is_stored(int32_t layer, int32_t slot) const {
  for (int32_t i = 0; pass_.is_open() && i < n_carrying_; ++i) {
    if (carrying_slot_[i] == slot) return was_put(i, layer) != 0;
  }
  return true;
}

Status EncoderCache::gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_gather"); s != Status::ok) return s;
  const Input& input = book_.sequence(sequence).then;
  const int32_t length = input.exists() ? book_.length(input.slot) : 0;
  if (length == 0) return Status::ok;
  constexpr int32_t at_once = 256;
  int32_t nothing[at_once];
  std::fill_n(nothing, at_once, -1);
  const bool stored = is_stored(layer, input.slot);
  for (int32_t at = 0; at < length; at += at_once) {
    LoadParams load;
    load.storage = storage_at(layer, input.slot);
    load.cell = stored ? entries_ + at : nothing;
    load.n_tokens = std::min(at_once, length - at);
    load.k = k.from_row(at);
    load.v = v.from_row(at);
    if (Status s = health_.after(on_device_->load(load)); s != Status::ok) return s;
  }
  return Status::ok;
}

Status EncoderCache::runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs,
                          int32_t* n) const {
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  const Input& input = book_.sequence(sequence).then;
  const int32_t length = input.exists() ? book_.length(input.slot) : 0;
  *n = length > 0 ? 1 : 0;
  if (*n > 0 && capacity > 0) runs[0] = {input.slot * bounds_.capacity, length, 0, 0};
  return Status::ok;
}

}  // namespace kvc
