#pragma once
#include <cstdint>

#include "core/base/storage.hpp"

namespace kvc::cuda {

/// A RowFormat as kernels see it.
struct Coding {
  StorageType type = StorageType::f32;
  int32_t dim = 0;
  int32_t block = 0;     // numbers that share a stored scale; 0: none is stored
  int32_t rotation = 0;  // numbers that are rotated together; 0: none are
};

inline Coding coding_of(const RowFormat& format) {
  return {format.type, format.head_dim, format.block, format.rotation};
}

}  // namespace kvc::cuda
