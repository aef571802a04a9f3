// Linear attention with decay on the simulated CUDA device against the oracle in double, and that its bits do not depend on what else
// is in a call.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <numeric>
#include <vector>

#include "kernels/cuda/lightning.hpp"
#include "kernels/cuda/lightning_params.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/lightning_case.hpp"

namespace {

using namespace kvc;
using cuda::Error;
using lightning_case::not_a_number;
using lightning_case::Shape;
using lightning_case::words;

class Case : public lightning_case::Case {
 public:
  using lightning_case::Case::Case;
  void run(int32_t most_blocks = 5) {
    ASSERT_EQ(cuda::prepare_lightning(), Error::none);
    ASSERT_EQ(cuda::lightning(params, {nullptr, most_blocks}), Error::none);
    ASSERT_EQ(cuda::runtime::synchronize(nullptr), Error::none);
  }
};

bool are_same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
}

TEST(CudaLightning, AgreesWithTheOracle) {
  std::vector<Shape> shapes;
  for (const int32_t n : {1, 2, 3, 5, 17, 31, 32, 33, 64, 65, 100})
    shapes.push_back({.tokens = {n, 1, n / 2 + 1}});
  for (const int32_t dim : {1, 3, 15, 16, 17, 33, 80, 128, 160}) {
    shapes.push_back({.head_dim_k = dim, .head_dim_v = 24, .tokens = {1, 9}});
    shapes.push_back({.head_dim_k = 20, .head_dim_v = dim, .tokens = {1, 9}});
  }
  shapes.push_back(
      {.n_heads = 1, .head_dim_k = cuda::decay_dim_max, .head_dim_v = 300, .tokens = {1, 34}});
  for (const int32_t group : {2, 3, 4, 5, 9}) shapes.push_back({.group = group, .tokens = {1, 10}});
  for (const int32_t block : {1, 2, 5, 16, 33, 100})
    shapes.push_back({.block = block, .tokens = {40}});
  for (const float slope : {0.0f, 1e-7f, 0.01f, 1.0f, 20.0f, 1e4f})
    shapes.push_back({.tokens = {1, 30}, .slope = slope});
  for (const DType dtype : {DType::f16, DType::bf16})
    shapes.push_back({.tokens = {1, 20}, .scale = 0.125f, .dtype = dtype});
  // More heads, and more tokens, than a launch has room for.
  shapes.push_back(
      {.n_heads = cuda::launch_heads + 2, .head_dim_k = 8, .head_dim_v = 8, .tokens = {1, 4}});
  shapes.push_back(
      {.n_heads = 1, .head_dim_k = 8, .head_dim_v = 8, .tokens = {700, 2 * cuda::segment_tokens + 9}});
  uint32_t seed = 1;
  for (Shape shape : shapes) {
    shape.gaps = shape.masked = seed % 2 == 0;
    simt::device::set_seed(seed);
    Case one(shape, seed++);
    one.run();
    one.compare(words(shape));
    if (HasFatalFailure()) return;
  }
}

TEST(CudaLightning, ManySequencesOfOneToken) {
  const Shape shape = {.n_heads = 1,
                       .head_dim_k = 4,
                       .head_dim_v = 8,
                       .tokens = std::vector<int32_t>(cuda::launch_segments + 3, 1)};
  Case all(shape, 5);
  all.run();
  all.compare("many sequences");
  Case states(shape, 5);
  states.params.q = {};
  states.run(1);  // one after another in the same shared memory
  EXPECT_TRUE(are_same(all.states(), states.states()));
}

/// What it keeps is there for what comes behind.
TEST(CudaLightning, PutsSingleTokensInOneLaunch) {
  for (const DType dtype : {DType::f32, DType::f16}) {
    const Shape shape = {.head_dim_k = 24, .head_dim_v = 300, .tokens = {1, 1}, .dtype = dtype};
    Case both(shape, 4), apart(shape, 4);
    both.params.n_padding = apart.params.n_padding = 0;
    const int64_t before = simt::device::n_launches();
    both.run();
    EXPECT_EQ(simt::device::n_launches(), before + 1);
    const Tensor q = apart.params.q;
    apart.params.q = {};
    apart.run();
    apart.params.q = q;
    apart.params.k = apart.params.v = {};
    apart.params.input = LightningInput::kept;
    apart.run();
    EXPECT_EQ(both.outputs(), apart.outputs());
    EXPECT_TRUE(are_same(both.states(), apart.states()));
  }
}

