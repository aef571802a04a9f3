#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/checked.hpp"

namespace kvc {

/// No processor that kvc runs on has smaller pages: what begins at a multiple of this shares none with what is before it.
inline constexpr uint64_t page_bytes = 4096;

/// Lays arrays out in one block. The same function runs twice: over no block to learn how many bytes it takes (and that
/// no product overflows), then over the block. So the size that is told and the size that is used cannot differ.
class Carver {
 public:
  explicit Carver(void* block = nullptr) : block_(static_cast<std::byte*>(block)) {}

  template <class T>
  T* take(CheckedSize count, uint64_t alignment = alignof(T)) {
    used_ = used_.rounded_up(alignment);
    const uint64_t offset = used_.value();
    used_ = used_ + count * CheckedSize(sizeof(T));
    return block_ != nullptr ? reinterpret_cast<T*>(block_ + offset) : nullptr;
  }

  CheckedSize used() const { return used_; }

 private:
  std::byte* block_;
  CheckedSize used_;
};

}  // namespace kvc
