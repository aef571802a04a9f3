#include "core/caches/kv_layers.hpp"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"

namespace kvc {
namespace {

/// Heads of a layer lie this far apart: off powers of two, so that the streams of several heads, and K's and V's of one
/// head, do not meet in the same sets of the first-level cache.
CheckedSize head_stride(int32_t rows, size_t row_stride) {
  const CheckedSize bytes = CheckedSize(static_cast<uint64_t>(rows)) * CheckedSize(row_stride);
  return bytes.rounded_up(page_bytes) + CheckedSize(uint64_t{9} * 64);
}

/// Rows of `part` begin `first` bytes into the rows of `whole`.
void place_inside(Plane& part, const Plane& whole, size_t first) {
  part.row_stride = whole.row_stride;
  part.head_stride = whole.head_stride;
  if (whole.data != nullptr) part.data = whole.data + first;
}

}  // namespace

KvLayers::~KvLayers() {
  for (int32_t index = 0; layers_ != nullptr && index < bounds_.n_layers; ++index)
    layers_[index].~Layer();
}

void KvLayers::carve_host(Carver& carver) {
  layers_ = carver.take<Layer>(static_cast<uint64_t>(bounds_.n_layers), page_bytes);
  Layer measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index) {
    Layer& layer = layers_ == nullptr ? measured : *new (&layers_[index]) Layer();
    layer.slopes = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.sinks = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.frequency = carver.take<double>(static_cast<uint64_t>(bounds_.head_dim_k / 2), 64);
    layer.k_scales = carve_scales(carver, bounds_.row_k, bounds_.n_kv_heads);
    layer.v_scales = bounds_.v_in_k ? layer.k_scales
                                    : carve_scales(carver, bounds_.row_v, bounds_.value_heads);
  }
}

/// Of f8 heads: 1 until others are bound.
float* KvLayers::carve_scales(Carver& carver, const RowFormat& format, int32_t n_heads) {
  if (!is_f8(format.type)) return nullptr;
  auto* scales = carver.take<float>(static_cast<uint64_t>(n_heads), 64);
  if (scales != nullptr) std::fill_n(scales, n_heads, 1.0f);
  return scales;
}

void KvLayers::carve_device(Carver& carver, int32_t rows) {
  Layer measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index)
    carve_storage(carver, layers_ == nullptr ? measured : layers_[index], rows);
}

Slab KvLayers::make_slab(const RowFormat& format, const float* head_scale, int32_t n_heads,
                         int32_t rows) {
  Slab slab;
  slab.format = format;
  slab.head_scale = head_scale;
  slab.n_heads = n_heads;
  slab.n_cells = rows;
  slab.codes.row_bytes = slab.codes.row_stride = format.code_bytes();
  slab.scales.row_bytes = slab.scales.row_stride = format.scale_bytes();
  return slab;
}

/// `alignment` of its codes.
void KvLayers::carve_slab(Carver& carver, Slab& slab, uint64_t alignment) {
  const auto carve = [&](Plane& plane, uint64_t aligned) {
    if (plane.row_bytes == 0) return;
    const CheckedSize stride = head_stride(slab.n_cells, plane.row_stride);
    plane.head_stride = stride.value();
    plane.data = carver.take<std::byte>(CheckedSize(static_cast<uint64_t>(slab.n_heads)) * stride,
                                        aligned);
  };
  carve(slab.codes, alignment);
  carve(slab.scales, 64);
}

