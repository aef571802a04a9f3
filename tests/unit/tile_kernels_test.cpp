/// The narrow, the medium and the wide kernel of every instruction set that this machine runs, against
/// attention in double over the same tile, whatever K and V are stored as.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/kernel_table.hpp"
#include "tests/unit/tile_problem.hpp"

namespace {

using namespace tile_problem;
using kvc::StorageType;
using kvc::cpu::KernelTable;
using kvc::cpu::Tile;

constexpr unsigned first_seed = 20240611;

/// The kernels that this machine runs, each once: instruction sets share some.
std::vector<Kernel> kernels() {
  std::vector<Kernel> all;
  const auto add = [&all](Kernel kernel) {
    const auto is_same = [&](const Kernel& other) { return other.process == kernel.process; };
    if (kernel.process != nullptr && std::none_of(all.begin(), all.end(), is_same))
      all.push_back(std::move(kernel));
  };
  for (int32_t i = 0; const KernelTable* isa = kvc::cpu::runnable_kernels(i); ++i) {
    add({std::string("narrow_") + isa->name, isa->process_narrow_tile,
         isa->narrow_tile_scratch_bytes, kvc::cpu::tile_rows_max});
    add({std::string("wide_") + isa->name, isa->process_wide_tile, isa->wide_tile_scratch_bytes,
         kvc::cpu::tile_rows_max, isa->wide_tile_scales});
    add({std::string("medium_") + isa->name, isa->process_medium_tile,
         isa->medium_tile_scratch_bytes, kvc::cpu::medium_tile_rows_max});
  }
  return all;
}

/// Those that multiply scores with the tile's scale.
std::vector<Kernel> scaling_kernels() {
  std::vector<Kernel> all = kernels();
  std::erase_if(all, [](const Kernel& kernel) { return !kernel.scales; });
  return all;
}

class TileKernel : public testing::TestWithParam<Kernel> {
 protected:
  void check(const Shape& shape, unsigned seed, double bound = 1e-5) {
    SCOPED_TRACE(describe(shape, seed, kernel_));
    Problem problem(shape, seed);
    problem.run(kernel_, 0, shape.n_cells);
    const Problem::Errors errors = problem.errors();
    EXPECT_LE(errors.relative, bound);
    EXPECT_LE(errors.of_bound, 1.0);
    worst_ = std::max(worst_, errors.of_bound);
  }

  static size_t count(int32_t n) { return static_cast<size_t>(n); }

  /// Tokens of a shape: as many, or as many as the kernel takes.
  int32_t at_most(int32_t n_tokens, int32_t group = 4) const {
    return std::min(n_tokens, kernel_.rows_max / group);
  }

  const Kernel kernel_ = GetParam();
  double worst_ = 0;
};

#ifdef KVC_SANITIZED  // products are slow there
constexpr unsigned n_random_shapes = 30;
#else
constexpr unsigned n_random_shapes = 120;
#endif

TEST_P(TileKernel, AgreesWithDoubleOverRandomShapesAndOptions) {
  std::mt19937 random(first_seed);
  const auto below = [&](int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random); };
  constexpr StorageType types[] = {StorageType::f32, StorageType::f16, StorageType::bf16};
  constexpr int32_t dims[] = {16,  32,  48,  64,  80,  96,  112, 128,
                              144, 192, 256, 512, 576, 100, 36,  8};
  constexpr int32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 64};
  for (unsigned i = 0; i < n_random_shapes; ++i) {
    Shape shape;
    shape.group = groups[below(9)];
    shape.tokens = 1 + below(kernel_.rows_max / shape.group - 1);
    shape.n_cells = 1 + below(below(3) == 0 ? 700 : 150);
    shape.head_dim_k = dims[below(15)];
    shape.head_dim_v = below(2) != 0 ? shape.head_dim_k : dims[below(15)];
    shape.k.type = types[below(2)];
    shape.v.type = below(1) == 1 ? shape.k.type : types[below(2)];
    shape.cap = below(3) == 0;
    shape.slopes = below(3) == 0;
    shape.visibility = below(3);
    shape.poison_hidden = below(3) == 0;
    shape.sharpness = below(3) == 0 ? 4.0f : 1.0f;
    check(shape, first_seed + i);
    if (HasFailure()) return;
  }
  RecordProperty("worst_share_of_the_bound", std::to_string(worst_));
}

