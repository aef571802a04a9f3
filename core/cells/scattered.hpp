#pragma once
#include <cstdint>

namespace kvc {

/// A number scattered over 64 bits, so that sums of such numbers tell different multisets apart without memory: two lists name
/// the same things equally often exactly when their sums are equal, but for chance.
inline uint64_t scattered(int32_t number) {
  uint64_t value = static_cast<uint64_t>(number) + 1;
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 29)) * 0xbf58476d1ce4e5b9u;
  return value ^ (value >> 32);
}

}  // namespace kvc
