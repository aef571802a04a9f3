/// The attention kernel for CUDA that takes few columns to tensor cores, over codes.
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <random>
#include <tuple>
#include <utility>

#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/narrow_codes.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

/// Of tiles of `eights` times eight columns.
template <StorageType type, int dim, int eights = 1>
const KernelUnderTest& narrow() {
  using Keys = CodedKeys<type, dim>;
  using Values = CodedValues<type, dim, eights>;
  static const KernelUnderTest made = {attend_narrow<Keys, Values>, [](const AttentionArguments&) {
                                         return static_cast<size_t>(NarrowLayout<Keys, Values>::bytes);
                                       }};
  return made;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t thinned = 3;  // it is ten times as slow
#else
constexpr uint32_t thinned = 1;
#endif

template <StorageType type, int dim>
Options options_of(uint32_t of_case) {
  Options o{.type_k = type, .type_v = type, .head_dim_k = dim, .head_dim_v = dim};
  o.rotate = of_case / 2 % 2 == 0;
  o.n_kv_heads = 1 + static_cast<int32_t>(of_case % 2);
  o.history = of_case % 7 == 0 ? 400 : 40 + static_cast<int32_t>(of_case % 100);
  o.dtype_q = dtypes[of_case % 3];
  o.lse = true;
  o.sinks = of_case % 3 == 0;
  o.shifts = of_case % 4 < 2;
  o.halves = of_case % 8 == 0;
  o.window = of_case % 5 == 1;
  o.wild_ranges = of_case % 5 == 2;
  o.hidden_nan = of_case % 3 == 1;
  return o;
}
void change_scores(Options& o, uint32_t i) {
  o.softcap = i > 5 && i % 4 == 0;
  o.slopes = i > 5 && i % 3 == 0;
  o.bias = i % 5 == 4;
  o.mask = i % 7 == 3;
}

/// One case of `step`.
template <StorageType type, int dim>
void check_narrow(uint32_t seed, uint32_t step) {
  for (uint32_t i = 0; i < 12; i += step * thinned) {
    const uint32_t of_case = seed + i;
    Options o = options_of<type, dim>(of_case);
    o.group = std::initializer_list<int32_t>{1, 2, 4, 8, 3, 16}.begin()[of_case % 6];
    o.tokens_per_list = of_case % 5 == 0 ? 9 : 1 + static_cast<int32_t>(of_case % 3);
    change_scores(o, i);
    check(o, of_case, narrow<type, dim>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  std::printf("%s, %d: %.0f %% of what is promised was used\n", format_of(type).name, dim,
              100 * std::exchange(most_used, 0));
}

/// Lists of more than 8 columns.
template <StorageType type, int dim>
void check_medium(uint32_t seed, uint32_t n_cases) {
  constexpr std::pair<int32_t, int32_t> shapes[] = {{16, 1}, {4, 4}, {24, 1}, {3, 5}, {1, 13}};
  for (uint32_t i = 0; i < n_cases; i += thinned) {
    Options o = options_of<type, dim>(seed + i);
    std::tie(o.group, o.tokens_per_list) = shapes[i % std::size(shapes)];
    change_scores(o, i);
    check(o, seed + i, narrow<type, dim>(), nullptr, &narrow<type, dim, 2>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  std::printf("%s, %d, 16 columns: %.0f %% of what is promised was used\n", format_of(type).name,
              dim, 100 * std::exchange(most_used, 0));
}

template <StorageType type>
void check_narrow_of_all_dims(uint32_t seed) {
  check_narrow<type, 64>(seed, 2);
  check_narrow<type, 128>(seed + 21, 4);
  check_medium<type, 64>(seed + 40, 7);
  check_medium<type, 128>(seed + 50, 5);
}

TEST(CudaNarrowCodes, OfQ8_0) { check_narrow_of_all_dims<StorageType::q8_0>(7000); }
TEST(CudaNarrowCodes, OfInt8) { check_narrow_of_all_dims<StorageType::int8>(7100); }
TEST(CudaNarrowCodes, OfQ4_0) { check_narrow_of_all_dims<StorageType::q4_0>(7200); }
TEST(CudaNarrowCodes, OfNf4) { check_narrow_of_all_dims<StorageType::nf4>(7300); }
TEST(CudaNarrowCodes, OfE4m3) { check_narrow_of_all_dims<StorageType::f8_e4m3>(7400); }
TEST(CudaNarrowCodes, OfE5m2) { check_narrow_of_all_dims<StorageType::f8_e5m2>(7500); }

/// Stores rows of normal numbers in `slab`, the i-th token's times size(i).
template <class Size>
void store_sized(Case& subject, const Slab& slab, Size size) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < subject.cells[0].size(); ++i) {
    std::vector<float> x(static_cast<size_t>(slab.head_dim()));
    for (float& each : x) each = normal(random) * size(i);
    cpu::portable_kernels.encode(slab.format, slab.stored(0, subject.cells[0][i]), x.data());
  }
}

Options one_list(StorageType type, int32_t dim, int32_t history) {
  Options o{.type_k = type, .type_v = type, .group = 2, .n_kv_heads = 1};
  o.head_dim_k = o.head_dim_v = dim;
  o.n_lists = 1;
  o.tokens_per_list = 2;
  o.history = history;
  o.lse = true;
  return o;
}

/// In a narrow tile, and with more query heads in a medium one.
template <StorageType type, class Change>
void check_changed(Options o, uint32_t seed, Change change) {
  for (const bool is_medium : {false, true}) {
    if (is_medium) o.group = medium_columns / o.tokens_per_list;
    SCOPED_TRACE(describe(o, seed));
    Case oracle(o, seed), subject(o, seed);
    change(oracle);
    change(subject);
    oracle.clear_results();
    reference_attention(oracle.params());
    attend(subject, narrow<type, 64>(), {.seed = seed}, nullptr,
           is_medium ? &narrow<type, 64, 2>() : nullptr);
    compare(subject, oracle);
  }
}

/// Scales meet weights in f16, whatever their sizes are, and in whichever order they come.
TEST(CudaNarrowCodes, ValuesOfAnySize) {
  uint32_t seed = 7600;
  for (const float step : {0.15f, -0.15f}) {
    const auto change = [step](Case& subject) {
      store_sized(subject, subject.storage.v,
                  [step](size_t i) { return std::exp2(step * (static_cast<float>(i) - 40)); });
    };
    check_changed<StorageType::q8_0>(one_list(StorageType::q8_0, 64, 80), seed++, change);
    check_changed<StorageType::nf4>(one_list(StorageType::nf4, 64, 80), seed++, change);
  }
  for (const float size : {0x1p-99f, 0x1p-60f, 0x1p110f}) {
    check_changed<StorageType::int8>(
        one_list(StorageType::int8, 64, 60), seed++, [size](Case& subject) {
          store_sized(subject, subject.storage.v, [size](size_t) { return size; });
        });
  }
}

/// What one column alone sees takes nothing from the others: a value that is large, or none.
TEST(CudaNarrowCodes, AHiddenValueMayBeAnything) {
  for (uint32_t seed = 7620; seed < 7623; ++seed) {  // more or fewer tokens are in the same step
    for (const float size : {0x1p90f, not_a_number}) {
      Options o = one_list(StorageType::int8, 64, 40);
      o.group = 1;
      o.tokens_per_list = 8;
      check_changed<StorageType::int8>(o, seed, [size](Case& subject) {
        const size_t last = subject.cells[0].size() - 1;
        store_sized(subject, subject.storage.v,
                    [last, size](size_t i) { return i == last ? size : 1.0f; });
      });
    }
  }
}

/// A code that is no number makes those rows NaN that see it, of either sign, among keys and among values.
TEST(CudaNarrowCodes, CodesThatAreNoNumbers) {
  const auto check_at = [](uint32_t seed, Slab LayerStorage::*side, std::byte code) {
    check_changed<StorageType::f8_e4m3>(
        one_list(StorageType::f8_e4m3, 64, 40), seed, [&](Case& subject) {
          const int32_t cell = subject.cells[0][subject.cells[0].size() - 2];
          (subject.storage.*side).stored(0, cell).codes[5] = code;
        });
  };
  for (const std::byte code : {std::byte{0x7f}, std::byte{0xff}}) {
    check_at(7640, &LayerStorage::k, code);
    check_at(7641, &LayerStorage::v, code);
  }
}

/// Products of queries and codes stay numbers, though a scale or a query alone be large.
TEST(CudaNarrowCodes, KeysAndQueriesOfAnySize) {
  uint32_t seed = 7630;
  for (const auto& [key, query] :
       {std::pair{0x1p110f, 0x1p-115f}, {0x1p-99f, 0x1p100f}, {1.0f, 0x1p100f}}) {
    Options o = one_list(StorageType::int8, 64, 60);
    o.query_size = query;
    const auto change = [size = key](Case& subject) {
      store_sized(subject, subject.storage.k, [size](size_t) { return size; });
    };
    check_changed<StorageType::int8>(o, seed++, change);
    o.type_k = o.type_v = StorageType::nf4;
    check_changed<StorageType::nf4>(o, seed++, change);
  }
}

/// Moves rows to where a sector begins, as they lie on a device.
void align(Plane& plane) {
  const size_t behind = reinterpret_cast<uintptr_t>(plane.data) % 32;
  if (behind != 0) plane.data += 32 - behind;
}

/// Each byte of codes that a KV head's tiles see, once, and each scale for the four lanes that need it: in whole sectors, where eight
/// tokens lie one behind the other.
template <StorageType type, int dim>
void check_loads(uint32_t seed, int32_t group) {
  Options o = one_list(type, dim, 300);
  o.group = group;
  o.tokens_per_list = 1;
  Case subject(o, seed);
  for (size_t i = 0; i < subject.token_cells.size(); ++i)
    subject.token_cells[i] = static_cast<int32_t>(i);
  AttentionRow& row = subject.rows[0];
  row.end -= row.end % 16;  // what is behind the end of a step is read from its last token again
  align(subject.storage.k.codes);
  align(subject.storage.v.codes);
  if (has_stored_scales(type)) align(subject.storage.k.scales);
  if (has_stored_scales(type)) align(subject.storage.v.scales);
  const RowFormat& format = subject.storage.k.format;
  simt::Statistics loads;
  attend(subject, narrow<type, dim>(), {.seed = seed, .loads = &loads}, nullptr,
         &narrow<type, dim, 2>());
  const auto tokens = static_cast<uint64_t>(2 * row.end);  // of K and V
  EXPECT_EQ(loads.loaded_bytes, tokens * (format.code_bytes() + 4 * format.scale_bytes()))
      << format_of(type).name << dim;
  EXPECT_EQ(loads.sectors * 32, tokens * (format.code_bytes() + format.scale_bytes()))
      << format_of(type).name << dim;
}

TEST(CudaNarrowCodes, LoadsWhatIsSeenOnceInWholeSectors) {
  for (const int32_t group : {2, 16}) {
    check_loads<StorageType::q8_0, 64>(7700, group);
    check_loads<StorageType::int8, 128>(7701, group);
    check_loads<StorageType::q4_0, 128>(7702, group);
    check_loads<StorageType::nf4, 128>(7703, group);
    check_loads<StorageType::f8_e4m3, 64>(7704, group);
  }
}

}  // namespace
