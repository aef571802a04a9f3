#pragma once
#include <cstdint>

#include "core/base/status.hpp"

namespace kvc {

/// A fixed set of worker threads that share one caller's items. Every thread runs when it has been made, none is
/// started later.
///
/// Completion is counted in items, not in workers: the caller takes items itself and waits only for items that a worker
/// has already taken, so a worker that wakes late costs nothing. Workers spin for a short while after a job (decode calls
/// come layer by layer), then sleep, kept away from the CPU of the caller so that they do not wake there. All signals are
/// blocked in them, so that a host's handlers (Go's runtime) never run there.
class ThreadPool {
 public:
  using Work = void (*)(void* context, int32_t item, int32_t thread) noexcept;

  /// `n_threads` counts the caller; 0 means what the process is allowed (affinity mask, cgroup quota).
  static Status create(int32_t n_threads, ThreadPool** out) noexcept;
  static void destroy(ThreadPool* pool) noexcept;

  int32_t n_threads() const noexcept;

  /// Items of one run at most. A job of more hands them out in one run after the other.
  static constexpr int32_t items_max = 1 << 30;

  /// Calls `work(context, item, thread)` once for every item of [0, n_items) and returns when all are done.
  /// `thread` is in [0, n_threads) and no two running items share it. Items start in ascending order.
  /// Allocates nothing. When the pool already serves another caller, this caller does all its items itself, as thread 0.
  void run(int32_t n_items, Work work, void* context) noexcept;

 private:
  ThreadPool() = default;
  ~ThreadPool() = default;
  struct State;
  State* state_ = nullptr;
};

}  // namespace kvc
