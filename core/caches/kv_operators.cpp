#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/kv_layers.hpp"

/// Which operator a layer attends with, and whether it can.
namespace kvc {
namespace {

Status other_scale(const ChosenOperator& op, int32_t layer, float scale) {
  return fail(
      Status::invalid_argument,
      "softmax_scale of the operator %s is %g, and the scale of layer %d is %g: they must be "
      "the same, or softmax_scale 0",
      op.op->name, static_cast<double>(op.scale), layer, static_cast<double>(scale));
}

}  // namespace

const ChosenOperator* KvLayers::operator_of(int32_t index, Mode mode) const {
  const Layer& layer = layers_[index];
  switch (mode) {
    case mode_train: return layer.train.get();
    case mode_prefill: return layer.prefill.get();
    case mode_autoregressive: return layer.autoregressive.get();
    case mode_insert: break;
  }
  return nullptr;
}

/// A layer that was never bound has no scale of its own: it takes the operator's.
Status KvLayers::check_scale(int32_t layer_begin, int32_t layer_end, const ChosenOperator& op) const {
  for (int32_t index = layer_begin; op.scale != 0 && index < layer_end; ++index) {
    const AttentionConstants& constants = layers_[index].constants;
    const float scale = constants.scale != 0 ? constants.scale : default_scale();
    if (constants.n_q_heads != 0 && scale != op.scale) return other_scale(op, index, scale);
  }
  return Status::ok;
}

Status KvLayers::check_operator(int32_t layer_begin, int32_t layer_end, ModeSet modes,
                                const ChosenOperator& op) const {
  if (Status s = check_softmax(*op.op); s != Status::ok) return s;
  if (Status s = check_modes(*op.op, modes); s != Status::ok) return s;
  const Status dims = check_head_dims(*op.op, bounds_.head_dim_k, bounds_.head_dim_v);
  if (dims != Status::ok) return dims;
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    const Layer& layer = layers_[index];
    const FeatureSet needed = always_ | features_of(layer.constants, layer.storage);
    if (Status s = kvc::check_operator(*op.op, needed, layer.storage); s != Status::ok) return s;
    for (const Mode mode : {mode_train, mode_prefill, mode_autoregressive}) {
      if ((modes & mode) == 0 || op.op->supports == nullptr) continue;
      const OperatorNeeds needs = {.mode = mode,
                                   .features = needed,
                                   .type_k = layer.storage.k.type(),
                                   .type_v = layer.storage.v.type(),
                                   .n_q_heads = layer.constants.n_q_heads,
                                   .n_kv_heads = layer.storage.k.n_heads,
                                   .head_dim_k = bounds_.head_dim_k,
                                   .head_dim_v = bounds_.head_dim_v,
                                   .runtime_type = op.settings.runtime_type,
                                   .softmax_type = op.softmax_type};
      if (Status s = op.op->supports(*op.op, needs); s != Status::ok) return s;
    }
  }
  return Status::ok;
}

void KvLayers::bind_operator(int32_t layer_begin, int32_t layer_end, ModeSet modes,
                             const std::shared_ptr<const ChosenOperator>& op) {
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    Layer& layer = layers_[index];
    if ((modes & mode_train) != 0) layer.train = op;
    if ((modes & mode_prefill) != 0) layer.prefill = op;
    if ((modes & mode_autoregressive) != 0) layer.autoregressive = op;
  }
}

Status KvLayers::check_scale_for_operators(int32_t layer_begin, int32_t layer_end,
                                           const AttentionConstants& constants) const {
  const float scale = constants.scale != 0 ? constants.scale : default_scale();
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    for (const Mode mode : {mode_train, mode_prefill, mode_autoregressive}) {
      const ChosenOperator* op = operator_of(index, mode);
      if (op != nullptr && op->scale != 0 && op->scale != scale)
        return other_scale(*op, index, scale);
    }
  }
  return Status::ok;
}

Status KvLayers::check_operators(int32_t layer_begin, int32_t layer_end,
                                 const AttentionConstants& constants) const {
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    const LayerStorage& storage = layers_[index].storage;
    const FeatureSet needed = always_ | features_of(constants, storage);
    for (const Mode mode : {mode_train, mode_prefill, mode_autoregressive}) {
      const ChosenOperator* op = operator_of(index, mode);
      if (op == nullptr) continue;
      if (Status s = kvc::check_operator(*op->op, needed, storage); s != Status::ok) return s;
    }
  }
  return Status::ok;
}

Status KvLayers::describe_call(int32_t layer, const AttentionTensors& tensors, bool one_each,
                               const AttentionOperator** own, AttentionParams* params) const {
  const Mode mode = tensors.drops ? mode_train : one_each ? mode_autoregressive : mode_prefill;
  params->storage = layers_[layer].storage;
  params->constants = constants_for(layer, tensors.q.shape[1]);
  params->tensors = tensors;
  params->mode = mode;
  params->layer = layer;
  if (tensors.leaves_sinks_out && !planted(Bug::sinks_in_partial_result))
    params->constants.sinks = nullptr;
  const bool other = planted(Bug::operator_of_other_mode) && mode == mode_train;
  const ChosenOperator* const chosen = operator_of(layer, other ? mode_prefill : mode);
  if (chosen != nullptr) {
    *own = chosen->op.get();
    params->settings = chosen->settings;
    if (chosen->scale != 0) params->constants.scale = chosen->scale;
  }
  if (!tensors.drops) return Status::ok;
  if (chosen == nullptr) {
    return fail(
        Status::not_supported,
        "KVC_EXTRA_DROPOUT needs an operator, whose dropout_prob it takes, and layer %d has "
        "none for KVC_MODE_TRAIN: bind one with kvc_bind_operator",
        layer);
  }
  if (params->constants.n_q_heads > dropout_heads_max) {
    return fail(Status::not_supported, "n_q_heads is %d; dropout tells %d query heads apart",
                params->constants.n_q_heads, dropout_heads_max);
  }
  params->dropout = Dropout::of(tensors.dropout_seed, chosen->dropout_probability,
                                planted(Bug::dropout_of_first_layer) ? 0 : layer);
  return Status::ok;
}

Status KvLayers::describe_recorded(int32_t layer, const AttentionTensors& tensors,
                                   const Visibility& visibility, FeatureSet also,
                                   const AttentionOperator** own, AttentionParams* params) const {
  if (operator_of(layer, mode_prefill) != operator_of(layer, mode_autoregressive)) {
    return fail(Status::not_supported,
                "layer %d has one operator for KVC_MODE_PREFILL and another for "
                "KVC_MODE_AUTOREGRESSIVE, and what is captured serves passes of both modes",
                layer);
  }
  if (Status s = describe_call(layer, tensors, true, own, params); s != Status::ok) return s;
  params->features = also | needed_features(*params, visibility, true);
  if ((*own)->is_callers) {
    return fail(Status::not_supported,
                "the operator %s is a caller's, and what it does cannot be captured", (*own)->name);
  }
  return kvc::check_operator(**own, params->features, params->storage);
}

Status after_call(const Health& health, const AttentionOperator& op, Status status) {
  const bool poisons = status == Status::device || status == Status::internal;
  return op.is_callers && !poisons ? status : health.after(status);
}

}  // namespace kvc
