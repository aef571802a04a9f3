#pragma once
#include <memory>

#include "core/base/allocator.hpp"
#include "core/device.hpp"
#include "kernels/cuda/cache_device.hpp"

namespace kvc::cuda {

/// One GPU as the caches' device. Any thread may call it; it makes the GPU current for the call.
class CudaDevice final : public Device {
 public:
  /// GPU `ordinal`. Host memory comes from `host`, which is kept, the GPU's from `memory`, if it is not null.
  /// BACKEND_UNAVAILABLE where there is no such GPU, with the reason.
  static Status create(int32_t ordinal, const std::shared_ptr<Device>& host,
                       std::shared_ptr<Device>* out, const Allocator* memory = nullptr);

  DeviceInfo info() const noexcept override;
  Status check(const CacheNeeds& needs) const noexcept override;
  Status synchronize() noexcept override;
  Status is_recording(void* stream, bool* records) const noexcept override;
  void* allocate(Place place, size_t bytes, bool prefault) noexcept override;
  void release(Place place, void* block, size_t bytes) noexcept override;
  const AttentionOperator* attention_operator(int32_t index) const noexcept override;
  size_t workspace_bytes(const AttentionBounds& bounds) const noexcept override;
  size_t replayed_states_bytes(int32_t n) const noexcept override;
  size_t host_workspace_bytes(const AttentionBounds& bounds) const noexcept override;
  size_t lightning_workspace_bytes(const LightningBounds& bounds) const noexcept override;
  Status attach(const AttentionBounds& bounds, const WorkspaceBlocks& workspace,
                std::unique_ptr<CacheDevice>* out) noexcept override;

 private:
  CudaDevice(int32_t ordinal, const DeviceProperties& properties,
             const std::shared_ptr<Device>& host, const Allocator& memory);
  void* take(size_t bytes) noexcept;
  void give_back(void* block, size_t bytes) noexcept;

  const DeviceShape shape_;
  char architecture_[16];  // "sm_90"
  const std::shared_ptr<Device> host_;
  const Allocator memory_;  // without functions: CUDA's
};

}  // namespace kvc::cuda
