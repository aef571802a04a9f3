/// Attention to codes by the kernels for CUDA, in the shim, beside the oracle.
#include <gtest/gtest.h>

#include <iostream>

#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

constexpr StorageType coded_types[] = {StorageType::f8_e4m3, StorageType::f8_e5m2,
                                       StorageType::q8_0,    StorageType::q4_0,
                                       StorageType::int8,    StorageType::nf4};

const KernelUnderTest general_codes = {.run = attend_general<true>};

TEST(CudaCodes, EveryPairOfOptions) {
  for_each_pair_of_options({&Options::rotate, &Options::v_in_k}, 3000, [](Options o, uint32_t seed) {
    o.type_k = coded_types[seed % 6];
    o.type_v = seed % 7 == 0 ? plain_types[seed % 3] : coded_types[seed / 6 % 6];
    o.rotate = o.rotate || seed % 2 == 0;
    o.head_dim_k = seed % 5 == 0 ? 96 : 64;
    o.head_dim_v = o.v_in_k ? 32 : seed % 3 == 0 ? 32 : 64;
    if (o.v_in_k) o.rotate = false;
    o.n_lists = 2;
    o.tokens_per_list = 2;
    o.history = 140;
    check(o, seed, general_codes);
  });
  std::cout << 100 * most_used << " % of what is promised was used" << std::endl;
}

/// Numbers of one side beside codes of the other, too; dimensions that a chunk does not divide.
TEST(CudaCodes, EveryPairOfTypes) {
  uint32_t seed = 4000;
  for (int32_t k = 0; k < n_storage_types; ++k) {
    for (int32_t v = 0; v < n_storage_types; ++v, ++seed) {
      Options o{.type_k = static_cast<StorageType>(k), .type_v = static_cast<StorageType>(v)};
      if (is_plain(o.type_k) && is_plain(o.type_v)) continue;
      const auto dim = [seed](StorageType type) {
        const bool takes_any = is_f8(type) || type == StorageType::int8;
        return takes_any && seed % 2 == 0 ? 50 : type == StorageType::nf4 ? 48 : 32;
      };
      o.head_dim_k = dim(o.type_k);
      o.head_dim_v = dim(o.type_v);
      o.rotate = seed % 3 == 0;
      o.n_kv_heads = 1 + static_cast<int32_t>(seed % 2);
      o.tokens_per_list = 1;
      o.history = 40;
      o.lse = true;
      check(o, seed, general_codes);
      if (HasFatalFailure()) return;
    }
  }
}

/// Shifts over long rotated rows, and results that are merged.
TEST(CudaCodes, LongHistories) {
  uint32_t seed = 5000;
  for (const StorageType type : coded_types) {
    Options o{.type_k = type, .type_v = type, .rotate = true, .group = 2};
    o.n_kv_heads = 1;
    o.head_dim_k = o.head_dim_v = 128;
    o.n_lists = 1;
    o.tokens_per_list = 1;
    o.history = 900;
    o.shifts = seed % 2 == 0;
    o.sinks = o.lse = true;
    check(o, seed++, general_codes);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