void KvLayers::carve_storage(Carver& carver, Layer& layer, int32_t rows) const {
  Slab& k = layer.storage.k = make_slab(bounds_.row_k, layer.k_scales, bounds_.n_kv_heads, rows);
  Slab& v = layer.storage.v = make_slab(bounds_.row_v, layer.v_scales, bounds_.value_heads, rows);
  layer.storage.v_in_k = bounds_.v_in_k;
  if (bounds_.interleaved) k.codes.row_stride += v.codes.row_bytes;
  carve_slab(carver, k, page_bytes);
  if (bounds_.interleaved) {
    place_inside(v.codes, k.codes, k.codes.row_bytes);
  } else if (bounds_.v_in_k) {
    RowFormat before = bounds_.row_k;  // the part of a row before V
    before.head_dim = planted(Bug::v_from_first_dims) ? 0 : bounds_.v_first;
    place_inside(v.codes, k.codes, before.code_bytes());
    place_inside(v.scales, k.scales, before.scale_bytes());
  } else {
    carver.take<std::byte>(page_bytes / 2, page_bytes);  // V begins half a page off K
    carve_slab(carver, v, 64);
  }
}

Status KvLayers::check(int32_t layer) const {
  if (layer >= 0 && layer < bounds_.n_layers) return Status::ok;
  return no_index("layer", layer, bounds_.n_layers);
}

void KvLayers::bind_attention(int32_t layer_begin, int32_t layer_end,
                              const AttentionConstants& constants) {
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    Layer& layer = layers_[index];
    const Rope rope = layer.constants.rope;
    layer.constants = constants;
    layer.constants.rope = rope;
    layer.constants.slopes = constants.slopes == nullptr ? nullptr : layer.slopes;
    layer.constants.sinks = constants.sinks == nullptr ? nullptr : layer.sinks;
    if (constants.slopes != nullptr)
      std::copy_n(constants.slopes, constants.n_q_heads, layer.slopes);
    if (constants.sinks != nullptr) std::copy_n(constants.sinks, constants.n_q_heads, layer.sinks);
  }
}

KeyValues::Codes KvLayers::codes(int32_t layer, int32_t first_cell, int32_t n) const {
  const LayerStorage& storage = layers_[layer].storage;
  return {storage.k.view(first_cell, n), storage.k.scale_view(first_cell, n),
          storage.v.view(first_cell, n), storage.v.scale_view(first_cell, n)};
}

Status KvLayers::check_lendable(bool of_k, bool of_v) const {
  const bool k_lacks = of_k && !is_plain(bounds_.type_k);
  if (!k_lacks && (!of_v || is_plain(bounds_.type_v))) return Status::ok;
  return fail(
      Status::not_supported,
      "dtype_%c is %s: kvc_get lends numbers, and the cache stores codes; kvc_get_codes lends "
      "those, and kvc_get_copy decodes them",
      k_lacks ? 'k' : 'v', format_of(k_lacks ? bounds_.type_k : bounds_.type_v).name);
}

Status KvLayers::check_scales(bool of_k, bool of_v) const {
  const bool k_lacks = of_k && !is_f8(bounds_.type_k);
  const bool v_lacks = of_v && !is_f8(bounds_.type_v);
  if (!k_lacks && !v_lacks) return Status::ok;
  const char side = k_lacks ? 'k' : 'v';
  return fail(Status::not_supported,
              "%c_scales: dtype_%c is %s; scales are bound for KVC_F8_E4M3 and KVC_F8_E5M2 alone",
              side, side, format_of(k_lacks ? bounds_.type_k : bounds_.type_v).name);
}

void KvLayers::bind_scales(int32_t layer_begin, int32_t layer_end, const float* k_scales,
                           const float* v_scales) {
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    Layer& layer = layers_[planted(Bug::scales_of_first_layer) ? 0 : index];
    if (k_scales != nullptr) std::copy_n(k_scales, bounds_.n_kv_heads, layer.k_scales);
    if (v_scales != nullptr) std::copy_n(v_scales, bounds_.value_heads, layer.v_scales);
  }
}

AttentionConstants KvLayers::constants_for(int32_t layer, int64_t n_q_heads) const {
  AttentionConstants constants = layers_[layer].constants;
  if (constants.n_q_heads == 0) {
    constants.n_q_heads = static_cast<int32_t>(n_q_heads);
    constants.scale = 0;
  }
  if (!(constants.scale != 0)) constants.scale = default_scale();
  return constants;
}

float KvLayers::default_scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(bounds_.head_dim_k)));
}

}  // namespace kvc
