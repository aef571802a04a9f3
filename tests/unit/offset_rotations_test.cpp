// Rotations by RoPE for any offset: rows of every type turned as double turns them, whatever was turned before.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "core/base/half.hpp"
#include "kernels/cpu/offset_rotations.hpp"
#include "unit/kernel_tables.hpp"

namespace {

using namespace kvc;

constexpr int32_t head_dim = 83;

struct Memory {
  Memory() {
    Carver measure;
    cpu::OffsetRotations::place(measure, head_dim);
    block.resize(static_cast<size_t>(measure.used().value()) + 64, std::byte{0xff});
    auto* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(block.data()) + 63) /
                                                 64 * 64);
    Carver carver(aligned);
    rotations = cpu::OffsetRotations::place(carver, head_dim);
    cpu::OffsetRotations::forget(rotations);
  }
  std::vector<std::byte> block;
  std::byte* rotations = nullptr;
};

struct Turning {
  Rope rope;
  std::vector<double> frequency;

  Turning(int32_t n_dims, int32_t first_dim, bool halves, double fastest) {
    for (int32_t i = 0; i < n_dims / 2; ++i)
      frequency.push_back(fastest * std::pow(10000.0, -2.0 * i / n_dims));
    rope = {.frequency = frequency.data(), .n_dims = n_dims, .halves = halves, .first_dim = first_dim};
  }

  std::vector<double> exact(const std::vector<float>& row, int32_t offset) const {
    std::vector<double> turned(row.begin(), row.end());
    for (int32_t i = 0; i < rope.n_dims / 2; ++i) {
      const auto a = static_cast<size_t>(rope.first_dim + (rope.halves ? i : 2 * i));
      const size_t b = a + static_cast<size_t>(rope.halves ? rope.n_dims / 2 : 1);
      const double angle = offset * rope.frequency[i];
      turned[a] = row[a] * std::cos(angle) - row[b] * std::sin(angle);
      turned[b] = row[a] * std::sin(angle) + row[b] * std::cos(angle);
    }
    return turned;
  }
};

std::vector<float> random_row(std::mt19937& random) {
  std::vector<float> row(head_dim);
  std::normal_distribution<float> normal;
  for (float& x : row) x = f16_to_f32(f32_to_f16(normal(random)));
  return row;
}

std::vector<float> turned(const Turning& turning, Memory& memory, const std::vector<float>& row,
                          int32_t offset) {
  std::vector<float> to(head_dim, NAN);
  cpu::OffsetRotations(turning.rope, memory.rotations)
      .turn(cpu::one_row(to.data(), row.data(), head_dim), offset);
  return to;
}

const int32_t offsets[] = {0,          1,       -1,        15,         16,
                           -17,        255,     256,       4095,       4096,
                           -8191,      100000,  -999999,   1048575,    -1048575,
                           1048576,    1048577, -1048576,  3,          1 << 23,
                           -(1 << 23), 1 << 25, INT32_MAX, -INT32_MAX, -INT32_MAX - 1,
                           -2};

class OffsetRotations : public testing::TestWithParam<const cpu::KernelTable*> {
 protected:
  OffsetRotations() { cpu::use_kernels(GetParam()); }
  ~OffsetRotations() override { cpu::use_kernels(nullptr); }
};

TEST_P(OffsetRotations, TurnAsDoubleDoes) {
  std::mt19937 random(7);
  for (const bool halves : {false, true}) {
    for (const int32_t n_dims : {2, 32, 46, 82}) {
      for (const double fastest : {1.0, 0.001, 16.0}) {
        const Turning turning(n_dims, halves ? 1 : 0, halves, fastest);
        Memory memory;
        for (const int32_t offset : offsets) {
          const std::vector<float> row = random_row(random);
          const std::vector<float> got = turned(turning, memory, row, offset);
          const std::vector<double> wanted = turning.exact(row, offset);
          for (size_t d = 0; d < head_dim; ++d) {
            ASSERT_NEAR(got[d], wanted[d], 0x1p-21)
                << "offset " << offset << ", dimension " << d << " of " << n_dims;
          }
        }
      }
    }
  }
}

TEST_P(OffsetRotations, DependOnTheOffsetAlone) {
  std::mt19937 random(8);
  const Turning turning(64, 0, true, 1.0);
  const std::vector<float> row = random_row(random);
  Memory used;
  for (const int32_t offset : offsets) {
    Memory fresh;
    EXPECT_EQ(turned(turning, used, row, offset), turned(turning, fresh, row, offset)) << offset;
  }
}

TEST_P(OffsetRotations, TurnRowsOfEveryTypeAndOfAnyCells) {
  std::mt19937 random(9);
  for (const bool halves : {false, true}) {
    const Turning turning(70, 5, halves, 1.0);
    Memory memory;
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      constexpr int32_t n_cells = 9, n = 4;
      const size_t stride = (head_dim + 3) * size_of(type);
      std::vector<std::byte> stored(n_cells * stride);
      std::vector<float> to(n * (head_dim + 1), NAN);
      for (int32_t cell = 0; cell < n_cells; ++cell) {
        const std::vector<float> row = random_row(random);
        for (int32_t d = 0; d < head_dim; ++d)
          store_element(stored.data() + static_cast<size_t>(cell) * stride, type, d,
                        row[static_cast<size_t>(d)]);
      }
      const int32_t cells[n] = {8, 0, 3, 3};
      cpu::OffsetRotations(turning.rope, memory.rotations)
          .turn({.to = to.data(),
                 .to_stride = head_dim + 1,
                 .from = stored.data(),
                 .from_stride = stride,
                 .cell = cells,
                 .n = n,
                 .type = type,
                 .head_dim = head_dim},
                -1234);
      for (size_t i = 0; i < n; ++i) {
        std::vector<float> row;
        for (int32_t d = 0; d < head_dim; ++d)
          row.push_back(load_element(stored.data() + static_cast<size_t>(cells[i]) * stride, type, d));
        const std::vector<double> wanted = turning.exact(row, -1234);
        for (size_t d = 0; d < head_dim; ++d)
          ASSERT_NEAR(to[i * (head_dim + 1) + d], wanted[d], 0x1p-21)
              << "row " << i << ", dimension " << d;
        EXPECT_TRUE(std::isnan(to[i * (head_dim + 1) + head_dim])) << "written past a row's end";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Everywhere, OffsetRotations, testing::ValuesIn(tables()),
                         [](const auto& table) { return std::string(table.param->name); });

}  // namespace