/// Nothing but time: as if every token were masked.
TEST(CudaLightning, DecaysWhatIsNotPut) {
  Case all({.n_heads = 3, .tokens = {1, 5, 40}, .gaps = true}, 8);
  int32_t n_tokens = 0;
  for (int32_t r = 0; r < all.params.n_rows; ++r) n_tokens += all.params.row[r].n_tokens;
  std::vector<LightningToken> tokens(all.params.token, all.params.token + n_tokens);
  for (LightningToken& token : tokens) token.is_masked = true;
  all.params.token = tokens.data();
  all.params.q = {};
  all.params.input = LightningInput::none;
  all.run();
  for (int32_t r = 0; r < all.params.n_rows; ++r) {
    ReferenceNumbers out, state;
    reference_lightning(all.params, all.params.row[r], &out, &state);
    const auto* slot = reinterpret_cast<const float*>(all.params.states.slot(all.params.row[r].to));
    for (size_t i = 0; i < state.value.size(); ++i)
      ASSERT_NEAR(static_cast<double>(slot[i]), state.value[i], 1e-5 * state.magnitude[i]) << r;
  }
}

TEST(CudaLightning, MorePaddingThanALaunchHasRoomFor) {
  Case all({.n_heads = 1, .head_dim_k = 4, .head_dim_v = 8, .tokens = {cuda::kept_tokens + 9}}, 5);
  std::vector<int32_t> padding(cuda::kept_tokens + 10);
  std::iota(padding.begin(), padding.end(), 0);
  all.params.n_rows = 0;
  all.params.padding = padding.data();
  all.params.n_padding = static_cast<int32_t>(padding.size());
  all.run();
  for (const float out : all.outputs()) ASSERT_EQ(out, 0);
}

/// A slot that is only read stays what it is, and one that is not written.
TEST(CudaLightning, WritesNoStateUnasked) {
  for (const int32_t n : {1, 2, 70}) {
    Case only_reads({.n_heads = 1, .tokens = {n}}, 6), writes({.n_heads = 1, .tokens = {n}}, 6);
    const std::vector<float> before = only_reads.states();
    only_reads.params.writes_states = false;
    only_reads.run();
    writes.run();
    EXPECT_TRUE(are_same(only_reads.states(), before)) << n;
    EXPECT_EQ(only_reads.outputs(), writes.outputs()) << n;
  }
}

/// Alone or among others, on a small grid or a large one.
TEST(CudaLightning, GivesTheSameBitsWhateverElseIsInTheCall) {
  const Shape shape = {.n_heads = 3,
                       .group = 2,
                       .head_dim_k = 33,
                       .head_dim_v = 40,
                       .tokens = {1, 100, 7, 1, cuda::segment_tokens + 3},
                       .gaps = true};
  Case together(shape, 7), apart(shape, 7), backwards(shape, 7);
  together.run(3);
  const LightningRow* const rows = apart.params.row;
  apart.params.n_rows = 1;
  for (size_t i = 0; i < shape.tokens.size(); ++i) {
    apart.params.row = rows + i;
    apart.run(16);
  }
  std::vector<LightningRow> reversed(backwards.params.row, backwards.params.row + shape.tokens.size());
  std::reverse(reversed.begin(), reversed.end());
  backwards.params.row = reversed.data();
  simt::device::set_seed(4);
  backwards.run(1);
  for (const Case* other : {&apart, &backwards}) {
    EXPECT_TRUE(are_same(together.states(), other->states()));
    EXPECT_EQ(together.outputs(), other->outputs());
  }
}

/// What a put keeps serves attention later, and a state alone: the bits are those of both at once.
TEST(CudaLightning, GivesTheSameBitsInOneCallAndInTwo) {
  for (const int32_t n : {1, 2, 90, cuda::segment_tokens + 40}) {
    const Shape shape = {
        .n_heads = 1, .head_dim_k = 24, .head_dim_v = 40, .tokens = {n, 3}, .gaps = true, .masked = true};
    Case both(shape, 3), apart(shape, 3);
    both.run();
    const Tensor q = apart.params.q;
    apart.params.q = {};
    apart.run();
    EXPECT_TRUE(are_same(both.states(), apart.states())) << n;
    apart.params.q = q;
    apart.params.input = LightningInput::kept;
    apart.params.writes_states = false;
    apart.run();
    EXPECT_TRUE(are_same(both.states(), apart.states())) << n;
    EXPECT_EQ(both.outputs(), apart.outputs()) << n;
  }
}

