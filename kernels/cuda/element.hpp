#pragma once
#include <cstdint>

#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"

namespace kvc::cuda {

/// Numbers as kernels read and write them, and codes, which are bytes of their own.
enum class Element : int32_t { f32, f16, bf16, code };

inline Element element_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return Element::f32;
    case DType::f16: return Element::f16;
    case DType::bf16: return Element::bf16;
    default: return Element::code;
  }
}
inline Element element_of(StorageType type) { return element_of(format_of(type).code); }

}  // namespace kvc::cuda
