#pragma once
#include <memory>

#include "core/base/allocator.hpp"
#include "core/base/thread_pool.hpp"
#include "core/device.hpp"
#include "core/device_registry.hpp"

namespace kvc::cpu {

/// This machine as the caches' device. One pool of threads serves every cache that shares the device; a call that finds it
/// busy does its own work.
class CpuDevice final : public Device {
 public:
  /// `n_threads` counts the caller, 0 means what the process is allowed. `allocator` may be null (pages of the system,
  /// huge ones asked for); otherwise it is copied, and its functions are called until the device is destroyed.
  static Status create(const DeviceOptions& options, std::shared_ptr<Device>* out);

  ~CpuDevice() override;
  CpuDevice(const CpuDevice&) = delete;
  CpuDevice& operator=(const CpuDevice&) = delete;

  DeviceInfo info() const noexcept override;
  void* allocate(Place place, size_t bytes, bool prefault) noexcept override;
  void release(Place place, void* block, size_t bytes) noexcept override;
  const AttentionOperator* attention_operator(int32_t index) const noexcept override;
  size_t workspace_bytes(const AttentionBounds& bounds) const noexcept override;
  size_t lightning_workspace_bytes(const LightningBounds& bounds) const noexcept override;
  Status attach(const AttentionBounds& bounds, const WorkspaceBlocks& workspace,
                std::unique_ptr<CacheDevice>* out) noexcept override;

 private:
  CpuDevice(ThreadPool* pool, const Allocator& allocator) : pool_(pool), allocator_(allocator) {}

  ThreadPool* pool_;
  Allocator allocator_;  // alloc is null: the system's pages
};

inline constexpr DeviceEntry cpu_device = {.name = "cpu", .open = CpuDevice::create};

}  // namespace kvc::cpu
