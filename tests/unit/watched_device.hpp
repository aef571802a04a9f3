#pragma once
#include <cstddef>
#include <memory>

#include "tests/fake/over_cpu.hpp"

/// The CPU, without room for attention; it knows the host block that the cache was given.
class WatchedDevice final : public fake::DeviceOverCpu {
 public:
  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    void* block = DeviceOverCpu::allocate(place, bytes, prefault);
    if (place == kvc::Place::host) {
      bytes_ = bytes;
      block_ = block;
    }
    return block;
  }
  size_t workspace_bytes(const kvc::AttentionBounds&) const noexcept override { return 0; }
  kvc::Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                     std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    return attach_around(
        bounds, workspace, [](auto call) { return call(); }, out);
  }

  std::byte* block() const { return static_cast<std::byte*>(block_); }
  size_t bytes() const { return bytes_; }

 private:
  void* block_ = nullptr;
  size_t bytes_ = 0;
};
