#pragma once
#include <cstddef>

#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

namespace kvc::cpu {

/// One attention call on the CPU. Everything it needs lies in params.workspace; it allocates nothing.
void attention(const AttentionParams& params, ThreadPool& pool) noexcept;

/// Bytes of workspace for calls within these bounds, served by a pool of n_threads.
size_t attention_workspace_bytes(const AttentionBounds& bounds, int32_t n_threads) noexcept;

}  // namespace kvc::cpu
