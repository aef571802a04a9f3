#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

/// Writes rows into cells, reads, moves and clears them: what caches call beside attention (see CacheDevice).
namespace kvc::cpu {

/// What a thread needs for a row that is encoded or decoded: room for its numbers, and the last rotation by RoPE.
struct ThreadRows {
  float* values = nullptr;       // [max(head_dim_k, head_dim_v)]
  float* rotation = nullptr;     // [head_dim_k]
  int32_t* turned_by = nullptr;  // the offset that `rotation` is for; 0: none
};

/// Those of all threads, in the workspace of attention: calls of a cache exclude each other.
struct RowScratch {
  ThreadRows first;  // of thread 0
  size_t bytes_apart = 0;

  ThreadRows of(int32_t thread) const;
};

void store_rows(const StoreParams& params, ThreadPool& pool, const RowScratch& scratch) noexcept;
void store_codes(const StoreCodesParams& params, ThreadPool& pool) noexcept;
void load_rows(const LoadParams& params, ThreadPool& pool, const RowScratch& scratch) noexcept;
void move_rows(const MoveParams& params, ThreadPool& pool) noexcept;
void copy_cells(const CopyParams& params, ThreadPool& pool) noexcept;
void clear_rows(const ClearParams& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