/// Cut at a multiple of the block, a sequence has the bits of one pass, and a draft whose end is cut those of the shorter one.
TEST(CudaLightning, GivesTheSameBitsForAPartOfTheTokens) {
  const Shape shape = {.n_heads = 2, .head_dim_k = 24, .head_dim_v = 40, .tokens = {70}};
  for (const int32_t part : {1, 5, 32, 64}) {
    Case whole(shape, 9), drafted(shape, 9), alone(shape, 9);
    for (Case* one : {&whole, &drafted}) one->run();
    LightningRow row = *alone.params.row;
    row.n_tokens = part;
    alone.params.row = &row;
    alone.run();
    drafted.params.row = &row;
    drafted.params.q = {};
    drafted.params.input = LightningInput::kept;
    drafted.run();
    EXPECT_TRUE(are_same(drafted.states(), alone.states())) << part;
    if (part % cuda::decay_tile != 0) continue;
    // The rest from another slot: the one of the state before, which is not needed any more.
    const Tensor q = alone.params.q;
    std::memcpy(alone.params.states.slot(row.from), alone.params.states.slot(row.to),
                alone.params.states.bytes());
    row.first_token = row.first_kept = part;
    row.n_tokens = 70 - part;
    row.next = alone.params.token[part - 1].position + 1;
    alone.params.q = q;
    alone.run();
    EXPECT_EQ(std::memcmp(alone.params.states.slot(row.to), whole.params.states.slot(row.to),
                          whole.params.states.bytes()),
              0)
        << part;
    EXPECT_EQ(alone.outputs(), whole.outputs()) << part;
  }
}

/// A decay that a float rounds must not be wrong in the same direction in every step.
TEST(CudaLightning, StaysExactOverManySteps) {
  constexpr int32_t n = 1500;
  for (const float slope : {0.0001f, 0.05f}) {
    Case all({.n_heads = 1, .head_dim_k = 4, .head_dim_v = 16, .tokens = {n}, .slope = slope}, 5);
    all.params.q = {};
    Case steps({.n_heads = 1, .head_dim_k = 4, .head_dim_v = 16, .tokens = {n}, .slope = slope}, 5);
    steps.params.q = {};
    LightningRow row = *steps.params.row;
    steps.params.row = &row;
    for (int32_t i = 0; i < n; ++i) {
      row.first_token = row.first_kept = i;
      row.n_tokens = 1;
      steps.run();
      std::swap(row.from, row.to);
      row.next = steps.params.token[i].position + 1;
    }
    ReferenceNumbers out, state;
    reference_lightning(all.params, *all.params.row, &out, &state);
    const auto* slot = reinterpret_cast<const float*>(steps.params.states.slot(row.from));
    for (size_t i = 0; i < state.value.size(); ++i)
      ASSERT_NEAR(static_cast<double>(slot[i]), state.value[i], 1e-5 * state.magnitude[i]) << slope;
  }
}

/// Later tokens do not reach earlier outputs, whatever they hold.
TEST(CudaLightning, HidesLaterTokens) {
  const Shape shape = {.n_heads = 1, .tokens = {40}};
  for (const int32_t which : {3, 30, 39}) {
    Case clean(shape, 11), poisoned(shape, 11);
    const LightningToken& later = poisoned.params.token[which];
    for (const Tensor* t : {&poisoned.params.k, &poisoned.params.v}) {
      for (int64_t d = 0; d < t->shape[2]; ++d)
        store_element(t->data, t->dtype, later.index * t->stride[0] + d * t->stride[2], not_a_number);
    }
    clean.run();
    poisoned.run();
    const std::vector<float> expected = clean.outputs(), got = poisoned.outputs();
    for (int32_t i = 0; i < which; ++i) {
      const auto first = static_cast<size_t>(poisoned.params.token[i].index * shape.head_dim_v);
      EXPECT_EQ(std::memcmp(&expected[first], &got[first], 4 * 32), 0) << i;
    }
  }
}

}  // namespace
