// kvc_cache_stats() on a thread of its own: it is never BUSY, makes no call BUSY, and what it returns are the numbers of one
// moment between two calls, of the cache that the handle names. What it proves it proves under ThreadSanitizer, too.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <thread>

#include "support/functions.hpp"
#include "support/random.hpp"

namespace {

using support::Specimen;

#ifdef KVC_SANITIZED
constexpr int32_t rounds = 300;
#else
constexpr int32_t rounds = 3000;
#endif

/// Reads the stats of a cache until it is told to stop.
class Watcher {
 public:
  using Look = std::function<void(kvc_status, const kvc_stats&)>;

  Watcher(const kvc_cache* cache, Look look)
      : thread_([this, cache, look = std::move(look)] {
          while (!stop_ && !testing::Test::HasFailure()) {
            kvc_stats stats{};
            stats.struct_size = sizeof stats;
            const kvc_status status = kvc_cache_stats(cache, &stats);
            look(status, stats);
            ++reads_;
          }
        }) {}
  ~Watcher() { stop(); }

  void stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  int64_t reads() const { return reads_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> reads_{0};
  std::thread thread_;
};

TEST(Watchers, NeitherExcludeNorAreExcludedByAnyCall) {
  const support::Device device(2);
  Specimen specimen(device);
  uint64_t last_passes = 0;
  std::atomic<int64_t> moments{0};
  Watcher watcher(specimen.cache, [&](kvc_status status, const kvc_stats& stats) {
    ASSERT_EQ(support::name(status), "OK") << support::last_message();
    ASSERT_EQ(stats.cells, uint64_t{Specimen::cells});
    ASSERT_LE(stats.cells_used, stats.cells);
    ASSERT_LE(stats.cells_shared, stats.cells_used);
    ASSERT_LE(stats.state, uint32_t{KVC_STATE_RESERVE});
    ASSERT_GE(stats.passes, last_passes);
    moments += stats.passes > last_passes;
    last_passes = stats.passes;
  });
  const std::vector<support::Function> functions = support::functions(specimen);
  const kvc_tensor out = specimen.out;  // "get" returns its view in it
  support::Random random(20261129);
  const auto ended = [](kvc_status status) { return status != KVC_E_BUSY; };
  for (int32_t round = 0; round < rounds || (moments < 10 && !HasFailure()); ++round) {
    for (int32_t i = 0; i < 8; ++i) {
      const support::Function& function = functions[static_cast<size_t>(
          random.below(static_cast<int32_t>(functions.size())))];
      ASSERT_TRUE(ended(function.call(specimen.cache))) << function.name;
    }
    kvc_abort(specimen.cache);
    specimen.out = out;
    for (int32_t s : {0, 1, 2}) ASSERT_EQ(kvc_resume(specimen.cache, s, 0, nullptr), KVC_OK);
    specimen.open(Specimen::n_layers);
    ASSERT_EQ(kvc_put_attention(specimen.cache, 0, &specimen.k, &specimen.v, &specimen.q,
                                &specimen.out, nullptr),
              KVC_OK)
        << support::last_message();
    ASSERT_EQ(kvc_commit(specimen.cache), KVC_OK);
  }
  watcher.stop();
  std::cout << watcher.reads() << " reads, " << moments << " of them after another commit"
            << std::endl;
}

// After p passes of one token exactly p cells are used and none of another sequence is left over; a read that mixed two
// moments would show another pair. The copy makes all of them shared, in one call.
TEST(Watchers, SeeOneMomentBetweenTwoCalls) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  desc.max_sequences = 2;
  desc.capacity = 1 << 20;
  desc.cells = rounds + 1;
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  Watcher watcher(cache, [&](kvc_status status, const kvc_stats& stats) {
    ASSERT_EQ(support::name(status), "OK") << support::last_message();
    const uint64_t open = stats.state == KVC_STATE_PASS ? 1 : 0;
    ASSERT_EQ(stats.cells_used, stats.passes + open);
    if (stats.cells_shared != 0) {
      ASSERT_EQ(stats.cells_shared, stats.cells_used) << "half of a copy";
    }
  });
  float data[4] = {1, 2, 3, 4};
  const kvc_tensor row = support::dense(data, KVC_F32, {1, 1, 4});
  const int32_t sequence = 0;
  while (watcher.reads() == 0 && !HasFailure()) std::this_thread::yield();
  for (int32_t position = 0; position < rounds; ++position) {
    ASSERT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_put(cache, 0, &row, &row), KVC_OK);
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
    ASSERT_EQ(kvc_copy_prefix(cache, 0, 1, position + 1, nullptr), KVC_OK);
    ASSERT_EQ(kvc_resume(cache, 1, 0, nullptr), KVC_OK);
  }
}

