/// The conversions, exp2 and tanh of every instruction set of this machine against the scalar ones and against double.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/base/half.hpp"
#include "unit/kernel_tables.hpp"

namespace {

using namespace kvc;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

uint16_t to_half(DType dtype, float value) {
  return dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
}

float from_half(DType dtype, uint32_t bits) {
  const auto half = static_cast<uint16_t>(bits);
  return dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

TEST(Conversions, EveryHalfWidensAsTheScalarConversionDoes) {
  for (const cpu::KernelTable* table : tables()) {
    for (const DType dtype : {DType::f16, DType::bf16}) {
      std::vector<uint16_t> halves(65536);
      std::vector<float> wide(65536);
      for (uint32_t i = 0; i < 65536; ++i) halves[i] = static_cast<uint16_t>(i);
      table->to_f32(wide.data(), halves.data(), dtype, 65536);
      for (uint32_t i = 0; i < 65536; ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(from_half(dtype, i)), std::bit_cast<uint32_t>(wide[i]))
            << table->name << " " << i;
      }
    }
  }
}

/// The kernels of each set round `wide` to the bytes that the scalar conversion gives.
void expect_rounded_alike(DType dtype, const std::vector<float>& wide) {
  std::vector<uint16_t> halves(wide.size());
  for (const cpu::KernelTable* table : tables()) {
    table->from_f32(halves.data(), dtype, wide.data(), static_cast<int64_t>(wide.size()));
    for (size_t i = 0; i < wide.size(); ++i) {
      ASSERT_EQ(to_half(dtype, wide[i]), halves[i])
          << table->name << " " << std::hex << std::bit_cast<uint32_t>(wide[i]);
    }
  }
}

/// What lies in the middle between two neighbours of a 16-bit type, and the floats beside it: subnormal numbers, the step to
/// infinity and NaN included.
TEST(Conversions, EveryMiddleBetweenTwoHalvesRoundsAsTheScalarConversionDoes) {
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const uint32_t half_step = dtype == DType::bf16 ? 0x8000u : 0x1000u;
    std::vector<float> wide;
    for (uint32_t i = 0; i < 65536; ++i) {
      const float low = from_half(dtype, i), high = from_half(dtype, i + 1);
      // The first is the middle between normal numbers, NaN included, the second between subnormal ones.
      for (const float middle :
           {std::bit_cast<float>(std::bit_cast<uint32_t>(low) + half_step), low / 2 + high / 2}) {
        for (const int32_t nudge : {-1, 0, 1}) {
          wide.push_back(
              std::bit_cast<float>(std::bit_cast<uint32_t>(middle) + static_cast<uint32_t>(nudge)));
        }
      }
    }
    expect_rounded_alike(dtype, wide);
  }
}

TEST(Conversions, AnyFloatRoundsAsTheScalarConversionDoes) {
  std::mt19937 random(7);
  for (const DType dtype : {DType::f16, DType::bf16}) {
    for (const size_t count : {1u, 3u, 7u, 15u, 17u, 31u, 1u << 20}) {  // tails included
      std::vector<float> wide(count);
      for (float& x : wide) x = std::bit_cast<float>(static_cast<uint32_t>(random()));
      expect_rounded_alike(dtype, wide);
    }
    // Between 2^-27 and 2^17: of most other floats f16 makes zero or infinity.
    std::vector<float> wide(1 << 20);
    for (float& x : wide) {
      const auto exponent = static_cast<uint32_t>(100 + random() % 44);
      x = std::bit_cast<float>((static_cast<uint32_t>(random()) & 0x807fffffu) | exponent << 23);
    }
    expect_rounded_alike(dtype, wide);
  }
}

TEST(Conversions, ExponentialAndTangent) {
  for (const cpu::KernelTable* table : tables()) {
    SCOPED_TRACE(table->name);
    std::vector<float> x, y(1 << 20);
    for (int32_t i = 0; i < (1 << 20); ++i)
      x.push_back(-130.0f * static_cast<float>(i) / (1 << 20));
    table->exp2(y.data(), x.data(), 1 << 20);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = std::exp2(static_cast<double>(x[i]));
      if (x[i] < -126) {
        ASSERT_EQ(y[i], 0.0f) << x[i];
      } else {
        ASSERT_NEAR(y[i], expected, expected * 1.2e-7) << x[i];
      }
    }
    for (size_t i = 0; i < x.size(); ++i) x[i] = (static_cast<float>(i) - (1 << 19)) * 1e-5f;
    table->tanh(y.data(), x.data(), 1 << 20);
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = std::tanh(static_cast<double>(x[i]));
      ASSERT_NEAR(y[i], expected, std::fabs(expected) * 3e-7) << x[i];
    }
    alignas(64) float special[16] = {-infinity, 0.0f, not_a_number, -not_a_number,
                                     -1e30f,    1.0f, infinity,     -0.0f};
    special[8] = std::bit_cast<float>(0x7fc001ffu);
    alignas(64) float result[16];
    table->exp2(result, special, 16);
    EXPECT_EQ(result[0], 0.0f);
    EXPECT_EQ(result[1], 1.0f);
    EXPECT_TRUE(std::isnan(result[2]) && std::isnan(result[3]) && std::isnan(result[8]));
    EXPECT_EQ(result[4], 0.0f);
    EXPECT_EQ(result[5], 2.0f);
    table->tanh(result, special, 16);
    EXPECT_EQ(result[0], -1.0f);
    EXPECT_EQ(result[6], 1.0f);
    EXPECT_TRUE(std::isnan(result[2]));
  }
}

}  // namespace
