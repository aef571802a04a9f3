#pragma once
#include <cstdint>
#include <memory>

#include "core/base/status.hpp"
#include "core/device.hpp"
#include "core/device_registry.hpp"

/// Devices of libkvc_cuda, a library of its own. It is loaded when a caller opens or counts them, so that libkvc itself needs
/// neither CUDA nor a driver.
namespace kvc::capi {

/// A name of such a device.
struct CudaName {
  int32_t ordinal = -1;           // N of "cuda:N", 0 of "cuda"; -1: it is another name
  const char* library = nullptr;  // L of "cuda:N@L"; null: none is named
};
CudaName read_cuda_name(const char* name);

/// With the backend that the name names, else KVC_CUDA_PLUGIN, else the one beside libkvc, else what the system's loader finds.
Status open_cuda(const CudaName& name, const DeviceOptions& options, std::shared_ptr<Device>* out);

/// How many there are; 0 where there is no backend or no driver.
int32_t n_cuda_devices();

}  // namespace kvc::capi