/// K and V typed apart, of every dimension and block, in rows that lie apart, and V as a part of K.
TEST_P(TileKernel, StaysWithinTheBoundOverEveryStorageType) {
  std::mt19937 random(first_seed);
  const auto below = [&](int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random); };
  const auto pick = [&](StorageType type) {
    StoredAs as = {.type = type};
    if (below(2) == 0) as.gap = count(below(9)) * kvc::size_of(kvc::format_of(type).code);
    return as;
  };
  const auto multiple = [](const StoredAs& as) {
    if (as.type == StorageType::nf4) return as.block == 0 ? 16 : as.block;
    return as.type == StorageType::q8_0 || as.type == StorageType::q4_0 ? 32 : 1;
  };
  const auto dimension = [&](const StoredAs& as) {
    const int32_t step = multiple(as);
    return (1 + below((below(2) == 0 ? 576 : 130) / step - 1)) * step;
  };
  for (unsigned i = 0; i < 3 * n_random_shapes; ++i) {
    Shape shape;
    shape.k = pick(static_cast<StorageType>(i % kvc::n_storage_types));
    shape.v = pick(below(2) == 0 ? shape.k.type : static_cast<StorageType>(below(8)));
    for (StoredAs* as : {&shape.k, &shape.v}) {
      if (as->type == StorageType::nf4) as->block = below(4) == 0 ? 0 : 16 << below(3);
    }
    shape.head_dim_k = dimension(shape.k);
    shape.head_dim_v = dimension(shape.v);
    if (below(4) == 0) {
      const int32_t step = multiple(shape.k);
      shape.head_dim_v = (1 + below(shape.head_dim_k / step - 1)) * step;
      shape.v = shape.k;
      shape.v.block = 0;
      shape.v_first = below((shape.head_dim_k - shape.head_dim_v) / step) * step;
      if (shape.k.block == 0 && shape.k.type == StorageType::nf4) continue;  // not known here
    }
    shape.group = 1 + below(8);
    shape.tokens = 1 + below(std::min(kernel_.rows_max, 48) / shape.group - 1);
    shape.n_cells = 1 + below(below(3) == 0 ? 300 : 60);
    shape.cap = below(3) == 0;
    shape.slopes = below(3) == 0;
    shape.visibility = below(3);
    shape.poison_hidden = below(1) == 0;
    check(shape, first_seed + i);
    if (HasFailure()) return;
  }
  RecordProperty("worst_share_of_the_bound", std::to_string(worst_));
}

/// Integer codes have kernels of their own for few rows and common heads, in which rows are done by fours.
TEST_P(TileKernel, StaysWithinTheBoundOverIntegerCodesOfFewRows) {
  std::mt19937 random(first_seed);
  const auto below = [&](int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random); };
  constexpr StorageType types[] = {StorageType::int8, StorageType::q8_0, StorageType::q4_0};
  for (unsigned i = 0; i < n_random_shapes; ++i) {
    Shape shape;
    shape.k.type = types[i % 3];
    shape.v.type = types[i / 3 % 3];
    if (below(2) == 0) shape.k.gap = shape.v.gap = count(below(9));
    shape.head_dim_k = 32 * (1 + below(3));
    shape.head_dim_v = 32 * (1 + below(3));
    if (shape.k.type == StorageType::int8) shape.head_dim_k -= below(31);
    shape.group = 3 + below(9);
    shape.tokens = 1 + below(12 / shape.group);
    shape.n_cells = 1 + below(below(3) == 0 ? 700 : 150);
    shape.cap = below(3) == 0;
    shape.slopes = below(3) == 0;
    shape.visibility = below(3);
    shape.poison_hidden = below(1) == 0;
    shape.sharpness = below(3) == 0 ? 4.0f : 1.0f;
    check(shape, first_seed + i);
    if (HasFailure()) return;
  }
}

