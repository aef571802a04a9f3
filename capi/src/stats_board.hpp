#pragma once
#include <atomic>
#include <cstdint>

#include "core/caches/cache.hpp"

namespace kvc::capi {

/// Where a cache posts its statistics, so that kvc_cache_stats() reads them without entering the cache. It lies beside the
/// cache's slot in the table of handles, whose memory outlives every cache: a reader can touch nothing that was freed.
///
/// There is one writer at a time: the call that is alone in the cache. It fills in the side that nobody is pointed to, then
/// points to it. A reader copies the side that it is pointed to and begins again if it is pointed elsewhere afterwards. The
/// copy is right, because a writer fills a side in again only after it has pointed to the other one, so a reader that meets a
/// number of the next filling (its store is a release, the load an acquire) meets the other pointer, too. So a writer never
/// waits, and a reader repeats its few loads only when a call has ended meanwhile; a writer that sleeps stops nobody.
class StatsBoard {
 public:
  /// The first post of a new cache.
  void begin(const CacheStats& stats) {
    cells_.store(stats.cells, std::memory_order_release);
    bytes_.store(stats.bytes, std::memory_order_release);
    poisoned_.store(false, std::memory_order_release);
    post(stats);
  }

  /// What an exclusive call leaves. `cells` and `bytes` never change.
  void post(const CacheStats& stats) {
    const uint64_t n = n_posts_.load(std::memory_order_relaxed) + 1;
    Side& side = sides_[n % 2];
    side.state.store(stats.state, std::memory_order_release);
    side.cells_used.store(stats.cells_used, std::memory_order_release);
    side.cells_shared.store(stats.cells_shared, std::memory_order_release);
    side.passes.store(stats.passes, std::memory_order_release);
    n_posts_.store(n, std::memory_order_release);
  }

  /// All that a const call can change. Such calls overlap, so they do not post.
  void poison() { poisoned_.store(true, std::memory_order_release); }

  CacheStats read() const {
    while (true) {
      const uint64_t n = n_posts_.load(std::memory_order_acquire);
      const Side& side = sides_[n % 2];
      CacheStats stats;
      stats.state = side.state.load(std::memory_order_acquire);
      stats.cells_used = side.cells_used.load(std::memory_order_acquire);
      stats.cells_shared = side.cells_shared.load(std::memory_order_acquire);
      stats.passes = side.passes.load(std::memory_order_acquire);
      stats.cells = cells_.load(std::memory_order_acquire);
      stats.bytes = bytes_.load(std::memory_order_acquire);
      if (poisoned_.load(std::memory_order_acquire)) stats.state = CacheState::poisoned;
      if (n_posts_.load(std::memory_order_acquire) == n) return stats;
    }
  }

 private:
  struct Side {
    std::atomic<CacheState> state;
    std::atomic<uint64_t> cells_used, cells_shared, passes;
  };

  std::atomic<uint64_t> n_posts_;  // the last one is on side n_posts_ % 2
  Side sides_[2];
  std::atomic<uint64_t> cells_, bytes_;
  std::atomic<bool> poisoned_;
};

}  // namespace kvc::capi
