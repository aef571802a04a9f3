// Calls on caches whose bookkeeping was damaged behind their back: what an assertion notices is INTERNAL and poisons the
// cache, and nothing falls over.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/caches/causal.hpp"
#include "support/functions.hpp"
#include "unit/watched_device.hpp"

namespace {

using kvc::Status;

constexpr int32_t n_cells = 96, max_batch = 16, n_sequences = 3, start = 7001;

/// A cache behind the C ABI, and the memory that it keeps its bookkeeping in. Sequence 0 has slid, 1 is a copy of it, a pass
/// of both is open.
class Victim {
 public:
  Victim() {
    kvc::CacheBounds bounds;
    bounds.n_layers = bounds.n_kv_heads = 1;
    bounds.head_dim_k = bounds.head_dim_v = 2;
    bounds.max_sequences = n_sequences;
    bounds.capacity = 1024;
    bounds.max_batch = max_batch;
    bounds.cells = n_cells;
    kvc::CausalRequest wanted;
    wanted.reach = 16;
    wanted.memory = 20;
    wanted.position_free = true;
    kvc::CausalSettings settings;
    EXPECT_EQ(kvc::CausalCache::resolve(bounds, wanted, &settings), Status::ok);
    auto object = std::make_unique<kvc::capi::CacheObject>();
    EXPECT_EQ(kvc::CausalCache::create(device_, bounds, settings, &object->cache), Status::ok);
    const kvc::CacheStats stats = object->cache->stats();
    cache = static_cast<kvc_cache*>(
        kvc::capi::handles::add(kvc::capi::Kind::cache, object.release(), stats));
    for (int32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(begin(0, start + i * max_batch, max_batch), KVC_OK);
      EXPECT_EQ(put_and(kvc_commit), KVC_OK);
    }
    EXPECT_EQ(kvc_copy_prefix(cache, 0, 1, KVC_SEQ_END, nullptr), KVC_OK);
    EXPECT_EQ(begin(1, start + 4 * max_batch, 8), KVC_OK);
    EXPECT_EQ(put_and([](kvc_cache*) { return KVC_OK; }), KVC_OK);
    EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  }
  Victim(const Victim&) = delete;
  Victim& operator=(const Victim&) = delete;
  ~Victim() { EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK); }

  kvc_status begin(int32_t sequence, int32_t first, int32_t n) {
    std::vector<int32_t> position, sequences(static_cast<size_t>(n), sequence);
    for (int32_t i = 0; i < n; ++i) position.push_back(first + i);
    n_tokens_ = n;
    return kvc_begin(cache, n, position.data(), sequences.data(), nullptr, 0, nullptr);
  }

  kvc_status put_and(const std::function<kvc_status(kvc_cache*)>& call) {
    float rows[max_batch * 2] = {};
    const kvc_tensor tensor = support::dense(rows, KVC_F32, {n_tokens_, 1, 2});
    const kvc_status status = kvc_put(cache, 0, &tensor, &tensor);
    return status == KVC_OK ? call(cache) : status;
  }

  size_t words() const { return device_->bytes() / sizeof(int32_t); }
  int32_t& word(size_t index) {
    return *std::launder(reinterpret_cast<int32_t*>(device_->block()) + index);
  }

  /// The word that holds a sequence's lost_below.
  int32_t& lost_below(int32_t sequence) {
    const int32_t value = support::sequence_info(cache, sequence).lost_below;
    for (size_t i = 0; i < words(); ++i) {
      if (word(i) != value) continue;
      word(i) = value + 1;
      const bool found = support::sequence_info(cache, sequence).lost_below == value + 1;
      word(i) = value;
      if (found) return word(i);
    }
    ADD_FAILURE() << "no word is the lost_below of sequence " << sequence;
    return word(0);
  }

  kvc_cache* cache = nullptr;

 private:
  std::shared_ptr<WatchedDevice> device_ = std::make_shared<WatchedDevice>();
  int32_t n_tokens_ = 0;
};

/// Every call on a poisoned cache returns what poisoned it.
void expect_poisoned(kvc_cache* cache) {
  static const support::Device device(1);
  static support::Specimen specimen(device);
  for (const support::Function& function : support::functions(specimen)) {
    if (std::string(function.name) == "cache_stats") continue;  // may say so in its own way
    EXPECT_EQ(support::name(function.call(cache)), "INTERNAL") << function.name;
  }
}

