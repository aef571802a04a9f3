/// Prefixes that lists share, in the attention kernels for CUDA: read once for all of them, and merged with what each has alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/narrow_numbers.cuh"
#include "kernels/cuda/wide_instances.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

const KernelUnderTest general_codes = {.run = attend_general<true>};
/// For tiles of `eights` times eight columns.
template <int eights>
KernelUnderTest narrow_of() {
  using Keys = NumberKeys<Bf16, 64>;
  using Values = NumberValues<Bf16, 64, eights>;
  return {attend_narrow<Keys, Values>, [](const AttentionArguments&) {
            return static_cast<size_t>(NarrowLayout<Keys, Values>::bytes);
          }};
}
const KernelUnderTest narrow = narrow_of<1>(), medium = narrow_of<2>();
const KernelUnderTest wide = {attend_wide<Bf16, 64, wide_parts<Bf16>>,
                              wide_shared_bytes<Bf16, 64, wide_parts<Bf16>>};

#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t thinned = 5;  // it is ten times as slow
#else
constexpr uint32_t thinned = 1;
#endif

int32_t pick(std::initializer_list<int32_t> of, uint32_t i) { return of.begin()[i % of.size()]; }

/// Lists of few rows, which see a prefix of which some may not see all.
Options options_of(uint32_t i) {
  Options o{.shared = true};
  o.group = pick({1, 2, 4, 3, 1}, i);
  o.n_kv_heads = 1 + static_cast<int32_t>(i % 2);
  o.n_lists = pick({2, 5, 3, 9}, i);
  o.tokens_per_list = pick({1, 1, 2, 3}, i / 2);
  o.history = pick({130, 256, 300, 64}, i / 3);
  o.lse = i % 2 == 0;
  o.sinks = i % 3 == 0;
  o.shifts = i % 4 == 1;
  vary_tokens(o, i);
  o.softcap = i % 7 == 1;
  o.slopes = i % 7 == 2;
  o.bias = i % 7 == 3;
  o.mask = i % 7 == 4;
  return o;
}

TEST(CudaPrefixes, OfNumbersAndCodes) {
  constexpr StorageType types[] = {StorageType::f32, StorageType::q8_0, StorageType::f16};
  for (uint32_t i = 0; i < 24; i += thinned) {
    Options o = options_of(i);
    o.type_k = o.type_v = types[i % 3];
    o.rotate = i % 2 == 0;
    o.head_dim_k = o.head_dim_v = 32;
    check(o, 6000 + i, i % 3 == 1 ? general_codes : KernelUnderTest{});
    if (HasFatalFailure()) return;
  }
  std::printf("%.0f %% of what is promised was used\n", 100 * most_used);
}

/// The prefix by one kernel, and the rest by another or the same.
TEST(CudaPrefixes, OfWideTiles) {
  for (uint32_t i = 0; i < 12; i += thinned) {
    Options o = options_of(i);
    o.n_lists = std::min(o.n_lists, i % 3 == 1 ? 3 : 5);
    o.type_k = o.type_v = StorageType::bf16;
    o.dtype_q = i % 3 == 0 ? DType::f32 : DType::bf16;
    if (i % 3 == 1) {
      o.group = pick({12, 20, 7, 13}, i / 3);
      o.history = 300;
      o.window = false;
    }
    check(o, 6100 + i, narrow, &wide, i % 2 == 0 ? &medium : nullptr);
    if (HasFatalFailure()) return;
  }
  std::printf("%.0f %% of what is promised was used\n", 100 * most_used);
}

TEST(CudaPrefixes, OfMediumTiles) {
  for (uint32_t i = 0; i < 12; i += thinned) {
    Options o = options_of(i);
    o.type_k = o.type_v = StorageType::bf16;
    check(o, 6400 + i, narrow, nullptr, &medium);
    if (HasFatalFailure()) return;
  }
  std::printf("%.0f %% of what is promised was used\n", 100 * most_used);
}

/// Calls that ask for weights read each list by itself: nobody else knows what all of its keys weigh.
TEST(CudaPrefixes, WeightsAreThoseOfAllKeys) {
  Options o = options_of(0);
  o.weights = true;
  check(o, 6200);
}

/// Bytes of K and V that blocks load, of 2 KV heads.
uint64_t bytes_of(int64_t n_tokens) { return static_cast<uint64_t>(n_tokens) * 2 * (64 + 64) * 2; }

TEST(CudaPrefixes, AreLoadedOnce) {
  Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 4, .shared = true};
  o.n_lists = 12;
  o.tokens_per_list = 1;
  o.history = 256;
  Case subject(o, 6300);
  int64_t alone = 0;
  for (const TokenList& list : subject.lists) alone += (list.total - o.history + 15) / 16 * 16;
  simt::Statistics by_wide, by_medium, by_narrow;
  attend(subject, narrow, {.loads = &by_wide}, &wide);
  EXPECT_EQ(by_wide.loaded_bytes, bytes_of(o.history + alone));
  attend(subject, narrow, {.loads = &by_medium}, nullptr, &medium);
  EXPECT_EQ(by_medium.loaded_bytes, bytes_of(3 * o.history + alone));  // four lists a tile
  attend(subject, narrow, {.loads = &by_narrow});
  EXPECT_EQ(by_narrow.loaded_bytes, bytes_of(6 * o.history + alone));  // two lists a tile
}

}  // namespace
