/// The attention kernels for CUDA for many columns.
#include "kernels/cuda/wide_instances.cuh"
#include "unit/cuda_wide_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int D, int parts = wide_parts<T>>
const KernelUnderTest& wide() {
  static const KernelUnderTest made = {attend_wide<T, D, parts>, wide_shared_bytes<T, D, parts>};
  return made;
}

TEST(CudaWide, OfBf16) {
  check_wide<Bf16, 64>(wide<Bf16, 64>(), 2000, {64, 64, 40}, {64, 64, 16});
  check_wide<Bf16, 128>(wide<Bf16, 128>(), 2100, {128, 96, 128, 80}, {128, 96, 72, 80});
  check_wide<Bf16, 256>(wide<Bf16, 256>(), 2200, {256, 192, 256}, {256, 128, 256});
}

TEST(CudaWide, OfF16) {
  check_wide<F16, 64>(wide<F16, 64>(), 2300, {64, 64, 8}, {64, 64, 48});
  check_wide<F16, 128>(wide<F16, 128>(), 2400, {128, 96, 128, 80}, {128, 96, 72, 80});
  check_wide<F16, 256>(wide<F16, 256>(), 2500, {256, 192, 256}, {256, 128, 256});
}

/// Parts of f16 hold queries whose own numbers f16 does not.
TEST(CudaWide, QueriesOfAnySize) {
  uint32_t seed = 2600;
  for (const float size : {0x1p-100f, 0x1p60f, 0x1p119f}) {
    Options o{.type_k = StorageType::f16, .type_v = StorageType::f16, .lse = true, .query_size = size};
    o.tokens_per_list = 9;
    o.history = 60;
    check(o, seed++, {}, &wide<F16, 64>());
  }
}

/// Tokens of one query head each, so that neighbouring columns see an even number of tokens and an odd one. The last token's value
/// is no number, and must not touch those that do not see it.
TEST(CudaWide, AHiddenValueMayBeNoNumberInAnyDimension) {
  for (const int32_t dim : {0, 1, 63}) {
    Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 1, .n_kv_heads = 1};
    o.n_lists = 1;
    o.tokens_per_list = 20;
    o.history = 40;
    Case oracle(o, 2650), subject(o, 2650);
    for (Case* each : {&oracle, &subject})
      store_element(each->storage.v.stored(0, each->cells[0].back()).codes, DType::bf16, dim,
                    not_a_number);
    oracle.clear_results();
    reference_attention(oracle.params());
    attend(subject, {}, {}, &wide<Bf16, 64>());
    compare(subject, oracle);
  }
}

TEST(CudaWide, RoundsFactors) {
  check_rounded<Bf16, 64>(wide<Bf16, 64, 1>(), 2700, in_bf16);
  check_rounded<Bf16, 128>(wide<Bf16, 128, 1>(), 2710, in_bf16);
  check_rounded<F16, 64>(wide<F16, 64, 1>(), 2720, in_f16);
  check_rounded<F16, 256>(wide<F16, 256, 1>(), 2730, in_f16);
}

/// A floor: a type is used that is no less exact than what is allowed, and only where a kernel has it.
TEST(CudaWide, RoundsWhatItMay) {
  const auto rounds = [](StorageType type, uint32_t runtime_type) {
    Options o{.type_k = type, .type_v = type, .runtime_type = runtime_type};
    Case subject(o, 1);
    return arguments_of(subject.params(), {}).rounds != 0;
  };
  for (const StorageType type : plain_types) EXPECT_FALSE(rounds(type, in_f32));
  EXPECT_FALSE(rounds(StorageType::bf16, in_f16));
  EXPECT_TRUE(rounds(StorageType::bf16, in_bf16));
  EXPECT_TRUE(rounds(StorageType::f16, in_f16));
  EXPECT_TRUE(rounds(StorageType::f16, in_bf16));
  EXPECT_FALSE(rounds(StorageType::f32, in_bf16));
}

/// Long sums, in one part and in several.
TEST(CudaWide, LongHistoriesAreCutAndMerged) {
  for (const uint32_t seed : {2600u, 2601u}) {
    Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 1};
    o.n_kv_heads = 1;
    o.head_dim_k = o.head_dim_v = 16;
    o.n_lists = 1;
    o.tokens_per_list = seed % 2 == 0 ? 17 : 70;
    o.history = 3000;
    o.sinks = o.lse = true;
    o.shifts = seed % 2 == 0;
    check(o, seed, {}, &wide<Bf16, 64>());
    if (HasFatalFailure()) return;
  }
  print_used("bf16", 16);
}

}  // namespace
