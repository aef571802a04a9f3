#pragma once
#include <atomic>

#include "core/base/status.hpp"

namespace kvc {

/// Whether a cache still works. A failed assertion or a failed device poisons it for good: from then on every call but
/// destroy and stats returns what poisoned it.
class Health {
 public:
  Status status() const { return status_.load(std::memory_order_relaxed); }
  bool ok() const { return status() == Status::ok; }

  /// An invariant that must hold in every build. Const, because const calls assert too.
  void expect(bool condition, const char* invariant) const {
    if (!condition) poison(invariant);
  }
  void poison(const char* broken_invariant) const {
    if (ok()) set(fail(Status::internal, "broken invariant: %s", broken_invariant));
  }
  /// Passes a device's status on; anything but ok poisons.
  Status after(Status device_status) const {
    if (device_status != Status::ok) set(device_status);
    return device_status;
  }

 private:
  void set(Status status) const { status_.store(status, std::memory_order_relaxed); }

  mutable std::atomic<Status> status_{Status::ok};  // const calls may overlap
};

}  // namespace kvc
