#pragma once
#include <cstdint>
#include <memory>

#include "core/base/allocator.hpp"
#include "core/base/status.hpp"
#include "core/device.hpp"

/// How libkvc meets a backend in a library of its own. The backend implements Device, so both must be built from the same headers:
/// the text of the build proves it, before anything else is used.
namespace kvc {

/// What the library gives the plugin. Stays as long as the library is loaded.
struct PluginHost {
  /// Makes `text` the calling thread's message.
  Status (*fail)(Status status, const char* text) noexcept = nullptr;
};

/// What the plugin gives the library. Stays until the process ends: plugins are not unloaded.
struct DevicePlugin {
  const char* build = nullptr;  // the plugin's plugin_build; the other members count only where it is the library's
  int32_t (*n_devices)() noexcept = nullptr;  // that can be opened
  /// The device takes its host memory from `host`, and its own from `memory` (null: from CUDA).
  Status (*open)(int32_t ordinal, const std::shared_ptr<Device>& host, const Allocator* memory,
                 std::shared_ptr<Device>* out) noexcept = nullptr;
};

/// The one function that a plugin exports. It may be called often, and by several copies of the library.
using DevicePluginEntry = const DevicePlugin* (*)(const PluginHost* host);

/// Its name in libkvc_cuda.
inline constexpr const char* cuda_plugin_entry = "kvc_cuda_plugin_v1";

}  // namespace kvc
