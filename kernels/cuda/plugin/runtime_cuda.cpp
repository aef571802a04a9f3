#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "kernels/cuda/runtime.hpp"

namespace kvc::cuda {
namespace {

static_assert(static_cast<int>(Error::none) == cudaSuccess);
static_assert(static_cast<int>(Error::invalid_value) == cudaErrorInvalidValue);
static_assert(static_cast<int>(Error::out_of_memory) == cudaErrorMemoryAllocation);
static_assert(static_cast<int>(Error::insufficient_driver) == cudaErrorInsufficientDriver);
static_assert(static_cast<int>(Error::no_device) == cudaErrorNoDevice);
static_assert(static_cast<int>(Error::launch_failure) == cudaErrorLaunchFailure);

/// CUDA also keeps the last failure of a thread for whoever asks next, which must not be the caller's own code.
Error taken(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return static_cast<Error>(error);
}

cudaStream_t of(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t of_event(Event event) { return static_cast<cudaEvent_t>(event); }

/// Beyond this a kernel has to be allowed its shared memory.
constexpr size_t always_shared_bytes = size_t{48} << 10;

using MakeTensorMap = decltype(cuTensorMapEncodeTiled);

/// The driver has it, and nothing else of the driver is called: so the library needs no libcuda to load. Looked for until it is found.
Error find_tensor_maps(MakeTensorMap** out) {
  static std::atomic<MakeTensorMap*> known = nullptr;
  if ((*out = known) != nullptr) return Error::none;
  constexpr unsigned since = 12000;  // of CUDA
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const Error e = taken(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, since,
                                                         cudaEnableDefault, &result));
  if (e != Error::none) return e;
  if (result != cudaDriverEntryPointSuccess || found == nullptr) return Error::insufficient_driver;
  known = *out = reinterpret_cast<MakeTensorMap*>(found);
  return Error::none;
}

}  // namespace

const char* name_of(Error error) noexcept {
  return cudaGetErrorName(static_cast<cudaError_t>(error));
}

namespace runtime {

Error count_devices(int32_t* n) noexcept { return taken(cudaGetDeviceCount(n)); }

Error properties_of(int32_t device, DeviceProperties* out) noexcept {
  cudaDeviceProp found;
  if (Error e = taken(cudaGetDeviceProperties(&found, device)); e != Error::none) return e;
  static_assert(sizeof found.name == sizeof out->name);
  std::memcpy(out->name, found.name, sizeof found.name);
  out->major = found.major;
  out->minor = found.minor;
  out->n_multiprocessors = found.multiProcessorCount;
  out->memory_bytes = found.totalGlobalMem;
  out->l2_bytes = static_cast<size_t>(found.l2CacheSize);
  out->shared_bytes_per_block = found.sharedMemPerBlockOptin;
  return Error::none;
}

Error current_device(int32_t* device) noexcept { return taken(cudaGetDevice(device)); }
Error use_device(int32_t device) noexcept { return taken(cudaSetDevice(device)); }

Error allocate(size_t bytes, void** out) noexcept { return taken(cudaMalloc(out, bytes)); }
Error release(void* block) noexcept { return taken(cudaFree(block)); }

Error allocate_pinned(size_t bytes, void** out) noexcept {
  return taken(cudaHostAlloc(out, bytes, cudaHostAllocPortable));
}
Error release_pinned(void* block) noexcept {
  if (block == nullptr) return Error::none;
  const Error e = taken(cudaDeviceSynchronize());
  const Error freed = taken(cudaFreeHost(block));
  return e == Error::none ? freed : e;
}

Error fill_zero(void* block, size_t bytes, Stream stream) noexcept {
  return taken(cudaMemsetAsync(block, 0, bytes, of(stream)));
}
Error copy_to_device(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return taken(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, of(stream)));
}
Error copy_to_host(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return taken(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, of(stream)));
}

Error prepare(const Kernel& kernel, const Grid& grid, int32_t* blocks_per_multiprocessor) noexcept {
  cudaFuncAttributes attributes;  // asking loads it
  if (Error e = taken(cudaFuncGetAttributes(&attributes, kernel.entry)); e != Error::none) return e;
  if (grid.shared_bytes > always_shared_bytes) {
    const cudaError_t allowed = cudaFuncSetAttribute(kernel.entry,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(grid.shared_bytes));
    if (allowed != cudaSuccess) return taken(allowed);
  }
  return taken(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks_per_multiprocessor, kernel.entry, static_cast<int>(grid.threads), grid.shared_bytes));
}

Error launch(const Kernel& kernel, const Grid& grid, const void* params, Stream stream) noexcept {
  if (grid.blocks == 0) return Error::none;
  void* arguments[] = {const_cast<void*>(params)};
  return taken(cudaLaunchKernel(kernel.entry, dim3(grid.blocks), dim3(grid.threads), arguments,
                                grid.shared_bytes, of(stream)));
}

Error map_rows(const MappedRows& rows, RowMap* out) noexcept {
  static_assert(sizeof(RowMap) == sizeof(CUtensorMap) && alignof(RowMap) >= alignof(CUtensorMap));
  MakeTensorMap* make = nullptr;
  if (Error e = find_tensor_maps(&make); e != Error::none) return e;
  constexpr cuuint32_t n_dims = 3;
  const cuuint64_t sizes[n_dims] = {static_cast<cuuint64_t>(rows.dim),
                                    static_cast<cuuint64_t>(rows.n_rows),
                                    static_cast<cuuint64_t>(rows.n_heads)};
  const cuuint64_t strides[n_dims - 1] = {static_cast<cuuint64_t>(rows.row_stride),
                                          static_cast<cuuint64_t>(rows.head_stride)};
  const cuuint32_t box[n_dims] = {64, static_cast<cuuint32_t>(rows.box_rows), 1};
  const cuuint32_t steps[n_dims] = {1, 1, 1};
  CUtensorMap map = {};
  const CUresult made = make(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, n_dims,
                             const_cast<void*>(rows.data), sizes, strides, box, steps,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  *out = std::bit_cast<RowMap>(map);
  return static_cast<Error>(made);  // the driver's numbers are the runtime's
}

Error is_capturing(Stream stream, bool* out) noexcept {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(of(stream), &status);
  *out = error == cudaErrorStreamCaptureImplicit || status != cudaStreamCaptureStatusNone;
  return error == cudaErrorStreamCaptureImplicit ? (taken(error), Error::none) : taken(error);
}

Error create_stream(Stream* out) noexcept {
  cudaStream_t stream = nullptr;
  const Error e = taken(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  *out = stream;
  return e;
}
void destroy_stream(Stream stream) noexcept {
  if (stream != nullptr) taken(cudaStreamDestroy(of(stream)));
}

Error create_event(Event* out) noexcept {
  cudaEvent_t event = nullptr;
  const Error e = taken(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  *out = event;
  return e;
}
void destroy_event(Event event) noexcept { taken(cudaEventDestroy(of_event(event))); }
Error record(Event event, Stream stream) noexcept {
  return taken(cudaEventRecord(of_event(event), of(stream)));
}
Error wait(Stream stream, Event event) noexcept {
  return taken(cudaStreamWaitEvent(of(stream), of_event(event), 0));
}

Error synchronize(Stream stream) noexcept { return taken(cudaStreamSynchronize(of(stream))); }
Error synchronize_device() noexcept { return taken(cudaDeviceSynchronize()); }

}  // namespace runtime
}  // namespace kvc::cuda
