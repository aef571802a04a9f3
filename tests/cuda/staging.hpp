#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/tensor.hpp"
#include "kernels/cuda/runtime.hpp"

namespace gpu {

/// Tensors of the host for kernels that cannot reach them there: copies in the GPU's memory while it exists. Tensors that lie in
/// one range of memory stay in one, so that what a call writes beside other tensors changes nothing else.
class Staging {
 public:
  enum class Use : uint8_t { read, written };

  Staging() = default;
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// A tensor of a call to come; without data it is none. `tokens` is the dimension that it may be folded in.
  void add(kvc::Tensor& tensor, Use use, int32_t tokens = 0);
  /// The same of n tensors of this shape, so many elements apart.
  void add_rows(kvc::Tensor& tensor, Use use, int64_t n, int64_t stride);

  /// Copies all there and makes the tensors name the copies. Returns when they are there.
  kvc::cuda::Error begin();
  /// Waits for the device, and copies back what was to be written.
  kvc::cuda::Error end();

 private:
  struct Range {
    std::byte *begin = nullptr, *end = nullptr;
    bool is_written = false;
    std::byte* there = nullptr;
  };
  struct Staged {
    kvc::Tensor* tensor;
    Range range;
  };
  void merge();
  const Range& range_of(const std::byte* address) const;

  std::vector<Staged> tensors_;
  std::vector<Range> ranges_;
};

}  // namespace gpu
