#include "core/device_registry.hpp"

#include <atomic>
#include <cstring>

namespace kvc {
namespace {

constexpr int32_t most_devices = 16;

// Constant-initialised: whoever registers before main finds it there.
constinit DeviceEntry entries[most_devices] = {};
constinit std::atomic<int32_t> n_entries = 0;

}  // namespace

bool register_device(const DeviceEntry& entry) noexcept {
  const int32_t n = n_entries.load(std::memory_order_acquire);
  if (n == most_devices || find_device(entry.name) != nullptr) return false;
  entries[n] = entry;
  n_entries.store(n + 1, std::memory_order_release);
  return true;
}

const DeviceEntry* registered_device(int32_t index) noexcept {
  const int32_t n = n_entries.load(std::memory_order_acquire);
  return index >= 0 && index < n ? &entries[index] : nullptr;
}

const DeviceEntry* find_device(const char* name) noexcept {
  for (int32_t i = 0; const DeviceEntry* entry = registered_device(i); ++i) {
    if (std::strcmp(entry->name, name) == 0) return entry;
  }
  return nullptr;
}

}  // namespace kvc
