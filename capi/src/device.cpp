#include <cstring>
#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "core/device_registry.hpp"
#include "kernels/cpu/cpu_device.hpp"

namespace kvc::capi {
namespace {

constexpr int32_t most_threads = 256;

/// Devices that come with the library are registered at the first look. A device that has registered itself under the same
/// name before stays.
const DeviceEntry* device_named(const char* name) {
  static const bool registered = register_device(cpu::cpu_device);
  (void)registered;
  return find_device(name);
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
  const DeviceEntry* entry = device_named(name);
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
  *out = static_cast<kvc_device*>(handles::add(Kind::device, object.get()));
  if (*out == nullptr) return Status::out_of_memory;
  (void)object.release();  // the table owns it now
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_device_open(const char* name, const kvc_device_desc* desc,
                           const kvc_allocator* allocator, kvc_device** out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::open_device(name, desc, allocator, out); });
}

kvc_status kvc_device_close(kvc_device* device) noexcept {
  if (device == nullptr) return KVC_OK;
  return kvc::capi::guard([&]() -> kvc::Status {
    void* object = nullptr;
    const kvc::Status removed = kvc::capi::handles::remove(device, kvc::capi::Kind::device, &object);
    if (removed == kvc::Status::ok) delete static_cast<kvc::capi::DeviceObject*>(object);
    return removed;
  });
}
