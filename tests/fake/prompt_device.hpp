#pragma once
#include <memory>
#include <new>
#include <utility>

#include "core/device.hpp"

namespace fake {

/// A device for tests that know only the CPU: it says that it is one, and the work of each call is another device's, `late`. So that a
/// call has done its work when it returns, `PromptCacheDevice` is put around that device's side of each cache.
template <class PromptCacheDevice>
class PromptDevice : public kvc::Device {
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
  kvc::Status check(const kvc::CacheNeeds& needs) const noexcept override {
    return late_->check(needs);
  }
  kvc::Status synchronize() noexcept override { return late_->synchronize(); }
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
  size_t replayed_states_bytes(int32_t n) const noexcept override {
    return late_->replayed_states_bytes(n);
  }
  size_t lightning_workspace_bytes(const kvc::LightningBounds& bounds) const noexcept override {
    return late_->lightning_workspace_bytes(bounds);
  }
  kvc::Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                     std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    std::unique_ptr<kvc::CacheDevice> late;
    if (kvc::Status s = late_->attach(bounds, workspace, &late); s != kvc::Status::ok) return s;
    out->reset(new (std::nothrow) PromptCacheDevice(std::move(late)));
    return *out ? kvc::Status::ok
                : kvc::fail(kvc::Status::out_of_memory, "no memory for a device under test");
  }

 private:
  std::shared_ptr<kvc::Device> cpu_, late_;
};

}  // namespace fake
