#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/cuda_plugin.hpp"
#include "capi/src/guard.hpp"
#include "capi/src/objects.hpp"
#include "capi/src/words.hpp"
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

int32_t n_devices() {
  int32_t n = 0;
  while (registered_device(n) != nullptr) ++n;
  return n;
}

DeviceName cuda_name(int32_t ordinal) {
  DeviceName name = {};
  std::snprintf(name.text, sizeof name.text, "cuda:%d", ordinal);
  return name;
}

/// "cpu, fake"
Words device_names() {
  Words names = {};
  size_t used = 0;
  for (int32_t i = 0; const DeviceEntry* entry = registered_device(i); ++i) {
    const int length = std::snprintf(names.text + used, sizeof names.text - used, "%s%s",
                                     i > 0 ? ", " : "", entry->name);
    used = std::min(used + static_cast<size_t>(length), sizeof names.text - 1);
  }
  return names;
}

/// A caller's name as far as a line of a log can hold it.
Words quoted(const char* name) {
  Words quoted = {"\""};
  size_t n = 1;
  for (; name[n - 1] != '\0' && n < 33; ++n)
    quoted.text[n] = name[n - 1] >= ' ' && name[n - 1] <= '~' ? name[n - 1] : '?';
  std::snprintf(quoted.text + n, sizeof quoted.text - n, "%s\"", name[n - 1] != '\0' ? "…" : "");
  return quoted;
}

Status device_name(int32_t index, char* name, size_t capacity) {
  if (index < 0)
    return fail(Status::invalid_argument,
                "index is %d; it must be 0 or more (count up until NOT_FOUND)", index);
  if (name == nullptr) return is_null("name");
  register_built_in();
  DeviceName found = {};
  if (const DeviceEntry* entry = registered_device(index)) {
    std::snprintf(found.text, sizeof found.text, "%s", entry->name);
  } else {
    const int32_t n = n_devices(), n_cuda = n_cuda_devices();
    if (index - n >= n_cuda)
      return fail(Status::not_found, "index %d is past the last of the %d devices", index, n + n_cuda);
    found = cuda_name(index - n);
  }
  const size_t needed = std::strlen(found.text) + 1;
  if (capacity < needed)
    return fail(Status::invalid_argument, "capacity %zu is too small: the name takes %zu bytes",
                capacity, needed);
  std::memcpy(name, found.text, needed);
  return Status::ok;
}

Status check_allocator(const char* name, const kvc_allocator* allocator, const char* otherwise) {
  if (allocator == nullptr || (allocator->alloc != nullptr && allocator->free != nullptr))
    return Status::ok;
  return fail(Status::invalid_argument, "%s.%s is null; it must be a function (pass no %s for %s)",
              name, allocator->alloc == nullptr ? "alloc" : "free", name, otherwise);
}

Allocator hook_of(const kvc_allocator* allocator) {
  if (allocator == nullptr) return {};
  return {allocator->user, allocator->alloc, allocator->free};
}

Status open_device(const char* name, const kvc_device_desc* desc, const kvc_allocator* allocator,
                   kvc_device** out) {
  if (out == nullptr) return is_null("out");
  *out = nullptr;
  if (name == nullptr) return is_null("name");
  kvc_device_desc settings = {};
  if (desc != nullptr) {
    if (Status s = read_descriptor("kvc_device_desc", desc, &settings); s != Status::ok) return s;
  }
  if (settings.flags != 0) return unknown_bits("kvc_device_desc.flags", settings.flags, nullptr);
  if (settings.n_threads < 0 || settings.n_threads > most_threads)
    return out_of_range("n_threads", settings.n_threads, 0, most_threads);
  if (Status s = check_allocator("allocator", allocator, "the system's memory"); s != Status::ok)
    return s;
  const kvc_allocator* const of_device = settings.device_allocator;
  if (Status s = check_allocator("device_allocator", of_device, "CUDA's own"); s != Status::ok)
    return s;
  register_built_in();
  const DeviceEntry* entry = find_device(name);
  const CudaName cuda = entry == nullptr ? read_cuda_name(name) : CudaName{};
  if (entry == nullptr && cuda.ordinal < 0) {
    return fail(Status::invalid_argument, "name is %s, not one of: %s (or cuda:N with libkvc_cuda)",
                quoted(name).text, device_names().text);
  }

  if (entry != nullptr && of_device != nullptr) {
    return fail(Status::not_supported,
                "kvc_device_desc.device_allocator with the device %s, whose memory is the host's: "
                "pass it as allocator",
                entry->name);
  }
  const Allocator hook = hook_of(allocator), device_hook = hook_of(of_device);
  std::unique_ptr<DeviceObject> object(new (std::nothrow) DeviceObject());
  if (!object)
    return fail(Status::out_of_memory, "the process has no memory for the handle of a device");
  const DeviceOptions options = {.n_threads = settings.n_threads,
                                 .allocator = allocator != nullptr ? &hook : nullptr,
                                 .device_allocator = of_device != nullptr ? &device_hook : nullptr};
  const Status opened = entry != nullptr ? entry->open(options, &object->device)
                                         : open_cuda(cuda, options, &object->device);
  if (opened != Status::ok) return opened;
  if (entry != nullptr)
    std::snprintf(object->name.text, sizeof object->name.text, "%s", entry->name);
  else
    object->name = cuda_name(cuda.ordinal);
  object->operators = std::make_shared<OperatorRegistry>(object->device);
  *out = static_cast<kvc_device*>(handles::add(Kind::device, object.get(), {}));
  if (*out == nullptr) return Status::out_of_memory;
  (void)object.release();  // the table owns it now
  return Status::ok;
}

Status query(const kvc_device* device, kvc_device_info* out) {
  void* entered = nullptr;
  if (Status s = handles::enter(device, Kind::device, Access::shared, &entered); s != Status::ok)
    return s;
  const DeviceObject& object = *static_cast<const DeviceObject*>(entered);
  const DeviceInfo about = object.device->info();
  kvc_device_info info = KVC_DEVICE_INFO_INIT;
  info.device_type = about.type;
  info.device_id = about.id;
  info.n_threads = about.n_threads;
  std::snprintf(info.name, sizeof info.name, "%s", object.name.text);
  std::snprintf(info.instruction_set, sizeof info.instruction_set, "%s", about.instruction_set);
  handles::leave(device, Access::shared);
  if (Status s = check_output("kvc_device_info", out); s != Status::ok) return s;
  write_output(info, out);
  return Status::ok;
}

/// The handle is left before: closing it does not have to wait.
Status synchronize(const kvc_device* handle) {
  void* entered = nullptr;
  if (Status s = handles::enter(handle, Kind::device, Access::shared, &entered); s != Status::ok)
    return s;
  const std::shared_ptr<Device> device = static_cast<const DeviceObject*>(entered)->device;
  handles::leave(handle, Access::shared);
  return device->synchronize();
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

kvc_status kvc_device_query(const kvc_device* device, kvc_device_info* out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::query(device, out); });
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

/// Its device may be closed meanwhile, and end here.
kvc_status kvc_device_synchronize(const kvc_device* device) noexcept {
  return kvc::capi::guard_lifetime([&] { return kvc::capi::synchronize(device); });
}
