#pragma once
#include <cstddef>

namespace kvc {

/// Where a host wants its memory to come from. Both functions are called from any thread, never during a pass.
struct Allocator {
  void* user = nullptr;
  /// A block of `bytes` aligned to `alignment` (a power of two), or null. What it contains does not matter.
  void* (*alloc)(void* user, size_t bytes, size_t alignment) = nullptr;
  /// Takes back a block with the numbers it was asked for.
  void (*free)(void* user, void* block, size_t bytes, size_t alignment) = nullptr;
};

}  // namespace kvc
