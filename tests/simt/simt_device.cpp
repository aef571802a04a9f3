// The CUDA device over the simulation, under the CPU's name, for tests that know only the CPU: linked into a library in the place of
// the real one. Their tensors are memory of the host, which the simulation can touch, and they look at results as soon as a
// call has returned: so the work of a call is done when it returns, but for what the begin of a pass brings to the device.
#include <memory>
#include <utility>

#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "tests/fake/over_cpu.hpp"
#include "tests/fake/prompt_device.hpp"
#include "tests/simt/runtime_simt.hpp"

namespace simt {
namespace {

using kvc::Status;

/// Around a call: what it gave to the simulation is done when it returns.
struct Finish {
  template <class Call>
  Status operator()(Call call) const {
    const Status status = call();
    device::finish();
    return status;
  }
};

class PromptCacheDevice final : public fake::CacheDeviceOver<Finish> {
 public:
  explicit PromptCacheDevice(std::unique_ptr<kvc::CacheDevice> late)
      : CacheDeviceOver(std::move(late), Finish()) {}

  Status begin_pass(const kvc::AttentionPlan& plan, const kvc::TokenChanges& changes,
                    void* stream) noexcept override {
    return inner_->begin_pass(plan, changes, stream);
  }
};

Status open(const kvc::DeviceOptions& options, std::shared_ptr<kvc::Device>* out) {
  std::shared_ptr<kvc::Device> cpu, late;
  if (Status s = kvc::cpu::CpuDevice::create(options, &cpu); s != Status::ok) return s;
  if (Status s = kvc::cuda::CudaDevice::create(0, cpu, &late); s != Status::ok) return s;
  *out = std::make_shared<fake::PromptDevice<PromptCacheDevice>>(std::move(cpu), std::move(late));
  return Status::ok;
}

// Before main, so before the library looks for its own.
[[maybe_unused]] const bool registered = kvc::register_device({.name = "cpu", .open = open});

}  // namespace
}  // namespace simt
