#pragma once
#include <cstdint>
#include <memory>

#include "core/base/allocator.hpp"
#include "core/base/status.hpp"
#include "core/device.hpp"

namespace kvc {

struct DeviceOptions {
  int32_t n_threads = 0;  // the caller's included; 0: as many as the process is allowed
  const Allocator* allocator = nullptr;         // null: the system's memory
  const Allocator* device_allocator = nullptr;  // of memory that is not the host's; null: the device's own
};

/// Devices by the name that a caller opens them with.
struct DeviceEntry {
  const char* name = nullptr;
  Status (*open)(const DeviceOptions& options, std::shared_ptr<Device>* out) = nullptr;
};

/// Adds a device under a name that nobody has; false when it is taken or there are too many. Before anything is opened.
bool register_device(const DeviceEntry& entry) noexcept;

/// Device `index` in order of registration; null past the last.
const DeviceEntry* registered_device(int32_t index) noexcept;
const DeviceEntry* find_device(const char* name) noexcept;

}  // namespace kvc
