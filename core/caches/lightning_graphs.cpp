#include <algorithm>

#include "core/caches/lightning.hpp"

/// Passes that graphs do.
namespace kvc {
namespace {

const char* name_of(DType type) {
  if (type == DType::f16) return "f16";
  return type == DType::bf16 ? "bf16" : "f32";
}

}  // namespace

Status LightningCache::record(LightningParams* params) {
  params->n_rows = std::min(pass_.n_tokens(), bounds_.max_sequences);
  return health_.after(recorder_->record_lightning(*params));
}

/// What a pass keeps is read when it ends, and then nobody knows which graph has kept it.
Status LightningCache::record_put(int32_t index, const Tensor& k, const Tensor& v,
                                  LightningParams* params) {
  Layer& layer = layers_[index];
  if (layer.is_captured && (layer.captured_k != k.dtype || layer.captured_v != v.dtype)) {
    return fail(Status::not_supported,
                "a put of layer %d was captured with K of %s and V of %s, and this one has %s and "
                "%s: all that are captured of a layer need the same types",
                index, name_of(layer.captured_k), name_of(layer.captured_v), name_of(k.dtype),
                name_of(v.dtype));
  }
  params->last_layer.k_type = params->drafted.k_type = k.dtype;
  params->last_layer.v_type = params->drafted.v_type = v.dtype;
  if (Status s = record(params); s != Status::ok) return s;
  layer.is_captured = true;
  layer.captured_k = k.dtype;
  layer.captured_v = v.dtype;
  last_put_ = index;
  return Status::ok;
}

Status LightningCache::record_attention(int32_t index, LightningParams* params) {
  if (index != last_put_) {
    return fail(Status::bad_state,
                "the last layer that was put since the capture began is %d, and this is layer %d: "
                "capture the put of a layer right before its attention, or kvc_put_attention",
                last_put_, index);
  }
  const Layer& layer = layers_[index];
  params->input = LightningInput::kept;
  params->last_layer.k_type = params->drafted.k_type = layer.captured_k;
  params->last_layer.v_type = params->drafted.v_type = layer.captured_v;
  return record(params);
}

/// The open pass, before the graph is launched.
Status LightningCache::replay() {
  for (Layer* layer = layers_; layer < layers_ + bounds_.n_layers; ++layer) {
    layer->k_type = layer->captured_k;
    layer->v_type = layer->captured_v;
  }
  LightningParams params = params_for(0);
  params.padding = padding_;
  params.n_padding = n_padding_;
  return health_.after(pass_recorder()->replay_lightning(params));
}

}  // namespace kvc
