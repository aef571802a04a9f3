// The CUDA device under the CPU's name, for tests that know only the CPU: linked into a library in the place of the real one. Their
// tensors are memory of the host, which a GPU may not reach, so each call has copies of them there; and they look at results as
// soon as a call has returned, so its work is done when it returns, but for what the begin of a pass brings to the device.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/device.hpp"
#include "tests/cuda/lent_memory.hpp"
#include "tests/cuda/staging.hpp"
#include "tests/fake/over_cpu.hpp"
#include "tests/fake/prompt_device.hpp"

namespace gpu {
namespace {

using kvc::Status;
using kvc::cuda::Error;
using Use = Staging::Use;

Status says(Error error) {
  if (error == Error::none) return Status::ok;
  return kvc::fail(Status::device, "cuda:0 says %s to a test", kvc::cuda::name_of(error));
}

/// The device memory of all caches. What lies elsewhere is a caller's: K and V of attention without a cache.
class DeviceBlocks {
 public:
  static DeviceBlocks& instance() {
    static auto* const blocks = new DeviceBlocks();  // outlives every cache
    return *blocks;
  }
  void add(void* block, size_t bytes) {
    const std::lock_guard lock(mutex_);
    blocks_[static_cast<std::byte*>(block)] = bytes;
  }
  void remove(void* block) {
    const std::lock_guard lock(mutex_);
    blocks_.erase(static_cast<std::byte*>(block));
  }
  bool holds(const std::byte* address) {
    const std::lock_guard lock(mutex_);
    auto behind = blocks_.upper_bound(const_cast<std::byte*>(address));
    return behind != blocks_.begin() && address < (--behind)->first + behind->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::byte*, size_t> blocks_;
};

kvc::Tensor bytes_of(const kvc::Plane& plane, int32_t n_heads, int32_t n_cells) {
  kvc::Tensor bytes;
  bytes.dtype = kvc::DType::u8;
  bytes.ndim = 3;
  const int64_t shape[] = {n_heads, n_cells, static_cast<int64_t>(plane.row_bytes)};
  const int64_t stride[] = {static_cast<int64_t>(plane.head_stride),
                            static_cast<int64_t>(plane.row_stride), 1};
  std::copy_n(shape, 3, bytes.shape);
  std::copy_n(stride, 3, bytes.stride);
  bytes.data = DeviceBlocks::instance().holds(plane.data) ? nullptr : plane.data;
  return bytes;
}

/// Around a call: what it gave to the GPU is done when it returns.
struct Finish {
  template <class Call>
  Status operator()(Call call) const {
    if (Status s = call(); s != Status::ok) return s;
    return says(kvc::cuda::runtime::synchronize_device());
  }
};

class StagedCacheDevice final : public fake::CacheDeviceOver<Finish> {
 public:
  explicit StagedCacheDevice(std::unique_ptr<kvc::CacheDevice> late)
      : CacheDeviceOver(std::move(late), Finish()) {}

