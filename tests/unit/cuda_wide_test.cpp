/// The attention kernels for CUDA for many columns.
#include <cstdio>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "kernels/cuda/wide_instances.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int D>
const KernelUnderTest& wide() {
  static const KernelUnderTest made = {attend_wide<T, D, wide_parts<T>>, wide_shared_bytes<T, D>};
  return made;
}

template <class T>
constexpr StorageType stored_as = std::is_same_v<T, F16> ? StorageType::f16 : StorageType::bf16;

void print_used(const char* of, int32_t dim) {
  std::printf("%s, %d: %.0f %% of what is promised was used\n", of, dim,
              100 * std::exchange(most_used, 0));
}

/// Random calls whose lists all are wide: groups, lengths, types of queries, and every option, two or three at a time.
template <class T, int D>
void check_wide(uint32_t seed, std::initializer_list<int32_t> dims_k,
                std::initializer_list<int32_t> dims_v) {
  constexpr uint32_t n_cases = D > 128 ? 6 : 10;
  for (uint32_t i = 0; i < n_cases; ++i) {
    Options o{.type_k = stored_as<T>, .type_v = stored_as<T>};
    o.head_dim_k = dims_k.begin()[i % dims_k.size()];
    o.head_dim_v = dims_v.begin()[i % dims_v.size()];
    o.group = std::initializer_list<int32_t>{4, 1, 8, 3, 20, 2}.begin()[i % 6];
    o.n_kv_heads = 1 + static_cast<int32_t>(i % 2);
    o.n_lists = 1 + static_cast<int32_t>(i % 3 == 0);
    o.tokens_per_list = narrow_columns_max / o.group + 1 + static_cast<int32_t>(i * 7 % 24);
    o.history = i % 7 == 0 ? 500 : o.tokens_per_list + 20 + static_cast<int32_t>(i * 13 % 90);
    o.dtype_q = i % 2 == 0 ? format_of(stored_as<T>).code : dtypes[i % 3];
    o.lse = true;
    o.sinks = i % 3 == 0;
    o.shifts = i % 4 == 1;
    o.halves = i % 8 == 1;
    o.window = i % 5 == 1;
    o.wild_ranges = i % 5 == 2;
    o.sees_later = i % 5 == 3;
    o.hidden_nan = i % 4 == 2;
    o.strided = i % 6 == 5;
    if (i % 2 == 1) {
      o.softcap = i % 4 == 1;
      o.slopes = i % 3 == 0;
      o.bias = i % 4 == 3;
      o.mask = i % 8 == 5;
    }
    check(o, seed + i, {}, &wide<T, D>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  print_used(format_of(stored_as<T>).name, D);
}

TEST(CudaWide, OfBf16) {
  check_wide<Bf16, 64>(2000, {64, 64, 40}, {64, 64, 16});
  check_wide<Bf16, 128>(2100, {128, 96, 128, 80}, {128, 96, 72, 80});
  check_wide<Bf16, 256>(2200, {256, 192, 256}, {256, 128, 256});
}

TEST(CudaWide, OfF16) {
  check_wide<F16, 64>(2300, {64, 64, 8}, {64, 64, 48});
  check_wide<F16, 128>(2400, {128, 96, 128, 80}, {128, 96, 72, 80});
  check_wide<F16, 256>(2500, {256, 192, 256}, {256, 128, 256});
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