/// No encoder makes them, but for q4_0, and yet whoever puts codes may bring them.
TEST_P(TileKernel, StaysWithinTheBoundOfNegativeScales) {
  unsigned seed = first_seed;
  for (const StorageType type :
       {StorageType::int8, StorageType::q8_0, StorageType::q4_0, StorageType::nf4}) {
    Shape shape;
    shape.k.type = shape.v.type = type;
    shape.tokens = at_most(3);
    shape.n_cells = 200;
    Problem problem(shape, ++seed);
    for (int32_t cell = 70; cell < shape.n_cells; cell += 3) {  // the first block has none
      for (int32_t d = 0; d < 128; d += 32) {
        problem.set_key(cell, d, -0.01f);
        problem.set_value(cell, d, -0.01f);
      }
    }
    problem.run(kernel_, 0, shape.n_cells);
    EXPECT_LE(problem.errors().of_bound, 1) << kernel_.name;
  }
}

TEST_P(TileKernel, TakesEveryNumberOfRows) {
  for (int32_t tokens = 1; tokens <= at_most(192, 1); tokens += tokens < 50 ? 1 : 7) {
    Shape shape;
    shape.tokens = tokens;
    shape.group = 1;
    shape.n_cells = 150 + tokens;
    shape.head_dim_k = shape.head_dim_v = 48;
    check(shape, first_seed + static_cast<unsigned>(tokens), 4e-6);
  }
}

TEST_P(TileKernel, CarriesTheSoftmaxOnFromTileToTile) {
  for (unsigned i = 0; i < 12; ++i) {
    Shape shape;
    shape.tokens = at_most(24);
    shape.n_cells = 400;
    shape.visibility = static_cast<int>(i % 4);
    shape.slopes = i % 3 == 0;
    shape.sharpness = 6.0f;
    SCOPED_TRACE(describe(shape, first_seed + i, kernel_));
    Problem problem(shape, first_seed + i);
    problem.run(kernel_, 0, 100);
    problem.run(kernel_, 100, 101);
    problem.run(kernel_, 101, 390);
    problem.run(kernel_, 390, 400);
    EXPECT_LE(problem.error(), 1e-5);
  }
}

TEST_P(TileKernel, KeepsErrorsSmall) {
  Shape shape;
  shape.tokens = 16;
  shape.n_cells = 1536;
  check(shape, first_seed, 2.5e-6);
  shape.k.type = shape.v.type = StorageType::bf16;
  check(shape, first_seed + 1, 2.5e-6);
}

/// Of any size: matrix registers know no denormal numbers, which the later parts of small ones would be.
TEST_P(TileKernel, KeepsErrorsSmallForSmallAndLargeNumbers) {
  unsigned seed = first_seed;
  for (const StorageType type : {StorageType::f32, StorageType::bf16, StorageType::int8}) {
    for (const float key_size : {0x1p-120f, 0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p100f}) {
      for (const float value_size : {0x1p-120f, 0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p100f}) {
        Shape shape;
        shape.k.type = shape.v.type = type;
        shape.head_dim_k = shape.head_dim_v = 64;
        shape.key_size = key_size;
        shape.value_size = value_size;
        SCOPED_TRACE(std::to_string(std::log2(key_size)) + " " +
                     std::to_string(std::log2(value_size)));
        check(shape, ++seed, 4e-6);
      }
    }
  }
}

/// One row sees small values alone, beside others that see ordinary ones in the same block.
TEST_P(TileKernel, KeepsErrorsSmallInARowOfSmallValues) {
  for (const StorageType type : {StorageType::f32, StorageType::int8}) {
    Shape shape;
    shape.k.type = shape.v.type = type;
    shape.group = 1;
    shape.tokens = shape.n_cells = at_most(60, 1);
    Problem problem(shape, first_seed);  // causal: the first token sees the first cell alone
    for (int32_t d = 0; d < shape.head_dim_v; ++d)
      problem.set_value(0, d, std::ldexp(1.0f + static_cast<float>(d) * 0.007f, -120));
    problem.run(kernel_, 0, shape.n_cells);
    EXPECT_LE(problem.error(), 4e-6) << kernel_.name;
  }
}

