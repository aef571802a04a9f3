// Attention against double: no option, every option, every pair of options. Free cells hold NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>

#include "support/attention_cases.hpp"

namespace {

using support::AttentionOptions;

constexpr uint64_t seed = 20261121;

void run_from(size_t first, size_t step) {
  const std::vector<support::AttentionOption>& list = support::attention_options();
  const size_t thinned = support::one_pair_in();
  double worst = 0;
  int32_t runs = 0;
  for (size_t a = first; a < list.size(); a += step) {
    for (size_t b = a; b < list.size(); ++b) {
      if (b != a && (a + b) % thinned != 0) continue;
      AttentionOptions options;
      list[a].apply(options);
      if (b != a) list[b].apply(options);
      options.name = std::string(list[a].name) + (b != a ? std::string(" + ") + list[b].name : "");
      worst = std::max(
          worst, support::run_attention(options, support::derived_seed(seed, a * list.size() + b)));
      ++runs;
      if (::testing::Test::HasFailure()) {
        std::cout << "options: " << options.name << ", seed " << seed << std::endl;
        return;
      }
    }
  }
  std::cout << runs << " options and pairs, seed " << seed << ", largest error " << worst
            << "e-6 of the largest |v|" << std::endl;
}

TEST(AttentionOptions, None) {
  AttentionOptions options;
  options.name = "none";
  EXPECT_LE(support::run_attention(options, seed), 10);
}

TEST(AttentionOptions, OddOnesAndTheirPairs) { run_from(0, 2); }
TEST(AttentionOptions, EvenOnesAndTheirPairs) { run_from(1, 2); }

}  // namespace
