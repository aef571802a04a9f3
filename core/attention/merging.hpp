#pragma once
#include <cstdint>

#include "core/base/tensor.hpp"

/// Results of attention over some of the keys, on the host: tensors of any strides whose shapes the boundary has checked.
namespace kvc {

/// o [..., heads, dim] and lse [..., heads] become the result over the keys of both.
void merge_attention(const Tensor& o, const Tensor& lse, const Tensor& o2, const Tensor& lse2);

/// o becomes what it is with a sink per head. sinks [heads].
void apply_sinks(const Tensor& o, const Tensor& lse, const float* sinks);

/// out [..., heads · n, dim] gets each head of in [..., heads, dim] n times, one after the other.
void repeat_heads(const Tensor& in, int32_t n, const Tensor& out);

}  // namespace kvc
