#pragma once
#include <cstddef>
#include <cstdint>

/// Sizes whose sums and products are checked: once one does not fit, everything derived from it says so.
namespace kvc {

class CheckedSize {
 public:
  constexpr CheckedSize(uint64_t value = 0) : value_(value) {}

  constexpr bool overflowed() const { return overflowed_; }
  constexpr uint64_t value() const { return value_; }

  friend constexpr CheckedSize operator+(CheckedSize a, CheckedSize b) {
    CheckedSize sum;
    sum.overflowed_ = __builtin_add_overflow(a.value_, b.value_, &sum.value_) || a.overflowed_ ||
                      b.overflowed_;
    return sum;
  }
  friend constexpr CheckedSize operator*(CheckedSize a, CheckedSize b) {
    CheckedSize product;
    product.overflowed_ = __builtin_mul_overflow(a.value_, b.value_, &product.value_) ||
                          a.overflowed_ || b.overflowed_;
    return product;
  }

  /// Rounded up to a multiple of a power of two.
  constexpr CheckedSize rounded_up(uint64_t alignment) const {
    CheckedSize sum = *this + CheckedSize(alignment - 1);
    sum.value_ &= ~(alignment - 1);
    return sum;
  }

 private:
  uint64_t value_ = 0;
  bool overflowed_ = false;
};

}  // namespace kvc
