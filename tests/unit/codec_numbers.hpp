#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/base/half.hpp"
#include "support/random.hpp"

/// Numbers of many kinds: what models have, what is rounded a hair's breadth from a tie, and what no model should have.
class MixedNumbers {
 public:
  explicit MixedNumbers(uint64_t seed) : seed_(seed) {}

  void fill(std::vector<float>& values) {
    const auto kind = draw() % 8;
    const float size = std::ldexp(1.0f + unit(), static_cast<int>(draw() % 24) - 12);
    for (float& x : values) x = number(kind, size);
    const auto place = draw() % values.size();
    if (kind == 4) values[place] = size;
    if (kind == 5) values[place] *= 64;
    if (draw() % 64 == 0) values[place] = bits(static_cast<uint32_t>(draw()));
    if (draw() % 64 == 0) spread(values, static_cast<int>(draw() % 250) - 125);
  }
  /// A scale that can be bound.
  float scale() {
    if (draw() % 4 == 0) return 1;
    return std::ldexp(1.0f + unit(), static_cast<int>(draw() % 40) - 20);
  }

 private:
  uint64_t draw() { return support::derived_seed(seed_, n_drawn_++); }
  float unit() { return static_cast<float>(draw() >> 40) * 0x1p-24f; }
  float normal() { return (unit() + unit() + unit() + unit() - 2) * 1.7f; }
  static float bits(uint32_t of) {
    float x;
    std::memcpy(&x, &of, sizeof x);
    return x;
  }
  float number(uint64_t kind, float size) {
    switch (kind) {
      case 0: return kvc::f16_to_f32(kvc::f32_to_f16(normal() * size));
      case 1: return kvc::bf16_to_f32(kvc::f32_to_bf16(normal() * size));
      case 2: return (2 * unit() - 1) * size;
      case 3: return size * (draw() % 2 != 0 ? 1.0f : -1.0f);  // the first of them decides
      case 4: return size * near_tie();
      case 5: return normal() * size;
      case 6: return bits(static_cast<uint32_t>(draw()) & 0xbfffffff);
      default: return normal();
    }
  }
  /// Near a half step of 127 or 8, or near a threshold between two powers of two.
  float near_tie() {
    const float steps = draw() % 2 != 0 ? 127.0f : 8.0f;
    const auto k = static_cast<float>(draw() % 127);
    const float tie = (k + 0.5f) / steps;
    const float off = static_cast<float>(static_cast<int>(draw() % 9) - 4) * 0x1p-24f;
    const float x = tie > 1 ? tie / 16 : tie;
    return (draw() % 2 != 0 ? x : -x) * (1 + off);
  }
  static void spread(std::vector<float>& values, int exponent) {
    for (float& x : values) x = std::ldexp(x, exponent);
  }

  uint64_t seed_, n_drawn_ = 0;
};
