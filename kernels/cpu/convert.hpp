#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/tensor.hpp"

namespace kvc::cpu {

/// Some elements, wherever they lie. The stride is in elements.
struct Row {
  std::byte* data = nullptr;
  int64_t stride = 1;
  DType dtype = DType::f32;
};

/// Copies n elements; the same type bit for bit, else rounded to nearest even.
void convert_row(const Row& to, const Row& from, int64_t n) noexcept;
void zero_row(const Row& to, int64_t n) noexcept;

}  // namespace kvc::cpu
