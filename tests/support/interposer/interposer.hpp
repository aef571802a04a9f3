#pragma once
#include <atomic>
#include <cstdint>

/// Between the return of create and destroy nothing is allocated, mapped or started. A program that links this file
/// defines malloc and its relatives, mmap, mremap, clone and pthread_create, and also every kvc_* function that takes a
/// cache, which it wraps: only what happens inside the library is counted, on whatever thread.
///
/// Under a sanitizer, whose runtime needs these functions itself, malloc is seen through its hooks, and memory that is
/// mapped and processes that are cloned are not seen.
namespace interposer {

struct Counts {
  uint64_t allocations, mappings, threads;
  uint64_t total() const { return allocations + mappings + threads; }
};

/// What was taken from the system while a Watch lived.
Counts taken() noexcept;

/// Calls of the library that were watched.
uint64_t watched_calls() noexcept;

/// While one lives, what the process takes is counted. The wrappers hold one; tests of the interposer too.
class Watch {
 public:
  Watch() noexcept;
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch();
};

}  // namespace interposer