/// Large numbers of a query meet small ones of the keys, so that its small numbers count.
TEST_P(TileKernel, StaysWithinTheBoundWhereAQueryHasLargeNumbersThatDoNotCount) {
  for (const StorageType type : {StorageType::q8_0, StorageType::q4_0, StorageType::f32}) {
    Shape shape;
    shape.k.type = shape.v.type = type;
    shape.tokens = at_most(4);
    shape.n_cells = 200;
    Problem problem(shape, first_seed);
    for (int32_t cell = 0; cell < shape.n_cells; ++cell) {
      for (int32_t d = 0; d < 32; ++d) problem.set_key(cell, d, 0x1p-14f);
    }
    for (int32_t row = 0; row < problem.n_rows(); ++row) problem.set_query(row, row % 32, 0x1p12f);
    problem.run(kernel_, 0, shape.n_cells);
    EXPECT_LE(problem.errors().of_bound, 1) << kernel_.name;
  }
}

TEST_P(TileKernel, WhatIsSeenPropagatesAndWhatIsHiddenDoesNot) {
  for (const float poison : {not_a_number, infinity, -infinity}) {
    for (int32_t i = 0; i < kvc::n_storage_types; ++i) {
      const auto type = static_cast<StorageType>(i);
      // An infinite scale times a code of 0 is NaN: only f32, f16, bf16 and e5m2 hold infinities.
      const bool has_infinity = kvc::is_plain(type) || type == StorageType::f8_e5m2;
      if (poison == poison && !has_infinity) continue;
      Shape shape;
      shape.tokens = at_most(40);
      shape.n_cells = 200;
      shape.k.type = shape.v.type = type;
      SCOPED_TRACE(describe(shape, first_seed, kernel_) + std::to_string(poison));
      Problem values(shape, first_seed);
      for (const int32_t index : {170, 185, 199}) values.set_value(index, index % 128, poison);
      values.run(kernel_, 0, shape.n_cells);
      EXPECT_EQ(values.error(), std::min(values.error(), 1e-5));
      if (poison == poison) continue;  // an infinite key may give either sign of infinity, or NaN
      Problem keys(shape, first_seed);
      for (const int32_t index : {175, 199}) keys.set_key(index, index % 128, poison);
      keys.run(kernel_, 0, shape.n_cells);
      EXPECT_EQ(keys.error(), std::min(keys.error(), 1e-5));
    }
  }
}

/// Kernels compute whole groups of cells, but the bias of those that are not there is nobody's memory, or another's.
TEST_P(TileKernel, ReadsNoBiasBehindTheLastCell) {
  for (const int32_t n_cells : {1, 5, 26, 33, 64, 95}) {
    for (const int32_t tokens : {8, at_most(40)}) {
      Shape shape;
      shape.tokens = tokens;
      shape.n_cells = n_cells;
      shape.visibility = 3;
      SCOPED_TRACE(describe(shape, first_seed, kernel_));
      Problem problem(shape, first_seed);
      const AtTheEdge bias(static_cast<size_t>(n_cells * problem.bias_stride()) * sizeof(float));
      problem.set_bias(bias.floats());
      problem.run(kernel_, 0, n_cells);
      EXPECT_LE(problem.error(), 1e-5);
    }
  }
}

TEST_P(TileKernel, ARowThatSawOnlyNanIsNan) {
  Shape shape;
  shape.tokens = 16;
  shape.n_cells = 16;
  Problem problem(shape, first_seed);
  problem.set_key(0, 3, not_a_number);
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.error(), 1e-5);
  EXPECT_TRUE(std::isnan(problem.sum()[0]));
}

