// A device that fails at its n-th call, for every n: that call returns DEVICE, the cache is
// poisoned from then on, and destroying it gives its memory back. The C ABI on a device of our own.
#include <gtest/gtest.h>

#include <functional>
#include <iostream>
#include <memory>

#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/caches/causal.hpp"
#include "support/functions.hpp"
#include "tests/fake/over_cpu.hpp"

namespace {

using kvc::Status;

/// The CPU until its n-th call.
class FailingDevice final : public fake::DeviceOverCpu {
 public:
  FailingDevice(int32_t failing, int64_t* blocks) : failing_(failing), blocks_(blocks) {}
  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    ++*blocks_;
    return DeviceOverCpu::allocate(place, bytes, prefault);
  }
  void release(kvc::Place place, void* block, size_t bytes) noexcept override {
    --*blocks_;
    DeviceOverCpu::release(place, block, bytes);
  }
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    const auto around = [this](auto call) {
      if (calls_++ != failing_) return call();
      return kvc::fail(Status::device, "the device fell off the bus");
    };
    return attach_around(bounds, workspace, around, out);
  }

 private:
  int32_t failing_, calls_ = 0;
  int64_t* blocks_;
};

constexpr int32_t batch = 300;  // more than the cells that are cleared at a time

kvc_cache* create(int32_t failing, int64_t* blocks) {
  kvc::CacheBounds bounds;
  bounds.n_layers = bounds.n_kv_heads = bounds.max_sequences = 2;
  bounds.head_dim_k = bounds.head_dim_v = 4;
  bounds.capacity = 2 * batch;
  bounds.max_batch = batch;
  bounds.zero_on_free = true;
  kvc::CausalSettings settings;
  EXPECT_EQ(kvc::CausalCache::resolve(bounds, {}, &settings), Status::ok);
  auto object = std::make_unique<kvc::capi::CacheObject>();
  const Status made = kvc::CausalCache::create(std::make_shared<FailingDevice>(failing, blocks),
                                               bounds, settings, &object->cache);
  EXPECT_EQ(made, Status::ok);
  const kvc::CacheStats stats = object->cache->stats();
  return static_cast<kvc_cache*>(
      kvc::capi::handles::add(kvc::capi::Kind::cache, object.release(), stats));
}

/// Everything that reaches the device. The status of the first call that is not OK.
kvc_status live(kvc_cache* cache) {
  std::vector<float> data(batch * 2 * 4, 0.5f), out(data.size());
  const kvc_tensor rows = support::dense(data.data(), KVC_F32, {batch, 2, 4});
  kvc_tensor result = support::dense(out.data(), KVC_F32, {batch, 2, 4});
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  std::vector<int32_t> position, sequence(batch, 0);
  for (int32_t i = 0; i < batch; ++i) position.push_back(i);
  const auto begin = [&] {
    return kvc_begin(cache, batch, position.data(), sequence.data(), nullptr, 0, nullptr);
  };
  const auto get = [&] {
    kvc_tensor k{}, v{};
    return kvc_get(cache, 0, &k, &v);
  };
  const auto gather = [&] {
    kvc_tensor k = support::dense(out.data(), KVC_F32, {batch - 1, 2, 4});
    return kvc_gather(cache, 0, 0, &k, nullptr);
  };
  int32_t got = 0;
  const std::vector<std::function<kvc_status()>> calls = {
      [&] { return kvc_bind_rope(cache, 0, 2, &rope, nullptr); },
      begin,
      [&] { return kvc_put(cache, 0, &rows, &rows); },
      [&] { return kvc_attention(cache, 0, &rows, &result, nullptr); },
      [&] { return kvc_commit(cache); },  // layer 1 becomes zeros
      [&] { return kvc_remove(cache, 0, 0, 1); },
      gather,
      [&] { return kvc_copy_prefix(cache, 0, 1, batch, &got); },
      [&] {
        for (int32_t& p : position) p += batch - 1;
        return begin();
      },
      [&] { return kvc_put_attention(cache, 0, &rows, &rows, &rows, &result, nullptr); },
      get,  // pays what shared keys owe
      [&] { return kvc_abort(cache); },
      [&] { return kvc_remove(cache, 1, 0, KVC_SEQ_END); },
      [&] { return kvc_remove(cache, 0, 0, KVC_SEQ_END); },  // more cells than are cleared at a time
  };
  for (const auto& call : calls)
    if (const kvc_status status = call()) return status;
  return KVC_OK;
}

