#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/lightning.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- Checks -----------------------------------------------------------------------------------------------------------------

Status LightningCache::ready_to_put(int32_t layer) const {
  if (Status s = pass_.need_pass(); s != Status::ok) return s;
  if (layer < 0 || layer >= bounds_.n_layers) return no_index("layer", layer, bounds_.n_layers);
  if (Status s = pass_.need_own_work(); s != Status::ok) return s;
  return need_slopes(layer);
}

/// Attention reads K and V of the pass, and those of one layer are kept.
Status LightningCache::ready_for_layer(int32_t layer, bool needs_put) const {
  if (Status s = ready_to_put(layer); s != Status::ok) return s;
  if (needs_put && settings_.is_fused) {
    return fail(
        Status::not_supported,
        "the cache was created with KVC_LIGHTNING_FUSED, so K and V of a pass are not kept: call "
        "kvc_put_attention");
  }
  if (!needs_put || !pass_.is_open() || book_.n_in_batch() == 0) return Status::ok;
  if (Status s = pass_.need_put(layer); s != Status::ok) return s;
  if (layer == last_put_ || planted(Bug::attention_of_overwritten_layer)) return Status::ok;
  return fail(
      Status::bad_state,
      "layer %d was put after layer %d, whose K and V are no longer kept: attend to a layer "
      "before you put the next, or call kvc_put_attention",
      last_put_, layer);
}

Status LightningCache::rows_to_put(int64_t, int64_t* rows) const {
  *rows = pass_.n_tokens();
  return Status::ok;
}

Status LightningCache::history(int32_t, int32_t*, int32_t*) {
  return fail(Status::not_supported,
              "a lightning cache (KVC_LIGHTNING) takes no bias, mask or weights: its attention has "
              "no softmax and keeps no tokens");
}

Status LightningCache::check_kept_tokens(int32_t index, int32_t keep) const {
  const int32_t n = book_.sequence(index).n_added;
  if (keep == 0 || keep == n || n <= settings_.draft_states + 1) return Status::ok;
  return fail(
      Status::not_supported,
      "sequence %d has %d tokens in the pass, more than draft_states %d + 1, so there is no "
      "state behind its first %d: keep all or none, or abort and run the pass again",
      index, n, settings_.draft_states, keep);
}

// ---- Begin ------------------------------------------------------------------------------------------------------------------

Status LightningCache::open_pass(const Batch& given) {
  const Batch batch = book_.list_of(given);
  open_puts(batch.replay);
  forget_pass();
  n_padding_ = 0;
  int32_t first_token = 0, first_drafted = 0;
  for (int32_t i = 0; i < book_.n_in_batch(); ++i) {
    const StateBook::Sequence& sequence = book_.sequence(book_.in_batch(i));
    LightningRow& row = rows_[i] = {};
    row.from = sequence.slot;
    row.to = book_.row_slot(sequence.first_row);
    row.next = planted(Bug::gap_without_decay) ? batch.position[sequence.first_added]
                                               : sequence.next_before;
    row.first_token = first_token;
    row.n_tokens = sequence.n_added;
    row.is_drafted = is_drafted(sequence.n_added);
    row.first_kept = row.is_drafted ? first_drafted : first_token;
    if (row.is_drafted) first_drafted += sequence.n_added;
    for (int32_t token = sequence.first_added; token >= 0; token = book_.follower(token)) {
      const bool is_masked = batch.flags != nullptr && (batch.flags[token] & token_masked) != 0 &&
                             !planted(Bug::masked_token_adds);
      tokens_[first_token++] = {token, batch.position[token], is_masked};
    }
  }
  for (int32_t token = 0; token < batch.n_tokens; ++token) {
    if (batch.sequence[token] == no_sequence) padding_[n_padding_++] = token;
  }
  pass_.open(batch.n_tokens, batch.replay || book_.n_in_batch() == 0, batch.replay);
  if (Status s = tell_device(); s != Status::ok || !batch.replay) return s;
  return replay();
}

// ---- Put and attention ------------------------------------------------------------------------------------------------------

LightningState LightningCache::state_at(int32_t layer, int32_t slot) const {
  LightningState state;
  state.states = part_at(layer, whole);
  state.bounds = lightning_bounds();
  state.slopes = slopes_ + int64_t{layer} * bounds_.n_kv_heads;
  state.slot = slot;
  return state;
}

LightningParams LightningCache::params_for(int32_t layer) const {
  LightningParams params;
  params.states = part_at(layer, whole);
  params.bounds = lightning_bounds();
  params.slopes = slopes_ + int64_t{layer} * bounds_.n_kv_heads;
  params.row = rows_;
  params.n_rows = book_.n_in_batch();
  params.token = tokens_;
  params.keeps = !settings_.is_fused;
  params.last_layer = kept_;
  params.drafted = drafted_;
  const int64_t rows = int64_t{layer} * bounds_.n_kv_heads * drafted_.n_tokens;
  params.drafted.k += rows * KeptTokens::row_bytes(bounds_.head_dim_k, DType::f32);
  params.drafted.v += rows * KeptTokens::row_bytes(bounds_.head_dim_v, DType::f32);
  params.workspace = decay_workspace_;
  return params;
}

