#pragma once
#include <cstddef>
#include <memory>

#include "kernels/cuda/runtime.hpp"

namespace bench_cuda {

/// What this GPU can do, measured when the program starts, by kernels that do nothing else.
class Roofs {
 public:
  Roofs();
  ~Roofs();
  Roofs(const Roofs&) = delete;
  Roofs& operator=(const Roofs&) = delete;

  double read_rate() const { return read_rate_; }  // bytes per second
  double copy_rate() const { return copy_rate_; }  // of bytes read and written
  double multiply_rate() const {
    return multiply_rate_;
  }  // operations per second, by mma.sync of bf16
  const kvc::cuda::DeviceProperties& device() const { return device_; }
  /// What calls rotate over: three times the second-level cache.
  size_t bytes_beyond_cache() const { return 3 * device_.l2_bytes; }

  /// The figures of the group "limits".
  void report() const;

 private:
  struct State;
  void measure();
  std::unique_ptr<State> state_;
  kvc::cuda::DeviceProperties device_;
  double read_rate_ = 0, copy_rate_ = 0, multiply_rate_ = 0;
};

}  // namespace bench_cuda
