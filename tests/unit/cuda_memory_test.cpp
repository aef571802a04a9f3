// What a CUDA device does by itself, over the simulation: waiting for everybody, and where its memory is from.
#include <gtest/gtest.h>

#include <memory>

#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "tests/simt/runtime_simt.hpp"

namespace {

using kvc::Device, kvc::Place, kvc::Status;

std::shared_ptr<Device> open(const kvc::Allocator* memory = nullptr) {
  std::shared_ptr<Device> cpu, device;
  EXPECT_EQ(kvc::cpu::CpuDevice::create({.n_threads = 1}, &cpu), Status::ok);
  EXPECT_EQ(kvc::cuda::CudaDevice::create(1, cpu, &device, memory), Status::ok)
      << kvc::last_message();
  return device;
}

const auto stream = reinterpret_cast<kvc::cuda::Stream>(uintptr_t{0x1230});

/// Gives device memory away and takes it back, as an allocator of a framework does.
struct Lender {
  int32_t n_lent = 0, n_asked = 0;
  bool has_none = false;
  unsigned char dirt[100] = {1, 2, 3};  // that somebody still writes to a block which is lent

  kvc::Allocator functions() {
    return {this,
            [](void* self, size_t bytes, size_t alignment) -> void* {
              auto& lender = *static_cast<Lender*>(self);
              int32_t device = -1;
              void* block = nullptr;
              if (kvc::cuda::runtime::current_device(&device) == kvc::cuda::Error::none) {
                EXPECT_EQ(device, 1);
              }
              EXPECT_EQ(alignment, 256u);
              ++lender.n_asked;
              if (lender.has_none) return nullptr;
              if (kvc::cuda::runtime::allocate(bytes, &block) != kvc::cuda::Error::none)
                return nullptr;
              ++lender.n_lent;
              (void)kvc::cuda::runtime::copy_to_device(block, lender.dirt, sizeof lender.dirt, stream);
              return block;
            },
            [](void* self, void* block, size_t, size_t alignment) {
              EXPECT_EQ(alignment, 256u);
              --static_cast<Lender*>(self)->n_lent;
              kvc::cuda::runtime::release(block);
            }};
  }
};

TEST(CudaMemory, SynchronizeWaitsForEveryStreamAndTellsOfFaults) {
  const std::shared_ptr<Device> device = open();
  constexpr size_t bytes = 64;
  void* const block = device->allocate(Place::device, bytes, false);
  ASSERT_NE(block, nullptr);
  unsigned char from[bytes], to[bytes] = {};
  for (size_t i = 0; i < bytes; ++i) from[i] = static_cast<unsigned char>(i + 1);
  ASSERT_EQ(kvc::cuda::runtime::copy_to_device(block, from, bytes, stream), kvc::cuda::Error::none);
  ASSERT_EQ(kvc::cuda::runtime::copy_to_host(to, block, bytes, stream), kvc::cuda::Error::none);
  EXPECT_EQ(device->synchronize(), Status::ok);
  for (size_t i = 0; i < bytes; ++i) EXPECT_EQ(to[i], from[i]) << i;
  for (int64_t call = 1; call <= 3; ++call) {  // each call of the runtime that it makes
    simt::device::fail_call(call, kvc::cuda::Error::launch_failure, false);
    EXPECT_EQ(device->synchronize(), Status::device) << call;
    EXPECT_STREQ(kvc::last_message(), "cuda:1 says cudaErrorLaunchFailure") << call;
  }
  simt::device::fail_call(0, kvc::cuda::Error::none, false);
  EXPECT_EQ(device->synchronize(), Status::ok);
  device->release(Place::device, block, bytes);
}

/// What somebody still does with a block when it is lent comes before the zeros.
TEST(CudaMemory, ComesFromTheCallersAllocator) {
  Lender lender;
  const kvc::Allocator functions = lender.functions();
  const std::shared_ptr<Device> device = open(&functions);
  for (unsigned seed = 0; seed < 4; ++seed) {
    simt::device::set_seed(seed);
    auto* const block = static_cast<unsigned char*>(device->allocate(Place::device, 5000, false));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(lender.n_lent, 1);
    const unsigned char* const there = simt::device::on_host(block);
    for (size_t i = 0; i < 5000; ++i) ASSERT_EQ(there[i], 0) << i;
    device->release(Place::device, block, 5000);
    EXPECT_EQ(lender.n_lent, 0);
  }
  void* const on_host = device->allocate(Place::host, 100, false);
  EXPECT_NE(on_host, nullptr);
  EXPECT_EQ(lender.n_lent, 0) << "the host's memory is the host's";
  device->release(Place::host, on_host, 100);
}

TEST(CudaMemory, IsGivenBackWhateverFails) {
  Lender lender;
  const kvc::Allocator functions = lender.functions();
  const std::shared_ptr<Device> device = open(&functions);
  lender.has_none = true;
  EXPECT_EQ(device->allocate(Place::device, 100, false), nullptr);
  lender.has_none = false;
  const int64_t before = simt::device::n_calls();
  device->release(Place::device, device->allocate(Place::device, 100, false), 100);
  const int64_t n_calls = simt::device::n_calls() - before;
  EXPECT_GE(n_calls, 8);
  for (int64_t n = 1; n <= n_calls; ++n) {  // of the allocator too
    simt::device::fail_call(n, kvc::cuda::Error::launch_failure, false);
    void* const block = device->allocate(Place::device, 100, false);
    EXPECT_EQ(lender.n_lent, block == nullptr ? 0 : 1) << n;
    device->release(Place::device, block, 100);
    ASSERT_EQ(lender.n_lent, 0) << n;
    simt::device::fail_call(0, kvc::cuda::Error::none, false);
  }
}

}  // namespace
