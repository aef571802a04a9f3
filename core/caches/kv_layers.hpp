#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
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
  };

  explicit KvLayers(const CacheBounds& bounds) : bounds_(bounds) {}

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

 private:
  static float* carve_scales(Carver& carver, const RowFormat& format, int32_t n_heads);
  static Slab make_slab(const RowFormat& format, const float* head_scale, int32_t n_heads,
                        int32_t rows);
  static void carve_slab(Carver& carver, Slab& slab, uint64_t alignment);
  void carve_storage(Carver& carver, Layer& layer, int32_t rows) const;

  const CacheBounds& bounds_;
  Layer* layers_ = nullptr;  // [n_layers]
};

}  // namespace kvc