Status LightningCache::run(int32_t layer, LightningParams* params) {
  for (KeptTokens* kept : {&params->last_layer, &params->drafted}) {
    kept->k_type = layers_[layer].k_type;
    kept->v_type = layers_[layer].v_type;
  }
  return health_.after(on_device_->lightning(*params));
}

Status LightningCache::place_attention(int32_t layer, const AttentionTensors& tensors,
                                       LightningParams* params) const {
  if (tensors.lse.data != nullptr)
    return fail(
        Status::not_supported,
        "a lightning cache (KVC_LIGHTNING) has no log-sum-exp: its attention has no softmax");
  if (tensors.drops)
    return fail(Status::not_supported,
                "a lightning cache (KVC_LIGHTNING) takes no KVC_EXTRA_DROPOUT: its attention has "
                "no weights that could be dropped");
  params->n_q_heads = static_cast<int32_t>(tensors.q.shape[1]);
  params->scale = layers_[layer].scale;
  params->q = tensors.q;
  params->out = tensors.out;
  params->padding = padding_;
  params->n_padding = n_padding_;
  return Status::ok;
}

Status LightningCache::run_put(int32_t layer, const Tensor& k, const Tensor& v,
                               LightningParams* params) {
  params->k = k;
  params->v = v;
  params->writes_states = true;
  if (recorder_ != nullptr) return record_put(layer, k, v, params);
  layers_[layer].k_type = k.dtype;
  layers_[layer].v_type = v.dtype;
  if (Status s = run(layer, params); s != Status::ok) return s;
  note_put(layer, whole);
  last_put_ = layer;
  return Status::ok;
}

Status LightningCache::put(int32_t layer, const Tensor& k, const Tensor& v) {
  if (Status s = ready_to_put(layer); s != Status::ok) return s;
  if (pass_.is_reserve() && recorder_ == nullptr) return Status::ok;
  LightningParams params = params_for(layer);
  return run_put(layer, k, v, &params);
}

Status LightningCache::attention(int32_t layer, const AttentionTensors& tensors) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  return attend_kept(layer, tensors);
}

Status LightningCache::attend_kept(int32_t layer, const AttentionTensors& tensors) {
  LightningParams params = params_for(layer);
  if (Status s = place_attention(layer, tensors, &params); s != Status::ok) return s;
  if (recorder_ != nullptr) return record_attention(layer, &params);
  if (pass_.is_reserve()) return Status::ok;
  params.input = LightningInput::kept;
  return run(layer, &params);
}

Status LightningCache::put_attention(int32_t layer, const Tensor& k, const Tensor& v,
                                     const AttentionTensors& tensors) {
  if (Status s = ready_to_put(layer); s != Status::ok) return s;
  LightningParams params = params_for(layer);
  if (Status s = place_attention(layer, tensors, &params); s != Status::ok) return s;
  if (pass_.is_reserve() && recorder_ == nullptr) return Status::ok;
  if (!overlap(tensors.out, k) && !overlap(tensors.out, v)) return run_put(layer, k, v, &params);
  // In one run some outputs would be written before all of K and V are read.
  LightningParams put = params_for(layer);
  put.keeps = true;
  if (Status s = run_put(layer, k, v, &put); s != Status::ok) return s;
  return attend_kept(layer, tensors);
}

// ---- The end of a pass --------------------------------------------------------------------------------------------------------

/// Sequences that keep a part of their tokens get the state behind it, from what was kept; a layer that was not put decays.
Status LightningCache::settle_unput() {
  int32_t n_kept = 0, n_cut = 0;  // settled_ lists the sequences that are cut first
  for (const bool wants_cut : {true, false}) {
    for (int32_t i = 0; i < book_.n_in_batch(); ++i) {
      const StateBook::Sequence& sequence = book_.sequence(book_.in_batch(i));
      const bool is_cut = sequence.n_kept < sequence.n_added;
      if (sequence.n_kept == 0 || is_cut != wants_cut) continue;
      settled_[n_kept] = rows_[i];
      settled_[n_kept++].n_tokens = sequence.n_kept;
      n_cut += is_cut;
    }
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    LightningParams params = params_for(layer);
    params.row = settled_;
    params.n_rows = was_put(layer, whole) ? n_cut : n_kept;
    params.input = was_put(layer, whole) ? LightningInput::kept : LightningInput::none;
    params.writes_states = true;
    const Bug bug = was_put(layer, whole) ? Bug::cut_draft_keeps_state
                                          : Bug::unput_state_does_not_decay;
    if (params.n_rows == 0 || planted(bug)) continue;
    if (Status s = run(layer, &params); s != Status::ok) return s;
  }
  return Status::ok;
}

}  // namespace kvc
