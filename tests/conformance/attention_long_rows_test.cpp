// Rows that are long or many, against double: chunks that begin inside the kept-first part, over hundreds of cells; more query
// heads per KV head than a tile has rows, with biases, masks and weights.
#include <gtest/gtest.h>

#include <functional>
#include <iostream>

#include "support/attention_rig.hpp"

namespace {

using support::AttentionOptions;
using support::AttentionRig;

constexpr uint64_t seed = 20261128;

/// A pass of n tokens that continue sequence 0. The largest error, in units of 1e-6 of the largest |v|.
double pass(AttentionRig& rig, int32_t n, bool compare) {
  const int32_t next = rig.oracle.sequences[0].next;
  std::vector<int32_t> position, sequence(static_cast<size_t>(n), 0);
  std::vector<uint32_t> flags;
  for (int32_t i = 0; i < n; ++i) {
    position.push_back(next + i);
    flags.push_back(rig.options.except && rig.random.chance(0.3) ? uint32_t{KVC_TOKEN_SEES_LATER}
                                                                 : 0u);
  }
  rig.open(position, sequence, flags);
  const double worst = compare ? rig.attend_and_compare() : 0;
  rig.commit();
  return worst;
}

struct Window {
  int32_t chunk, keep_first, reach, memory;
};

TEST(LongRows, ChunksThatBeginInTheKeptFirstPart) {
  const std::vector<std::function<void(AttentionOptions&)>> variants = {
      [](AttentionOptions& o) { o.lse = true; },
      [](AttentionOptions& o) { o.dtype_k = o.dtype_v = KVC_F16, o.slopes = o.sinks = true; },
      [](AttentionOptions& o) { o.mask = o.bias = o.weights = true; },
      [](AttentionOptions& o) { o.except = o.rope = o.shifts = true; },
  };
  double worst = 0;
  int32_t runs = 0;
  for (const Window& w : {Window{300, 500, 64, 0}, Window{512, 700, 100, 180},
                          Window{200, 900, 33, KVC_NONE}, Window{1000, 600, 50, 0}}) {
    for (const auto& variant : variants) {
      AttentionOptions options;
      options.chunk = w.chunk, options.keep_first = w.keep_first;
      options.reach = w.reach, options.memory = w.memory;
      options.n_kv_heads = 1, options.n_q_heads = 3;
      options.head_dim_k = 20, options.head_dim_v = 12;
      variant(options);
      options.name = "chunk " + std::to_string(w.chunk) + " keep_first " +
                     std::to_string(w.keep_first) + " variant " +
                     std::to_string(&variant - &variants[0]);
      AttentionRig rig(support::shared_device(), options, 1200, 100,
                       support::derived_seed(seed, static_cast<uint64_t>(runs++)));
      // Before the end of the first chunk, or across it; then around the end of the kept-first part, and far behind it.
      for (int32_t to : {420, 590, 790, 1000}) {
        while (rig.oracle.sequences[0].next < to)
          pass(rig, std::min(100, to - rig.oracle.sequences[0].next), false);
        if (options.shifts && to == 420) {
          rig.remove(0, 350, 353);  // nothing has slid yet that could forbid it
          ASSERT_EQ(rig.oracle.sequences[0].next, 417);
        }
        for (const int32_t n : {1, 5, 33}) worst = std::max(worst, pass(rig, n, true));
        if (HasFailure()) return;
      }
      EXPECT_EQ(kvc_check(rig.cache), KVC_OK) << support::last_message();
    }
  }
  std::cout << runs << " caches, seed " << seed << ", largest error " << worst
            << "e-6 of the largest |v|" << std::endl;
  EXPECT_GT(worst, 0);
}

TEST(LongRows, ManyQueryHeadsPerKvHead) {
  double worst = 0;
  uint64_t runs = 0;
  for (const int32_t groups : {384, 385, 500, 1000}) {
    for (const int32_t kv_heads : {1, 2}) {
      AttentionOptions options;
      options.n_kv_heads = kv_heads, options.n_q_heads = groups * kv_heads;
      options.head_dim_k = 6, options.head_dim_v = 5;
      options.bias = options.mask = options.weights = options.lse = true;
      options.slopes = groups == 385, options.sinks = groups == 500;
      options.name = std::to_string(groups) + " query heads for each of " + std::to_string(kv_heads);
      AttentionRig rig(support::shared_device(), options, 64, 20,
                       support::derived_seed(seed, 100 + runs++));
      pass(rig, 20, false);
      for (const int32_t n : {1, 3, 7}) worst = std::max(worst, pass(rig, n, true));
      if (HasFailure()) return;
    }
  }
  std::cout << "largest error " << worst << "e-6 of the largest |v|, seed " << seed << std::endl;
  EXPECT_GT(worst, 0);
}

}  // namespace
