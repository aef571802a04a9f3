#pragma once
#include <gtest/gtest.h>

#include <cstddef>
#include <memory>

#include "kernels/cpu/cpu_backend.hpp"

/// The CPU, without room for attention; it knows the block that the cache was given.
class WatchedBackend final : public kvc::Backend {
 public:
  WatchedBackend() { EXPECT_EQ(kvc::cpu::CpuBackend::create(1, nullptr, cpu_), kvc::Status::ok); }
  void* allocate(size_t bytes, bool prefault) noexcept override {
    bytes_ = bytes;
    return block_ = cpu_->allocate(bytes, prefault);
  }
  void release(void* block, size_t bytes) noexcept override { cpu_->release(block, bytes); }
  size_t attention_workspace_bytes(const kvc::AttentionBounds&) const noexcept override {
    return 0;
  }
  kvc::Status store(const kvc::StoreParams& p) noexcept override { return cpu_->store(p); }
  kvc::Status load(const kvc::LoadParams& p) noexcept override { return cpu_->load(p); }
  kvc::Status move(const kvc::MoveParams& p) noexcept override { return cpu_->move(p); }
  kvc::Status clear(const kvc::ClearParams& p) noexcept override { return cpu_->clear(p); }
  kvc::Status attention(const kvc::AttentionParams&) noexcept override {
    return kvc::Status::not_supported;
  }

  std::byte* block() const { return static_cast<std::byte*>(block_); }
  size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<kvc::Backend> cpu_;
  void* block_ = nullptr;
  size_t bytes_ = 0;
};
