#include "kernels/cuda/device.hpp"

#include <cstdio>
#include <iterator>
#include <new>

#include "core/base/float_environment.hpp"
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/lightning.hpp"
#include "kernels/cuda/lightning_params.hpp"

namespace kvc::cuda {
namespace {

constexpr int32_t dlpack_cuda = 2;

/// What CUDA's own blocks have at least, and more than kernels need.
constexpr size_t block_alignment = 256;

/// Tokens of a shared prefix from which on it may pay to read it once; a schedule decides (Schedule::pays).
constexpr int32_t least_shared_prefix = 128;

Status run_attention(const AttentionOperator&, const AttentionParams& params,
                     CacheDevice& device) noexcept {
  return static_cast<CudaCacheDevice&>(device).attend(params);
}

constexpr const char* flash_aliases[] = {"flash_attn2",     "sdpa", "splash", "blockwise",
                                         "paged_attention", nullptr};

/// The first is what attends where no other is bound.
constexpr AttentionOperator operators[] = {
    {.name = "flash",
     .aliases = flash_aliases,
     .features = feature_mask | feature_bias | feature_window | feature_chunk | feature_not_causal |
                 feature_softcap | feature_alibi | feature_sinks | feature_lse | feature_weights |
                 feature_grouped | feature_dims_differ | feature_shifted | feature_transformer |
                 feature_forward | feature_rotated,
     .storage = every_storage,
     .head_dim_max = head_dim_max,
     .run = run_attention},
    // Caches of linear attention attend by themselves: the name is all that there is to bind.
    {.name = "lightning",
     .features = feature_lightning | feature_grouped | feature_dims_differ | feature_transformer,
     .storage = storage_bit(StorageType::f32)}};

Status check_row(const char* side, const RowFormat& format, const char* kind) {
  if (format.head_dim <= head_dim_max) return Status::ok;
  return fail(Status::not_supported, "%s on a CUDA device has no head_dim_%s %d; it has up to %d",
              kind, side, format.head_dim, head_dim_max);
}

/// Compute capability that kernels are compiled for at least.
constexpr int32_t least_major = 8;

Abilities abilities_of(const DeviceProperties& properties) {
  return {properties.shared_bytes_per_block, properties.major == 9 && properties.minor == 0};
}

Status unavailable(int32_t ordinal, Error error) {
  const char* why = "CUDA cannot be used in this process";
  if (error == Error::insufficient_driver)
    why = "there is no driver of NVIDIA, or it is older than libkvc_cuda needs";
  if (error == Error::no_device) why = "the driver finds no GPU";
  return fail(Status::backend_unavailable, "cuda:%d: %s (%s)", ordinal, why, name_of(error));
}

}  // namespace

CudaDevice::CudaDevice(int32_t ordinal, const DeviceProperties& properties,
                       const std::shared_ptr<Device>& host, const Allocator& memory)
    : shape_{ordinal, properties.n_multiprocessors, abilities_of(properties)},
      host_(host),
      memory_(memory) {
  std::snprintf(architecture_, sizeof architecture_, "sm_%d%d", properties.major, properties.minor);
}

Status CudaDevice::create(int32_t ordinal, const std::shared_ptr<Device>& host,
                          std::shared_ptr<Device>* out, const Allocator* memory) {
  int32_t n = 0;
  if (Error e = runtime::count_devices(&n); e != Error::none) return unavailable(ordinal, e);
  if (ordinal < 0 || ordinal >= n)
    return fail(Status::backend_unavailable,
                "cuda:%d: the driver finds %d GPUs, the last is cuda:%d", ordinal, n, n - 1);
  DeviceProperties properties;
  if (Error e = runtime::properties_of(ordinal, &properties); e != Error::none)
    return unavailable(ordinal, e);
  if (properties.major < least_major)
    return fail(Status::backend_unavailable,
                "cuda:%d has compute capability %d.%d; libkvc_cuda needs %d.0 or newer", ordinal,
                properties.major, properties.minor, least_major);
  const CurrentDevice current(ordinal);
  if (Error e = current.error(); e != Error::none) return unavailable(ordinal, e);
  if (Error e = prepare_kernels(abilities_of(properties)); e != Error::none)
    return unavailable(ordinal, e);
  if (Error e = prepare_lightning(); e != Error::none) return unavailable(ordinal, e);
  std::unique_ptr<Device> made(new (std::nothrow) CudaDevice(
      ordinal, properties, host, memory != nullptr ? *memory : Allocator{}));
  if (!made)
    return fail(Status::out_of_memory, "the process has no memory for the object of a device");
  *out = std::move(made);
  return Status::ok;
}

DeviceInfo CudaDevice::info() const noexcept {
  return {.type = dlpack_cuda,
          .id = shape_.device,
          .takes_stream = true,
          .plans_ahead = true,
          .follows_tokens = true,
          .least_shared_prefix = least_shared_prefix,
          .pins_memory = true,
          .read_bytes = CacheWorkspace::staging_bytes,
          .n_threads = 1,
          .instruction_set = architecture_};
}

Status CudaDevice::check(const CacheNeeds& needs) const noexcept {
  if (needs.lightning.head_dim_k > decay_dim_max)
    return fail(Status::not_supported, "%s on a CUDA device has no head_dim_k %d; it has up to %d",
                needs.kind, needs.lightning.head_dim_k, decay_dim_max);
  if (Status s = check_row("k", needs.row_k, needs.kind); s != Status::ok) return s;
  return check_row("v", needs.row_v, needs.kind);
}

Status CudaDevice::is_recording(void* stream, bool* records) const noexcept {
  const CurrentDevice current(shape_.device);
  Error e = current.error();
  if (e == Error::none) e = runtime::is_capturing(stream, records);
  if (e == Error::none) return Status::ok;
  return fail(Status::device, "cuda:%d says %s of a stream", shape_.device, name_of(e));
}

Status CudaDevice::synchronize() noexcept {
  const CurrentDevice current(shape_.device);
  Error e = current.error();
  if (e == Error::none) e = runtime::synchronize_device();
  if (e == Error::none) return Status::ok;
  return fail(Status::device, "cuda:%d says %s", shape_.device, name_of(e));
}

void* CudaDevice::allocate(Place place, size_t bytes, bool prefault) noexcept {
  if (place == Place::host) return host_->allocate(place, bytes, prefault);
  if (bytes == 0) bytes = 1;
  const CurrentDevice current(shape_.device);
  if (current.error() != Error::none) return nullptr;
  void* block = nullptr;
  if (place == Place::pinned)
    return runtime::allocate_pinned(bytes, &block) == Error::none ? block : nullptr;
  block = take(bytes);
  if (block == nullptr) return nullptr;
  if (runtime::fill_zero(block, bytes, nullptr) == Error::none &&
      runtime::synchronize(nullptr) == Error::none)
    return block;
  give_back(block, bytes);
  return nullptr;
}

/// A caller's block may come with work of somebody who had it before.
void* CudaDevice::take(size_t bytes) noexcept {
  void* block = nullptr;
  if (memory_.alloc == nullptr)
    return runtime::allocate(bytes, &block) == Error::none ? block : nullptr;
  {
    const FloatEnvironmentAroundCallback around;
    block = memory_.alloc(memory_.user, bytes, block_alignment);
  }
  if (block == nullptr || runtime::synchronize_device() == Error::none) return block;
  give_back(block, bytes);
  return nullptr;
}

/// CUDA's release waits, and a caller's does not have to. A device that has failed waits for nothing, and uses no memory any more.
void CudaDevice::give_back(void* block, size_t bytes) noexcept {
  if (memory_.alloc == nullptr) {
    runtime::release(block);
    return;
  }
  (void)runtime::synchronize_device();
  const FloatEnvironmentAroundCallback around;
  memory_.free(memory_.user, block, bytes, block_alignment);
}

void CudaDevice::release(Place place, void* block, size_t bytes) noexcept {
  if (place == Place::host) return host_->release(place, block, bytes);
  if (block == nullptr) return;
  const CurrentDevice current(shape_.device);
  if (place == Place::pinned) {
    runtime::release_pinned(block);
  } else {
    give_back(block, bytes == 0 ? 1 : bytes);
  }
}

const AttentionOperator* CudaDevice::attention_operator(int32_t index) const noexcept {
  return index >= 0 && static_cast<size_t>(index) < std::size(operators) ? &operators[index]
                                                                         : nullptr;
}

size_t CudaDevice::workspace_bytes(const AttentionBounds& bounds) const noexcept {
  Carver carver;
  CacheWorkspace().carve(bounds, carver);
  return carver.used().value();
}

size_t CudaDevice::replayed_states_bytes(int32_t n) const noexcept {
  Carver carver;
  PlannedStates().carve(n, carver);
  return carver.used().value();
}

size_t CudaDevice::host_workspace_bytes(const AttentionBounds& bounds) const noexcept {
  return Attention::host_bytes(bounds);
}

size_t CudaDevice::lightning_workspace_bytes(const LightningBounds& bounds) const noexcept {
  return cuda::lightning_workspace_bytes(bounds);
}

Status CudaDevice::attach(const AttentionBounds& bounds, const WorkspaceBlocks& workspace,
                          std::unique_ptr<CacheDevice>* out) noexcept {
  const CurrentDevice current(shape_.device);
  if (current.error() != Error::none)
    return fail(Status::device, "cuda:%d says %s", shape_.device, name_of(current.error()));
  return CudaCacheDevice::create(shape_, bounds, workspace, out);
}

}  // namespace kvc::cuda
