#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "kernels/cuda/launcher.hpp"

namespace kvc::cuda {

/// Arrays of one sort, such as slopes, of which each layer has its own: those that calls have needed are on the device. One is brought
/// there for the first call that needs it, and again where it has changed, or where others have taken its room.
class Constants {
 public:
  /// For arrays of up to array_bytes. Memory of the host holds zeros.
  void carve(size_t array_bytes, Carver& on_device, Carver& on_host);

  /// Where the device has an array of the host, for launches behind this call. `is_captured`: a graph has those launches. It brings the
  /// array along each time that it is launched, so other calls no longer know what is there, and bring theirs too.
  Error bring(const void* array, size_t n_bytes, bool is_captured, const Launcher& launcher,
              const std::byte** there);

 private:
  /// Room for one.
  struct Slot {
    const void* array;  // on the host; null: none
    size_t n_bytes;     // that are there
    bool is_captured;
  };
  int32_t find(const void* array);

  size_t stride_ = 0;
  int32_t n_slots_ = 0;
  int32_t next_ = 0;  // that is given away
  std::byte* on_device_ = nullptr;
  std::byte* copies_ = nullptr;  // [n_slots] what the device has
  Slot* slots_ = nullptr;        // [n_slots]
};

/// Those of attention.
struct LayerConstants {
  void carve(const AttentionBounds& bounds, Carver& on_device, Carver& on_host);

  Constants slopes, sinks;       // of query heads
  Constants k_scales, v_scales;  // of KV heads whose storage is f8
  Constants frequencies;         // of rotated pairs of dimensions
};

}  // namespace kvc::cuda
