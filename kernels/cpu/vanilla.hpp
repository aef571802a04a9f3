#pragma once
#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

namespace kvc::cpu {

/// Attention by its definition, a row and a query head at a time: every option, in f32 or, with settings.in_double, in double. It
/// needs no more workspace than the tiles do.
void vanilla_attention(const AttentionParams& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
