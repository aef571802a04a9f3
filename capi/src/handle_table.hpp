#pragma once
#include <cstdint>

#include "core/base/status.hpp"

namespace kvc::capi {

enum class Kind : uint32_t { device = 1, cache = 2 };

/// How a call uses an object: any number of shared calls at a time, or one exclusive call.
enum class Access { shared, exclusive };

/// Handles are keys of one table per process: generation, kind and index, mixed with a secret of the process under a fixed
/// pattern that makes no canonical address. The table checks each in every build, knows whether a call is inside the object
/// (BUSY instead of undefined behaviour), and lies in memory that the kernel wipes in a forked child, its lock included,
/// so that a child holds no handles and pays nothing for it.
namespace handles {

/// A new key for `object`; null when the table is full or cannot be mapped (the message says which).
void* add(Kind kind, void* object) noexcept;

/// Enters the object behind `handle`. On ok the caller must leave() it.
Status enter(const void* handle, Kind kind, Access access, void** object) noexcept;
void leave(const void* handle, Access access) noexcept;

/// Takes the key out of the table, if no call is inside; the object is then the caller's to delete.
Status remove(const void* handle, Kind kind, void** object) noexcept;

}  // namespace handles
}  // namespace kvc::capi
