/// The attention kernel for CUDA that takes few columns to tensor cores.
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/narrow_numbers.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

/// Of tiles of `eights` times eight columns.
template <class T, int DK, int DV = DK, int eights = 1>
const KernelUnderTest& narrow() {
  using Keys = NumberKeys<T, DK>;
  using Values = NumberValues<T, DV, eights>;
  static const KernelUnderTest made = {attend_narrow<Keys, Values>, [](const AttentionArguments&) {
                                         return static_cast<size_t>(NarrowLayout<Keys, Values>::bytes);
                                       }};
  return made;
}

template <class T>
constexpr StorageType type_of = std::is_same_v<T, F16> ? StorageType::f16 : StorageType::bf16;

#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t thinned = 3;  // it is ten times as slow
#else
constexpr uint32_t thinned = 1;
#endif

template <class T, int DK, int DV>
Options options_of(uint32_t of_case) {
  Options o{.type_k = type_of<T>, .type_v = type_of<T>, .head_dim_k = DK, .head_dim_v = DV};
  o.n_kv_heads = 1 + static_cast<int32_t>(of_case % 2);
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
}
void change_scores(Options& o, uint32_t i) {
  o.softcap = i % 2 == 0;
  o.slopes = i % 3 == 0;
  o.bias = i % 4 == 1;
  o.mask = i % 4 == 2;
}

void print_used(StorageType type, int32_t dim_k, int32_t dim_v) {
  std::printf("%s, %d and %d: %.0f %% of what is promised was used\n", format_of(type).name, dim_k,
              dim_v, 100 * std::exchange(most_used, 0));
}

