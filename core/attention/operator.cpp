#include "core/attention/operator.hpp"

namespace kvc {
namespace {

struct Name {
  Feature feature;
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
                          {feature_grouped, "fewer KV heads than query heads"},
                          {feature_dims_differ, "head dimensions of K and V that differ"},
                          {feature_shifted, "keys with a pending rotation"}};

bool any_is_pending(const AttentionPlan& plan) {
  for (int32_t i = 0; i < plan.n_lists; ++i) {
    if (plan.lists[i].has_pending) return true;
  }
  return false;
}

}  // namespace

FeatureSet needed_features(const AttentionParams& params, const Visibility& visibility,
                           bool sees_later) {
  const AttentionConstants& constants = params.constants;
  const AttentionTensors& tensors = params.tensors;
  FeatureSet needed = 0;
  const auto add = [&needed](bool condition, Feature feature) {
    if (condition) needed |= feature;
  };
  add(tensors.mask.data != nullptr || params.plan.seen != nullptr, feature_mask);
  add(tensors.bias.data != nullptr, feature_bias);
  add(tensors.lse.data != nullptr, feature_lse);
  add(tensors.weights.data != nullptr, feature_weights);
  add(visibility.reach > 0, feature_window);
  add(visibility.chunk > 0, feature_chunk);
  add(sees_later, feature_not_causal);
  add(constants.softcap != 0, feature_softcap);
  add(constants.slopes != nullptr, feature_alibi);
  add(constants.sinks != nullptr, feature_sinks);
  add(constants.n_q_heads != params.storage.k.n_heads, feature_grouped);
  add(params.storage.k.head_dim() != params.storage.v.head_dim(), feature_dims_differ);
  add(constants.rope.n_dims > 0 && any_is_pending(params.plan), feature_shifted);
  return needed;
}

Status check_operator(const AttentionOperator& op, FeatureSet needed, const LayerStorage& storage) {
  for (const StorageType type : {storage.k.type(), storage.v.type()}) {
    if ((op.storage & storage_bit(type)) == 0) {
      return fail(Status::not_supported, "the attention operator %s does not read %s", op.name,
                  format_of(type).name);
    }
  }
  const FeatureSet missing = needed & ~op.features;
  if (missing == 0) return Status::ok;
  for (const Name& name : names) {
    if ((missing & name.feature) != 0)
      return fail(Status::not_supported, "the operator %s has no %s", op.name, name.text);
  }
  return fail(Status::not_supported, "the operator %s lacks feature 0x%x", op.name, missing);
}

}  // namespace kvc
