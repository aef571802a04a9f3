// "cuda:0" over the simulation, for programs that are linked with it.
#include <memory>

#include "core/device_registry.hpp"
#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"

namespace {

kvc::Status open(const kvc::DeviceOptions&, std::shared_ptr<kvc::Device>* out) {
  std::shared_ptr<kvc::Device> host;
  if (kvc::Status s = kvc::cpu::CpuDevice::create({.n_threads = 1}, &host); s != kvc::Status::ok)
    return s;
  return kvc::cuda::CudaDevice::create(0, host, out);
}

// Before main, so before the library looks for a plugin.
[[maybe_unused]] const bool registered = kvc::register_device({.name = "cuda:0", .open = open});

}  // namespace
