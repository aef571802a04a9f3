#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <random>

namespace support {

/// A stream of numbers that is the same on every machine for the same seed. Or, so that a fuzzer can
/// steer what happens: choices are read from bytes as long as there are any; what fills tensors, of
/// which nobody would choose a single number, still comes from the seed.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  /// The bytes must outlive the stream.
  Random(const uint8_t* bytes, size_t n) : engine_(n), bytes_(bytes), n_left_(n) {}

  uint64_t bits() { return engine_(); }
  size_t bytes_left() const { return n_left_; }
  /// 0 … n - 1
  int32_t below(int32_t n) {
    const uint64_t drawn = n_left_ > 0 ? chosen(n) : engine_();
    return static_cast<int32_t>(drawn % static_cast<uint64_t>(n));
  }
  /// low … high, both included
  int32_t between(int32_t low, int32_t high) { return low + below(high - low + 1); }
  bool chance(double probability) {
    return n_left_ > 0 ? static_cast<double>(chosen(256)) < probability * 256 : unit() < probability;
  }
  /// [0, 1)
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  /// Around 0, within -2 … 2, with many different exponents.
  float value() {
    const double magnitude = unit() * 2 * (unit() < 0.1 ? 0.01 : 1);
    return static_cast<float>(unit() < 0.5 ? magnitude : -magnitude);
  }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int32_t>(choices.size()))];
  }

 private:
  /// A number for a choice among n: no more bytes than it takes.
  uint64_t chosen(int32_t n) {
    uint64_t number = 0;
    for (uint64_t most = 1; most < static_cast<uint64_t>(n) && n_left_ > 0; most <<= 8) {
      number = number << 8 | *bytes_++;
      --n_left_;
    }
    return number;
  }

  std::mt19937_64 engine_;
  const uint8_t* bytes_ = nullptr;
  size_t n_left_ = 0;
};

/// A seed for part `index` of a run, unrelated to its neighbours' (splitmix64).
inline uint64_t derived_seed(uint64_t seed, uint64_t index) {
  uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

}  // namespace support
