/// The attention kernel for CUDA that takes any shape, and what all kernels share.
#include <cstdio>
#include <initializer_list>

#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

TEST(CudaAttention, EveryPairOfOptions) {
  for_each_pair_of_options({}, 100, [](Options o, uint32_t seed) {
    o.n_lists = 2;
    o.history = 150;
    check(o, seed);
  });
  std::printf("%.0f %% of what is promised was used\n", 100 * most_used);
}

TEST(CudaAttention, EveryHeadDimension) {
  uint32_t seed = 300;
  const int32_t dims[][2] = {{16, 16},   {24, 24},   {40, 40},  {48, 80},   {64, 64},
                             {72, 8},    {96, 96},   {100, 60}, {128, 128}, {192, 128},
                             {256, 256}, {576, 512}, {1, 3}};
  for (const auto& dim : dims) {
    for (const StorageType type : plain_types) {
      Options o{.type_k = type, .type_v = type, .head_dim_k = dim[0], .head_dim_v = dim[1]};
      o.n_lists = 2;
      o.tokens_per_list = 1;
      o.history = 60;
      o.lse = true;
      check(o, seed++);
      if (HasFatalFailure()) return;
    }
  }
  std::printf("%.0f %% of what is promised was used\n", 100 * most_used);
}

TEST(CudaAttention, GroupsAndManyTokens) {
  uint32_t seed = 400;
  for (const int32_t group : {1, 2, 3, 5, 8, 9, 16, 20}) {
    for (const int32_t n_tokens : {1, 4, 13}) {
      Options o{.type_k = plain_types[seed % 3], .type_v = plain_types[seed % 3], .group = group};
      o.n_kv_heads = 1 + static_cast<int32_t>(seed % 2);
      o.head_dim_k = o.head_dim_v = 16;
      o.n_lists = 2;
      o.tokens_per_list = n_tokens;
      o.history = 100;
      o.window = seed % 3 == 0;
      o.lse = true;
      check(o, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaAttention, LongHistoriesAreCutAndMerged) {
  uint32_t seed = 500;
  for (const int32_t n_tokens : {1, 2, 6}) {
    for (const bool odd : {false, true}) {
      Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 2};
      o.n_kv_heads = 1;
      o.head_dim_k = o.head_dim_v = 16;
      o.n_lists = 2;
      o.tokens_per_list = n_tokens;
      o.history = 3000;
      o.sinks = o.lse = true;
      o.shifts = o.slopes = o.window = odd;
      o.wild_ranges = !odd;
      check(o, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
