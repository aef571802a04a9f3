// What random biases and masks do not reach: the ends of the range. (The rest of the extras of kvc_attention is tested by
// attention_options_test and the random operations.)
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <vector>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/random.hpp"

namespace {

using support::Array;

constexpr int32_t head_dim = 16, n_heads = 2;

/// Attention of n tokens over themselves with a bias that is the same everywhere.
struct Result {
  std::vector<float> out, lse, weights, v;
};

Result attend(int32_t n, double everywhere) {
  const support::Device device(2);
  kvc_cache_desc desc = support::cache_desc(1, n_heads, head_dim, head_dim);
  desc.capacity = desc.max_batch = n;
  desc.max_q_heads = n_heads;
  const support::Cache cache(device, desc);
  std::vector<int32_t> position, sequence(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) position.push_back(i);
  EXPECT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
  support::Random random(20261121);
  Array k(KVC_F32, {n, n_heads, head_dim}), v(KVC_F32, {n, n_heads, head_dim}),
      q(KVC_F32, {n, n_heads, head_dim});
  for (Array* each : {&k, &v, &q}) each->fill(random);
  EXPECT_EQ(kvc_put(cache, 0, k.tensor(), v.tensor()), KVC_OK);
  Array bias(KVC_F32, {1}), out(KVC_F32, {n, n_heads, head_dim}), lse(KVC_F32, {n, n_heads});
  Array weights(KVC_F32, {n_heads, n, n});
  bias.fill(everywhere);
  kvc_attention_extra extra{};
  extra.struct_size = sizeof extra;
  extra.bias = bias.tensor();
  extra.weights = weights.tensor();
  EXPECT_EQ(support::attention(cache, 0, q.tensor(), out.tensor(), lse.tensor(), &extra), KVC_OK)
      << support::last_message();
  return {out.floats(), lse.floats(), weights.floats(), v.floats()};
}

/// Narrow and wide tiles: few rows and many.
class Extremes : public ::testing::TestWithParam<int32_t> {};
INSTANTIATE_TEST_SUITE_P(Tokens, Extremes, ::testing::Values(1, 5, 130));

TEST_P(Extremes, TheLeastFiniteBiasWeighsAllAlike) {
  const int32_t n = GetParam();
  const Result result = attend(n, -FLT_MAX);
  for (int32_t t = 0; t < n; ++t) {
    for (int32_t h = 0; h < n_heads; ++h) {
      for (int32_t d = 0; d < head_dim; ++d) {
        double mean = 0;
        for (int32_t j = 0; j <= t; ++j)
          mean += result.v[static_cast<size_t>((j * n_heads + h) * head_dim + d)];
        EXPECT_NEAR(result.out[static_cast<size_t>((t * n_heads + h) * head_dim + d)],
                    mean / (t + 1), 1e-5);
      }
      for (int32_t j = 0; j < n; ++j)
        EXPECT_NEAR(result.weights[static_cast<size_t>((h * n + t) * n + j)],
                    j <= t ? 1.0 / (t + 1) : 0, 1e-6);
    }
  }
}

TEST_P(Extremes, MinusInfinityLeavesNothing) {
  const Result result = attend(GetParam(), -HUGE_VAL);
  for (const float x : result.out) EXPECT_EQ(x, 0);
  for (const float x : result.weights) EXPECT_EQ(x, 0);
  for (const float x : result.lse) EXPECT_EQ(x, -HUGE_VALF);
}

}  // namespace
