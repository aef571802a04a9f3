#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/attention/visible.hpp"
#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/general.cuh"
#include "kernels/reference/attention.hpp"
#include "kernels/reference/stored_row.hpp"
#include "tests/simt/simt.hpp"
#include "unit/attention_case.hpp"

/// Calls of attention kernels for CUDA, run on the CPU by the shim, beside the oracle and the bound of docs/SEMANTICS.md, section 8.
namespace cuda_attention {

using namespace kvc;
using namespace kvc::cuda;
using namespace attention_case;

/// A kernel, and the shared memory of its blocks.
struct KernelUnderTest {
  void (*run)(const AttentionArguments&) = attend_general<false>;
  size_t (*shared_bytes)(const AttentionArguments&) = [](const AttentionArguments& a) {
    return static_cast<size_t>(GeneralLayout{a.k.dim, a.v.dim, a.rope_dims}.bytes());
  };
  unsigned threads = 128;          // of a block
  int32_t columns = wide_columns;  // of a wide tile
};

/// What a launch does.
enum class Role : uint8_t { narrow, medium, wide, weights };
/// Where launches go instead of the shim, in so many blocks (tests/cuda/attention_on_gpu.cpp).
inline void (*launch_elsewhere)(const AttentionArguments&, Role, unsigned) = nullptr;

/// How the shim runs a call.
struct Run {
  unsigned seed = 1;
  unsigned blocks = 3;
  int resident = 2;
  simt::Statistics* loads = nullptr;  // what they are added to
};

/// What tokens see, and where they lie, of the i-th of many calls.
inline void vary_tokens(Options& o, uint32_t i) {
  o.halves = i % 8 == 1;
  o.window = i % 5 == 1;
  o.wild_ranges = i % 5 == 2;
  o.sees_later = i % 5 == 3;
  o.hidden_nan = i % 4 == 2;
  o.strided = i % 6 == 5;
}

/// One call by a kernel, and by those for wide and medium tiles if there are any. What they leave of the counters is checked.
inline void attend(Case& subject, const KernelUnderTest& kernel, const Run& run,
                   const KernelUnderTest* wide = nullptr, const KernelUnderTest* medium = nullptr) {
  subject.clear_results();
  const AttentionParams params = subject.params();
  AttentionBounds bounds = subject.bounds();
  bounds.n_token_entries = static_cast<int64_t>(subject.token_cells.size());
  bounds.shares_prefixes = subject.o.shared;
  std::vector<std::byte> on_host(Schedule::host_bytes(bounds));
  Schedule schedule(bounds, on_host.data());
  const int32_t n_kv_heads = params.storage.k.n_heads;
  schedule.cut(params.plan, {.narrow = {n_kv_heads, params.constants.n_q_heads / n_kv_heads},
                             .has_medium = medium != nullptr,
                             .wide = wide != nullptr ? wide->columns : 0,
                             .least_saved = subject.o.weights ? shares_nothing : 1});

  AttentionArguments a = arguments_of(
      params, {subject.token_cells.data(), subject.token_positions.data(), params.plan.seen});
  std::vector<std::byte> block(Schedule::block_bytes(bounds), std::byte{0xff});
  for (const Schedule::Array& array : schedule.arrays())
    std::copy_n(schedule.block() + array.at, array.bytes, block.data() + array.at);
  place_schedule(a, schedule, block.data());
  a.k.head_scale = params.storage.k.head_scale;
  a.v.head_scale = params.storage.v.head_scale;
  a.slopes = params.constants.slopes;
  a.sinks = params.constants.sinks;
  a.frequency = params.constants.rope.frequency;
  a.rope_dims = params.constants.rope.n_dims;
  a.rope_first = params.constants.rope.first_dim;
  a.rope_halves = params.constants.rope.halves ? 1 : 0;
  const auto n_slots = static_cast<size_t>(Schedule::n_slots(bounds));
  std::vector<float> partial(n_slots * tile_columns * static_cast<size_t>(a.v.dim + 2), not_a_number);
  std::vector<int32_t> counters(n_slots, 0);
  a.partial = partial.data();
  a.counters = counters.data();

  const simt::Options options = {
      .seed = run.seed, .resident = run.resident, .counts_loads = run.loads != nullptr};
  const auto launch = [&](const KernelUnderTest& what, Role role) {
    if (launch_elsewhere != nullptr) return launch_elsewhere(a, role, run.blocks);
    const simt::Statistics made = simt::launch(
        run.blocks, what.threads, what.shared_bytes(a), [&] { what.run(a); }, options);
    if (run.loads == nullptr) return;
    run.loads->loaded_bytes += made.loaded_bytes;
    run.loads->requests += made.requests;
    run.loads->sectors += made.sectors;
    run.loads->boxes += made.boxes;
  };
  for (int32_t i = 0; i < schedule.n_waves(); ++i) {
    place_wave(a, schedule, i);
    switch (schedule.wave(i).width) {
      case Width::wide: launch(*wide, Role::wide); break;
      case Width::medium: launch(*medium, Role::medium); break;
      case Width::narrow: launch(kernel, Role::narrow); break;
    }
  }
  if (a.weights.data != nullptr)
    launch({.run = a.has_codes() ? write_weights<true> : write_weights<false>}, Role::weights);
  for (const int32_t counter : counters) ASSERT_EQ(counter, 0);
}

/// T and V of section 8 for a row and a query head.
struct Sizes {
  double score = 0;
  double value = 0;
};

inline std::vector<double> rotated(std::vector<double> key, const Rope& rope, int32_t offset) {
  for (int32_t i = 0; i < rope.n_dims / 2; ++i) {
    const auto x = static_cast<size_t>(rope.first_dim + (rope.halves ? i : 2 * i));
    const auto y = x + static_cast<size_t>(rope.halves ? rope.n_dims / 2 : 1);
    const double c = std::cos(offset * rope.frequency[i]), s = std::sin(offset * rope.frequency[i]);
    const double a = key[x], b = key[y];
    key[x] = a * c - b * s;
    key[y] = a * s + b * c;
  }
  return key;
}

inline Sizes sizes_of(const AttentionParams& p, const AttentionRow& row, int32_t head) {
  Sizes sizes;
  const int32_t kv_head = head / (p.constants.n_q_heads / p.storage.k.n_heads);
  const auto element = [&](const Tensor& t, int64_t at) {
    return static_cast<double>(load_element(t.data, t.dtype, at));
  };
  for_each_visible(p.plan, row, [&](int32_t, int32_t cell, int32_t position) {
    const auto at = [&](const Tensor& t) {
      return head * t.stride[0] + t.token_offset(row.token, 1) + (cell - p.first_column) * t.stride[2];
    };
    if (p.tensors.mask.data != nullptr && element(p.tensors.mask, at(p.tensors.mask)) == 0) return;
    double score = 0;
    if (p.tensors.bias.data != nullptr) {
      const double bias = element(p.tensors.bias, at(p.tensors.bias));
      if (std::isinf(bias)) return;
      score += std::fabs(bias);
    }
    std::vector<double> key = read_stored_row(p.storage.k, kv_head, cell);
    const bool pending = p.plan.lists[row.list].has_pending && p.constants.rope.n_dims > 0;
    if (pending) key = rotated(key, p.constants.rope, position - p.plan.rotated_for[cell]);
    double product = 0;
    for (size_t i = 0; i < key.size(); ++i) {
      const int64_t q = p.tensors.q.token_offset(row.token) + head * p.tensors.q.stride[1] +
                        static_cast<int64_t>(i) * p.tensors.q.stride[2];
      product += std::fabs(key[i] * element(p.tensors.q, q));
    }
    score += product * static_cast<double>(p.constants.scale);
    if (p.constants.slopes != nullptr)
      score += static_cast<double>(p.constants.slopes[head]) * std::abs(row.position - position);
    sizes.score = std::max(sizes.score, score);
    for (const double value : read_stored_row(p.storage.v, kv_head, cell))
      sizes.value = std::max(sizes.value, std::fabs(value));
  });
  return sizes;
}

inline double most_used = 0;  // of what is promised, by f32 results

/// What rounding to the type of a result adds.
inline double rounding_of(DType out) {
  return out == DType::f32 ? 0 : out == DType::f16 ? 0x1p-11 : 0x1p-8;
}

inline void compare_row(Case& subject, Case& oracle, const AttentionParams& params,
                        const AttentionRow& row, int32_t head) {
  const Options& o = subject.o;
  const Sizes sizes = sizes_of(params, row, head);
  const double u = o.runtime_type == in_bf16 ? 0x1p-8 : o.runtime_type == in_f16 ? 0x1p-11 : 0;
  const double bound = u > 0 ? (u + 2 * u * sizes.score) * sizes.value
                             : (0x1p-20 + 0x1p-22 * sizes.score) * sizes.value;
  for (int32_t d = 0; d < o.head_dim_v; ++d) {
    const auto want = static_cast<double>(oracle.out_at(row.token, head, d));
    const auto got = static_cast<double>(subject.out_at(row.token, head, d));
    ASSERT_EQ(std::isnan(want), std::isnan(got)) << "dim " << d;
    if (std::isnan(want)) continue;
    const double error = std::fabs(want - got);
    ASSERT_LE(error, bound + rounding_of(o.dtype_out) * std::fabs(want)) << "dim " << d;
    if (o.dtype_out == DType::f32 && bound > 0) most_used = std::max(most_used, error / bound);
  }
  if (!o.lse) return;
  const auto at = static_cast<size_t>(row.token * subject.n_q_heads() + head);
  const auto want = static_cast<double>(oracle.lse[at]);
  const auto got = static_cast<double>(subject.lse[at]);
  ASSERT_EQ(std::isnan(want), std::isnan(got));
  if (std::isnan(want)) return;
  if (std::isinf(want)) {
    ASSERT_EQ(want, got);
  } else {
    ASSERT_NEAR(want, got, 0x1p-20 * (1 + sizes.score) + 2 * u * sizes.score);
  }
}

inline void compare(Case& subject, Case& oracle) {
  const AttentionParams params = oracle.params();
  for (const AttentionRow& row : oracle.rows) {
    for (int32_t head = 0; head < subject.n_q_heads(); ++head) {
      SCOPED_TRACE("token " + std::to_string(row.token) + " head " + std::to_string(head));
      compare_row(subject, oracle, params, row, head);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
  for (size_t i = 0; i < subject.weights.size(); ++i) {
    const auto want = static_cast<double>(oracle.weights[i]);
    const auto got = static_cast<double>(subject.weights[i]);
    ASSERT_EQ(std::isnan(want), std::isnan(got)) << "weight " << i;
    if (std::isnan(want)) continue;
    ASSERT_NEAR(want, got, 1e-5) << "weight " << i;
  }
}

/// One case against the oracle, and once more in another order and on another grid, which must give the same bits.
inline void check(const Options& options, uint32_t seed, const KernelUnderTest& kernel = {},
                  const KernelUnderTest* wide = nullptr, const KernelUnderTest* medium = nullptr) {
  SCOPED_TRACE(describe(options, seed));
  Case oracle(options, seed);
  oracle.clear_results();
  reference_attention(oracle.params());
  Case subject(options, seed);
  attend(subject, kernel, {.seed = seed, .blocks = 1 + seed % 5}, wide, medium);
  if (::testing::Test::HasFatalFailure()) return;
  compare(subject, oracle);
  if (::testing::Test::HasFatalFailure()) return;
  const std::vector<std::byte> out = subject.out;
  const std::vector<float> lse = subject.lse;
  attend(subject, kernel, {.seed = seed + 1001, .blocks = 7, .resident = 5}, wide, medium);
  ASSERT_EQ(std::memcmp(out.data(), subject.out.data(), out.size()), 0) << "bits depend on order";
  ASSERT_EQ(std::memcmp(lse.data(), subject.lse.data(), lse.size() * 4), 0) << "so does the lse";
}

}  // namespace cuda_attention
