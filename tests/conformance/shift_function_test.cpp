// A caller's shift function: positions move through it as they would through RoPE, and a refusal, wherever it comes, changes
// nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "model/formats.hpp"
#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/host_view.hpp"
#include "support/random.hpp"

namespace {

using support::Array;
using support::Cache;
using support::Device;
using support::Digest;

constexpr int32_t n_layers = 2, n_kv_heads = 2, head_dim = 8, n_sequences = 3;
constexpr uint64_t seed = 20261121;

/// Turns keys as kvc_bind_rope() would: neighbours, base 10000. Refuses from call `fail_at` on.
struct Shifter {
  int32_t calls = 0;
  int32_t fail_at = INT32_MAX;
  kvc_status refusal = KVC_E_NOT_FOUND;
  kvc_cache* reenter = nullptr;
  kvc_status reentered = KVC_OK;
  std::vector<int32_t> tokens = std::vector<int32_t>(n_layers);
};

kvc_status shift(void* user, int32_t layer, int32_t n, const int32_t* from, const int32_t* to,
                 kvc_tensor* keys) {
  const kvc_tensor view = support::on_host(*keys);
  const kvc_tensor* k = &view;
  auto& shifter = *static_cast<Shifter*>(user);
  if (shifter.reenter) shifter.reentered = kvc_commit(shifter.reenter);
  if (shifter.calls++ >= shifter.fail_at) return shifter.refusal;
  EXPECT_EQ(k->ndim, 3);
  EXPECT_EQ(k->shape[0], n);
  EXPECT_EQ(k->shape[1], n_kv_heads);
  EXPECT_EQ(k->shape[2], head_dim);
  shifter.tokens[static_cast<size_t>(layer)] += n;
  for (int32_t t = 0; t < n; ++t) {
    for (int32_t h = 0; h < n_kv_heads; ++h) {
      for (int32_t i = 0; i < head_dim / 2; ++i) {
        const double angle = (to[t] - from[t]) * std::pow(10000.0, -2.0 * i / head_dim);
        const int64_t at = t * k->strides[0] + h * k->strides[1] + 2 * i * k->strides[2];
        const double a = model::load(k->data, k->dtype, at),
                     b = model::load(k->data, k->dtype, at + 1);
        model::store(k->data, k->dtype, at, a * std::cos(angle) - b * std::sin(angle));
        model::store(k->data, k->dtype, at + 1, a * std::sin(angle) + b * std::cos(angle));
      }
    }
  }
  return KVC_OK;
}

kvc_cache_desc describe(uint32_t dtype, int32_t capacity) {
  kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, head_dim, head_dim);
  desc.dtype_k = desc.dtype_v = dtype;
  desc.max_sequences = n_sequences;
  desc.capacity = capacity;
  desc.max_batch = 64;
  desc.max_q_heads = n_kv_heads;
  return desc;
}

void put_tokens(kvc_cache* cache, int32_t sequence, int32_t first, int32_t n, uint64_t content,
                bool commit = true) {
  support::Random random(content);
  std::vector<int32_t> position, sequences(static_cast<size_t>(n), sequence);
  for (int32_t i = 0; i < n; ++i) position.push_back(first + i);
  ASSERT_EQ(kvc_begin(cache, n, position.data(), sequences.data(), nullptr, 0, nullptr), KVC_OK)
      << support::last_message();
  Array k(KVC_F32, {n, n_kv_heads, head_dim}), v(KVC_F32, {n, n_kv_heads, head_dim});
  k.fill(random);
  v.fill(random);
  for (int32_t layer = 0; layer < n_layers; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, k.tensor(), v.tensor()), KVC_OK);
  if (commit) {
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
  }
}

