#pragma once
#include <cstdint>

#include "core/attention/operator.hpp"
#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "core/base/health.hpp"
#include "core/base/storage.hpp"
#include "core/caches/cache.hpp"

namespace kvc {

/// The layers of a cache of keys and values: where K and V lie, and the constants of the model.
class KvLayers {
 public:
  struct Layer {
    LayerStorage storage;
    AttentionConstants constants;  // n_q_heads 0: never bound
    float* slopes = nullptr;       // [max_q_heads]
    float* sinks = nullptr;        // [max_q_heads]
    double* frequency = nullptr;   // [head_dim_k / 2]
    float* k_scales = nullptr;  // [n_kv_heads] of f8, else null; likewise v_scales, [value_heads]
    float* v_scales = nullptr;
    std::shared_ptr<const ChosenOperator> train, prefill, autoregressive;  // null: the device's own
  };

  /// `always`: features that every call of the cache needs.
  explicit KvLayers(const CacheBounds& bounds, FeatureSet always = 0)
      : bounds_(bounds), always_(always) {}
  ~KvLayers();
  KvLayers(const KvLayers&) = delete;
  KvLayers& operator=(const KvLayers&) = delete;

  // Both run twice (see Carver): what they find out about sizes must not depend on a block being there.
  void carve_host(Carver& carver);
  /// `rows`: cells of a slab, those included that only round a dense view up.
  void carve_device(Carver& carver, int32_t rows);

  Layer& operator[](int32_t index) { return layers_[index]; }
  const Layer& operator[](int32_t index) const { return layers_[index]; }

  /// Whether there is such a layer.
  Status check(int32_t layer) const;
  /// Copies the arrays; RoPE stays as it is.
  void bind_attention(int32_t layer_begin, int32_t layer_end, const AttentionConstants& constants);
  /// Views of a layer's codes and scales in cells [first_cell, first_cell + n).
  KeyValues::Codes codes(int32_t layer, int32_t first_cell, int32_t n) const;
  /// Whether kvc_get() can lend the sides named: numbers, not codes.
  Status check_lendable(bool of_k, bool of_v) const;
  /// Whether the sides named store f8 codes with a scale of their own.
  Status check_scales(bool of_k, bool of_v) const;
  /// What f8 codes are multiplied with; null: stays as it is. Copies the arrays.
  void bind_scales(int32_t layer_begin, int32_t layer_end, const float* k_scales,
                   const float* v_scales);
  /// A layer's constants for a call with this many query heads: defaults where nothing was bound.
  AttentionConstants constants_for(int32_t layer, int64_t n_q_heads) const;

  // Operators of layers, by mode.
  /// Whether the scale that an operator was created with is that of the layers.
  Status check_scale(int32_t layer_begin, int32_t layer_end, const ChosenOperator& op) const;
  /// Whether it can do what the layers have bound and store.
  Status check_operator(int32_t layer_begin, int32_t layer_end, ModeSet modes,
                        const ChosenOperator& op) const;
  void bind_operator(int32_t layer_begin, int32_t layer_end, ModeSet modes,
                     const std::shared_ptr<const ChosenOperator>& op);
  /// Whether the operators of the layers have these constants' scale, and can do what they need.
  Status check_scale_for_operators(int32_t layer_begin, int32_t layer_end,
                                   const AttentionConstants& constants) const;
  Status check_operators(int32_t layer_begin, int32_t layer_end,
                         const AttentionConstants& constants) const;

  /// Fills in what a call brings and what its layer has. `own` is the device's operator, in whose place that of the layer may
  /// come; `one_each`: each sequence of the pass has one token.
  Status describe_call(int32_t layer, const AttentionTensors& tensors, bool one_each,
                       const AttentionOperator** own, AttentionParams* params) const;
  /// The same of a call that is captured, whose plan has no rows: what a graph does must not depend on the pass. `also`: features
  /// that every call of the kind needs.
  Status describe_recorded(int32_t layer, const AttentionTensors& tensors,
                           const Visibility& visibility, FeatureSet also,
                           const AttentionOperator** own, AttentionParams* params) const;

 private:
  static float* carve_scales(Carver& carver, const RowFormat& format, int32_t n_heads);
  static Slab make_slab(const RowFormat& format, const float* head_scale, int32_t n_heads,
                        int32_t rows);
  static void carve_slab(Carver& carver, Slab& slab, uint64_t alignment);
  const ChosenOperator* operator_of(int32_t layer, Mode mode) const;
  float default_scale() const;
  void carve_storage(Carver& carver, Layer& layer, int32_t rows) const;

  const CacheBounds& bounds_;
  const FeatureSet always_;
  Layer* layers_ = nullptr;  // [n_layers]
};

/// Passes the status of a call on: what a caller's operator merely refuses leaves the cache as it was.
Status after_call(const Health& health, const AttentionOperator& op, Status status);

}  // namespace kvc