TEST(Watchers, ReadWhileAnAttentionRuns) {
  constexpr int32_t heads = 16, dim = 64, batch = 128;
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, heads, dim, dim);
  desc.capacity = desc.max_batch = batch;
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  std::vector<float> data(batch * heads * dim, 0.25f), out(data.size());
  const kvc_tensor rows = support::dense(data.data(), KVC_F32, {batch, heads, dim});
  kvc_tensor result = support::dense(out.data(), KVC_F32, {batch, heads, dim});
  std::vector<int32_t> position, sequence(batch, 0);
  for (int32_t i = 0; i < batch; ++i) position.push_back(i);
  ASSERT_EQ(kvc_begin(cache, batch, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_put(cache, 0, &rows, &rows), KVC_OK);
  // A read counts when calls that exclude each other were BUSY before and after it: all the while a thread was inside.
  int32_t inside = 0;
  for (int32_t attempt = 0; attempt < 10000 && inside < 10; ++attempt) {
    std::atomic<bool> done{false};
    std::thread engine([&] {
      kvc_status status = KVC_E_BUSY;
      while (status == KVC_E_BUSY) status = kvc_attention(cache, 0, &rows, &result, nullptr);
      EXPECT_EQ(status, KVC_OK) << support::last_message();
      done = true;
    });
    while (!done) {
      if (kvc_check(cache) != KVC_E_BUSY) continue;
      kvc_stats stats{};
      stats.struct_size = sizeof stats;
      ASSERT_EQ(kvc_cache_stats(cache, &stats), KVC_OK) << support::last_message();
      inside += !done && kvc_check(cache) == KVC_E_BUSY;
      ASSERT_EQ(stats.state, uint32_t{KVC_STATE_PASS});
      ASSERT_EQ(stats.cells_used, uint64_t{batch});
    }
    engine.join();
  }
  EXPECT_GE(inside, 10);
}

// A shift function may read the stats of the cache that it works for: those from before the call that it is part of.
TEST(Watchers, ReadFromWithinAShiftFunction) {
  const support::Device device(1);
  const support::Cache cache(device, support::cache_desc(1, 1, 4, 4));
  struct Seen {
    kvc_cache* cache;
    kvc_status status;
    uint64_t cells_used;
  } seen = {cache, KVC_E_BUSY, 0};
  const kvc_shift_function look = [](void* user, int32_t, int32_t, const int32_t*, const int32_t*,
                                     kvc_tensor*) {
    auto* to = static_cast<Seen*>(user);
    kvc_stats stats{};
    stats.struct_size = sizeof stats;
    to->status = kvc_cache_stats(to->cache, &stats);
    to->cells_used = stats.cells_used;
    return kvc_status{KVC_OK};
  };
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  ASSERT_EQ(kvc_bind_shift(cache, look, &seen), KVC_OK);
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(kvc_remove(cache, 0, 0, 1), KVC_OK) << support::last_message();
  EXPECT_EQ(support::name(seen.status), "OK");
  EXPECT_EQ(seen.cells_used, 3u);
  EXPECT_EQ(support::stats(cache).cells_used, 2u);
}

// Caches come and go, all in the same few slots of the handle table, while threads read the stats of all of them: each read
// returns the numbers of the very cache that the handle names, or HANDLE; destroy is never BUSY and frees at once.
TEST(Watchers, ReadDuringDestroyAndWhileHandlesAreReused) {
  const support::Device device(1);
  struct Life {
    std::atomic<kvc_cache*> cache{nullptr};
  };
  const auto lives = std::make_unique<Life[]>(rounds);
  const auto cells_of = [](int32_t life) { return 16 + life % 97; };
  std::atomic<int32_t> newest{-1};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> alive{0}, dead{0};
  const auto watch = [&](uint64_t seed) {
    support::Random random(seed);
    while (!stop && !testing::Test::HasFailure()) {
      const int32_t last = newest;
      if (last < 0) continue;
      const int32_t life = std::max(0, last - random.below(3));
      kvc_stats stats{};
      stats.struct_size = sizeof stats;
      const kvc_status status = kvc_cache_stats(lives[static_cast<size_t>(life)].cache, &stats);
      if (status == KVC_E_HANDLE) {
        ++dead;
        continue;
      }
      ASSERT_EQ(support::name(status), "OK") << support::last_message();
      ASSERT_EQ(stats.cells, static_cast<uint64_t>(cells_of(life)));
      ASSERT_EQ(stats.cells_used, stats.passes + (stats.state == KVC_STATE_PASS));
      ++alive;
    }
  };
  std::thread first(watch, 1), second(watch, 2);
  for (int32_t life = 0; life < rounds && !HasFailure(); ++life) {
    kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
    desc.cells = cells_of(life);
    kvc_cache* cache = nullptr;
    ASSERT_EQ(kvc_cache_create(device, &desc, nullptr, &cache), KVC_OK) << support::last_message();
    lives[static_cast<size_t>(life)].cache = cache;
    newest = life;
    for (int32_t position = 0; position < life % 8; ++position) {
      const int32_t sequence = 0;
      ASSERT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
      ASSERT_EQ(kvc_commit(cache), KVC_OK);
    }
    const int64_t before = alive;
    while (life % 100 == 0 && alive == before && !HasFailure()) std::this_thread::yield();
    ASSERT_EQ(support::name(kvc_cache_destroy(cache)), "OK");
    kvc_stats stats{};
    stats.struct_size = sizeof stats;
    ASSERT_EQ(support::name(kvc_cache_stats(cache, &stats)), "HANDLE");
  }
  stop = true;
  first.join();
  second.join();
  std::cout << alive << " reads met a living cache, " << dead << " a destroyed one" << std::endl;
}

TEST(Watchers, ArgumentsAreCheckedBehindTheHandle) {
  const support::Device device(1);
  const support::Cache cache(device, support::cache_desc(1, 1, 4, 4));
  kvc_stats stats{};
  EXPECT_EQ(support::name(kvc_cache_stats(nullptr, nullptr)), "HANDLE");
  EXPECT_EQ(support::name(kvc_cache_stats(reinterpret_cast<kvc_cache*>(device.handle), &stats)),
            "HANDLE");
  EXPECT_EQ(support::name(kvc_cache_stats(cache, nullptr)), "INVALID_ARGUMENT");
  EXPECT_EQ(support::name(kvc_cache_stats(cache, &stats)), "INVALID_ARGUMENT");  // struct_size 0
}

}  // namespace