std::vector<float> gathered(kvc_cache* cache, int32_t layer, int32_t sequence) {
  const int32_t count = support::sequence_info(cache, sequence).count;
  Array k(KVC_F32, {std::max(count, 1), n_kv_heads, head_dim}),
      v(KVC_F32, {std::max(count, 1), n_kv_heads, head_dim});
  k.tensor()->shape[0] = v.tensor()->shape[0] = count;
  EXPECT_EQ(kvc_gather(cache, layer, sequence, k.tensor(), v.tensor()), KVC_OK)
      << support::last_message();
  std::vector<float> all = k.floats(), values = v.floats();
  all.insert(all.end(), values.begin(), values.end());
  return all;
}

/// A cache that turns by RoPE and one that turns by the function go the same way, sequence by sequence.
void compare_with_rope(uint32_t dtype, const kvc_causal_desc& causal) {
  const Device device(2);
  kvc_cache_desc desc = describe(dtype, 200);
  desc.cells = 1200;  // room for every copy
  const Cache exact(device, desc, &causal), shifted(device, desc, &causal);
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  ASSERT_EQ(kvc_bind_rope(exact, 0, n_layers, &rope, nullptr), KVC_OK);
  Shifter shifter;
  ASSERT_EQ(kvc_bind_shift(shifted, shift, &shifter), KVC_OK) << support::last_message();
  support::Random random(seed);
  for (int32_t step = 0; step < 60; ++step) {
    const int32_t s = random.below(n_sequences);
    const kvc_sequence_info info = support::sequence_info(exact, s);
    const int32_t choice = random.below(4);
    const int32_t n = std::min(1 + random.below(20), info.room), other = (s + 1) % n_sequences;
    const int32_t begin = info.next > 0 ? random.below(info.next) : 0;
    const int32_t end = begin + 1 + random.below(4);
    const bool commit = random.chance(0.7);  // else the next call ends the pass
    kvc_status removed = KVC_OK;
    for (kvc_cache* cache : {exact.handle, shifted.handle}) {
      if (choice < 2 && n > 0)
        put_tokens(cache, s, info.next, n, seed + static_cast<uint64_t>(step), commit);
      if (choice == 2) {
        ASSERT_EQ(kvc_copy_prefix(cache, s, other, KVC_SEQ_END, nullptr), KVC_OK);
      }
      if (choice == 3) {
        const kvc_status status = kvc_remove(cache, s, begin, end);
        if (cache == exact.handle) removed = status;
        ASSERT_TRUE(status == KVC_OK || status == KVC_E_WINDOW_LOST) << support::last_message();
        ASSERT_EQ(status, removed);
      }
      ASSERT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    }
    for (int32_t each = 0; each < n_sequences; ++each) {
      const kvc_sequence_info a = support::sequence_info(exact, each),
                              b = support::sequence_info(shifted, each);
      ASSERT_EQ(a.next, b.next);
      ASSERT_EQ(a.lost_below, b.lost_below);
      for (int32_t layer = 0; layer < n_layers; ++layer) {
        const std::vector<float> wanted = gathered(exact, layer, each),
                                 got = gathered(shifted, layer, each);
        ASSERT_EQ(wanted.size(), got.size());
        // Of up to 60 shifts, each rounded.
        const double rounding = dtype == KVC_F32 ? 1e-5 : dtype == KVC_F16 ? 2e-2 : 2e-1;
        for (size_t i = 0; i < wanted.size(); ++i)
          ASSERT_NEAR(wanted[i], got[i], rounding) << "step " << step << " seed " << seed;
      }
    }
  }
  EXPECT_GT(shifter.tokens[0], 20);
  EXPECT_EQ(shifter.tokens[0], shifter.tokens[1]);
}

TEST(ShiftFunction, MovesKeysAsRopeDoes) {
  for (const uint32_t dtype : {KVC_F32, KVC_F16, KVC_BF16})
    compare_with_rope(dtype, support::causal_desc());
}

TEST(ShiftFunction, MovesThemInWindowsToo) {
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 30;
  compare_with_rope(KVC_F32, causal);
  causal.memory = 60;
  compare_with_rope(KVC_F32, causal);
  causal.keep_first = 5;
  compare_with_rope(KVC_F32, causal);
  causal.chunk = 16;
  compare_with_rope(KVC_F32, causal);
}

