// Calls at a bad moment: while another thread is inside the cache, when there is no memory.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <thread>

#include "support/abi.hpp"

namespace {

constexpr int32_t heads = 16, dim = 128, batch = 256;
#ifdef KVC_SANITIZED  // every product is checked there: long enough all the same
constexpr int32_t long_context = 256;
#else
constexpr int32_t long_context = 4096;
#endif

/// A cache in which one attention takes long enough for another thread to call into it.
class LongAttention {
 public:
  explicit LongAttention(kvc_device* device, int32_t context = long_context)
      : cache(make(device, context)),
        data_(static_cast<size_t>(batch * heads * dim), 0.25f),
        out_(data_.size()) {
    EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
    for (int32_t start = 0; start < context; start += batch) open(start), kvc_commit(cache);
    open(context);
  }

  kvc_status attend() {
    const kvc_tensor q = support::dense(data_.data(), KVC_F32, {batch, heads, dim});
    kvc_tensor out = support::dense(out_.data(), KVC_F32, {batch, heads, dim});
    return kvc_attention(cache, 0, &q, &out, nullptr);
  }

  support::Cache cache;

 private:
  static support::Cache make(kvc_device* device, int32_t context) {
    kvc_cache_desc desc = support::cache_desc(1, heads, dim, dim);
    desc.max_sequences = 2;
    desc.capacity = context + batch;
    desc.max_batch = batch;
    desc.max_q_heads = heads;
    return support::Cache(device, desc);
  }

