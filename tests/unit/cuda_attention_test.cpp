/// The attention kernels for CUDA for few columns, and for any shape.
#include <cstdio>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "kernels/cuda/narrow.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int D>
KernelUnderTest narrow() {
  return {attend_narrow<T, D>, [](const AttentionArguments&) {
            return static_cast<size_t>(NarrowLayout<D, T::has_small_range>::bytes);
          }};
}

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

template <class T, int D>
void check_narrow(uint32_t seed) {
  const StorageType type = std::is_same_v<T, F16> ? StorageType::f16 : StorageType::bf16;
  const auto options = [&](uint32_t of_case) {
    Options o{.type_k = type, .type_v = type, .head_dim_k = D, .head_dim_v = D};
    o.group = std::initializer_list<int32_t>{1, 2, 4, 8, 3, 16}.begin()[of_case % 6];
    o.n_kv_heads = 1 + static_cast<int32_t>(of_case % 2);
    o.tokens_per_list = of_case % 5 == 0 ? 9 : 1 + static_cast<int32_t>(of_case % 3);
    o.history = of_case % 7 == 0 ? 700 : 40 + static_cast<int32_t>(of_case % 200);
    o.dtype_q = dtypes[of_case % 3];
    o.lse = true;
    o.sinks = of_case % 3 == 0;
    o.shifts = of_case % 4 == 0;
    o.halves = of_case % 8 == 0;
    o.window = of_case % 5 == 1;
    o.wild_ranges = of_case % 5 == 2;
    o.hidden_nan = of_case % 4 == 1;
    return o;
  };
  for (uint32_t i = 0; i < 5; ++i) {
    check(options(seed + i), seed + i, narrow<T, D>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  for (uint32_t i = 5; i < 11; ++i) {
    Options o = options(seed + i);
    o.softcap = i % 2 == 0;
    o.slopes = i % 3 == 0;
    o.bias = i % 4 == 1;
    o.mask = i % 4 == 2;
    check(o, seed + i, narrow<T, D>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  std::printf("%s, %d: %.0f %% of what is promised was used\n", format_of(type).name, D,
              100 * std::exchange(most_used, 0));
}

TEST(CudaAttention, NarrowOfBf16) {
  check_narrow<Bf16, 64>(1000);
  check_narrow<Bf16, 128>(1100);
  check_narrow<Bf16, 256>(1200);
}

TEST(CudaAttention, NarrowOfF16) {
  check_narrow<F16, 64>(1300);
  check_narrow<F16, 128>(1400);
  check_narrow<F16, 256>(1500);
}

}  // namespace
