#include <cstring>
#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "core/device_registry.hpp"
#include "kernels/cpu/cpu_device.hpp"
#include "kvc/experimental.h"

namespace kvc::capi {
namespace {

constexpr int32_t most_threads = 256;

/// Devices that come with the library. One that has registered itself under the same name before stays.
void register_built_in() {
  static const bool registered = register_device(cpu::cpu_device);
  (void)registered;
}

Status device_name(int32_t index, char* name, size_t capacity) {
  if (index < 0) return fail(Status::invalid_argument, "index %d is negative", index);
  if (name == nullptr) return fail(Status::invalid_argument, "name is null");
  register_built_in();
  const DeviceEntry* entry = registered_device(index);
  if (entry == nullptr) return fail(Status::not_found, "there is no device %d", index);
  const size_t needed = std::strlen(entry->name) + 1;
  if (capacity < needed)
    return fail(Status::invalid_argument, "capacity %zu, the name takes %zu bytes", capacity, needed);
  std::memcpy(name, entry->name, needed);
  return Status::ok;
}

Status open_device(const char* name, const kvc_device_desc* desc, const kvc_allocator* allocator,
                   kvc_device** out) {
  if (out == nullptr) return fail(Status::invalid_argument, "out is null");
  *out = nullptr;
  if (name == nullptr) return fail(Status::invalid_argument, "name is null");
  kvc_device_desc settings = {};
  if (desc != nullptr) {
    if (Status s = read_descriptor("kvc_device_desc", desc, &settings); s != Status::ok) return s;
  }
  if (settings.flags != 0)
    return fail(Status::invalid_argument, "unknown flags of kvc_device_desc");
  if (settings.n_threads < 0 || settings.n_threads > most_threads) {
    return fail(Status::invalid_argument, "n_threads %d out of range [0, %d]", settings.n_threads,
                most_threads);
  }
  if (allocator != nullptr && (allocator->alloc == nullptr || allocator->free == nullptr)) {
    return fail(Status::invalid_argument, "the allocator needs both functions");
  }
  register_built_in();
  const DeviceEntry* entry = find_device(name);
  if (entry == nullptr && std::strncmp(name, "cuda", 4) == 0 && (name[4] == '\0' || name[4] == ':'))
    return fail(Status::backend_unavailable, "no CUDA backend is installed");
  if (entry == nullptr)
    return fail(Status::invalid_argument, "no device has this name; known: cpu, cuda:N");

  Allocator hook;
  if (allocator != nullptr) hook = {allocator->user, allocator->alloc, allocator->free};
  std::unique_ptr<DeviceObject> object(new (std::nothrow) DeviceObject());
  if (!object) return fail(Status::out_of_memory, "no memory for a device");
  const DeviceOptions options = {.n_threads = settings.n_threads,
                                 .allocator = allocator != nullptr ? &hook : nullptr};
  if (Status s = entry->open(options, &object->device); s != Status::ok) return s;
  *out = static_cast<kvc_device*>(handles::add(Kind::device, object.get(), {}));
  if (*out == nullptr) return Status::out_of_memory;
  (void)object.release();  // the table owns it now
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_device_open(const char* name, const kvc_device_desc* desc,
                           const kvc_allocator* allocator, kvc_device** out) noexcept {
  return kvc::capi::guard_lifetime([&] { return kvc::capi::open_device(name, desc, allocator, out); });
}

kvc_status kvc_device_name(int32_t index, char* name, size_t capacity) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::device_name(index, name, capacity); });
}

kvc_status kvc_device_close(kvc_device* device) noexcept {
  if (device == nullptr) return KVC_OK;
  return kvc::capi::guard_lifetime([&]() -> kvc::Status {
    void* object = nullptr;
    const kvc::Status removed = kvc::capi::handles::remove(device, kvc::capi::Kind::device, &object);
    if (removed == kvc::Status::ok) delete static_cast<kvc::capi::DeviceObject*>(object);
    return removed;
  });
}
