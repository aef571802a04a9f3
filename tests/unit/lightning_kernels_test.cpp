/// The CPU's linear attention with decay against the oracle in double, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/lightning.hpp"
#include "unit/kernel_tables.hpp"
#include "unit/lightning_case.hpp"
#include "unit/pool.hpp"

namespace {

using namespace kvc;
using lightning_case::Floats;
using lightning_case::not_a_number;
using lightning_case::Shape;
using lightning_case::words;

class Case : public lightning_case::Case {
 public:
  using lightning_case::Case::Case;
  void run(int32_t n_threads) {
    const PoolPointer pool = make_pool(n_threads);
    Floats workspace(
        static_cast<int64_t>(cpu::lightning_workspace_bytes(params.bounds, n_threads) / 4));
    params.workspace = reinterpret_cast<std::byte*>(workspace.data());
    cpu::lightning(params, *pool);
  }
};

class LightningKernels : public testing::TestWithParam<const cpu::KernelTable*> {
 protected:
  void SetUp() override { cpu::use_kernels(GetParam()); }
  void TearDown() override { cpu::use_kernels(nullptr); }
};

TEST_P(LightningKernels, AgreeWithTheOracle) {
  std::vector<Shape> shapes;
  for (const int32_t n : {1, 2, 3, 5, 6, 7, 13, 17, 31, 47, 64, 65, 100})
    shapes.push_back({.tokens = {n, 1, n / 2 + 1}});
  for (const int32_t dim : {1, 2, 3, 8, 15, 16, 17, 33, 48, 64, 80, 96, 112, 128, 160}) {
    shapes.push_back({.head_dim_k = dim, .head_dim_v = 24, .tokens = {1, 9}});
    shapes.push_back({.head_dim_k = 20, .head_dim_v = dim, .tokens = {1, 9}});
  }
  for (const int32_t group : {2, 3, 4, 5, 8}) shapes.push_back({.group = group, .tokens = {1, 10}});
  for (const int32_t block : {1, 2, 5, 16, 33, 100})
    shapes.push_back({.block = block, .tokens = {70}});
  for (const float slope : {0.0f, 1e-7f, 0.01f, 1.0f, 20.0f, 1e4f})
    shapes.push_back({.tokens = {1, 30}, .slope = slope});
  for (const DType dtype : {DType::f16, DType::bf16})
    shapes.push_back({.tokens = {1, 20}, .scale = 0.125f, .dtype = dtype});
#ifdef KVC_SANITIZED  // products are slow there
  const std::vector<bool> with_gaps = {true};
  std::erase_if(shapes, [](const Shape& shape) { return shape.tokens[0] > 70; });
#else
  const std::vector<bool> with_gaps = {false, true};
#endif
  uint32_t seed = 1;
  for (Shape shape : shapes) {
    for (const bool gaps : with_gaps) {
      shape.gaps = shape.masked = gaps;
      Case one(shape, seed++);
      one.run(2);
      one.compare(words(shape));
      if (HasFatalFailure()) return;
    }
  }
}

/// Of a long pass outputs, and K and V that are kept, go past the caches: the bits are those of short ones.
TEST_P(LightningKernels, GiveTheSameBitsInALongPassAndInShortOnes) {
  constexpr int32_t n = 8200, part = n / 4, block = part / 41;
  Shape shape = {.n_heads = 1,
                 .group = 8,
                 .head_dim_k = 16,
                 .head_dim_v = 32,
                 .block = block,
                 .tokens = {n},
                 .dense = true};
  struct Layout {
    DType dtype;
    bool crosses_lines;
  };
  for (const Layout layout :
       {Layout{DType::f32, false}, Layout{DType::f32, true}, Layout{DType::f16, false},
        Layout{DType::f16, true}, Layout{DType::bf16, false}}) {
    shape.dtype = layout.dtype;
    shape.crosses_lines = layout.crosses_lines;
    Case whole(shape, 11), parts(shape, 11);
    whole.run(2);
    LightningRow row = *parts.params.row;
    parts.params.row = &row;
    row.n_tokens = part;
    for (int32_t first = 0; first < n; first += part) {
      row.first_token = row.first_kept = first;
      parts.run(2);
      row.from = row.to;
      row.next = parts.params.token[first + part - 1].position + 1;
    }
    EXPECT_EQ(whole.states(), parts.states());
    EXPECT_EQ(whole.outputs(), parts.outputs());
    const std::vector<float> kept = whole.kept(), kept_in_parts = parts.kept();
    EXPECT_EQ(std::memcmp(kept.data(), kept_in_parts.data(), 4 * kept.size()),
              0);  // NaN behind short rows
  }
}

TEST_P(LightningKernels, GiveTheSameBitsForAnyNumberOfThreads) {
  const Shape shape = {
      .n_heads = 5, .group = 2, .head_dim_k = 33, .head_dim_v = 40, .tokens = {1, 100, 7}, .gaps = true};
  Case one(shape, 7), three(shape, 7);
  one.run(1);
  three.run(3);
  EXPECT_EQ(std::memcmp(one.states().data(), three.states().data(), 4 * one.states().size()), 0);
  EXPECT_EQ(one.outputs(), three.outputs());
}

/// What put() keeps serves attention later, and a state alone: the bits are those of both at once.
TEST_P(LightningKernels, GiveTheSameBitsInOneCallAndInTwo) {
  for (const int32_t n : {1, 2, 90}) {
    const Shape shape = {
        .head_dim_k = 24, .head_dim_v = 40, .tokens = {n, 3}, .gaps = true, .masked = true};
    Case both(shape, 3), apart(shape, 3);
    both.run(1);
    const Tensor q = apart.params.q;
    apart.params.q = {};
    apart.run(1);
    const std::vector<float> states = apart.states();
    EXPECT_EQ(std::memcmp(both.states().data(), states.data(), 4 * states.size()), 0) << n;
    apart.params.q = q;
    apart.params.input = LightningInput::kept;
    apart.params.writes_states = false;
    apart.run(1);
    EXPECT_EQ(std::memcmp(apart.states().data(), states.data(), 4 * states.size()), 0) << n;
    EXPECT_EQ(both.outputs(), apart.outputs()) << n;
  }
}

/// The tensor with its numbers twice as far apart, which kernels cannot read where they lie.
Tensor spread(const Tensor& dense, std::vector<float>& memory) {
  Tensor t = dense;
  const int64_t n = t.shape[0] * t.stride[0];
  memory.assign(static_cast<size_t>(2 * n), not_a_number);
  for (int64_t i = 0; i < n; ++i)
    memory[static_cast<size_t>(2 * i)] = static_cast<const float*>(t.data)[i];
  t.data = memory.data();
  for (int64_t& stride : t.stride) stride *= 2;
  return t;
}

/// Keys that are not kept, and queries, are read in place where that is possible.
TEST_P(LightningKernels, GiveTheSameBitsWhereRowsLieAndOfCopies) {
  uint32_t seed = 13;
  for (const int32_t n : {2, 15, 16, 48, 49, 130}) {
    for (const bool odd : {false, true}) {
      const Shape shape = {.n_heads = 3,
                           .group = odd ? 2 : 1,
                           .head_dim_k = 48,
                           .tokens = {n, 1, 7},
                           .gaps = odd,
                           .masked = odd,
                           .dense = true,
                           .crosses_lines = odd,
                           .in_order = true};
      Case in_place(shape, seed), copied(shape, seed);
      ++seed;
      std::vector<float> k, q;
      copied.params.k = spread(copied.params.k, k);
      copied.params.q = spread(copied.params.q, q);
      copied.params.keeps = in_place.params.keeps = false;
      in_place.run(2);
      copied.run(2);
      EXPECT_EQ(in_place.outputs(), copied.outputs()) << words(shape);
      const std::vector<float> states = in_place.states(), wanted = copied.states();
      EXPECT_EQ(std::memcmp(states.data(), wanted.data(), 4 * wanted.size()), 0) << words(shape);
      in_place.compare(words(shape));
      if (HasFatalFailure()) return;
    }
  }
}

/// A decay that a float rounds must not be wrong in the same direction in every step.
TEST_P(LightningKernels, StayExactOverManySteps) {
  constexpr int32_t n = 3000;
  for (const float slope : {0.0001f, 0.003f, 0.05f}) {
    const Shape one_by_one = {
        .n_heads = 1, .head_dim_k = 4, .head_dim_v = 16, .tokens = {n}, .slope = slope};
    Case all(one_by_one, 5);
    Case steps(one_by_one, 5);
    const LightningRow whole = *steps.params.row;
    LightningRow row = whole;
    steps.params.row = &row;
    for (int32_t i = 0; i < n; ++i) {
      row.first_token = row.first_kept = i;
      row.n_tokens = 1;
      steps.run(1);
      row.from = row.to;
      row.next = steps.params.token[i].position + 1;
    }
    all.params.q = {};  // the state alone
    ReferenceNumbers out, state;
    reference_lightning(all.params, *all.params.row, &out, &state);
    const auto* slot = reinterpret_cast<const float*>(steps.params.states.slot(whole.to));
    for (size_t i = 0; i < state.value.size(); ++i)
      ASSERT_NEAR(static_cast<double>(slot[i]), state.value[i], 1e-5 * state.magnitude[i]) << slope;
  }
}

/// Later tokens do not reach earlier outputs, whatever they hold.
TEST_P(LightningKernels, HideLaterTokens) {
  const Shape shape = {.n_heads = 1, .tokens = {40}};
  Case clean(shape, 11), poisoned(shape, 11);
  const LightningToken& last = poisoned.params.token[39];
  for (const Tensor* t : {&poisoned.params.k, &poisoned.params.v}) {
    for (int64_t d = 0; d < t->shape[2]; ++d)
      store_element(t->data, t->dtype, last.index * t->stride[0] + d * t->stride[2], not_a_number);
  }
  clean.run(1);
  poisoned.run(1);
  const std::vector<float> expected = clean.outputs(), got = poisoned.outputs();
  for (int32_t i = 0; i < 39; ++i) {
    const auto first = static_cast<size_t>(poisoned.params.token[i].index * shape.head_dim_v);
    EXPECT_EQ(std::memcmp(&expected[first], &got[first], 4 * 32), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, LightningKernels, testing::ValuesIn(tables()),
                         [](const auto& set) { return std::string(set.param->name); });

}  // namespace
