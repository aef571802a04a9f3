#pragma once
#include <memory>
#include <utility>

#include "kernels/cpu/cpu_device.hpp"

/// Devices for tests: the CPU, or another device, with something around each call.
namespace fake {

/// A device's side of a cache, by another. `Around` is called with each call, as a function that returns its status, and returns what the
/// cache gets.
template <class Around>
class CacheDeviceOver : public kvc::CacheDevice {
 public:
  CacheDeviceOver(std::unique_ptr<kvc::CacheDevice> inner, Around around)
      : inner_(std::move(inner)), around_(std::move(around)) {}

  kvc::Status begin_pass(const kvc::AttentionPlan& plan, const kvc::TokenChanges& changes,
                         void* stream) noexcept override {
    return around_([&] { return inner_->begin_pass(plan, changes, stream); });
  }
  kvc::Status store(const kvc::StoreParams& params) noexcept override {
    return around_([&] { return inner_->store(params); });
  }
  kvc::Status store_codes(const kvc::StoreCodesParams& params) noexcept override {
    return around_([&] { return inner_->store_codes(params); });
  }
  kvc::Status load(const kvc::LoadParams& params) noexcept override {
    return around_([&] { return inner_->load(params); });
  }
  kvc::Status move(const kvc::MoveParams& params) noexcept override {
    return around_([&] { return inner_->move(params); });
  }
  kvc::Status copy(const kvc::CopyParams& params, const kvc::CacheDevice& source) noexcept override {
    const kvc::CacheDevice& inner = *static_cast<const CacheDeviceOver&>(source).inner_;
    return around_([&] { return inner_->copy(params, inner); });
  }
  kvc::Status clear(const kvc::ClearParams& params) noexcept override {
    return around_([&] { return inner_->clear(params); });
  }
  kvc::Status attention(const kvc::AttentionOperator& op,
                        const kvc::AttentionParams& params) noexcept override {
    return around_([&] { return inner_->attention(op, params); });
  }
  kvc::Status write_mask(const kvc::MaskParams& params) noexcept override {
    return around_([&] { return inner_->write_mask(params); });
  }
  kvc::Status lightning(const kvc::LightningParams& params) noexcept override {
    return around_([&] { return inner_->lightning(params); });
  }
  kvc::Status load_lightning(const kvc::LightningState& state) const noexcept override {
    return around_([&] { return inner_->load_lightning(state); });
  }
  kvc::Status store_lightning(const kvc::LightningState& state) noexcept override {
    return around_([&] { return inner_->store_lightning(state); });
  }
  kvc::Status store_states(const kvc::StateRows& params) noexcept override {
    return around_([&] { return inner_->store_states(params); });
  }
  kvc::Status load_states(const kvc::StateRows& params) noexcept override {
    return around_([&] { return inner_->load_states(params); });
  }
  kvc::Status store_conv(const kvc::ConvRows& params) noexcept override {
    return around_([&] { return inner_->store_conv(params); });
  }
  kvc::Status copy_states(const kvc::StateCopies& params,
                          const kvc::CacheDevice& source) noexcept override {
    const kvc::CacheDevice& inner = *static_cast<const CacheDeviceOver&>(source).inner_;
    return around_([&] { return inner_->copy_states(params, inner); });
  }
  kvc::Status finish_copies() noexcept override {
    return around_([&] { return inner_->finish_copies(); });
  }
  kvc::Status clear_states(const kvc::StateClears& params) noexcept override {
    return around_([&] { return inner_->clear_states(params); });
  }
  kvc::Status read_rows(const kvc::RowBytes& rows) const noexcept override {
    return around_([&] { return inner_->read_rows(rows); });
  }
  kvc::Status write_rows(const kvc::RowBytes& rows) noexcept override {
    return around_([&] { return inner_->write_rows(rows); });
  }

 protected:
  const std::unique_ptr<kvc::CacheDevice> inner_;

 private:
  Around around_;
};

/// Another device; what a subclass overrides is its own. Caches attach to the subclass.
class DeviceOver : public kvc::Device {
 public:
  explicit DeviceOver(std::shared_ptr<kvc::Device> inner) : inner_(std::move(inner)) {}

  kvc::DeviceInfo info() const noexcept override { return inner_->info(); }
  kvc::Status check(const kvc::CacheNeeds& needs) const noexcept override {
    return inner_->check(needs);
  }
  kvc::Status synchronize() noexcept override { return inner_->synchronize(); }
  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    return inner_->allocate(place, bytes, prefault);
  }
  void release(kvc::Place place, void* block, size_t bytes) noexcept override {
    inner_->release(place, block, bytes);
  }
  const kvc::AttentionOperator* attention_operator(int32_t index) const noexcept override {
    return inner_->attention_operator(index);
  }
  size_t workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return inner_->workspace_bytes(bounds);
  }
  size_t host_workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return inner_->host_workspace_bytes(bounds);
  }
  size_t replayed_states_bytes(int32_t n) const noexcept override {
    return inner_->replayed_states_bytes(n);
  }
  size_t lightning_workspace_bytes(const kvc::LightningBounds& bounds) const noexcept override {
    return inner_->lightning_workspace_bytes(bounds);
  }

 protected:
  const std::shared_ptr<kvc::Device> inner_;
};

class DeviceOverCpu : public DeviceOver {
 public:
  /// Throws when there is no CPU device.
  explicit DeviceOverCpu(const kvc::DeviceOptions& options = {.n_threads = 1})
      : DeviceOver(open(options)) {}

 protected:
  /// For attach(): the CPU's side of the cache with `around` around each call.
  template <class Around>
  kvc::Status attach_around(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                            Around around, std::unique_ptr<kvc::CacheDevice>* out) {
    std::unique_ptr<kvc::CacheDevice> cpu;
    if (kvc::Status s = inner_->attach(bounds, workspace, &cpu); s != kvc::Status::ok) return s;
    *out = std::make_unique<CacheDeviceOver<Around>>(std::move(cpu), std::move(around));
    return kvc::Status::ok;
  }

 private:
  static std::shared_ptr<kvc::Device> open(const kvc::DeviceOptions& options) {
    std::shared_ptr<kvc::Device> cpu;
    if (kvc::cpu::CpuDevice::create(options, &cpu) != kvc::Status::ok) throw std::bad_alloc();
    return cpu;
  }
};

}  // namespace fake
