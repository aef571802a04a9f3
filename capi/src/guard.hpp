#pragma once
#include <new>

#include "capi/src/cancellation.hpp"
#include "core/base/float_environment.hpp"
#include "core/base/status.hpp"
#include "kvc/kvc.h"

/// The boundary: nothing that happens behind it may throw across it, and the caller's floating-point environment
/// stays outside.
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

}  // namespace kvc::capi
