#pragma once
#include <cstdio>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "kernels/cuda/ptx.cuh"
#include "unit/cuda_attention_check.hpp"

/// Calls whose tiles all are wide, for each of the kernels that serve those.
namespace cuda_attention {

template <class T>
inline constexpr StorageType stored_as = std::is_same_v<T, F16> ? StorageType::f16
                                                                : StorageType::bf16;

inline void print_used(const char* of, int32_t dim) {
  std::printf("%s, %d: %.0f %% of what is promised was used\n", of, dim,
              100 * std::exchange(most_used, 0));
}

/// Random calls whose lists all are wide: groups, lengths, types of queries, and every option, two or three at a time.
template <class T, int D>
void check_wide(const KernelUnderTest& kernel, uint32_t seed, std::initializer_list<int32_t> dims_k,
                std::initializer_list<int32_t> dims_v, uint32_t n_cases = D > 128 ? 6 : 10) {
  for (uint32_t i = 0; i < n_cases; ++i) {
    Options o{.type_k = stored_as<T>, .type_v = stored_as<T>};
    o.head_dim_k = dims_k.begin()[i % dims_k.size()];
    o.head_dim_v = dims_v.begin()[i % dims_v.size()];
    o.group = std::initializer_list<int32_t>{4, 1, 8, 3, 20, 2}.begin()[i % 6];
    o.n_kv_heads = 1 + static_cast<int32_t>(i % 2);
    o.n_lists = 1 + static_cast<int32_t>(i % 3 == 0);
    o.tokens_per_list = medium_columns / o.group + 1 + static_cast<int32_t>(i * 7 % 24);
    o.history = i % 7 == 0 ? 500 : o.tokens_per_list + 20 + static_cast<int32_t>(i * 13 % 90);
    o.dtype_q = i % 2 == 0 ? format_of(stored_as<T>).code : dtypes[i % 3];
    o.lse = true;
    o.sinks = i % 3 == 0;
    o.shifts = i % 4 == 1 || i == 4;
    o.in_a_row = i % 3 == 2 || i == 7;
    if (o.in_a_row) o.history = 220;
    vary_tokens(o, i);
    if (i % 2 == 1) {
      o.softcap = i % 4 == 1;
      o.slopes = i % 3 == 0;
      o.bias = i % 4 == 3;
      o.mask = i % 8 == 5;
    }
    check(o, seed + i, {}, &kernel);
    if (::testing::Test::HasFatalFailure()) return;
  }
  print_used(format_of(stored_as<T>).name, D);
}

/// Factors that are rounded to the type of K, within the bound for that.
template <class T, int D>
void check_rounded(const KernelUnderTest& kernel, uint32_t seed, uint32_t runtime_type) {
  for (uint32_t i = 0; i < 4; ++i) {
    Options o{.type_k = stored_as<T>, .type_v = stored_as<T>, .dtype_q = dtypes[i % 3]};
    o.head_dim_k = o.head_dim_v = D;
    o.n_lists = 1;
    o.n_kv_heads = 1 + static_cast<int32_t>(i / 3);
    o.tokens_per_list = 9 + static_cast<int32_t>(i * 5);
    o.history = 150;
    o.lse = true;
    o.shifts = i == 1;
    o.hidden_nan = i == 2;
    o.sinks = i == 3;
    o.in_a_row = i >= 2;
    o.runtime_type = runtime_type;
    check(o, seed + i, {}, &kernel);
    if (::testing::Test::HasFatalFailure()) return;
  }
  print_used(format_of(stored_as<T>).name, D);
}

}  // namespace cuda_attention
