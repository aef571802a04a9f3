#include "kernels/cpu/mask.hpp"

#include <algorithm>
#include <limits>

#include "core/attention/visible.hpp"
#include "core/base/half.hpp"

namespace kvc::cpu {
namespace {

template <class Element>
void write(const MaskParams& params, Element visible, Element hidden) {
  const Element fill = params.all_visible ? visible : hidden;
  const Tensor& into = params.into;
  const int64_t n_tokens = into.shape[0], n_columns = into.shape[1], stride = into.stride[1];
  auto* const first = static_cast<Element*>(into.data);
  for (int64_t token = 0; token < n_tokens; ++token) {
    Element* const row = first + token * into.stride[0];
    if (stride == 1) {
      std::fill_n(row, n_columns, fill);
    } else {
      for (int64_t column = 0; column < n_columns; ++column) row[column * stride] = fill;
    }
  }
  for (int32_t r = 0; r < params.plan.n_rows; ++r) {
    Element* const row = first + params.plan.rows[r].token * into.stride[0];
    for_each_visible(params.plan, params.plan.rows[r], [&](int32_t, int32_t cell, int32_t) {
      row[(cell - params.first_column) * stride] = visible;
    });
  }
}

}  // namespace

void write_mask(const MaskParams& params) noexcept {
  constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
  switch (params.into.dtype) {
    case DType::f32: return write<float>(params, 0.0f, minus_infinity);
    case DType::f16: return write<uint16_t>(params, 0, f32_to_f16(minus_infinity));
    case DType::bf16: return write<uint16_t>(params, 0, f32_to_bf16(minus_infinity));
    case DType::boolean: return write<uint8_t>(params, 1, 0);
    default: break;  // no mask has codes
  }
  __builtin_unreachable();
}

}  // namespace kvc::cpu