TEST_P(TileKernel, ANanQueryStaysInItsRow) {
  Shape shape;
  shape.tokens = at_most(20);
  shape.cap = shape.slopes = true;
  Problem problem(shape, first_seed);
  problem.set_query(17, 5, not_a_number);
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.error(), 1e-5);
  for (int32_t row = 0; row < problem.n_rows(); ++row) {
    EXPECT_EQ(std::isnan(problem.sum()[static_cast<size_t>(row)]), row == 17) << row;
  }
}

TEST_P(TileKernel, RepeatsItselfBitForBit) {
  Shape shape;
  shape.group = 5;
  shape.tokens = at_most(37, shape.group);
  shape.n_cells = 333;
  shape.slopes = shape.cap = true;
  Problem one(shape, first_seed), two(shape, first_seed);
  one.run(kernel_, 0, shape.n_cells);
  two.run(kernel_, 0, shape.n_cells);
  EXPECT_EQ(one.sum(), two.sum());
  EXPECT_EQ(std::memcmp(one.o(), two.o(), one.o_count() * sizeof(float)), 0);
}

/// Queries of 8 bits and of 11 are one bf16 and two; the scale, which has 24, then comes after the product.
class ScalingKernel : public TileKernel {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ScalingKernel);

TEST_P(ScalingKernel, StaysWithinTheBoundWithQueriesOfFewBits) {
  constexpr StorageType types[] = {StorageType::f32,     StorageType::f16,  StorageType::bf16,
                                   StorageType::f8_e4m3, StorageType::q8_0, StorageType::q4_0,
                                   StorageType::int8,    StorageType::nf4};
  unsigned seed = first_seed;
  for (const StorageType type : types) {
    for (const int32_t bits : {8, 11, 24}) {
      Shape shape;
      shape.tokens = at_most(20);
      shape.n_cells = 300;
      shape.k.type = shape.v.type = type;
      shape.query_bits = bits;
      shape.cap = bits == 11;
      shape.visibility = static_cast<int>(seed % 4);
      check(shape, ++seed);
      shape.cap = false;
      shape.key_size = 0x1p70f;  // as far out of range as products are before they are scaled
      if (!kvc::is_f8(type) && kvc::format_of(type).scale != kvc::DType::f16 &&
          type != StorageType::f16)
        check(shape, ++seed);
    }
  }
}

/// Where factors of products may be rounded, the result is off by no more than that.
TEST_P(ScalingKernel, StaysWithinTheBoundWhereFactorsAreRounded) {
  unsigned seed = first_seed;
  for (int32_t i = 0; i < 2 * kvc::n_storage_types * kvc::n_storage_types; ++i) {
    Shape shape;
    shape.k.type = static_cast<StorageType>(i % kvc::n_storage_types);
    shape.v.type = static_cast<StorageType>(i / kvc::n_storage_types % kvc::n_storage_types);
    shape.parts = 1 + i / (kvc::n_storage_types * kvc::n_storage_types);
    shape.query_bits = i % 3 == 0 ? 0 : i % 3 == 1 ? 8 : 11;
    shape.tokens = at_most(10 + i % 30);
    shape.n_cells = 20 + 7 * i % 300;
    shape.visibility = i % 4;
    shape.cap = i % 5 == 0;
    shape.slopes = i % 7 == 0;
    shape.sharpness = i % 11 == 0 ? 4.0f : 1.0f;
    check(shape, ++seed, infinity);
  }
  std::cout << kernel_.name << ": at most " << worst_ << " of what is allowed" << std::endl;
}

/// They round: results are those of three parts no more. And values that would round to infinity still count as they are.
TEST_P(ScalingKernel, RoundsWhatMayBeRounded) {
  Shape shape;
  shape.tokens = at_most(20);
  std::vector<float> sum[3];
  for (const int32_t parts : {1, 2, 3}) {
    shape.parts = parts;
    Problem problem(shape, first_seed);
    problem.run(kernel_, 0, shape.n_cells);
    sum[parts - 1] = problem.sum();
  }
  EXPECT_NE(sum[0], sum[2]);
  EXPECT_NE(sum[1], sum[2]);
  shape.parts = 1;
  Problem problem(shape, first_seed);
  problem.set_value(shape.n_cells - 1, 0, std::numeric_limits<float>::max());
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.errors().of_bound, 1);
}

