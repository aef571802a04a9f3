#pragma once
#include <atomic>
#include <cstdint>

#include "core/base/status.hpp"

namespace kvc {

/// Where a thread's last message lies. Not thread-local storage: a library with a TLS segment either takes room that the
/// program has little of (and fails to load when it is used up), or allocates it at the first failure of each thread.
///
/// Slots lie in memory of the library that costs nothing until they are used. A thread takes one at its first failure and
/// keeps it to its end. Nothing runs when a thread ends, so that the library may be unloaded at the same time: whoever
/// needs a slot later asks the kernel whether a slot's thread is still there.
struct MessageSlot {
  std::atomic<uint64_t> owner;  // generation << 32 | the kernel's number of the thread; 0: never used
  char text[message_capacity];

  /// The calling thread's slot, taken at the first call; null when threads that live hold all of them. Allocates nothing, but
  /// for one thing: where more than 32 pthread keys are in use, glibc allocates 512 bytes for each thread that fails.
  static MessageSlot* take() noexcept;

  /// The calling thread's slot if it has taken one, or null.
  static MessageSlot* find() noexcept;

  /// After writing or reading the text: what a later owner does comes behind it.
  void done() noexcept;
};

}  // namespace kvc
