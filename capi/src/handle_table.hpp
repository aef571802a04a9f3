#pragma once
#include <cstdint>

#include "core/base/status.hpp"
#include "core/caches/cache.hpp"

namespace kvc::capi {

enum class Kind : uint32_t { device = 1, cache = 2, op = 3 };

/// How a call uses an object: any number of shared calls at a time, or one exclusive call.
enum class Access { shared, exclusive };

/// Handles are keys of one table per process: generation, kind and index, mixed with a secret of the process under a fixed
/// pattern that makes no canonical address. The table checks each in every build, knows whether a call is inside the object
/// (BUSY instead of undefined behaviour), and lies in memory that the kernel wipes in a forked child, its lock included,
/// so that a child holds no handles and pays nothing for it.
namespace handles {

/// Holds the slot of a cache that a wrapper has as a child: until it is let go, the cache can be entered through it, and its
/// object lives, also when the handle has been destroyed.
struct Pin {
  uint32_t slot = 0;
  void* handle = nullptr;  // as it was when it was pinned
};

/// A new key for `object`; null when the table is full or cannot be mapped (the message says which). `stats` is what
/// read_stats() returns until a call posts others; a device has none. What the cells of the `n_children` pins hold is counted with it.
void* add(Kind kind, void* object, const CacheStats& stats, const Pin* children = nullptr,
          int32_t n_children = 0) noexcept;

/// Enters the object behind `handle`. On ok the caller must leave() it.
Status enter(const void* handle, Kind kind, Access access, void** object) noexcept;
void leave(const void* handle, Access access) noexcept;
/// Posts what an exclusive call leaves in a cache, and leaves it.
void leave(const void* handle, const CacheStats& stats) noexcept;
/// Posts that the cache is poisoned. The caller is inside.
void post_poison(const void* handle) noexcept;

/// The last statistics that were posted for a cache. Enters nothing: it waits for no call, and no call (destroy included)
/// waits for it or returns BUSY because of it.
Status read_stats(const void* handle, CacheStats* stats) noexcept;

/// Takes the key out of the table, if no call is inside; the object is then the caller's to delete. It is null where a pin
/// holds the slot.
Status remove(const void* handle, Kind kind, void** object) noexcept;
/// The same for a caller who is alone inside.
void erase(const void* handle, void** object) noexcept;

/// Names the slot of a cache that the caller is inside, and pins it; the caller is alone. One pin at a time.
Pin pin_of(void* handle) noexcept;
void pin(const Pin& pin) noexcept;
/// As enter() and leave() of its handle.
Status enter(const Pin& pin, Access access, void** object) noexcept;
void leave(const Pin& pin, Access access) noexcept;
void leave(const Pin& pin, const CacheStats& stats) noexcept;
void post_poison(const Pin& pin) noexcept;
/// Lets go and leaves; the caller is alone inside. Returns the object, which is then the caller's to delete, where its handle
/// was destroyed; else null.
void* unpin(const Pin& pin) noexcept;
/// Whether the handle of a pinned cache still works.
bool is_live(const Pin& pin) noexcept;

}  // namespace handles
}  // namespace kvc::capi