/// All cases, or one of `step`.
template <class T, int DK, int DV = DK>
void check_narrow(uint32_t seed, uint32_t step) {
  for (const uint32_t first : {0u, 5u}) {  // there scores are changed
    for (uint32_t i = first; i < (first == 0 ? 5 : 11); i += step * thinned) {
      const uint32_t of_case = seed + i;
      Options o = options_of<T, DK, DV>(of_case);
      o.group = std::initializer_list<int32_t>{1, 2, 4, 8, 3, 16}.begin()[of_case % 6];
      o.tokens_per_list = of_case % 5 == 0 ? 9 : 1 + static_cast<int32_t>(of_case % 3);
      if (first != 0) change_scores(o, i);
      check(o, of_case, narrow<T, DK, DV>());
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  print_used(type_of<T>, DK, DV);
}

template <class T>
void check_narrow_of_all_dims(uint32_t seed) {
  check_narrow<T, 64>(seed, 1);
  check_narrow<T, 80>(seed + 30, 2);
  check_narrow<T, 96>(seed + 61, 2);
  check_narrow<T, 112>(seed + 90, 2);
  check_narrow<T, 128>(seed + 120, 1);
  check_narrow<T, 192, 128>(seed + 151, 2);
  check_narrow<T, 192>(seed + 180, 3);
  check_narrow<T, 256>(seed + 210, 2);
}

/// Lists of 9 to 16 columns and more, some beside lists of fewer.
template <class T, int DK, int DV = DK>
void check_medium(uint32_t seed, uint32_t n_cases) {
  constexpr std::pair<int32_t, int32_t> shapes[] = {{16, 1}, {4, 4},  {24, 1}, {3, 5},
                                                    {8, 2},  {1, 13}, {5, 7}};
  for (uint32_t i = 0; i < n_cases; i += thinned) {
    Options o = options_of<T, DK, DV>(seed + i);
    std::tie(o.group, o.tokens_per_list) = shapes[(seed + i) % std::size(shapes)];
    if (i % 2 == 1) change_scores(o, i);
    check(o, seed + i, narrow<T, DK, DV>(), nullptr, &narrow<T, DK, DV, 2>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  print_used(type_of<T>, DK, DV);
}

template <class T>
void check_medium_of_all_dims(uint32_t seed) {
  check_medium<T, 64>(seed, 9);
  check_medium<T, 80>(seed + 10, 3);
  check_medium<T, 96>(seed + 21, 3);
  check_medium<T, 112>(seed + 30, 3);
  check_medium<T, 128>(seed + 40, 14);
  check_medium<T, 192, 128>(seed + 61, 3);
  check_medium<T, 192>(seed + 70, 3);
}

TEST(CudaNarrow, OfBf16) { check_narrow_of_all_dims<Bf16>(1000); }
TEST(CudaNarrow, OfF16) { check_narrow_of_all_dims<F16>(1300); }
TEST(CudaNarrow, SixteenColumnsOfBf16) { check_medium_of_all_dims<Bf16>(4000); }
TEST(CudaNarrow, SixteenColumnsOfF16) { check_medium_of_all_dims<F16>(4100); }

/// A column does not know how many there are beside it.
TEST(CudaNarrow, SixteenColumnsHaveTheBitsOfTwiceEight) {
  for (uint32_t seed = 1850; seed < 1854; ++seed) {
    Options o = options_of<F16, 128, 128>(seed);
    o.group = 16;
    o.tokens_per_list = 1;
    o.history = 1200;
    if (seed % 2 == 0) change_scores(o, seed);
    SCOPED_TRACE(describe(o, seed));
    Case by_eights(o, seed), at_once(o, seed);
    attend(by_eights, narrow<F16, 128>(), {});
    attend(at_once, narrow<F16, 128>(), {}, nullptr, &narrow<F16, 128, 128, 2>());
    EXPECT_EQ(std::memcmp(by_eights.out.data(), at_once.out.data(), at_once.out.size()), 0);
    EXPECT_EQ(std::memcmp(by_eights.lse.data(), at_once.lse.data(), at_once.lse.size() * 4), 0);
  }
}

/// Sums of sixteen columns of 256 dims would be more than there are registers; weights are written tile by tile of eight.
TEST(CudaNarrow, MediumTilesAreOfSomeCalls) {
  const auto has = [](const Options& o) {
    Case subject(o, 1);
    return medium_kernel_for(arguments_of(subject.params(), {})) != nullptr;
  };
  const auto of = [](StorageType type, int32_t dim_k, int32_t dim_v) {
    return Options{.type_k = type, .type_v = type, .head_dim_k = dim_k, .head_dim_v = dim_v};
  };
  for (const StorageType type : {StorageType::bf16, StorageType::f16}) {
    for (const int32_t dim : {64, 80, 96, 112, 128, 192})
      EXPECT_TRUE(has(of(type, dim, dim))) << dim;
    EXPECT_TRUE(has(of(type, 192, 128)));
    EXPECT_FALSE(has(of(type, 256, 256)));
    Options with_weights = of(type, 128, 128);
    with_weights.weights = true;
    EXPECT_FALSE(has(with_weights));
  }
  EXPECT_FALSE(has(of(StorageType::f32, 128, 128)));
  for (const StorageType type : {StorageType::q8_0, StorageType::int8, StorageType::q4_0,
                                 StorageType::nf4, StorageType::f8_e4m3, StorageType::f8_e5m2}) {
    EXPECT_TRUE(has(of(type, 64, 64)));
    EXPECT_TRUE(has(of(type, 128, 128)));
    EXPECT_FALSE(has(of(type, 256, 256)));
  }
}

/// Parts of f16 hold queries whose own numbers f16 does not.
TEST(CudaNarrow, QueriesOfAnySize) {
  uint32_t seed = 1600;
  for (const float size : {0x1p-100f, 0x1p60f, 0x1p119f}) {
    Options o{.type_k = StorageType::f16, .type_v = StorageType::f16, .lse = true, .query_size = size};
    o.history = 60;
    check(o, seed++, narrow<F16, 64, 64>());
  }
}

/// A warp comes to the next of its tokens while it still needs what it knows of those before.
TEST(CudaNarrow, PartsOfSeveralStretches) {
  constexpr int32_t history = 8300;
  Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 1, .n_kv_heads = 4};
  ASSERT_EQ(stretch_of(history / 2, o.n_kv_heads), 256);  // of which a warp has two stretches of 32
  o.n_lists = o.tokens_per_list = 1;
  o.history = history;
  o.slopes = o.lse = true;
  check(o, 1700, narrow<Bf16, 64, 64>());
}

/// Two dimensions lie in a word, whose halves are looked at one by one.
TEST(CudaNarrow, AHiddenValueMayBeNoNumberInAnyDimension) {
  for (const int32_t dim : {0, 1, 63}) {
    Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .group = 1, .n_kv_heads = 1};
    o.n_lists = 1;
    o.tokens_per_list = 2;  // the first does not see the second
    o.history = 40;
    Case oracle(o, 1800), subject(o, 1800);
    for (Case* each : {&oracle, &subject})
      store_element(each->storage.v.stored(0, each->cells[0].back()).codes, DType::bf16, dim,
                    not_a_number);
    oracle.clear_results();
    reference_attention(oracle.params());
    attend(subject, narrow<Bf16, 64, 64>(), {});
    compare(subject, oracle);
  }
}

/// Moves rows to where a sector begins, as they lie on a device.
void align(Plane& plane, std::vector<std::byte>& memory) {
  memory.assign(memory.size() + 32, std::byte{0xff});
  void* begin = memory.data();
  size_t room = memory.size();
  std::align(32, 1, begin, room);
  std::memcpy(begin, plane.data, memory.size() - 32);
  plane.data = static_cast<std::byte*>(begin);
}

/// Each byte of K and V that a list's rows see, once for each KV head: in whole sectors, 16 bytes a lane. All columns of a list fit
/// in one tile.
template <class T, int DK, int DV = DK>
void check_loads(uint32_t seed, int32_t group = 4, int32_t n_tokens = 1) {
  Options o{
      .type_k = type_of<T>, .type_v = type_of<T>, .group = group, .head_dim_k = DK, .head_dim_v = DV};
  o.tokens_per_list = n_tokens;
  o.history = 400;
  Case subject(o, seed);
  uint64_t bytes = 0;
  for (size_t first = 0; first < subject.rows.size(); first += static_cast<size_t>(n_tokens)) {
    const int32_t end = subject.rows[first + static_cast<size_t>(n_tokens) - 1].end;
    // What is behind the end of a step is read from its last token again.
    for (int32_t i = 0; i < n_tokens; ++i)
      subject.rows[first + static_cast<size_t>(i)].end -= end % 16;
    bytes += static_cast<uint64_t>(end - end % 16) * 2 * (DK + DV) *
             static_cast<uint64_t>(o.n_kv_heads);
  }
  std::vector<std::byte> k(subject.k.size()), v(subject.v.size());
  align(subject.storage.k.codes, k);
  align(subject.storage.v.codes, v);
  simt::Statistics loads;
  const KernelUnderTest* medium = nullptr;
  if constexpr (DK <= 192) medium = &narrow<T, DK, DV, 2>();
  attend(subject, narrow<T, DK, DV>(), {.seed = seed, .loads = &loads}, nullptr, medium);
  EXPECT_EQ(loads.loaded_bytes, bytes) << DK << " and " << DV;
  EXPECT_EQ(loads.sectors * 32, bytes) << DK << " and " << DV;
  EXPECT_EQ(loads.requests * 512, bytes) << DK << " and " << DV;
}

TEST(CudaNarrow, LoadsWhatIsSeenOnceInWholeSectors) {
  check_loads<Bf16, 64>(1601);
  check_loads<Bf16, 80>(1602);
  check_loads<Bf16, 96>(1603);
  check_loads<F16, 112>(1604);
  check_loads<F16, 128>(1605);
  check_loads<F16, 192, 128>(1606);
  check_loads<Bf16, 192>(1607);
  check_loads<Bf16, 256>(1608);
}

/// Sixteen query heads of a KV head in decode, drafts of four tokens for four and of two for eight, and what has a tile of its own
/// width beside it.
TEST(CudaNarrow, LoadsWhatSixteenColumnsSeeOnce) {
  for (const auto& [group, n_tokens] : {std::pair{16, 1}, {4, 4}, {8, 2}, {3, 5}, {9, 1}}) {
    SCOPED_TRACE(std::to_string(n_tokens) + " tokens of " + std::to_string(group) + " query heads");
    check_loads<Bf16, 128>(1610, group, n_tokens);
    check_loads<F16, 64>(1611, group, n_tokens);
  }
  check_loads<F16, 80>(1612, 16, 1);
  check_loads<Bf16, 192, 128>(1613, 16, 1);
  check_loads<Bf16, 192>(1614, 4, 4);
}

}  // namespace
