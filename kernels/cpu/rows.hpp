#pragma once
#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

/// Writes rows into cells, reads, moves and clears them: what caches call beside attention (see Backend).
namespace kvc::cpu {

void store_rows(const StoreParams& params, ThreadPool& pool) noexcept;
void load_rows(const LoadParams& params, ThreadPool& pool) noexcept;
void move_rows(const MoveParams& params, ThreadPool& pool) noexcept;
void clear_rows(const ClearParams& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
