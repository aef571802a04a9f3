#pragma once
#include <cstdint>

#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"

namespace kvc::cuda {

/// Numbers as kernels read and write them.
enum class Element : int32_t { f32, f16, bf16 };

inline Element element_of(DType dtype) {
  return dtype == DType::f32 ? Element::f32 : dtype == DType::f16 ? Element::f16 : Element::bf16;
}
/// Of a type whose numbers are stored as they are.
inline Element element_of(StorageType type) { return element_of(format_of(type).code); }

}  // namespace kvc::cuda
