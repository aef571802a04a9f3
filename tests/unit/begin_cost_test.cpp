// What a pass opens beside its own sequences: those of which something slides, whatever was copied or aborted before.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "core/caches/causal.hpp"
#include "kernels/cpu/cpu_device.hpp"

namespace {

using kvc::Status;

constexpr int32_t n_sequences = 100, prompt = 4;

std::shared_ptr<kvc::Cache> make_cache() {
  std::shared_ptr<kvc::Device> device;
  EXPECT_EQ(kvc::cpu::CpuDevice::create({.n_threads = 1}, &device), Status::ok);
  kvc::CacheBounds bounds;
  bounds.n_layers = bounds.n_kv_heads = bounds.head_dim_k = bounds.head_dim_v = 1;
  bounds.max_sequences = n_sequences;
  bounds.capacity = 1000;
  bounds.max_batch = 32;
  kvc::CausalRequest wanted;
  wanted.reach = 8;
  kvc::CausalSettings settings;
  EXPECT_EQ(kvc::CausalCache::resolve(bounds, wanted, &settings), Status::ok);
  std::shared_ptr<kvc::Cache> cache;
  EXPECT_EQ(kvc::CausalCache::create(device, bounds, settings, &cache), Status::ok);
  return cache;
}

void begin(kvc::Cache& cache, int32_t sequence, int32_t first, int32_t n) {
  std::vector<int32_t> position, owner(static_cast<size_t>(n), sequence);
  for (int32_t i = 0; i < n; ++i) position.push_back(first + i);
  const kvc::Batch batch = {n, position.data(), owner.data(), nullptr};
  ASSERT_EQ(cache.begin(batch, false), Status::ok) << kvc::last_message();
}

TEST(BeginCost, OpensOnlyWhatSlides) {
  const std::shared_ptr<kvc::Cache> made = make_cache();
  auto& cache = static_cast<kvc::CausalCache&>(*made);
  begin(cache, 0, 0, prompt);
  ASSERT_EQ(cache.commit(), Status::ok);
  for (int32_t s = 1; s < n_sequences; ++s)
    ASSERT_EQ(cache.copy_prefix(0, s, prompt, nullptr), Status::ok);
  for (int32_t again = 0; again < 3; ++again) {
    begin(cache, 0, prompt, 1);
    EXPECT_EQ(cache.book().n_touched(), 1) << "after " << again << " aborts";
    ASSERT_EQ(cache.abort(), Status::ok);
  }
}

TEST(BeginCost, AbortRemembersWhatSlid) {
  const std::shared_ptr<kvc::Cache> made = make_cache();
  auto& cache = static_cast<kvc::CausalCache&>(*made);
  begin(cache, 0, 0, 32);
  ASSERT_EQ(cache.commit(), Status::ok);
  for (int32_t again = 0; again < 3; ++again) {
    begin(cache, 1, 0, 1);
    EXPECT_EQ(cache.book().n_touched(), 2);  // of sequence 0 all but the window slides
    ASSERT_EQ(cache.abort(), Status::ok);
    ASSERT_EQ(cache.check(), Status::ok) << kvc::last_message();
  }
  begin(cache, 1, 0, 1);
  ASSERT_EQ(cache.commit(), Status::ok);
  begin(cache, 1, 1, 1);
  EXPECT_EQ(cache.book().n_touched(), 1);
  ASSERT_EQ(cache.commit(), Status::ok);
  EXPECT_EQ(cache.check(), Status::ok) << kvc::last_message();
}

}  // namespace
