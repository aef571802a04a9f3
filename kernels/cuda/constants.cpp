#include "kernels/cuda/constants.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/pass.hpp"

namespace kvc::cuda {
namespace {

/// Few models have more layers. Of large arrays there is room for fewer.
constexpr size_t slots_wanted = 64, bytes_wanted = size_t{64} << 10;

}  // namespace

void Constants::carve(size_t array_bytes, Carver& on_device, Carver& on_host) {
  stride_ = (array_bytes + 255) / 256 * 256;
  const size_t n = stride_ == 0 ? 0 : std::clamp<size_t>(bytes_wanted / stride_, 1, slots_wanted);
  n_slots_ = static_cast<int32_t>(n);
  on_device_ = on_device.take<std::byte>(n * stride_, 256);
  copies_ = on_host.take<std::byte>(n * stride_, 64);
  slots_ = on_host.take<Slot>(n, 64);
}

/// The slot of an array, or one that it takes.
int32_t Constants::find(const void* array) {
  for (int32_t i = 0; i < n_slots_; ++i) {
    if (slots_[i].array == array) return i;
  }
  const int32_t taken = next_;
  next_ = (next_ + 1) % n_slots_;
  slots_[taken].array = array;
  slots_[taken].n_bytes = 0;
  return taken;
}

Error Constants::bring(const void* array, size_t n_bytes, bool is_captured,
                       const Launcher& launcher, const std::byte** there) {
  const int32_t index = find(array);
  const size_t at = static_cast<size_t>(index) * stride_;
  Slot& slot = slots_[index];
  slot.is_captured |= is_captured;
  *there = on_device_ + at;
  const bool is_there = !slot.is_captured && slot.n_bytes == n_bytes &&
                        std::memcmp(copies_ + at, array, n_bytes) == 0;
  if (is_there) return Error::none;
  slot.n_bytes = 0;
  if (Error e = upload(on_device_ + at, array, n_bytes, launcher); e != Error::none) return e;
  std::memcpy(copies_ + at, array, n_bytes);
  slot.n_bytes = n_bytes;
  return Error::none;
}

void LayerConstants::carve(const AttentionBounds& bounds, Carver& on_device, Carver& on_host) {
  const size_t of_q_heads = static_cast<size_t>(bounds.max_q_heads) * sizeof(float);
  const size_t of_kv_heads = static_cast<size_t>(bounds.n_kv_heads) * sizeof(float);
  for (Constants* const of_heads : {&slopes, &sinks})
    of_heads->carve(of_q_heads, on_device, on_host);
  for (Constants* const of_heads : {&k_scales, &v_scales})
    of_heads->carve(of_kv_heads, on_device, on_host);
  frequencies.carve(static_cast<size_t>(bounds.head_dim_k / 2) * sizeof(double), on_device, on_host);
}

}  // namespace kvc::cuda
