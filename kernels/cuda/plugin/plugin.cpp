#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <new>

#include "core/device_plugin.hpp"
#include "core/plugin_build.hpp"
#include "kernels/cuda/device.hpp"

// libkvc_cuda as libkvc sees it.

namespace kvc {
namespace {

/// The library that asked last. Where a process has several copies of libkvc, their messages go to that one.
constinit std::atomic<const PluginHost*> library = nullptr;

int32_t n_devices() noexcept {
  int32_t n = 0;
  return cuda::runtime::count_devices(&n) == cuda::Error::none ? n : 0;
}

Status open(int32_t ordinal, const std::shared_ptr<Device>& host, const Allocator* memory,
            std::shared_ptr<Device>* out) noexcept {
  try {
    return cuda::CudaDevice::create(ordinal, host, out, memory);
  } catch (const std::bad_alloc&) {
    return fail(Status::out_of_memory, "the process has no memory for the object of a device");
  }
}

constexpr DevicePlugin plugin = {.build = plugin_build, .n_devices = n_devices, .open = open};

}  // namespace

/// In the place of core's: the messages of a thread are libkvc's.
Status fail(Status status, const char* format, ...) noexcept {
  char text[message_capacity];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return library.load(std::memory_order_acquire)->fail(status, text);
}

}  // namespace kvc

extern "C" [[gnu::visibility("default")]] const kvc::DevicePlugin* kvc_cuda_plugin_v1(
    const kvc::PluginHost* host);

const kvc::DevicePlugin* kvc_cuda_plugin_v1(const kvc::PluginHost* host) {
  kvc::library.store(host, std::memory_order_release);
  return &kvc::plugin;
}