TEST(Internal, BeginFindsAWindowLost) {
  Victim victim;
  ASSERT_EQ(kvc_commit(victim.cache), KVC_OK);
  const int32_t next = support::sequence_info(victim.cache, 0).next;
  victim.lost_below(0) = next - 3;
  EXPECT_EQ(victim.begin(0, next, 1), KVC_E_INTERNAL);
  EXPECT_NE(support::last_message().find("cannot continue"), std::string::npos)
      << support::last_message();
  expect_poisoned(victim.cache);
}

/// What calls answered on caches that were damaged in one bit.
struct Outcome {
  int32_t damages = 0, noticed = 0;
  std::set<std::string> invariants;
};

/// Calls that follow each other on a damaged cache. None of them may crash; once one returns INTERNAL, all do.
void live_on(Victim& victim, Outcome& outcome, const std::function<kvc_status(kvc_cache*)>& end) {
  kvc_cache* cache = victim.cache;
  const auto next = [&](int32_t sequence) { return support::sequence_info(cache, sequence).next; };
  int32_t got = 0;
  const std::vector<std::function<kvc_status()>> calls = {
      [&] { return end(cache); },
      [&] { return kvc_remove(cache, 0, start + 50, start + 53); },
      [&] { return victim.begin(0, next(0), max_batch); },
      [&] { return victim.put_and(kvc_abort); },
      [&] { return kvc_copy_prefix(cache, 0, 2, KVC_SEQ_END, &got); },
      [&] { return kvc_remove(cache, 1, start + 60, KVC_SEQ_END); },
      [&] { return victim.begin(2, next(2), max_batch); },
      [&] { return victim.put_and(kvc_commit); },
      [&] { return kvc_remove(cache, 0, 0, KVC_SEQ_END); },
      [&] { return kvc_remove(cache, 1, 0, KVC_SEQ_END); },
      [&] { return kvc_remove(cache, 2, 0, KVC_SEQ_END); },
  };
  const std::set<kvc_status> legal = {KVC_OK, KVC_E_INVALID_ARGUMENT, KVC_E_BAD_STATE,
                                      KVC_E_CACHE_FULL, KVC_E_WINDOW_LOST};
  for (size_t i = 0; i < calls.size(); ++i) {
    const kvc_status status = calls[i]();
    if (status == KVC_E_INTERNAL) {
      ++outcome.noticed;
      outcome.invariants.insert(support::last_message());
      return expect_poisoned(cache);
    }
    ASSERT_TRUE(legal.contains(status)) << "call " << i << ": " << support::last_message();
  }
}

/// Counts of owners and positions, one bit of each word: damage that leaves every number of a cell inside the pool.
void damage_counts(const std::function<kvc_status(kvc_cache*)>& end, Outcome& outcome) {
  const std::set<std::string> kinds = {"a cell has fewer owners than hidden ones",
                                       "the number of shared cells",
                                       "the number of cells that are free at commit",
                                       "owner counts differ from what the sequences hold",
                                       "hidden counts differ from what the sequences hide",
                                       "sequence 0: positions do not ascend",
                                       "sequence 1: positions do not ascend",
                                       "sequence 1: holds a position at or behind its next"};
  constexpr size_t first_array = 256;  // in words: the layer and the sequences, objects with pointers
  const size_t n_words = Victim().words();
  for (const int32_t flip : {1, 3, 64}) {
    std::vector<size_t> harmful;
    {
      Victim victim;
      for (size_t i = first_array; i < n_words; ++i) {
        victim.word(i) ^= flip;
        if (kvc_check(victim.cache) == KVC_E_INTERNAL && kinds.contains(support::last_message()))
          harmful.push_back(i);
        victim.word(i) ^= flip;
      }
    }
    for (const size_t i : harmful) {
      Victim victim;
      victim.word(i) ^= flip;
      ++outcome.damages;
      live_on(victim, outcome, end);
      if (::testing::Test::HasFailure()) {
        std::cout << "word " << i << " flipped by " << flip << std::endl;
        return;
      }
    }
  }
}

TEST(Internal, DamagedCountsPoisonOrDoNoHarm) {
  Outcome outcome;
  damage_counts(kvc_commit, outcome);
  damage_counts(kvc_abort, outcome);
  std::cout << outcome.damages << " damages, " << outcome.noticed << " noticed:" << std::endl;
  for (const std::string& invariant : outcome.invariants)
    std::cout << "  " << invariant << std::endl;
  EXPECT_GE(outcome.damages, 300);
  EXPECT_GE(outcome.noticed, 100);
}

}  // namespace