  void open(int32_t start) {
    std::vector<int32_t> position, sequence(batch, 0);
    for (int32_t i = 0; i < batch; ++i) position.push_back(start + i);
    ASSERT_EQ(kvc_begin(cache, batch, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
    const kvc_tensor k = support::dense(data_.data(), KVC_F32, {batch, heads, dim});
    ASSERT_EQ(kvc_put(cache, 0, &k, &k), KVC_OK);
  }

  std::vector<float> data_, out_;
};

/// Every call that takes a cache but stats, with arguments that do not matter: BUSY is said before they are read.
std::map<std::string, std::function<kvc_status(kvc_cache*)>> all_calls() {
  static int32_t number[4];
  static kvc_tensor t;
  return {
      {"begin", [](kvc_cache* c) { return kvc_begin(c, 0, number, number, nullptr, 0, nullptr); }},
      {"fits", [](kvc_cache* c) { return kvc_fits(c, 0, number, number, nullptr); }},
      {"put", [](kvc_cache* c) { return kvc_put(c, 0, &t, &t); }},
      {"set_causal", [](kvc_cache* c) { return kvc_set_causal(c, -1, nullptr); }},
      {"commit_prefix", [](kvc_cache* c) { return kvc_commit_prefix(c, -1, nullptr, nullptr); }},
      {"can_resume", [](kvc_cache* c) { return kvc_can_resume(c, 0, -1, number); }},
      {"resume", [](kvc_cache* c) { return kvc_resume(c, 0, -1, number); }},
      {"copy_prefix", [](kvc_cache* c) { return kvc_copy_prefix(c, 0, 0, 0, number); }},
      {"reorder", [](kvc_cache* c) { return kvc_reorder(c, -1, number, number); }},
      {"remove", [](kvc_cache* c) { return kvc_remove(c, 0, -1, 0); }},
      {"can_remove", [](kvc_cache* c) { return kvc_can_remove(c, 0, -1, 0); }},
      {"sequence_query", [](kvc_cache* c) { return kvc_sequence_query(c, -1, nullptr); }},
      {"state_digest", [](kvc_cache* c) { return kvc_state_digest(c, nullptr); }},
      {"check", [](kvc_cache* c) { return kvc_check(c); }},
      {"bind_attention",
       [](kvc_cache* c) { return kvc_bind_attention(c, 0, 1, nullptr, nullptr, nullptr); }},
      {"bind_rope", [](kvc_cache* c) { return kvc_bind_rope(c, 0, 1, nullptr, nullptr); }},
      {"bind_scales", [](kvc_cache* c) { return kvc_bind_scales(c, 0, 1, nullptr, nullptr); }},
      {"get_codes",
       [](kvc_cache* c) { return kvc_get_codes(c, -1, nullptr, nullptr, nullptr, nullptr); }},
      {"get_copy", [](kvc_cache* c) { return kvc_get_copy(c, -1, nullptr, nullptr); }},
      {"put_codes",
       [](kvc_cache* c) { return kvc_put_codes(c, -1, nullptr, nullptr, nullptr, nullptr); }},
      {"bind_shift", [](kvc_cache* c) { return kvc_bind_shift(c, nullptr, nullptr); }},
      {"attention", [](kvc_cache* c) { return kvc_attention(c, 0, nullptr, nullptr, nullptr); }},
      {"attention_extra", [](kvc_cache* c) { return support::attention(c, 0, &t, &t, &t, nullptr); }},
      {"put_attention", [](kvc_cache* c) { return support::put_attention(c, 0, &t, &t, &t, &t, &t); }},
      {"get", [](kvc_cache* c) { return kvc_get(c, -1, nullptr, nullptr); }},
      {"history", [](kvc_cache* c) { return kvc_history(c, 0, nullptr, nullptr); }},
      {"mask", [](kvc_cache* c) { return kvc_mask(c, 0, nullptr); }},
      {"gather", [](kvc_cache* c) { return kvc_gather(c, -1, 0, nullptr, nullptr); }},
      {"runs", [](kvc_cache* c) { return kvc_runs(c, 0, 0, 0, nullptr, nullptr); }},
  };
}

/// The other thread may be inside just now.
kvc_status patiently(const std::function<kvc_status()>& call) {
  kvc_status status = KVC_E_BUSY;
  while (status == KVC_E_BUSY) status = call();
  return status;
}

/// Calls `call` while `busy` runs on another thread, until it has been inside at that time once.
kvc_status meet(const std::function<kvc_status()>& busy, const std::function<kvc_status()>& call) {
  for (int attempt = 0; attempt < 200; ++attempt) {
    std::atomic<bool> started{false}, done{false};
    std::thread other([&] {
      started = true;
      EXPECT_EQ(patiently(busy), KVC_OK) << support::last_message();
      done = true;
    });
    while (!started) std::this_thread::yield();
    kvc_status status = KVC_OK;
    while (!done && status != KVC_E_BUSY) status = call();
    other.join();
    if (status == KVC_E_BUSY) return status;
  }
  return KVC_OK;
}

TEST(Busy, EveryCallDuringALongAttention) {
  const support::Device device(1);
  LongAttention cache(device);
  const support::Digest before = support::digest(cache.cache);
  int32_t met = 0;
  for (const auto& [name, call] : all_calls()) {
    const kvc_status status = meet([&] { return cache.attend(); },
                                   [&, c = &call] { return (*c)(cache.cache); });
    EXPECT_EQ(support::name(status), "BUSY") << name;
    met += status == KVC_E_BUSY;
  }
  EXPECT_EQ(met, 29);
  EXPECT_EQ(support::digest(cache.cache), before);
  EXPECT_EQ(kvc_check(cache.cache), KVC_OK) << support::last_message();
}

TEST(Busy, DestroyDuringAnAttention) {
  const support::Device device(2);
  kvc_status status = KVC_OK;
  // A destroy that comes too late succeeds, and another cache has to try.
  for (int attempt = 0; attempt < 20 && status != KVC_E_BUSY; ++attempt) {
    LongAttention cache(device);
    std::atomic<bool> done{false};
    std::thread other([&] {
      EXPECT_EQ(patiently([&] { return cache.attend(); }), KVC_OK);
      done = true;
    });
    while (!done && kvc_check(cache.cache) != KVC_E_BUSY) std::this_thread::yield();
    status = kvc_cache_destroy(cache.cache);
    other.join();
    if (status == KVC_E_BUSY) {
      EXPECT_EQ(kvc_check(cache.cache), KVC_OK) << "the destroy was refused";
    }
  }
  EXPECT_EQ(support::name(status), "BUSY");
}

TEST(Busy, ReadersOverlapAndKeepWritersOut) {
  const support::Device device(1);
  LongAttention cache(device);
  const auto read = [&] {
    uint64_t digest[2];
    return kvc_state_digest(cache.cache, digest);
  };
  EXPECT_EQ(support::name(meet(read, [&] { return kvc_mask(cache.cache, 0, nullptr); })), "BUSY");
  // Const calls never exclude each other.
  const auto watch = [&] {
    kvc_sequence_info info{};
    info.struct_size = sizeof info;
    int32_t best = 0;
    for (int i = 0; i < 2000; ++i) {
      ASSERT_EQ(kvc_sequence_query(cache.cache, 0, &info), KVC_OK);
      ASSERT_EQ(kvc_can_resume(cache.cache, 0, 7, &best), KVC_OK);
      ASSERT_EQ(best, 7);
      ASSERT_EQ(kvc_check(cache.cache), KVC_OK);
    }
  };
  std::thread first(watch), second(watch), third(watch);
  first.join();
  second.join();
  third.join();
}

// ---- No memory ---------------------------------------------------------------------------------

/// An allocator that fails once, at the n-th call, and remembers what it gave.
class Ledger {
 public:
  explicit Ledger(int32_t failing) : failing_(failing) { hooks_ = {this, allocate, release}; }
  ~Ledger() { EXPECT_TRUE(blocks_.empty()) << blocks_.size() << " blocks were not given back"; }

  const kvc_allocator* hooks() const { return &hooks_; }
  int32_t calls() const { return calls_; }
  size_t bytes() const { return bytes_; }
  bool failed() const { return failed_; }

 private:
  struct Block {
    size_t bytes, alignment;
  };

  static void* allocate(void* user, size_t bytes, size_t alignment) {
    auto& self = *static_cast<Ledger*>(user);
    EXPECT_GT(bytes, 0u);
    EXPECT_EQ(alignment & (alignment - 1), 0u);
    self.failed_ = self.failed_ || self.calls_ == self.failing_;
    if (self.calls_++ == self.failing_) return nullptr;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* block = std::aligned_alloc(std::max(alignment, sizeof(void*)), rounded);
    std::memset(block, 0xA5, rounded);  // a block need not be zero: kvc has to see to that
    self.blocks_[block] = {bytes, alignment};
    self.bytes_ += bytes;
    return block;
  }

  static void release(void* user, void* block, size_t bytes, size_t alignment) {
    auto& self = *static_cast<Ledger*>(user);
    const auto found = self.blocks_.find(block);
    ASSERT_NE(found, self.blocks_.end()) << "a block that was never given";
    EXPECT_EQ(found->second.bytes, bytes);
    EXPECT_EQ(found->second.alignment, alignment);
    self.blocks_.erase(found);
    self.bytes_ -= bytes;
    std::free(block);
  }

  int32_t failing_;
  int32_t calls_ = 0;
  size_t bytes_ = 0;
  bool failed_ = false;
  kvc_allocator hooks_{};
  std::map<void*, Block> blocks_;
};

/// Opens, creates and uses. True when it succeeded.
bool live_once(const Ledger& ledger) {
  kvc_device_desc settings{};
  settings.struct_size = sizeof settings;
  settings.n_threads = 2;
  kvc_device* device = reinterpret_cast<kvc_device*>(&settings);
  kvc_status status = kvc_device_open("cpu", &settings, ledger.hooks(), &device);
  if (status != KVC_OK) {
    EXPECT_EQ(support::name(status), "OUT_OF_MEMORY") << support::last_message();
    EXPECT_EQ(device, nullptr);
    return false;
  }
  kvc_cache_desc desc = support::cache_desc(3, 2, 8, 8);
  desc.max_sequences = 4;
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 8;
  uint64_t announced = 0;
  EXPECT_EQ(kvc_cache_memory_bytes(device, &desc, &causal, &announced), KVC_OK);
  const size_t before = ledger.bytes();
  kvc_cache* cache = reinterpret_cast<kvc_cache*>(&settings);
  status = kvc_cache_create(device, &desc, &causal, &cache);
  EXPECT_EQ(kvc_device_close(device), KVC_OK);
  if (status != KVC_OK) {
    EXPECT_EQ(support::name(status), "OUT_OF_MEMORY") << support::last_message();
    EXPECT_FALSE(support::last_message().empty());
    EXPECT_EQ(cache, nullptr);
    return false;
  }
  EXPECT_EQ(ledger.bytes() - before, announced);
  EXPECT_EQ(support::stats(cache).bytes, announced);
  const int32_t calls = ledger.calls();
  const int32_t position[] = {0, 1}, sequence[] = {1, 1};
  EXPECT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK);
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  EXPECT_EQ(ledger.calls(), calls) << "memory was asked for after create";
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  return true;
}

TEST(NoMemory, AtEveryAllocation) {
  int32_t points = 0;
  for (int32_t n = 0;; ++n) {
    const Ledger ledger(n);
    const bool lived = live_once(ledger);
    ASSERT_EQ(lived, !ledger.failed()) << "allocation " << n << " failed and nobody noticed";
    if (lived) break;
    ++points;
  }
  std::cout << points << " allocations failed one after another" << std::endl;
  EXPECT_GE(points, 1);
}

TEST(NoMemory, BlocksAreMadeZero) {
  const Ledger ledger(-1);
  const support::Device device(1, ledger.hooks());
  const support::Cache cache(device, support::cache_desc(1, 1, 4, 4));
  const int32_t position = 0, sequence = 0;
  ASSERT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  kvc_tensor k{}, v{};
  ASSERT_EQ(kvc_get(cache, 0, &k, &v), KVC_OK) << support::last_message();
  ASSERT_GE(k.shape[0], 64);
  for (int64_t cell = 0; cell < k.shape[0]; ++cell)
    for (int64_t d = 0; d < 4; ++d) {
      ASSERT_EQ(static_cast<const float*>(k.data)[cell * k.strides[0] + d], 0);
      ASSERT_EQ(static_cast<const float*>(v.data)[cell * v.strides[0] + d], 0);
    }
}

}  // namespace
