#pragma once
#include <cstdint>
#include <limits>

#include "core/attention/params.hpp"
#include "core/base/half.hpp"

namespace kvc::cpu {

/// What a call's bias adds to the score of a token and a column; minus infinity where the bias or the mask hides it.
inline float score_bias(const AttentionTensors& tensors, int64_t head, int64_t token, int64_t column) {
  const auto index_in = [=](const Tensor& tensor, int32_t sharers) {
    const int64_t own = sharers == 1 ? head : head / sharers;
    return own * tensor.stride[0] + tensor.token_offset(token, 1) + column * tensor.stride[2];
  };
  const Tensor& mask = tensors.mask;
  if (mask.data != nullptr &&
      static_cast<const uint8_t*>(mask.data)[index_in(mask, tensors.mask_sharers)] == 0)
    return -std::numeric_limits<float>::infinity();
  const Tensor& bias = tensors.bias;
  if (bias.data == nullptr) return 0;
  return load_element(bias.data, bias.dtype, index_in(bias, tensors.bias_sharers));
}

}  // namespace kvc::cpu