/// Every call returns the status that poisoned the cache; kvc_cache_stats returns OK and reports the poisoned state.
void expect_poisoned(kvc_cache* cache, support::Specimen& specimen, const char* status,
                     const std::string& when) {
  for (const support::Function& function : support::functions(specimen)) {
    const bool works = std::string(function.name) == "cache_stats";
    EXPECT_EQ(support::name(function.call(cache)), works ? "OK" : status)
        << function.name << " after " << when;
  }
  const kvc_stats stats = support::stats(cache);
  EXPECT_EQ(stats.state, uint32_t{KVC_STATE_POISONED}) << "after " << when;
  EXPECT_EQ(stats.cells, uint64_t{4 * batch});
  EXPECT_GT(stats.bytes, 0u);
}

TEST(FailingDevice, PoisonsTheCacheAtEveryCall) {
  int32_t n = 0;
  for (bool met = true; met; ++n) {
    int64_t blocks = 0;
    kvc_cache* cache = create(n, &blocks);
    ASSERT_NE(cache, nullptr);
    const kvc_status status = live(cache);
    met = status != KVC_OK;
    if (met) {
      EXPECT_EQ(support::name(status), "DEVICE") << n << ": " << support::last_message();
      EXPECT_FALSE(support::last_message().empty());
      const support::Device device(1);
      support::Specimen specimen(device);
      expect_poisoned(cache, specimen, "DEVICE", "call " + std::to_string(n));
    } else {
      EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    }
    EXPECT_EQ(blocks, 2);
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
    EXPECT_EQ(blocks, 0);
    EXPECT_EQ(kvc_check(cache), KVC_E_HANDLE);
  }
  std::cout << n - 1 << " calls of the device failed one after another" << std::endl;
  EXPECT_GE(n, 15);
}

// A const call can poison, too, and calls beside it need not have ended for a watcher to know.
TEST(FailingDevice, AConstCallThatFailsShowsInStatsAtOnce) {
  int32_t n_poisoned = 0;
  for (int32_t n = 0; n < 10; ++n) {
    int64_t blocks = 0;
    kvc_cache* cache = create(n, &blocks);
    ASSERT_NE(cache, nullptr);
    float data[2 * 2 * 4] = {1, 2, 3};
    const kvc_tensor rows = support::dense(data, KVC_F32, {2, 2, 4});
    const int32_t position[] = {0, 1}, sequence[] = {0, 0};
    uint64_t digest[2];
    const bool lives = kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr) == KVC_OK &&
                       kvc_put(cache, 0, &rows, &rows) == KVC_OK &&
                       kvc_put(cache, 1, &rows, &rows) == KVC_OK && kvc_commit(cache) == KVC_OK;
    if (lives && kvc_state_digest(cache, digest) != KVC_OK) {
      const kvc_stats stats = support::stats(cache);
      EXPECT_EQ(stats.state, uint32_t{KVC_STATE_POISONED});
      EXPECT_EQ(stats.cells_used, 2u);
      EXPECT_EQ(stats.passes, 1u);
      ++n_poisoned;
    }
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_GE(n_poisoned, 1);
}

// A shift function must not throw; if one does, nobody knows what was left undone.
TEST(Exception, PoisonsTheCache) {
  int64_t blocks = 0;
  kvc_cache* cache = create(INT32_MAX, &blocks);
  ASSERT_NE(cache, nullptr);
  const kvc_shift_function throws = [](void*, int32_t, int32_t, const int32_t*, const int32_t*,
                                       kvc_tensor*) -> kvc_status { throw 1; };
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  ASSERT_EQ(kvc_bind_shift(cache, throws, nullptr), KVC_OK);
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  EXPECT_EQ(support::name(kvc_remove(cache, 0, 0, 1)), "INTERNAL");
  EXPECT_FALSE(support::last_message().empty());
  const support::Device device(1);
  support::Specimen specimen(device);
  expect_poisoned(cache, specimen, "INTERNAL", "an exception");
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  EXPECT_EQ(blocks, 0);
}

}  // namespace
