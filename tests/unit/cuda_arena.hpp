#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "core/device.hpp"
#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"

/// The simulated CUDA device beside the CPU, and tensors on either.
namespace cuda_arena {

inline std::shared_ptr<kvc::Device> open_cpu() {
  std::shared_ptr<kvc::Device> device;
  EXPECT_EQ(kvc::cpu::CpuDevice::create({.n_threads = 1}, &device), kvc::Status::ok);
  return device;
}

inline std::shared_ptr<kvc::Device> open_cuda() {
  std::shared_ptr<kvc::Device> device;
  EXPECT_EQ(kvc::cuda::CudaDevice::create(1, open_cpu(), &device), kvc::Status::ok)
      << kvc::last_message();
  return device;
}

/// Memory for the tensors of many calls.
class Arena {
 public:
  /// Of n floats, which the seed chooses.
  Arena(std::shared_ptr<kvc::Device> device, size_t n, uint64_t seed)
      : device_(std::move(device)), info_(device_->info()), n_(n) {
    data_ = static_cast<float*>(device_->allocate(kvc::Place::device, bytes(), false));
    support::Random random(seed);
    for (size_t i = 0; data_ != nullptr && i < n_; ++i) on_host()[i] = random.value();
  }
  ~Arena() { device_->release(kvc::Place::device, data_, bytes()); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Behind what was taken before.
  kvc_tensor take(const std::vector<int64_t>& shape) {
    kvc_tensor tensor{};
    kvc_tensor_dense(data_ + taken_, KVC_F32, static_cast<int32_t>(shape.size()), shape.data(),
                     &tensor);
    tensor.device_type = info_.type;
    tensor.device_id = info_.id;
    size_t n = 1;
    for (const int64_t extent : shape) n *= static_cast<size_t>(extent);
    taken_ += n;
    EXPECT_LE(taken_, n_);
    return tensor;
  }
  size_t taken() const { return taken_; }
  /// Where the host can touch them, as they are now.
  float* on_host() const {
    float* const simulated = simt::device::on_host(data_);
    return simulated != nullptr ? simulated : data_;
  }

 private:
  size_t bytes() const { return n_ * sizeof(float); }

  std::shared_ptr<kvc::Device> device_;
  kvc::DeviceInfo info_;
  size_t n_;
  float* data_ = nullptr;
  size_t taken_ = 0;
};

}  // namespace cuda_arena
