#pragma once
#include <cstddef>
#include <cstdint>

/// The few calls that the backend needs of CUDA. A library has one implementation: over the CUDA runtime (runtime_cuda.cpp, in
/// the plugin), or over the simulation on the CPU that tests use (tests/simt/runtime_simt.cpp). Nothing of CUDA is named here,
/// so everything but kernels and runtime_cuda is plain C++.
///
/// Calls work on the calling thread's current device (CurrentDevice). None throws, none waits unless it says so. Work is done in
/// the order of its stream, perhaps after the call has returned: what a call names has to stay until then.
namespace kvc::cuda {

/// In DLPack's numbering: null and 1 are the legacy default stream, 2 is that of the thread, anything else is a cudaStream_t.
using Stream = void*;

using Event = void*;

/// CUDA's numbers. Those that are not named here are passed through.
enum class Error : int32_t {
  none = 0,
  invalid_value = 1,
  out_of_memory = 2,
  insufficient_driver = 35,  // or none
  no_device = 100,
  launch_failure = 719
};

/// CUDA's name for it ("cudaErrorMemoryAllocation"), for messages.
const char* name_of(Error error) noexcept;

struct DeviceProperties {
  char name[256] = {};
  int32_t major = 0, minor = 0;  // compute capability
  int32_t n_multiprocessors = 0;
  size_t memory_bytes = 0;
  size_t l2_bytes = 0;
  size_t shared_bytes_per_block = 0;  // that a kernel may ask for
};

/// A kernel takes one struct by value. kernel.cuh makes these.
struct Kernel {
  const char* name = "";
  const void* entry = nullptr;  // the __global__ function; in the simulation what calls it with the address of its parameters
  size_t params_bytes = 0;
};

/// Parameters of a kernel may take so many bytes.
inline constexpr size_t max_params_bytes = 32764;

struct Grid {
  uint32_t blocks = 1;
  uint32_t threads = 32;    // of a block
  size_t shared_bytes = 0;  // dynamic, of a block
};

/// Rows of 16-bit numbers as the unit that copies boxes of them sees them, on GPUs of compute capability 9.0 and newer: a tensor map.
/// What is in it is CUDA's own; a kernel takes it as a parameter.
struct alignas(128) RowMap {
  uint64_t opaque[16];
};

/// [n_heads][n_rows][dim] numbers. A copy takes 64 dims of box_rows rows, where zeros are behind the last dim, and exchanges chunks of
/// 16 bytes as matrix_at() has it (ptx_sm90.cuh).
struct MappedRows {
  const void* data;                 // a multiple of 16, as are the strides
  int64_t row_stride, head_stride;  // bytes, less than 2^40
  int32_t dim, n_rows, n_heads;
  int32_t box_rows;  // 256 at most
};

namespace runtime {

Error count_devices(int32_t* n) noexcept;
Error properties_of(int32_t device, DeviceProperties* out) noexcept;
Error current_device(int32_t* device) noexcept;
Error use_device(int32_t device) noexcept;

/// Device memory, aligned to 256. Its contents are undefined.
Error allocate(size_t bytes, void** out) noexcept;
/// Waits for the device. Null does nothing.
Error release(void* block) noexcept;

/// Host memory that the device reads and writes at the same address. Its contents are undefined.
Error allocate_pinned(size_t bytes, void** out) noexcept;
/// Waits for the device. Null does nothing.
Error release_pinned(void* block) noexcept;

Error fill_zero(void* block, size_t bytes, Stream stream) noexcept;
Error copy_to_device(void* to, const void* from, size_t bytes, Stream stream) noexcept;
Error copy_to_host(void* to, const void* from, size_t bytes, Stream stream) noexcept;

/// Before the first launch of a kernel: loads it, allows it `grid.shared_bytes`, and says how many of its blocks a
/// multiprocessor holds at a time.
Error prepare(const Kernel& kernel, const Grid& grid, int32_t* blocks_per_multiprocessor) noexcept;
/// `params` are copied. An empty grid does nothing. Says what is wrong with this launch, or went wrong in an earlier one.
Error launch(const Kernel& kernel, const Grid& grid, const void* params, Stream stream) noexcept;

/// Depends on nothing but what it is told: it reads no row, and may be called in a capture.
Error map_rows(const MappedRows& rows, RowMap* out) noexcept;

/// Whether a graph is captured from the stream, or from another one in a way that forbids to use this one.
Error is_capturing(Stream stream, bool* out) noexcept;

/// A stream that does not wait for the legacy default stream, nor that for it.
Error create_stream(Stream* out) noexcept;
/// What it was given is done nevertheless. Null does nothing.
void destroy_stream(Stream stream) noexcept;

/// An event that measures no time.
Error create_event(Event* out) noexcept;
void destroy_event(Event event) noexcept;
Error record(Event event, Stream stream) noexcept;
/// What is given to `stream` from now on begins after what the event has recorded.
Error wait(Stream stream, Event event) noexcept;

/// These two wait.
Error synchronize(Stream stream) noexcept;
Error synchronize_device() noexcept;

}  // namespace runtime

/// Makes a device the calling thread's, and at its end the one that was it before.
class CurrentDevice {
 public:
  explicit CurrentDevice(int32_t device) noexcept {
    error_ = runtime::current_device(&before_);
    if (error_ == Error::none && before_ != device) {
      error_ = runtime::use_device(device);
      changed_ = error_ == Error::none;
    }
  }
  ~CurrentDevice() {
    if (changed_) runtime::use_device(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  Error error() const { return error_; }

 private:
  int32_t before_ = 0;
  bool changed_ = false;
  Error error_;
};

}  // namespace kvc::cuda
