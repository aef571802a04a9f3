/// The CPU kernels against the oracle, over random plans with every option, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/attention/params.hpp"
#include "core/base/half.hpp"
#include "core/base/thread_pool.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/reference/attention.hpp"
#include "unit/attention_case.hpp"
#include "unit/kernel_tables.hpp"
#include "unit/pool.hpp"

namespace {

using namespace kvc;
using namespace attention_case;

struct UseTable {
  explicit UseTable(const cpu::KernelTable* table) { cpu::use_kernels(table); }
  ~UseTable() { cpu::use_kernels(nullptr); }
};

/// Memory aligned to 4096 with a guard behind it.
class Block {
 public:
  static constexpr size_t guard_bytes = 4096;
  explicit Block(size_t bytes) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(
        std::aligned_alloc(4096, (bytes + guard_bytes + 4095) / 4096 * 4096));
    std::memset(data_, 0xff, bytes);  // NaN wherever something is read before it was written
    std::memset(data_ + bytes, 0x5a, guard_bytes);
  }
  ~Block() { std::free(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::byte* data() const { return data_; }
  bool intact() const {
    for (size_t i = 0; i < guard_bytes; ++i) {
      if (data_[bytes_ + i] != std::byte{0x5a}) return false;
    }
    return true;
  }

 private:
  std::byte* data_;
  size_t bytes_;
};

/// An ulp of what the result is stored as, and what f32 arithmetic may lose.
double tolerance_of(DType out) {
  return out == DType::f32 ? 1e-5 : out == DType::f16 ? 1.1e-3 : 8.5e-3;
}

double worst_error = 0;  // of f32 results, relative to the largest element of the row

void compare(Case& subject, Case& oracle) {
  const Options& o = subject.o;
  for (int32_t token = 0; token < subject.n_tokens; ++token) {
    for (int32_t head = 0; head < subject.n_q_heads(); ++head) {
      double largest = 0, difference = 0;
      for (int32_t d = 0; d < o.head_dim_v; ++d) {
        const float expected = oracle.out_at(token, head, d), actual = subject.out_at(token, head, d);
        ASSERT_EQ(std::isnan(expected), std::isnan(actual))
            << "token " << token << " head " << head << " dim " << d;
        if (std::isnan(expected)) continue;
        largest = std::max(largest, std::fabs(static_cast<double>(expected)));
        difference = std::max(difference, std::fabs(static_cast<double>(expected) - actual));
      }
      ASSERT_LE(difference, tolerance_of(o.dtype_out) * largest)
          << "token " << token << " head " << head;
      if (o.dtype_out == DType::f32 && largest > 0)
        worst_error = std::max(worst_error, difference / largest);
      if (!o.lse) continue;
      const auto at = static_cast<size_t>(token * subject.n_q_heads() + head);
      const float expected = oracle.lse[at], actual = subject.lse[at];
      ASSERT_EQ(std::isnan(expected), std::isnan(actual))
          << "lse of token " << token << " head " << head;
      if (std::isnan(expected)) continue;
      if (std::isinf(expected)) {
        ASSERT_EQ(expected, actual);
      } else {
        ASSERT_NEAR(expected, actual, 1e-5 * std::max(1.0f, std::fabs(expected)))
            << "token " << token << " head " << head;
      }
    }
  }
}

void compare_weights(const Case& subject, const Case& oracle) {
  for (size_t i = 0; i < subject.weights.size(); ++i) {
    const float expected = oracle.weights[i], actual = subject.weights[i];
    ASSERT_EQ(std::isnan(expected), std::isnan(actual)) << "weight " << i;
    if (std::isnan(expected)) continue;
    ASSERT_NEAR(expected, actual, 1e-5) << "weight " << i;
  }
}

void attend(Case& subject, ThreadPool& pool) {
  subject.clear_results();
  Block workspace(cpu::attention_workspace_bytes(subject.bounds(), pool.n_threads()));
  AttentionParams params = subject.params();
  params.workspace = workspace.data();
  cpu::attention(params, pool);
  ASSERT_TRUE(workspace.intact());
}

/// One case on every instruction set, against the oracle.
void check(const Options& options, uint32_t seed) {
  SCOPED_TRACE(describe(options, seed));
  Case oracle(options, seed);
  oracle.clear_results();
  reference_attention(oracle.params());
  static const PoolPointer pool = make_pool(2);
  for (const cpu::KernelTable* table : tables()) {
    SCOPED_TRACE(table->name);
    const UseTable use(table);
    Case subject(options, seed);
    attend(subject, *pool);
    compare(subject, oracle);
    compare_weights(subject, oracle);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(Kernels, PlainInEveryTypeAndGroup) {
  uint32_t seed = 1;
  for (const StorageType type_k : plain_types) {
    for (const StorageType type_v : plain_types) {
      for (const int32_t group : {1, 2, 3, 4, 7, 8, 16}) {
        Options o{
            .type_k = type_k, .type_v = type_v, .group = group, .head_dim_k = 32, .head_dim_v = 32};
        o.history = 130;
        check(o, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

constexpr StorageType every_type[] = {StorageType::f32,     StorageType::f16,     StorageType::bf16,
                                      StorageType::f8_e4m3, StorageType::f8_e5m2, StorageType::q8_0,
                                      StorageType::q4_0,    StorageType::int8,    StorageType::nf4};
static_assert(std::size(every_type) == n_storage_types);

/// Bound scales and rotations are the driver's: queries carry them, outputs are rotated back.
TEST(Kernels, EveryStorageTypeWithOptions) {
  for (uint32_t seed = 1500; seed < 1500 + 9 * 9; ++seed) {
    Options o{.type_k = every_type[seed % 9], .type_v = every_type[seed / 9 % 9]};
    o.rotate = seed % 2 == 0;
    o.group = seed % 5 == 0 ? 7 : seed % 3 == 0 ? 1 : 4;
    o.head_dim_k = seed % 4 == 0 ? 96 : 64;
    o.head_dim_v = seed % 7 == 0 ? 160 : 32;
    o.tokens_per_list = seed % 6 == 0 ? 40 : 2;
    o.n_lists = 3;
    o.history = 150;
    o.lse = true;
    o.shifts = seed % 3 == 1;
    o.halves = seed % 4 == 1;
    o.hidden_nan = seed % 5 == 1;
    o.shared = seed % 7 == 3;
    o.weights = seed % 8 == 1;
    o.window = seed % 8 == 2;
    check(o, seed);
    if (HasFatalFailure()) return;
  }
}

/// V is the last dims of K.
TEST(Kernels, ValuesInsideKeys) {
  uint32_t seed = 1700;
  for (const StorageType type : every_type) {
    for (const int32_t dim_v : {64, 128}) {
      for (const int32_t tokens : {1, 30}) {
        Options o{.type_k = type, .type_v = type, .v_in_k = true};
        o.head_dim_k = 192;
        o.head_dim_v = dim_v;
        o.group = 3;
        o.n_kv_heads = 1;
        o.tokens_per_list = tokens;
        o.rotate = seed % 2 == 0;
        check(o, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Kernels, EveryHeadDimension) {
  uint32_t seed = 1000;
  const int32_t dims[][2] = {{16, 16},   {24, 24},   {32, 16},   {40, 40},   {48, 80},
                             {64, 64},   {72, 8},    {96, 96},   {100, 60},  {112, 112},
                             {128, 128}, {192, 128}, {256, 256}, {576, 512}, {1, 3}};
  for (const auto& dim : dims) {
    for (const StorageType type : plain_types) {
      Options o{
          .type_k = type, .type_v = type, .head_dim_k = dim[0], .head_dim_v = dim[1], .n_lists = 2};
      o.history = 90;
      o.lse = true;
      check(o, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Kernels, EveryPairOfOptions) {
  for_each_pair_of_options({&Options::shared}, 2000, [](Options o, uint32_t seed) {
    o.n_lists = 3;
    o.history = 200;
    check(o, seed);
  });
}

TEST(Kernels, RotatesDimensionsFromAnyOn) {
  uint32_t seed = 2500;
  for (const int32_t head_dim : {16, 40, 128}) {
    for (const int32_t first : {1, head_dim / 4, head_dim - head_dim / 4 * 2}) {
      for (const bool halves : {false, true}) {
        Options o{.head_dim_k = head_dim, .head_dim_v = 16};
        o.shifts = o.weights = true;
        o.halves = halves;
        o.first_rope_dim = first;
        check(o, seed++);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Kernels, ManyTokensOfOneSequence) {
  uint32_t seed = 3000;
  for (const int32_t n_tokens : {1, 2, 3, 5, 8, 13, 16, 31, 48, 49, 64, 100}) {
    Options o{.type_k = StorageType::f16,
              .type_v = StorageType::f16,
              .group = seed % 2 == 0 ? 4 : 1,
              .head_dim_k = 32,
              .head_dim_v = 48};
    o.n_lists = 1;
    o.tokens_per_list = n_tokens;
    o.history = 330;
    o.hidden_nan = seed % 3 == 0;
    o.sees_later = seed % 4 == 0;
    o.window = seed % 5 == 0;
    o.lse = true;
    check(o, seed++);
    if (HasFatalFailure()) return;
  }
}

TEST(Kernels, ManySequencesOnOnePrefix) {
  uint32_t seed = 3400;
  for (const int32_t n_lists : {257, 300}) {
    Options o{.group = 2, .n_kv_heads = 1, .head_dim_k = 16, .head_dim_v = 16};
    o.n_lists = n_lists;
    o.tokens_per_list = n_lists == 300 ? 2 : 1;
    o.history = 200;
    o.shared = o.lse = true;
    o.window = n_lists == 257;
    check(o, seed++);
    if (HasFatalFailure()) return;
  }
}

TEST(Kernels, CallsOfWhichLittleOrNothingIsSeen) {
  for (uint32_t seed = 3500; seed < 3520; ++seed) {
    Options o{.group = 1, .n_kv_heads = 1, .head_dim_k = 16, .head_dim_v = 16};
    o.n_lists = o.tokens_per_list = 1 + static_cast<int32_t>(seed % 2);
    o.history = 4;
    o.lse = o.wild_ranges = true;
    check(o, seed);
    if (HasFatalFailure()) return;
  }
}

TEST(Kernels, LongHistoriesAreCutAndMerged) {
  uint32_t seed = 4000;
  for (const int32_t n_tokens : {1, 2, 6, 40}) {
    for (const bool odd : {false, true}) {
      Options o{.type_k = StorageType::bf16,
                .type_v = StorageType::f16,
                .group = 2,
                .n_kv_heads = 1,
                .head_dim_k = 16,
                .head_dim_v = 16};
      o.n_lists = n_tokens > 6 ? 1 : 2;
      o.tokens_per_list = n_tokens;
      o.history = 5000;
      o.sinks = o.lse = true;
      o.shifts = o.slopes = o.window = odd;
      o.wild_ranges = !odd;
      check(o, seed++);
      if (HasFatalFailure()) return;
    }
  }
}

#ifdef KVC_SANITIZED  // products are slow there
constexpr uint32_t n_random_cases = 20;
#else
constexpr uint32_t n_random_cases = 80;
#endif

TEST(Kernels, RandomCases) {
  std::mt19937 random(12345);
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  const auto flag = [&] { return below(3) == 0; };
  for (uint32_t seed = 5000; seed < 5000 + n_random_cases; ++seed) {
    Options o;
    o.type_k = plain_types[below(3)], o.type_v = plain_types[below(3)],
    o.dtype_q = dtypes[below(3)], o.dtype_out = dtypes[below(3)];
    const int32_t groups[] = {1, 2, 3, 4, 7, 8, 16};
    o.group = groups[below(7)];
    o.n_kv_heads = 1 + below(3);
    const int32_t dims[] = {16, 32, 64, 80, 40, 20, 128};
    o.head_dim_k = dims[below(7)], o.head_dim_v = dims[below(7)];
    o.n_lists = 1 + below(4), o.tokens_per_list = 1 + below(below(4) == 0 ? 60 : 5),
    o.history = 60 + below(400);
    o.softcap = flag(), o.slopes = flag(), o.sinks = flag(), o.lse = flag(), o.shifts = flag(),
    o.halves = flag();
    o.window = flag(), o.wild_ranges = flag(), o.sees_later = flag(), o.hidden_nan = flag(),
    o.strided = flag();
    o.shared = flag();
    o.bias = seed % 3 == 0, o.mask = seed % 4 == 0;
    o.weights = seed % 5 == 0;
    check(o, seed);
    if (HasFatalFailure()) return;
  }
  RecordProperty("worst_error", std::to_string(worst_error));
  std::printf("worst relative error of f32 results so far: %.2e\n", worst_error);
}

TEST(Kernels, SameBitsForAnyNumberOfThreads) {
  const PoolPointer pools[] = {make_pool(1), make_pool(2), make_pool(3), make_pool(8)};
  for (const cpu::KernelTable* table : tables()) {
    SCOPED_TRACE(table->name);
    const UseTable use(table);
    for (uint32_t seed = 6000; seed < 6008; ++seed) {
      Options o{.type_k = plain_types[seed % 3],
                .type_v = plain_types[seed % 3],
                .head_dim_k = 64,
                .head_dim_v = 64};
      o.tokens_per_list = seed % 2 == 0 ? 1 : 20;
      o.history = seed % 4 < 2 ? 4000 : 300;
      o.shared = seed % 3 == 0;
      Case subject(o, seed);
      std::vector<std::byte> first;
      for (const PoolPointer& pool : pools) {
        for (int32_t repeat = 0; repeat < 3; ++repeat) {
          attend(subject, *pool);
          if (first.empty()) first = subject.out;
          ASSERT_EQ(std::memcmp(first.data(), subject.out.data(), first.size()), 0)
              << describe(o, seed) << " threads " << pool->n_threads();
        }
      }
    }
  }
}

}  // namespace
