#pragma once
#include <new>

#include "capi/src/cancellation.hpp"
#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/base/float_environment.hpp"
#include "core/base/status.hpp"
#include "kvc/kvc.h"

/// The boundary: nothing that happens behind it may throw across it, every object is entered and left, and the caller's
/// floating-point environment stays outside.
namespace kvc::capi {

template <class Body>
kvc_status guard(Body body) noexcept {
  const FloatEnvironment environment;
  Status status = Status::internal;
  try {
    status = body();
  } catch (const std::bad_alloc&) {
    status = fail(Status::out_of_memory, "the process has no memory left");
  } catch (...) {
    status = fail(Status::internal,
                  "a C++ exception reached the boundary of kvc, which is a bug of kvc");
  }
  asm volatile("" : "+r"(status));  // what it depends on is computed before the environment ends
  return static_cast<kvc_status>(status);
}

/// For the calls that make or end an object: the threads, files and memory functions behind them hold cancellation points. A
/// call that merely borrows an object may turn out to be its last user, and end it.
template <class Body>
kvc_status guard_lifetime(Body body) noexcept {
  const NoCancellation until_done;
  return guard(body);
}

/// Calls `body(Cache&)` inside the cache behind `handle`, whatever its health, and posts what the call leaves for
/// kvc_cache_stats().
template <class Body>
kvc_status inside_cache(kvc_cache* handle, Access access, Body body) noexcept {
  void* object = nullptr;
  if (Status s = handles::enter(handle, Kind::cache, access, &object); s != Status::ok)
    return static_cast<kvc_status>(s);
  Cache& cache = *static_cast<CacheObject*>(object)->cache;
  const kvc_status status = guard([&] { return body(cache); });
  if (access == Access::exclusive) {
    handles::leave(handle, cache.stats());
  } else {
    if (!cache.health().ok()) handles::post_poison(handle);
    handles::leave(handle, access);
  }
  return status;
}

/// Calls `body(Cache&)` inside the cache behind `handle`, alone or beside other const calls by the handle's constness.
/// A poisoned cache returns the status that poisoned it.
template <class Body>
kvc_status with_cache(kvc_cache* handle, Access access, Body body) noexcept {
  return inside_cache(handle, access, [&](Cache& cache) -> Status {
    if (Status s = cache.health().status(); s != Status::ok)
      return fail(s,
                  "the cache is poisoned by an earlier failure: only kvc_cache_destroy and "
                  "kvc_cache_stats still work");
    try {
      return body(cache);
    } catch (...) {  // nothing in a call on a cache throws or allocates: what it left undone is unknown
      cache.health().poison("a call was left by an exception");
      return Status::internal;
    }
  });
}

template <class Body>
kvc_status with_cache(kvc_cache* handle, Body body) noexcept {
  return with_cache(handle, Access::exclusive, body);
}

template <class Body>
kvc_status with_cache(const kvc_cache* handle, Body body) noexcept {
  return with_cache(const_cast<kvc_cache*>(handle), Access::shared,
                    [&](const Cache& cache) { return body(cache); });
}

/// Calls `body(KeyValues&)`; a kind of cache without keys and values is NOT_SUPPORTED, before arguments are looked at.
template <class Handle, class Body>
kvc_status with_key_values(Handle* handle, Body body) noexcept {
  return with_cache(handle, [&](auto& cache) -> Status {
    auto* key_values = cache.key_values();
    if (key_values == nullptr)
      return fail(Status::not_supported,
                  "this call needs keys and values, which a cache of this kind does not hold");
    return body(*key_values);
  });
}

/// Calls `body(PositionedKeys&, KeyValues&)` likewise, of a cache whose keys have positions.
template <class Body>
kvc_status with_positioned_keys(kvc_cache* handle, Body body) noexcept {
  return with_cache(handle, [&](Cache& cache) -> Status {
    PositionedKeys* keys = cache.positioned_keys();
    if (keys == nullptr)
      return fail(Status::not_supported,
                  "this call needs keys with positions, which a cache of this kind does not hold");
    return body(*keys, *cache.key_values());
  });
}

/// Calls `body(EncoderInputs&, Cache&)` likewise, of a cache that holds encoder inputs.
template <class Handle, class Body>
kvc_status with_encoder_inputs(Handle* handle, Body body) noexcept {
  return with_cache(handle, [&](auto& cache) -> Status {
    auto* inputs = cache.encoder_inputs();
    if (inputs == nullptr)
      return fail(Status::not_supported, "this call is for encoder caches (kind KVC_ENCODER)");
    return body(*inputs, cache);
  });
}

}  // namespace kvc::capi
