#pragma once
#include <cstdint>
#include <initializer_list>
#include <random>

namespace support {

/// A stream of numbers that is the same on every machine for the same seed.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t bits() { return engine_(); }
  /// 0 … n - 1
  int32_t below(int32_t n) { return static_cast<int32_t>(engine_() % static_cast<uint64_t>(n)); }
  /// low … high, both included
  int32_t between(int32_t low, int32_t high) { return low + below(high - low + 1); }
  bool chance(double probability) { return unit() < probability; }
  /// [0, 1)
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  /// Around 0, within -2 … 2, with many different exponents.
  float value() {
    const double magnitude = unit() * 2 * (chance(0.1) ? 0.01 : 1);
    return static_cast<float>(chance(0.5) ? magnitude : -magnitude);
  }
  template <class T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int32_t>(choices.size()))];
  }

 private:
  std::mt19937_64 engine_;
};

/// A seed for part `index` of a run, unrelated to its neighbours' (splitmix64).
inline uint64_t derived_seed(uint64_t seed, uint64_t index) {
  uint64_t x = seed + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

}  // namespace support
