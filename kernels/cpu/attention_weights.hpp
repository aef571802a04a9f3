#pragma once
#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

namespace kvc::cpu {

/// Writes params.tensors.weights: what each value counts for in each row of the result.
void attention_weights(const AttentionParams& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
