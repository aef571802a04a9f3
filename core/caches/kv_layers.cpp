#include "core/caches/kv_layers.hpp"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/base/messages.hpp"

namespace kvc {
namespace {

constexpr uint64_t page_bytes = 4096;

/// Heads of a layer lie this far apart: off powers of two, so that the streams of several heads, and K's and V's of one
/// head, do not meet in the same sets of the first-level cache.
CheckedSize head_stride(int32_t rows, size_t row_bytes) {
  const CheckedSize bytes = CheckedSize(static_cast<uint64_t>(rows)) * CheckedSize(row_bytes);
  return bytes.rounded_up(page_bytes) + CheckedSize(uint64_t{9} * 64);
}

}  // namespace

void KvLayers::carve_host(Carver& carver) {
  layers_ = carver.take<Layer>(static_cast<uint64_t>(bounds_.n_layers), page_bytes);
  Layer measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index) {
    Layer& layer = layers_ == nullptr ? measured : *new (&layers_[index]) Layer();
    layer.slopes = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.sinks = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.frequency = carver.take<double>(static_cast<uint64_t>(bounds_.head_dim_k / 2), 64);
  }
}

void KvLayers::carve_device(Carver& carver, int32_t rows) {
  LayerStorage measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index)
    carve_slabs(carver, layers_ == nullptr ? measured : layers_[index].storage, rows);
}

void KvLayers::carve_slabs(Carver& carver, LayerStorage& storage, int32_t rows) const {
  const auto carve_slab = [&](Slab& slab, int32_t head_dim, StorageType type, uint64_t alignment) {
    slab.type = type;
    slab.n_heads = bounds_.n_kv_heads;
    slab.n_cells = rows;
    slab.head_dim = head_dim;
    slab.row_bytes = row_bytes(type, head_dim);
    const CheckedSize stride = head_stride(rows, slab.row_bytes);
    slab.head_stride = stride.value();
    slab.data = carver.take<std::byte>(CheckedSize(static_cast<uint64_t>(slab.n_heads)) * stride,
                                       alignment);
  };
  carve_slab(storage.k, bounds_.head_dim_k, bounds_.type_k, page_bytes);
  carver.take<std::byte>(page_bytes / 2, page_bytes);  // V begins half a page off K
  carve_slab(storage.v, bounds_.head_dim_v, bounds_.type_v, 64);
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

AttentionConstants KvLayers::constants_for(int32_t layer, int64_t n_q_heads) const {
  AttentionConstants constants = layers_[layer].constants;
  if (constants.n_q_heads == 0) {
    constants.n_q_heads = static_cast<int32_t>(n_q_heads);
    constants.scale = 0;
  }
  if (!(constants.scale != 0)) {
    constants.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(bounds_.head_dim_k)));
  }
  return constants;
}

}  // namespace kvc
