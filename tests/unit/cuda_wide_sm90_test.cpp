/// The attention kernels for CUDA for many columns on GPUs of compute capability 9.0.
#include "kernels/cuda/wide_sm90_instances.cuh"
#include "unit/cuda_wide_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int D, int parts = wide_parts<T>>
const KernelUnderTest& wide_sm90() {
  using Layout = WideSm90Layout<D, parts>;
  static const KernelUnderTest made = {attend_wide_sm90<T, D, parts>,
                                       wide_sm90_shared_bytes<T, D, parts>, Layout::threads,
                                       Layout::columns};
  return made;
}

TEST(CudaWideSm90, OfBf16) {
  check_wide<Bf16, 64>(wide_sm90<Bf16, 64>(), 3000, {64, 64, 40}, {64, 64, 16}, 5);
  check_wide<Bf16, 128>(wide_sm90<Bf16, 128>(), 3100, {128, 96, 128, 80}, {128, 96, 72, 80}, 7);
}

TEST(CudaWideSm90, OfF16) {
  check_wide<F16, 64>(wide_sm90<F16, 64>(), 3300, {64, 64, 8}, {64, 64, 48}, 5);
  check_wide<F16, 128>(wide_sm90<F16, 128>(), 3400, {128, 96, 128, 80}, {128, 96, 72, 80}, 5);
}

TEST(CudaWideSm90, RoundsFactors) {
  check_rounded<Bf16, 64>(wide_sm90<Bf16, 64, 1>(), 3700, in_bf16);
  check_rounded<F16, 128>(wide_sm90<F16, 128, 1>(), 3730, in_f16);
}

/// What the last row alone sees, in a step behind others.
template <class T, int D>
void check_infinite(uint32_t seed) {
  for (const int32_t dim : {0, 9, D - 1}) {
    Options o{.type_k = stored_as<T>, .type_v = stored_as<T>, .head_dim_k = D, .head_dim_v = D};
    o.group = o.n_kv_heads = o.n_lists = 1;
    o.tokens_per_list = 20;
    o.history = 110;
    Case oracle(o, seed), subject(o, seed);
    for (Case* each : {&oracle, &subject})
      store_element(each->storage.v.stored(0, each->cells[0].back()).codes,
                    stored_as<T> == StorageType::f16 ? DType::f16 : DType::bf16, dim, not_a_number);
    oracle.clear_results();
    reference_attention(oracle.params());
    attend(subject, {}, {.seed = seed}, &wide_sm90<T, D>());
    compare(subject, oracle);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaWideSm90, HiddenValuesMayBeInfinite) {
  check_infinite<Bf16, 128>(3800);
  check_infinite<F16, 64>(3801);
}

/// On another device, and of dimensions that it lacks, wide tiles are those of the kernel for all devices.
TEST(CudaWideSm90, ServesOneGeneration) {
  const auto columns = [](const Options& o, const Abilities& abilities) {
    Case subject(o, 1);
    const AttentionKernel* const kernel = wide_kernel_for(arguments_of(subject.params(), {}),
                                                          abilities);
    return kernel == nullptr ? 0 : kernel->columns;
  };
  const Abilities sm90 = {.shared_bytes_max = 227 << 10, .is_sm90 = true},
                  sm80 = {.shared_bytes_max = 163 << 10};
  for (const uint32_t runtime_type : {in_f32, in_bf16}) {
    for (const StorageType type : {StorageType::f16, StorageType::bf16}) {
      Options o{.type_k = type, .type_v = type, .head_dim_k = 128, .head_dim_v = 64};
      o.runtime_type = runtime_type;
      EXPECT_EQ(columns(o, sm90), wide_columns_max);
      EXPECT_EQ(columns(o, sm80), wide_columns);
      o.head_dim_k = 256;
      EXPECT_EQ(columns(o, sm90), wide_columns);
    }
  }
}

}  // namespace