/// A cache with two sequences that share cells and an open pass, about to lose positions [3, 5) of sequence 0.
class Refusal : public ::testing::Test {
 protected:
  void open(int32_t capacity, uint64_t flags = 0) {
    kvc_cache_desc desc = describe(KVC_F16, capacity);
    desc.flags = flags;
    desc.max_sequences = 2;
    desc.cells = capacity;
    ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &cache_), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_bind_shift(cache_, shift, &shifter_), KVC_OK);
    put_tokens(cache_, 0, 0, 40, 1);
    ASSERT_EQ(kvc_copy_prefix(cache_, 0, 1, 30, nullptr), KVC_OK);
    put_tokens(cache_, 0, 40, 6, 2, false);
  }
  void TearDown() override { EXPECT_EQ(kvc_cache_destroy(cache_), KVC_OK); }

  void expect_unchanged_by_remove(kvc_status expected) {
    const Digest digest = support::digest(cache_);
    const kvc_stats stats = support::stats(cache_);
    ASSERT_EQ(kvc_remove(cache_, 0, 3, 5), expected) << support::last_message();
    EXPECT_EQ(support::digest(cache_), digest);
    EXPECT_EQ(kvc_check(cache_), KVC_OK) << support::last_message();
    const kvc_stats now = support::stats(cache_);
    EXPECT_EQ(now.cells_used, stats.cells_used);
    EXPECT_EQ(now.state, stats.state) << "the pass is still open";
  }

  Device device_;
  Shifter shifter_;
  kvc_cache* cache_ = nullptr;
};

TEST_F(Refusal, ChangesNothingWhereverItComes) {
  for (const uint64_t flags : {uint64_t{0}, uint64_t{KVC_CACHE_ZERO_ON_FREE}}) {
    if (cache_) {
      ASSERT_EQ(kvc_cache_destroy(cache_), KVC_OK);
    }
    open(128, flags);
    int32_t refusals = 0;
    for (;; ++refusals) {
      shifter_ = {};
      shifter_.fail_at = refusals;
      const Digest digest = support::digest(cache_);
      const kvc_status status = kvc_remove(cache_, 0, 3, 5);
      if (status == KVC_OK) break;
      ASSERT_EQ(status, KVC_E_NOT_FOUND);
      EXPECT_NE(support::last_message().find("shift function"), std::string::npos);
      ASSERT_EQ(support::digest(cache_), digest);
      ASSERT_EQ(kvc_check(cache_), KVC_OK) << support::last_message();
    }
    EXPECT_GE(refusals, n_layers);
    EXPECT_EQ(support::sequence_info(cache_, 0).count, 44);
    EXPECT_EQ(support::sequence_info(cache_, 1).count, 30);
  }
}

// The function's DEVICE and INTERNAL are the function's: nothing in the cache failed, so it is not poisoned.
TEST_F(Refusal, IsPassedOnWithoutPoisoningWhateverItIs) {
  open(128);
  for (const kvc_status refusal :
       {KVC_E_INTERNAL, KVC_E_DEVICE, KVC_E_BUSY, KVC_E_HANDLE, KVC_E_OUT_OF_MEMORY}) {
    for (const int32_t fail_at : {0, 1}) {
      shifter_ = {};
      shifter_.fail_at = fail_at;
      shifter_.refusal = refusal;
      expect_unchanged_by_remove(refusal);
    }
  }
  shifter_ = {};
  EXPECT_EQ(kvc_remove(cache_, 0, 3, 5), KVC_OK) << support::last_message();
  EXPECT_EQ(support::stats(cache_).state, uint32_t{KVC_STATE_IDLE});
}

TEST_F(Refusal, OfANumberThatIsNoStatus) {
  open(128);
  shifter_.fail_at = 0;
  shifter_.refusal = 12345;
  expect_unchanged_by_remove(KVC_E_INVALID_ARGUMENT);
}

