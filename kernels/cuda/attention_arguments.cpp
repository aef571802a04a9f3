#include "kernels/cuda/attention_arguments.hpp"

#include <cmath>
#include <numbers>
#include <utility>

namespace kvc::cuda {
namespace {

Numbers numbers_of(const Slab& slab) {
  return {reinterpret_cast<const char*>(slab.codes.data),
          static_cast<int64_t>(slab.codes.head_stride),
          static_cast<int64_t>(slab.codes.row_stride),
          slab.head_dim(),
          slab.n_cells,
          element_of(slab.type()),
          coding_of(slab.format),
          reinterpret_cast<const char*>(slab.scales.data),
          static_cast<int64_t>(slab.scales.head_stride),
          static_cast<int64_t>(slab.scales.row_stride),
          nullptr};
}

/// Dimensions: token, head, and the last.
Strided by_token(const Tensor& tensor) {
  Strided view = {};
  view.data = static_cast<char*>(tensor.data);
  if (tensor.data == nullptr) return view;
  view.token = tensor.stride[0];
  view.head = tensor.stride[1];
  view.last = tensor.ndim > 2 ? tensor.stride[2] : 0;
  view.fold = tensor.fold;
  view.fold_stride = tensor.fold_stride;
  view.element = element_of(tensor.dtype);
  return view;
}

/// Dimensions: head, token, and the last.
Strided by_head(const Tensor& tensor) {
  Strided view = by_token(tensor);
  std::swap(view.token, view.head);
  return view;
}

/// A floor: what is more exact than the type that a caller allows will do.
bool may_round(Element to, uint32_t least_exact) {
  return (to == Element::bf16 && least_exact >= in_bf16) ||
         (to == Element::f16 && least_exact >= in_f16);
}

}  // namespace

AttentionArguments arguments_of(const AttentionParams& params, const DeviceTokens& tokens) {
  const AttentionConstants& constants = params.constants;
  const AttentionTensors& tensors = params.tensors;
  AttentionArguments a = {};
  a.k = numbers_of(params.storage.k);
  a.v = numbers_of(params.storage.v);
  a.cells = tokens.cells;
  a.positions = tokens.positions;
  a.seen = params.plan.seen != nullptr ? tokens.seen : nullptr;
  a.seen_words = params.plan.seen_words;
  a.q = by_token(tensors.q);
  a.out = by_token(tensors.out);
  a.lse = by_token(tensors.lse);
  a.bias = by_head(tensors.bias);
  a.mask = by_head(tensors.mask);
  a.weights = by_head(tensors.weights);
  a.n_columns = tensors.weights.data != nullptr ? tensors.weights.shape[2] : 0;
  a.bias_sharers = tensors.bias_sharers;
  a.mask_sharers = tensors.mask_sharers;
  a.first_column = params.first_column;
  a.columns_by_list = params.plan.columns_by_list ? 1 : 0;
  a.softcap = constants.softcap;
  a.rounds = may_round(a.k.element, params.settings.runtime_type) ? 1 : 0;
  a.q_factor = static_cast<float>(constants.scale *
                                  (constants.softcap == 0 ? std::numbers::log2e : 1.0));
  a.score_factor = 1;
  a.shape = {params.storage.k.n_heads, constants.n_q_heads / params.storage.k.n_heads};
  return a;
}

void place_schedule(AttentionArguments& a, const Schedule& schedule, const std::byte* block) {
  a.tiles = reinterpret_cast<const Tile*>(block + schedule.tiles_at());
  a.rows = reinterpret_cast<const TileRow*>(block + schedule.rows_at());
  a.lists = reinterpret_cast<const ListRef*>(block + schedule.lists_at());
  a.segments = reinterpret_cast<const Segment*>(block + schedule.segments_at());
  a.n_tiles = schedule.n_tiles();
}

void place_wave(AttentionArguments& a, const Schedule& schedule, int32_t index) {
  const Wave& wave = schedule.wave(index);
  a.first_part = wave.first_part;
  a.n_parts = wave.n_parts;
  place_width(a, schedule.shape_of(wave), wave.width);
}

void place_width(AttentionArguments& a, const TileShape& shape, Width width) {
  a.shape = shape;
  const float factor = a.q_factor * a.score_factor;
  a.q_factor = width == Width::wide ? std::ldexp(std::copysign(1.0f, factor), std::ilogb(factor))
                                    : factor;
  a.score_factor = factor / a.q_factor;
}

}  // namespace kvc::cuda