/// A hidden cell stays hidden where scores are scaled by a scale of its own that is NaN or 0.
TEST_P(ScalingKernel, HidesCellsWhateverTheirScale) {
  for (const float scale : {not_a_number, infinity, 0.0f}) {
    Shape shape;
    shape.tokens = at_most(40);
    shape.n_cells = 200;
    shape.k.type = shape.v.type = StorageType::int8;
    shape.query_bits = 8;
    Problem problem(shape, first_seed);
    problem.set_key(199, 0, scale);
    problem.set_value(199, 0, scale);
    problem.run(kernel_, 0, shape.n_cells);
    EXPECT_LE(problem.error(), 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, ScalingKernel, testing::ValuesIn(scaling_kernels()),
                         [](const auto& index) { return index.param.name; });

/// A generated token does not show who is generated beside it.
TEST_P(TileKernel, NarrowRowsHaveTheSameBitsAloneAndBesideOthers) {
  if (kernel_.name.rfind("narrow_", 0) != 0) GTEST_SKIP() << "the other kernels take many rows";
  for (int32_t i = 0; i < 4 * kvc::n_storage_types; ++i) {
    Shape shape;
    shape.k.type = static_cast<StorageType>(i % kvc::n_storage_types);
    shape.v.type = static_cast<StorageType>((i + i / kvc::n_storage_types) % kvc::n_storage_types);
    shape.head_dim_k = shape.head_dim_v = i % 2 == 0 ? 96 : 32;
    shape.group = 1 + i % 8;
    shape.tokens = 6;
    shape.n_cells = 130 + i;
    shape.visibility = i % 4;
    shape.slopes = i % 3 == 0;
    SCOPED_TRACE(describe(shape, first_seed, kernel_));
    Problem together(shape, first_seed), alone(shape, first_seed);
    together.run(kernel_, 0, shape.n_cells);
    for (int32_t token = 0; token < shape.tokens; ++token) alone.run_alone(kernel_, token);
    EXPECT_EQ(std::memcmp(together.o(), alone.o(), alone.o_count() * sizeof(float)), 0);
    for (int32_t row = 0; row < together.n_rows(); ++row)
      EXPECT_EQ(together.sum()[count(row)], alone.sum()[count(row)]) << row;
  }
}

/// Factors of runs are powers of two, so not a bit may differ.
TEST_P(TileKernel, NarrowChangesQueriesFromRunToRun) {
  if (kernel_.name.rfind("narrow_", 0) != 0)
    GTEST_SKIP() << "the other kernels meet a run at a time";
  constexpr StorageType types[] = {StorageType::f32, StorageType::f16, StorageType::bf16};
  for (int32_t i = 0; i < 36; ++i) {
    Shape shape;
    shape.k.type = types[i % 3];
    shape.v.type = types[i / 3 % 3];
    shape.head_dim_k = i % 4 == 0 ? 100 : 64;
    shape.head_dim_v = 64;
    shape.group = 1 + i % 6;
    shape.tokens = 1 + i % 2;
    shape.n_cells = 90 + i;
    shape.visibility = i % 4;
    shape.slopes = i % 5 == 0;
    SCOPED_TRACE(describe(shape, first_seed, kernel_));
    Problem plain(shape, first_seed), in_runs(shape, first_seed);
    plain.run(kernel_, 0, shape.n_cells);
    in_runs.run_in_runs(kernel_, 1 + i);
    EXPECT_EQ(std::memcmp(plain.o(), in_runs.o(), plain.o_count() * sizeof(float)), 0);
    EXPECT_EQ(plain.sum(), in_runs.sum());
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, TileKernel, testing::ValuesIn(kernels()),
                         [](const auto& index) { return index.param.name; });

}  // namespace
