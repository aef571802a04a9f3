/// The attention kernel for CUDA that takes few columns to tensor cores.
#include <cstdio>
#include <initializer_list>
#include <memory>
#include <type_traits>
#include <utility>

#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/narrow_numbers.cuh"
#include "unit/cuda_attention_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int DK, int DV>
KernelUnderTest narrow() {
  using Keys = NumberKeys<T, DK>;
  using Values = NumberValues<T, DV>;
  return {attend_narrow<Keys, Values>, [](const AttentionArguments&) {
            return static_cast<size_t>(NarrowLayout<Keys, Values>::bytes);
          }};
}

template <class T>
constexpr StorageType type_of = std::is_same_v<T, F16> ? StorageType::f16 : StorageType::bf16;

#if defined(__SANITIZE_ADDRESS__)
constexpr uint32_t thinned = 3;  // it is ten times as slow
#else
constexpr uint32_t thinned = 1;
#endif

/// All cases, or one of `step`.
template <class T, int DK, int DV = DK>
void check_narrow(uint32_t seed, uint32_t step) {
  step *= thinned;
  const auto options = [&](uint32_t of_case) {
    Options o{.type_k = type_of<T>, .type_v = type_of<T>, .head_dim_k = DK, .head_dim_v = DV};
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
  for (uint32_t i = 0; i < 5; i += step) {
    check(options(seed + i), seed + i, narrow<T, DK, DV>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  for (uint32_t i = 5; i < 11; i += step) {
    Options o = options(seed + i);
    o.softcap = i % 2 == 0;
    o.slopes = i % 3 == 0;
    o.bias = i % 4 == 1;
    o.mask = i % 4 == 2;
    check(o, seed + i, narrow<T, DK, DV>());
    if (::testing::Test::HasFatalFailure()) return;
  }
  std::printf("%s, %d and %d: %.0f %% of what is promised was used\n", format_of(type_of<T>).name,
              DK, DV, 100 * std::exchange(most_used, 0));
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

TEST(CudaNarrow, OfBf16) { check_narrow_of_all_dims<Bf16>(1000); }
TEST(CudaNarrow, OfF16) { check_narrow_of_all_dims<F16>(1300); }

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

/// Each byte of K and V that a KV head's tiles see, once: in whole sectors, 16 bytes a lane.
template <class T, int DK, int DV = DK>
void check_loads(uint32_t seed) {
  Options o{.type_k = type_of<T>, .type_v = type_of<T>, .head_dim_k = DK, .head_dim_v = DV};
  o.tokens_per_list = 1;
  o.history = 400;
  Case subject(o, seed);
  uint64_t bytes = 0;
  for (AttentionRow& row : subject.rows) {
    row.end -= row.end % 16;  // what is behind the end of a step is read from its last token again
    bytes += static_cast<uint64_t>(row.end) * 2 * (DK + DV) * static_cast<uint64_t>(o.n_kv_heads);
  }
  std::vector<std::byte> k(subject.k.size()), v(subject.v.size());
  align(subject.storage.k.codes, k);
  align(subject.storage.v.codes, v);
  simt::Statistics loads;
  attend(subject, narrow<T, DK, DV>(), {.seed = seed, .loads = &loads});
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

}  // namespace
