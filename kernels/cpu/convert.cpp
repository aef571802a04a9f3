#include "kernels/cpu/convert.hpp"

#include <algorithm>
#include <cstring>

#include "core/base/half.hpp"
#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {
namespace {

/// Elements converted at a time, in a buffer on the stack.
constexpr int64_t chunk_elements = 256;

template <class Element>
void copy_elements(const Row& to, const Row& from, int64_t n) {
  auto* target = reinterpret_cast<Element*>(to.data);
  const auto* source = reinterpret_cast<const Element*>(from.data);
  for (int64_t i = 0; i < n; ++i) target[i * to.stride] = source[i * from.stride];
}

}  // namespace

void convert_row(const Row& to, const Row& from, int64_t n) noexcept {
  if (to.dtype == from.dtype) {
    if (to.stride == 1 && from.stride == 1) {
      std::memcpy(to.data, from.data, size_of(to.dtype) * static_cast<size_t>(n));
    } else if (size_of(to.dtype) == 2) {
      copy_elements<uint16_t>(to, from, n);
    } else {
      copy_elements<float>(to, from, n);
    }
    return;
  }
  const KernelTable& table = kernels();
  alignas(64) float buffer[chunk_elements];
  for (int64_t begin = 0; begin < n; begin += chunk_elements) {
    const int64_t count = std::min(n - begin, chunk_elements);
    if (from.stride == 1) {
      table.to_f32(buffer, from.data + size_of(from.dtype) * static_cast<size_t>(begin), from.dtype,
                   count);
    } else {
      for (int64_t i = 0; i < count; ++i)
        buffer[i] = load_element(from.data, from.dtype, (begin + i) * from.stride);
    }
    if (to.stride == 1) {
      table.from_f32(to.data + size_of(to.dtype) * static_cast<size_t>(begin), to.dtype, buffer,
                     count);
    } else {
      for (int64_t i = 0; i < count; ++i)
        store_element(to.data, to.dtype, (begin + i) * to.stride, buffer[i]);
    }
  }
}

void zero_row(const Row& to, int64_t n) noexcept {
  if (to.stride == 1) {
    std::memset(to.data, 0, size_of(to.dtype) * static_cast<size_t>(n));
    return;
  }
  for (int64_t i = 0; i < n; ++i) store_element(to.data, to.dtype, i * to.stride, 0.0f);
}

}  // namespace kvc::cpu
