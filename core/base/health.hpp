#pragma once
#include "core/base/status.hpp"

namespace kvc {

/// Whether a cache still works. A failed assertion or a failed device poisons it for good: from then on every call but
/// destroy and stats returns what poisoned it.
class Health {
 public:
  Status status() const { return status_; }
  bool ok() const { return status_ == Status::ok; }

  /// An invariant that must hold in every build. Const, because const calls assert too.
  void expect(bool condition, const char* invariant) const {
    if (!condition) poison(invariant);
  }
  void poison(const char* broken_invariant) const {
    if (ok()) status_ = fail(Status::internal, "broken invariant: %s", broken_invariant);
  }
  /// Passes a device's status on; anything but ok poisons.
  Status after(Status device_status) const {
    if (device_status != Status::ok) status_ = device_status;
    return device_status;
  }

 private:
  mutable Status status_ = Status::ok;
};

}  // namespace kvc
