#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <iostream>
#include <memory>
#include <vector>

#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/caches/create.hpp"
#include "core/device.hpp"
#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"

/// The simulated CUDA device beside the CPU, with caches, tensors and graphs.
namespace cuda_arena {

inline std::shared_ptr<kvc::Device> open_cpu() {
  std::shared_ptr<kvc::Device> device;
  EXPECT_EQ(kvc::cpu::CpuDevice::create({.n_threads = 1}, &device), kvc::Status::ok);
  return device;
}

/// By default the one whose kernels all GPUs have.
inline std::shared_ptr<kvc::Device> open_cuda(int32_t ordinal = 1) {
  std::shared_ptr<kvc::Device> device;
  EXPECT_EQ(kvc::cuda::CudaDevice::create(ordinal, open_cpu(), &device), kvc::Status::ok)
      << kvc::last_message();
  return device;
}

/// A cache as calls of the C ABI take it; null when it cannot be created.
inline kvc_cache* create_cache(const std::shared_ptr<kvc::Device>& device,
                               const kvc::CacheRequest& request) {
  auto object = std::make_unique<kvc::capi::CacheObject>();
  if (kvc::create_cache(device, request, &object->cache) != kvc::Status::ok) return nullptr;
  const kvc::CacheStats stats = object->cache->stats();
  return static_cast<kvc_cache*>(
      kvc::capi::handles::add(kvc::capi::Kind::cache, object.release(), stats));
}

/// A graph of what `work()` does in a pass of n tokens, opened in `cache`. It returns a status.
template <class Work>
simt::device::Graph* capture(kvc_cache* cache, int32_t n, Work work) {
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  simt::device::Graph* graph = nullptr;
  EXPECT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  EXPECT_EQ(kvc_begin(cache, n, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream), KVC_OK)
      << support::last_message();
  EXPECT_EQ(work(), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none);
  return graph;
}

/// The status of a call that returned just now, whose message has the words.
inline void expect_status(kvc_status status, kvc_status expected, const char* words) {
  EXPECT_EQ(support::name(status), support::name(expected)) << words;
  EXPECT_NE(support::last_message().find(words), std::string::npos) << support::last_message();
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
  /// All of it, when the stream comes to it.
  void write(const std::vector<float>& numbers, void* stream) const {
    EXPECT_EQ(numbers.size(), n_);
    EXPECT_EQ(kvc::cuda::runtime::copy_to_device(data_, numbers.data(), bytes(), stream),
              kvc::cuda::Error::none);
  }
  /// Waits.
  std::vector<float> read(void* stream) const {
    std::vector<float> numbers(n_);
    EXPECT_EQ(kvc::cuda::runtime::copy_to_host(numbers.data(), data_, bytes(), stream),
              kvc::cuda::Error::none);
    EXPECT_EQ(kvc::cuda::runtime::synchronize(stream), kvc::cuda::Error::none);
    return numbers;
  }
  size_t size() const { return n_; }
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

/// Lives the life of a cache again and again; each time the next call of the runtime fails. Then the cache's call returns DEVICE, the
/// cache is poisoned, and everything is given back in the end. Returns how many calls failed.
template <class Create, class Live>
int64_t fail_every_call(size_t n_floats, uint64_t seed, Create create, Live live,
                        const std::shared_ptr<kvc::Device>& cuda = open_cuda()) {
  const int64_t held = simt::device::n_held();
  int64_t n = 1;
  for (bool met = true; met; ++n) {
    Arena arena(cuda, n_floats, seed);
    simt::device::fail_call(n, kvc::cuda::Error::launch_failure, n % 2 == 0);
    kvc_cache* const cache = create(cuda);
    const kvc_status status = cache == nullptr ? KVC_E_DEVICE : live(cache, arena);
    met = status != KVC_OK;
    if (met) {
      EXPECT_EQ(status, KVC_E_DEVICE) << n << ": " << support::last_message();
      EXPECT_NE(support::last_message(), "");
    }
    if (met && cache != nullptr) {
      EXPECT_EQ(support::stats(cache).state, uint32_t{KVC_STATE_POISONED}) << n;
      EXPECT_EQ(kvc_commit(cache), KVC_E_DEVICE) << n;
    }
    simt::device::fail_call(0, kvc::cuda::Error::none, false);
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK) << n;
    EXPECT_EQ(simt::device::n_held(), held + 1) << n;  // the arena
    if (testing::Test::HasFailure()) break;
  }
  std::cout << n - 2 << " calls of the runtime failed one after another" << std::endl;
  return n - 2;
}

}  // namespace cuda_arena