  Status begin_pass(const kvc::AttentionPlan& plan, const kvc::TokenChanges& changes,
                    void* stream) noexcept override {
    return inner_->begin_pass(plan, changes, stream);
  }
  Status store(const kvc::StoreParams& params) noexcept override {
    kvc::StoreParams p = params;
    Staging staging;
    for (kvc::Tensor* t : {&p.k, &p.v}) staging.add(*t, Use::read);
    return around(staging, [&] { return inner_->store(p); });
  }
  Status store_codes(const kvc::StoreCodesParams& params) noexcept override {
    kvc::StoreCodesParams p = params;
    Staging staging;
    for (kvc::Tensor* t : {&p.k, &p.k_scales, &p.v, &p.v_scales}) staging.add(*t, Use::read);
    return around(staging, [&] { return inner_->store_codes(p); });
  }
  Status load(const kvc::LoadParams& params) noexcept override {
    kvc::LoadParams p = params;
    Staging staging;
    for (kvc::Tensor* t : {&p.k, &p.v}) staging.add(*t, Use::written);
    return around(staging, [&] { return inner_->load(p); });
  }
  Status attention(const kvc::AttentionOperator& op,
                   const kvc::AttentionParams& params) noexcept override {
    kvc::AttentionParams p = params;
    kvc::AttentionTensors& t = p.tensors;
    Staging staging;
    staging.add(t.q, Use::read);
    for (kvc::Tensor* written : {&t.out, &t.lse}) staging.add(*written, Use::written);
    for (kvc::Tensor* read : {&t.bias, &t.mask}) staging.add(*read, Use::read, 1);
    staging.add(t.weights, Use::written, 1);
    kvc::Slab *const k = &p.storage.k, *const v = &p.storage.v;
    kvc::Tensor k_bytes = bytes_of(k->codes, k->n_heads, k->n_cells),
                v_bytes = bytes_of(v->codes, v->n_heads, v->n_cells);
    for (kvc::Tensor* stored : {&k_bytes, &v_bytes}) staging.add(*stored, Use::read);
    return around(staging, [&] {
      if (k_bytes.data != nullptr) k->codes.data = static_cast<std::byte*>(k_bytes.data);
      if (v_bytes.data != nullptr) v->codes.data = static_cast<std::byte*>(v_bytes.data);
      return inner_->attention(op, p);
    });
  }
  Status write_mask(const kvc::MaskParams& params) noexcept override {
    kvc::MaskParams p = params;
    Staging staging;
    staging.add(p.into, Use::written);
    return around(staging, [&] { return inner_->write_mask(p); });
  }
  Status lightning(const kvc::LightningParams& params) noexcept override {
    kvc::LightningParams p = params;
    Staging staging;
    for (kvc::Tensor* t : {&p.k, &p.v, &p.q}) staging.add(*t, Use::read);
    staging.add(p.out, Use::written);
    return around(staging, [&] { return inner_->lightning(p); });
  }
  Status load_lightning(const kvc::LightningState& state) const noexcept override {
    kvc::LightningState s = state;
    Staging staging;
    staging.add(s.tensor, Use::written);
    return around(staging, [&] { return inner_->load_lightning(s); });
  }
  Status store_lightning(const kvc::LightningState& state) noexcept override {
    kvc::LightningState s = state;
    Staging staging;
    staging.add(s.tensor, Use::read);
    return around(staging, [&] { return inner_->store_lightning(s); });
  }
  Status store_states(const kvc::StateRows& params) noexcept override {
    kvc::StateRows p = params;
    Staging staging;
    staging.add_rows(p.row, Use::read, p.n_rows, p.row_stride);
    return around(staging, [&] { return inner_->store_states(p); });
  }
  Status load_states(const kvc::StateRows& params) noexcept override {
    kvc::StateRows p = params;
    Staging staging;
    staging.add_rows(p.row, Use::written, p.n_rows, p.row_stride);
    return around(staging, [&] { return inner_->load_states(p); });
  }
  Status store_conv(const kvc::ConvRows& params) noexcept override {
    kvc::ConvRows p = params;
    Staging staging;
    staging.add(p.x, Use::read);
    return around(staging, [&] { return inner_->store_conv(p); });
  }

 private:
  template <class Call>
  static Status around(Staging& staging, Call call) {
    if (Status s = says(staging.begin()); s != Status::ok) return s;
    if (Status s = call(); s != Status::ok) return s;
    return says(staging.end());
  }
};

class StagedDevice final : public fake::PromptDevice<StagedCacheDevice> {
 public:
  using PromptDevice::PromptDevice;

  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    void* const block = PromptDevice::allocate(place, bytes, prefault);
    if (place == kvc::Place::device && block != nullptr) DeviceBlocks::instance().add(block, bytes);
    return block;
  }
  void release(kvc::Place place, void* block, size_t bytes) noexcept override {
    if (place == kvc::Place::device) DeviceBlocks::instance().remove(block);
    PromptDevice::release(place, block, bytes);
  }
};

Status open(const kvc::DeviceOptions& options, std::shared_ptr<kvc::Device>* out) {
  std::shared_ptr<kvc::Device> cpu, late;
  if (Status s = kvc::cpu::CpuDevice::create(options, &cpu); s != Status::ok) return s;
  if (Status s = kvc::cuda::CudaDevice::create(0, cpu, &late, lent_memory()); s != Status::ok)
    return s;
  *out = std::make_shared<StagedDevice>(std::move(cpu), std::move(late));
  return Status::ok;
}

// Before main, so before the library looks for its own.
[[maybe_unused]] const bool registered = kvc::register_device({.name = "cpu", .open = open});

}  // namespace
}  // namespace gpu
