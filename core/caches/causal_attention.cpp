#include <algorithm>

#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {

// ---- Constants of the model -----------------------------------------------------------------------------------------------

Status CausalCache::check_keys_may_rotate() const {
  if (!settings_.position_free) return Status::ok;
  return fail(Status::not_supported,
              "the cache was created with KVC_CAUSAL_POSITION_FREE: its keys carry no rotation");
}

Status CausalCache::check_scales(bool of_k, bool of_v) const {
  if (Status s = pass_.need_no_pass("kvc_bind_scales"); s != Status::ok) return s;
  const Status empty = planted(Bug::scales_bound_too_late) ? Status::ok
                                                           : need_empty("kvc_bind_scales");
  return empty == Status::ok ? layers_.check_scales(of_k, of_v) : empty;
}

/// With V in K the dims that are V's must not turn: V has no position.
Status CausalCache::check_rope_dims(const RopeSettings& settings) const {
  const int32_t v_end = bounds_.v_first + bounds_.head_dim_v;
  const int32_t end = settings.first_dim + settings.n_dims;
  if (!bounds_.v_in_k || end <= bounds_.v_first || settings.first_dim >= v_end) return Status::ok;
  return fail(Status::invalid_argument,
              "RoPE would turn dims %d to %d, and with KVC_CACHE_V_IN_K dims %d to %d are V, which "
              "has no position: choose first_dim and n_dims beside them",
              settings.first_dim, end - 1, bounds_.v_first, v_end - 1);
}

Status CausalCache::check_rope(const RopeSettings& settings) const {
  if (Status s = check_rope_dims(settings); s != Status::ok) return s;
  if (Status s = pass_.need_no_pass("RoPE is bound"); s != Status::ok) return s;
  if (Status s = need_empty("kvc_bind_rope"); s != Status::ok) return s;
  if (Status s = check_keys_may_rotate(); s != Status::ok) return s;
  if (shift_.run != nullptr) {
    return fail(
        Status::not_supported,
        "the cache has a shift function, which moves keys instead of RoPE: unbind it first, with "
        "kvc_bind_shift and a null function");
  }
  return Status::ok;
}

void CausalCache::bind_rope(int32_t layer_begin, int32_t layer_end, const RopeSettings& settings) {
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    KvLayers::Layer& layer = layers_[index];
    for (int32_t i = 0; i < settings.n_dims / 2; ++i) layer.frequency[i] = settings.frequency(i);
    layer.constants.rope = {.frequency = layer.frequency,
                            .n_dims = settings.n_dims,
                            .halves = settings.halves,
                            .first_dim = settings.first_dim};
  }
  if (layer_begin < layer_end) book_.rotate_keys();
}

// ---- Attention --------------------------------------------------------------------------------------------------------------

Status CausalCache::make_plan() {
  if (plan_.is_made()) return Status::ok;
  const AttentionPlan& plan = plan_.make(device_info_.least_shared_prefix);
  health_.expect(plan.n_rows + plan.n_padding == pass_.n_tokens(),
                 "the attention plan misses tokens of the batch");
  if (!health_.ok()) return health_.status();
  const Status begun = on_device_->begin_pass(plan, book_.take_changes(), stream_);
  if (begun != Status::ok || !pass_.is_replay()) return health_.after(begun);
  return health_.after(on_device_->recorder()->replay(plan, book_.batch_cell(), pass_.n_tokens()));
}

Status CausalCache::prepare(int32_t layer, const AttentionTensors& tensors,
                            const AttentionOperator** op, AttentionParams* params) {
  *op = operator_;
  if (recorder_ != nullptr) {
    return layers_.describe_recorded(layer, tensors, settings_.visibility, 0, op, params);
  }
  if (Status s = make_plan(); s != Status::ok) return s;
  params->plan = plan_.made();
  const bool one_each = params->plan.n_rows == params->plan.n_lists;
  if (Status s = layers_.describe_call(layer, tensors, one_each, op, params); s != Status::ok)
    return s;
  params->features = needed_features(*params, settings_.visibility, plan_.any_sees_later());
  if ((*op)->is_callers) {
    if (Status s = pay_rotations(**op, params); s != Status::ok) return s;
  }
  if (tensors.changes_scores() || tensors.weights.data != nullptr || (*op)->is_callers) {
    PassPlan::Span range;
    if (Status s = span(&range); s != Status::ok) return s;
    params->first_column = range.first;
    params->n_columns = range.end - range.first;
  }
  return check_operator(**op, params->features, params->storage);
}

/// For a caller's operator that knows no pending rotations: it gets keys as kvc_get() lends them.
Status CausalCache::pay_rotations(const AttentionOperator& op, AttentionParams* params) {
  const FeatureSet owing = params->features & feature_shifted & ~op.features;
  if (owing == 0 || !is_plain(bounds_.type_k)) return Status::ok;
  const FeatureSet others = params->features & ~owing;
  if (Status s = check_operator(op, others, params->storage); s != Status::ok) return s;
  const int32_t free = book_.pool().n_free();
  if (Status s = rotate_pending(); s != Status::ok) return s;
  if (Status s = make_plan(); s != Status::ok) return s;
  const AttentionTensors& tensors = params->tensors;
  if (free != book_.pool().n_free() && (tensors.changes_scores() || tensors.weights.data != nullptr)) {
    return fail(
        Status::shape,
        "shared keys with a pending rotation were copied for the operator %s, so the columns "
        "of kvc_history() have changed: make bias, mask and weights for them",
        op.name);
  }
  params->plan = plan_.made();
  params->features = others;
  return Status::ok;
}

}  // namespace kvc
