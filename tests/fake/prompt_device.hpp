#pragma once
#include <memory>
#include <new>
#include <utility>

#include "tests/fake/over_cpu.hpp"

namespace fake {

/// A device for tests that know only the CPU: it says that it is one, and the work of each call is another device's, `late`. So that a
/// call has done its work when it returns, `PromptCacheDevice` is put around that device's side of each cache.
template <class PromptCacheDevice>
class PromptDevice : public DeviceOver {
 public:
  PromptDevice(std::shared_ptr<kvc::Device> cpu, std::shared_ptr<kvc::Device> late)
      : DeviceOver(std::move(late)), cpu_(std::move(cpu)) {}

  kvc::DeviceInfo info() const noexcept override {
    kvc::DeviceInfo info = inner_->info();
    const kvc::DeviceInfo cpu = cpu_->info();
    info.type = cpu.type;
    info.id = cpu.id;
    info.takes_stream = cpu.takes_stream;
    info.n_threads = cpu.n_threads;
    info.instruction_set = cpu.instruction_set;
    return info;
  }
  kvc::Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                     std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    std::unique_ptr<kvc::CacheDevice> late;
    if (kvc::Status s = inner_->attach(bounds, workspace, &late); s != kvc::Status::ok) return s;
    out->reset(new (std::nothrow) PromptCacheDevice(std::move(late)));
    return *out ? kvc::Status::ok
                : kvc::fail(kvc::Status::out_of_memory, "no memory for a device under test");
  }

 private:
  std::shared_ptr<kvc::Device> cpu_;
};

}  // namespace fake
