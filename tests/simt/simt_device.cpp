// The CUDA device over the simulation, under the CPU's name, for tests that know only the CPU: linked into a library in the place of
// the real one. Their tensors are memory of the host, which the simulation can touch, and they look at results as soon as a
// call has returned: so the work of a call is done when it returns, but for what the begin of a pass brings to the device.
#include <memory>
#include <new>
#include <utility>

#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "tests/fake/over_cpu.hpp"
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

class PromptDevice final : public kvc::Device {
 public:
  PromptDevice(std::shared_ptr<kvc::Device> cpu, std::shared_ptr<kvc::Device> late)
      : cpu_(std::move(cpu)), late_(std::move(late)) {}

  kvc::DeviceInfo info() const noexcept override {
    kvc::DeviceInfo info = late_->info();
    const kvc::DeviceInfo cpu = cpu_->info();
    info.type = cpu.type;
    info.id = cpu.id;
    info.takes_stream = cpu.takes_stream;
    info.n_threads = cpu.n_threads;
    info.instruction_set = cpu.instruction_set;
    return info;
  }
  Status check(const kvc::CacheNeeds& needs) const noexcept override { return late_->check(needs); }
  Status synchronize() noexcept override { return late_->synchronize(); }
  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    return late_->allocate(place, bytes, prefault);
  }
  void release(kvc::Place place, void* block, size_t bytes) noexcept override {
    late_->release(place, block, bytes);
  }
  const kvc::AttentionOperator* attention_operator(int32_t index) const noexcept override {
    return late_->attention_operator(index);
  }
  size_t workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return late_->workspace_bytes(bounds);
  }
  size_t host_workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return late_->host_workspace_bytes(bounds);
  }
  size_t lightning_workspace_bytes(const kvc::LightningBounds& bounds) const noexcept override {
    return late_->lightning_workspace_bytes(bounds);
  }
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    std::unique_ptr<kvc::CacheDevice> late;
    if (Status s = late_->attach(bounds, workspace, &late); s != Status::ok) return s;
    out->reset(new (std::nothrow) PromptCacheDevice(std::move(late)));
    return *out ? Status::ok
                : kvc::fail(Status::out_of_memory, "no memory for the simulated device");
  }

 private:
  std::shared_ptr<kvc::Device> cpu_, late_;
};

Status open(const kvc::DeviceOptions& options, std::shared_ptr<kvc::Device>* out) {
  std::shared_ptr<kvc::Device> cpu, late;
  if (Status s = kvc::cpu::CpuDevice::create(options, &cpu); s != Status::ok) return s;
  if (Status s = kvc::cuda::CudaDevice::create(0, cpu, &late); s != Status::ok) return s;
  *out = std::make_shared<PromptDevice>(std::move(cpu), std::move(late));
  return Status::ok;
}

// Before main, so before the library looks for its own.
[[maybe_unused]] const bool registered = kvc::register_device({.name = "cpu", .open = open});

}  // namespace
}  // namespace simt