TEST_F(Refusal, ForWantOfFreeCells) {
  open(60);  // 46 are used and 41 tokens would move
  expect_unchanged_by_remove(KVC_E_CACHE_FULL);
  EXPECT_EQ(shifter_.calls, 0);
}

TEST_F(Refusal, ToCallTheCacheAgain) {
  open(128);
  shifter_.reenter = cache_;
  EXPECT_EQ(kvc_remove(cache_, 0, 3, 5), KVC_OK);
  EXPECT_EQ(shifter_.reentered, KVC_E_BUSY);
}

TEST_F(Refusal, OnceTheFunctionIsTakenAway) {
  open(128);
  EXPECT_EQ(kvc_bind_shift(cache_, nullptr, nullptr), KVC_E_BAD_STATE) << "a pass is open";
  ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  ASSERT_EQ(kvc_bind_shift(cache_, nullptr, nullptr), KVC_OK);
  expect_unchanged_by_remove(KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_remove(cache_, 0, 40, KVC_SEQ_END), KVC_OK) << "a tail moves nothing";
}

// If the function refused, the pass would go on, and abort would bring back what slid: so those cells are no room for copies.
TEST(ShiftFunction, WhatSlidInTheOpenPassIsRoomOnceItIsCommitted) {
  const Device device;
  kvc_cache_desc desc = describe(KVC_F32, 32);
  desc.max_sequences = 1;
  desc.max_batch = 4;
  desc.cells = 12;
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 2;
  causal.memory = 4;
  const Cache cache(device, desc, &causal);
  Shifter shifter;
  ASSERT_EQ(kvc_bind_shift(cache, shift, &shifter), KVC_OK);
  std::vector<float> data(4 * n_kv_heads * head_dim, 1.0f);
  const kvc_tensor rows = support::dense(data.data(), KVC_F32, {4, n_kv_heads, head_dim});
  for (int32_t pass = 0; pass < 3; ++pass) {
    ASSERT_EQ(pass == 0 ? KVC_OK : kvc_commit(cache), KVC_OK);
    const int32_t first = 4 * pass, position[] = {first, first + 1, first + 2, first + 3};
    const int32_t sequence[] = {0, 0, 0, 0};
    ASSERT_EQ(kvc_begin(cache, 4, position, sequence, nullptr, 0, nullptr), KVC_OK);
    for (int32_t layer = 0; layer < n_layers; ++layer)
      ASSERT_EQ(kvc_put(cache, layer, &rows, &rows), KVC_OK);
  }
  EXPECT_EQ(support::stats(cache).cells_used, 8u);  // 12 are owned: 4 of them slid in the open pass
  const Digest before = support::digest(cache);
  EXPECT_EQ(kvc_remove(cache, 0, 8, 9), KVC_E_CACHE_FULL);
  EXPECT_EQ(support::digest(cache), before);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(kvc_remove(cache, 0, 8, 9), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
}

TEST(ShiftFunction, IsRefusedWhereKeysMoveByThemselves) {
  const Device device;
  const kvc_cache_desc desc = describe(KVC_F32, 32);
  Shifter shifter;
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  const Cache with_rope(device, desc);
  ASSERT_EQ(kvc_bind_rope(with_rope, 0, 1, &rope, nullptr), KVC_OK);
  EXPECT_EQ(kvc_bind_shift(with_rope, shift, &shifter), KVC_E_NOT_SUPPORTED);
  const Cache with_shift(device, desc);
  ASSERT_EQ(kvc_bind_shift(with_shift, shift, &shifter), KVC_OK);
  EXPECT_EQ(kvc_bind_rope(with_shift, 0, 1, &rope, nullptr), KVC_E_NOT_SUPPORTED);
  kvc_causal_desc causal = support::causal_desc();
  causal.flags = KVC_CAUSAL_POSITION_FREE;
  const Cache free(device, desc, &causal);
  EXPECT_EQ(kvc_bind_shift(free, shift, &shifter), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_bind_shift(nullptr, shift, &shifter), KVC_E_HANDLE);
}

}  // namespace
