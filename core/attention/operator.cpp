#include "core/attention/operator.hpp"

namespace kvc {
namespace {

struct Name {
  uint32_t bit;
  const char* text;
};
constexpr Name names[] = {{feature_mask, "mask"},
                          {feature_bias, "bias"},
                          {feature_window, "limited reach"},
                          {feature_chunk, "chunks"},
                          {feature_not_causal, "tokens that see later ones"},
                          {feature_softcap, "softcap"},
                          {feature_alibi, "ALiBi slopes"},
                          {feature_sinks, "sinks"},
                          {feature_lse, "log-sum-exp"},
                          {feature_weights, "weights"},
                          {feature_dropout, "dropout"},
                          {feature_grouped, "fewer KV heads than query heads"},
                          {feature_dims_differ, "head dimensions of K and V that differ"},
                          {feature_shifted, "keys with a pending rotation"},
                          {feature_rotated, "storage rotated by a Hadamard matrix"},
                          {feature_transformer, "rows of a transformer cache"},
                          {feature_lightning, "lightning attention"},
                          {feature_forward, "attention without a cache"},
                          {feature_block_q, "block_q"},
                          {feature_block_k, "block_k"},
                          {feature_block_b, "block_b"},
                          {feature_scan, "stretches"}};

constexpr Name modes[] = {{mode_train, "training (KVC_MODE_TRAIN)"},
                          {mode_prefill, "prefill (KVC_MODE_PREFILL)"},
                          {mode_autoregressive, "decoding (KVC_MODE_AUTOREGRESSIVE)"}};

bool any_is_pending(const AttentionPlan& plan) {
  for (int32_t i = 0; i < plan.n_lists; ++i) {
    if (plan.lists[i].has_pending) return true;
  }
  return false;
}

Status check_features(const AttentionOperator& op, FeatureSet needed) {
  const FeatureSet missing = needed & ~op.features;
  if (missing == 0) return Status::ok;
  for (const Name& name : names) {
    if ((missing & name.bit) != 0)
      return fail(Status::not_supported, "the operator %s has no %s", op.name, name.text);
  }
  return fail(Status::not_supported, "the operator %s lacks feature 0x%x", op.name, missing);
}

Status check_storage(const AttentionOperator& op, StorageType k, StorageType v) {
  for (const StorageType type : {k, v}) {
    if ((op.storage & storage_bit(type)) == 0) {
      return fail(Status::not_supported, "the attention operator %s does not read %s", op.name,
                  format_of(type).name);
    }
  }
  return Status::ok;
}

Status check_precision(const AttentionOperator& op, const char* what, uint32_t can, uint32_t wanted) {
  if ((wanted & ~can) == 0) return Status::ok;
  return fail(Status::not_supported, "the operator %s has no %s %s", op.name, what,
              precision_name(wanted));
}

}  // namespace

const char* precision_name(uint32_t precision) {
  switch (precision) {
    case in_f64: return "f64";
    case in_f32: return "f32";
    case in_f16: return "f16";
    default: return "bf16";
  }
}

FeatureSet features_of(const AttentionConstants& constants, const LayerStorage& storage) {
  FeatureSet needed = 0;
  const auto add = [&needed](bool condition, Feature feature) {
    if (condition) needed |= feature;
  };
  add(constants.softcap != 0, feature_softcap);
  add(constants.slopes != nullptr, feature_alibi);
  add(constants.sinks != nullptr, feature_sinks);
  add(constants.n_q_heads != 0 && constants.n_q_heads != storage.k.n_heads, feature_grouped);
  add(storage.k.head_dim() != storage.v.head_dim(), feature_dims_differ);
  add(storage.k.format.rotation != 0 || storage.v.format.rotation != 0, feature_rotated);
  return needed;
}

FeatureSet features_of(const Visibility& visibility) {
  return (visibility.reach > 0 ? feature_window : 0u) | (visibility.chunk > 0 ? feature_chunk : 0u);
}

FeatureSet needed_features(const AttentionParams& params, const Visibility& visibility,
                           bool sees_later) {
  const AttentionTensors& tensors = params.tensors;
  FeatureSet needed = features_of(params.constants, params.storage) | features_of(visibility);
  const auto add = [&needed](bool condition, Feature feature) {
    if (condition) needed |= feature;
  };
  add(tensors.mask.data != nullptr || params.plan.seen != nullptr, feature_mask);
  add(tensors.bias.data != nullptr, feature_bias);
  add(tensors.lse.data != nullptr, feature_lse);
  add(tensors.weights.data != nullptr, feature_weights);
  add(params.dropout.drops, feature_dropout);
  add(sees_later, feature_not_causal);
  add(params.constants.rope.n_dims > 0 && any_is_pending(params.plan), feature_shifted);
  return needed;
}

Status check_operator(const AttentionOperator& op, FeatureSet needed, const LayerStorage& storage) {
  if (Status s = check_storage(op, storage.k.type(), storage.v.type()); s != Status::ok) return s;
  return check_features(op, needed);
}

Status check_softmax(const AttentionOperator& op) {
  if (op.run != nullptr) return Status::ok;
  return fail(
      Status::not_supported,
      "the operator %s is for lightning caches (KVC_LIGHTNING): it has no softmax over keys",
      op.name);
}

Status check_modes(const AttentionOperator& op, ModeSet wanted) {
  for (const Name& mode : modes) {
    if ((wanted & ~op.modes & mode.bit) != 0)
      return fail(Status::not_supported, "the operator %s is not for %s", op.name, mode.text);
  }
  return Status::ok;
}

Status check_head_dims(const AttentionOperator& op, int32_t head_dim_k, int32_t head_dim_v) {
  for (const int32_t dim : {head_dim_k, head_dim_v}) {
    const bool fits = dim >= op.head_dim_min && (op.head_dim_max == 0 || dim <= op.head_dim_max) &&
                      (op.head_dim_multiple == 0 || dim % op.head_dim_multiple == 0);
    if (dim == 0 || fits) continue;
    return fail(Status::not_supported,
                "the operator %s has no head_dim %d; it has multiples of %d from %d to %d", op.name,
                dim, op.head_dim_multiple > 0 ? op.head_dim_multiple : 1, op.head_dim_min,
                op.head_dim_max > 0 ? op.head_dim_max : max_head_dim);
  }
  return Status::ok;
}

Status check_operator(const AttentionOperator& op, const OperatorNeeds& needs) {
  FeatureSet features = needs.features;
  if (needs.n_q_heads != 0 && needs.n_q_heads != needs.n_kv_heads) features |= feature_grouped;
  if (needs.head_dim_v != 0 && needs.head_dim_v != needs.head_dim_k)
    features |= feature_dims_differ;
  if ((features & feature_lightning) == 0) {
    if (Status s = check_softmax(op); s != Status::ok) return s;
  }
  if (Status s = check_modes(op, needs.mode); s != Status::ok) return s;
  if (Status s = check_storage(op, needs.type_k, needs.type_v); s != Status::ok) return s;
  if (Status s = check_features(op, features); s != Status::ok) return s;
  if (Status s = check_head_dims(op, needs.head_dim_k, needs.head_dim_v); s != Status::ok) return s;
  const Status runtime = check_precision(op, "runtime_dtype", op.runtime_types, needs.runtime_type);
  if (runtime != Status::ok) return runtime;
  const Status softmax = check_precision(op, "softmax_dtype", op.softmax_types, needs.softmax_type);
  if (softmax != Status::ok || op.supports == nullptr) return softmax;
  return op.supports(op, needs);
}

}  // namespace kvc
