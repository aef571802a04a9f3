// Several threads at once: on one cache (BUSY or the call's own answer, never a broken state), on several
// caches of one device, on handles that come and go. What it proves it proves under ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <iostream>
#include <set>
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

/// Runs `act(number)` on n threads that begin together.
void together(int32_t n, const std::function<void(int32_t)>& act) {
  std::atomic<int32_t> waiting{n};
  std::vector<std::thread> threads;
  for (int32_t number = 0; number < n; ++number) {
    threads.emplace_back([&, number] {
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      act(number);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

/// Calls of every kind, against whatever state the other threads have left. Each thread has tensors of its own.
class Storm {
 public:
  explicit Storm(kvc_cache* cache) : cache_(cache) {
    k = support::dense(data, KVC_F32, {2, Specimen::kv_heads, Specimen::dk});
    v = support::dense(data, KVC_F32, {2, Specimen::kv_heads, Specimen::dv});
    q = support::dense(data, KVC_F32, {2, Specimen::q_heads, Specimen::dk});
    out = support::dense(out_data, KVC_F32, {2, Specimen::q_heads, Specimen::dv});
  }

  kvc_status call(support::Random& random) {
    const int32_t s[] = {0, 1}, other[] = {1, 0}, keep[] = {1, 0};
    int32_t number = 0;
    kvc_stats stats{};
    stats.struct_size = sizeof stats;
    kvc_run runs[8];
    uint64_t digest[2];
    const int32_t layer = random.below(Specimen::n_layers);
    switch (random.below(16)) {
      case 0: return begin();
      case 1: return kvc_put(cache_, layer, &k, &v);
      case 2: return kvc_put_attention(cache_, layer, &k, &v, &q, &out, nullptr);
      case 3: return kvc_attention(cache_, layer, &q, &out, nullptr);
      case 4: return kvc_commit(cache_);
      case 5: return kvc_commit_prefix(cache_, 2, s, keep);
      case 6: return kvc_abort(cache_);
      case 7: return kvc_remove(cache_, random.below(2), 1, random.pick({2, KVC_SEQ_END}));
      case 8: return kvc_copy_prefix(cache_, 0, 2, random.below(5), &number);
      case 9: return kvc_reorder(cache_, 2, s, other);
      case 10: return kvc_check(cache_);
      case 11: return kvc_cache_stats(cache_, &stats);
      case 12: return kvc_state_digest(cache_, digest);
      case 13: return kvc_runs(cache_, 0, 0, 8, runs, &number);
      case 14: return kvc_can_resume(cache_, 0, 3, &number);
      default: return fits();
    }
  }

 private:
  void read_next(int32_t position[2]) const {
    position[0] = support::sequence_info(cache_, 0).next;
    position[1] = support::sequence_info(cache_, 1).next;
  }
  kvc_status begin() {
    const int32_t sequence[] = {0, 1};
    int32_t position[2];
    read_next(position);
    return kvc_begin(cache_, 2, position, sequence, nullptr, 0, nullptr);
  }
  kvc_status fits() {
    const int32_t sequence[] = {0, 1};
    int32_t position[2];
    read_next(position);
    return kvc_fits(cache_, 2, position, sequence, nullptr);
  }

  kvc_cache* cache_;
  kvc_tensor k{}, v{}, q{}, out{};
  float data[2 * Specimen::q_heads * Specimen::dk] = {1, 2, 3, 4};
  float out_data[2 * Specimen::q_heads * Specimen::dv] = {};
};

TEST(Threads, AStormOnOneCache) {
  const support::Device device(2);
  Specimen specimen(device, KVC_CACHE_ZERO_ON_FREE, true);
  std::atomic<int64_t> busy{0}, ok{0};
  together(4, [&](int32_t number) {
    support::Random random(support::derived_seed(20261121, static_cast<uint64_t>(number)));
    const std::set<kvc_status> legal = {KVC_OK, KVC_E_BUSY, KVC_E_BAD_STATE, KVC_E_CACHE_FULL,
                                        KVC_E_INVALID_ARGUMENT};
    Storm storm(specimen.cache);
    for (int32_t i = 0; i < 10 * rounds; ++i) {
      const kvc_status status = storm.call(random);
      ASSERT_TRUE(legal.count(status)) << support::name(status) << ": " << support::last_message();
      busy += status == KVC_E_BUSY;
      ok += status == KVC_OK;
    }
  });
  std::cout << ok << " calls succeeded, " << busy << " were BUSY" << std::endl;
  EXPECT_GT(ok, 0);
  EXPECT_EQ(kvc_check(specimen.cache), KVC_OK) << support::last_message();
  kvc_abort(specimen.cache);
  EXPECT_EQ(kvc_remove(specimen.cache, 0, 0, KVC_SEQ_END), KVC_OK) << support::last_message();
}

TEST(Threads, ConstCallsOverlap) {
  const support::Device device(1);
  Specimen specimen(device);
  specimen.open(Specimen::n_layers);
  const support::Digest before = support::digest(specimen.cache);
  const int32_t runs_before = static_cast<int32_t>(support::runs(specimen.cache, 0).size());
  together(4, [&](int32_t) {
    const int32_t sequence[] = {0, 1, 1}, position[] = {4, 2, 3};
    for (int32_t i = 0; i < rounds; ++i) {
      int32_t best = 0;
      uint64_t digest[2];
      ASSERT_EQ(kvc_fits(specimen.cache, 3, position, sequence, nullptr), KVC_OK)
          << support::last_message();
      ASSERT_EQ(kvc_can_resume(specimen.cache, 0, 3, &best), KVC_OK);
      ASSERT_EQ(best, 3);
      ASSERT_EQ(kvc_state_digest(specimen.cache, digest), KVC_OK);
      ASSERT_EQ(std::memcmp(digest, before.data(), sizeof digest), 0);
      ASSERT_EQ(support::sequence_info(specimen.cache, 1).next, 2);
      ASSERT_EQ(support::stats(specimen.cache).cells, static_cast<uint64_t>(Specimen::cells));
      ASSERT_EQ(static_cast<int32_t>(support::runs(specimen.cache, 0).size()), runs_before);
      ASSERT_EQ(kvc_check(specimen.cache), KVC_OK) << support::last_message();
    }
  });
}

/// One pass after another on a cache of its own; what attention answered, all of it.
std::vector<float> answers(kvc_device* device) {
  Specimen specimen(device, 0, true);
  std::vector<float> all;
  for (int32_t i = 0; i < rounds / 10; ++i) {
    specimen.open(Specimen::n_layers);
    EXPECT_EQ(support::attention(specimen.cache, i % 2, &specimen.q, &specimen.out, &specimen.lse),
              KVC_OK);
    all.insert(all.end(), std::begin(specimen.out_data), std::end(specimen.out_data));
    EXPECT_EQ(i % 3 == 0 ? kvc_abort(specimen.cache) : kvc_commit(specimen.cache), KVC_OK);
    for (int32_t s = 0; s < 2; ++s)
      EXPECT_EQ(kvc_remove(specimen.cache, s, 0, 1), KVC_OK) << support::last_message();
  }
  EXPECT_EQ(kvc_check(specimen.cache), KVC_OK) << support::last_message();
  return all;
}

TEST(Threads, CachesOfOneDeviceDoNotMeet) {
  const support::Device alone(1), shared(3);
  const std::vector<float> expected = answers(alone);
  together(4, [&](int32_t) {
    const std::vector<float> found = answers(shared);
    ASSERT_EQ(found.size(), expected.size());
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0);
  });
}

// A cache may move between threads, and be destroyed by another than its maker; so may a device.
TEST(Threads, ObjectsMove) {
  for (int32_t i = 0; i < 20; ++i) {
    kvc_device* device = nullptr;
    kvc_device_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_threads = 2;
    std::thread([&] { EXPECT_EQ(kvc_device_open("cpu", &desc, nullptr, &device), KVC_OK); }).join();
    auto specimen = std::make_unique<Specimen>(device);
    std::thread([&] { EXPECT_EQ(kvc_device_close(device), KVC_OK); }).join();
    std::thread([&] { specimen->open(Specimen::n_layers); }).join();
    EXPECT_EQ(kvc_attention(specimen->cache, 0, &specimen->q, &specimen->out, nullptr), KVC_OK);
    std::thread([&] { specimen.reset(); }).join();  // the last user: ends the device's threads
  }
}

// Threads use a handle while another destroys it and its slot of the table is used again and again.
TEST(Threads, HandlesComeAndGo) {
  const support::Device device(1);
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  std::atomic<kvc_cache*> current{nullptr};
  std::atomic<bool> stop{false};
  std::atomic<int64_t> met{0};
  together(4, [&](int32_t number) {
    if (number == 0) {
      for (int32_t i = 0; i < rounds; ++i) {
        kvc_cache* cache = nullptr;
        ASSERT_EQ(kvc_cache_create(device, &desc, nullptr, &cache), KVC_OK)
            << support::last_message();
        current = cache;
        kvc_status status = KVC_E_BUSY;
        while (status == KVC_E_BUSY) status = kvc_cache_destroy(cache);
        ASSERT_EQ(support::name(status), "OK");
        const support::Device in_its_slot(1);  // a handle of another kind
      }
      stop = true;
      return;
    }
    while (!stop) {
      kvc_cache* cache = current;
      const kvc_status status = number == 1 ? kvc_abort(cache) : kvc_check(cache);
      const bool legal = status == KVC_E_HANDLE || status == KVC_E_BUSY ||
                         status == (number == 1 ? KVC_E_BAD_STATE : KVC_OK);
      ASSERT_TRUE(legal) << support::name(status) << ": " << support::last_message();
      met += status != KVC_E_HANDLE;
    }
  });
  std::cout << met << " calls met a living cache" << std::endl;
}

TEST(Threads, EachHasItsOwnMessage) {
  const support::Device device(1);
  Specimen specimen(device);
  together(4, [&](int32_t number) {
    EXPECT_EQ(support::last_message(), "") << "a thread that never failed";
    int32_t best = 0;
    for (int32_t i = 0; i < rounds; ++i) {
      const int32_t sequence = 1000 + number;
      ASSERT_EQ(kvc_can_resume(specimen.cache, sequence, 0, &best), KVC_E_INVALID_ARGUMENT);
      ASSERT_NE(support::last_message().find(std::to_string(sequence)), std::string::npos)
          << support::last_message();
    }
  });
}

}  // namespace
