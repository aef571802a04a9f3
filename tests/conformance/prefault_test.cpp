// KVC_CACHE_PREFAULT: all memory is there when the cache is created, and without it hardly any is.
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <vector>

#include "support/abi.hpp"

namespace {

constexpr int32_t kv_heads = 8, head_dim = 128, capacity = 8192;  // 64 MiB of keys and values
constexpr int32_t batch = 512;

/// Memory of this process that is in RAM; 0 where nobody says.
uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return statm ? resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

kvc_cache_desc describe(uint64_t flags) {
  kvc_cache_desc desc = support::cache_desc(1, kv_heads, head_dim, head_dim);
  desc.capacity = capacity;
  desc.max_batch = batch;
  desc.flags = flags;
  return desc;
}

void fill(kvc_cache* cache, std::vector<float>& rows) {
  const kvc_tensor tensor = support::dense(rows.data(), KVC_F32, {batch, kv_heads, head_dim});
  std::vector<int32_t> position(batch), sequence(batch, 0);
  for (int32_t start = 0; start < capacity; start += batch) {
    for (int32_t i = 0; i < batch; ++i) position[static_cast<size_t>(i)] = start + i;
    ASSERT_EQ(kvc_begin(cache, batch, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_put(cache, 0, &tensor, &tensor), KVC_OK);
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
  }
}

/// How much the process grows by creating a cache, and then by filling it.
struct Growth {
  uint64_t created, filled, bytes;
};

Growth measure(uint64_t flags) {
  const support::Device device(1);
  const kvc_cache_desc desc = describe(flags);
  std::vector<float> rows(static_cast<size_t>(batch * kv_heads * head_dim), 1.0f);
  Growth growth = {};
  EXPECT_EQ(kvc_cache_memory_bytes(device, &desc, nullptr, &growth.bytes), KVC_OK);
  const uint64_t before = resident_bytes();
  const support::Cache cache(device, desc);
  EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
  const uint64_t created = resident_bytes();
  fill(cache, rows);
  const uint64_t filled = resident_bytes();
  growth.created = created > before ? created - before : 0;
  growth.filled = filled > created ? filled - created : 0;
  return growth;
}

TEST(Prefault, BringsAllMemoryInAtCreate) {
  if (resident_bytes() == 0) GTEST_SKIP() << "/proc/self/statm is not there";
  const Growth lazy = measure(0), eager = measure(KVC_CACHE_PREFAULT);
  const uint64_t values = uint64_t{2} * capacity * kv_heads * head_dim * sizeof(float);
  EXPECT_GE(eager.created, eager.bytes / 100 * 95);
  EXPECT_LE(eager.filled, eager.bytes / 100 * 5);
  // A few huge pages come with the bookkeeping.
  EXPECT_LE(lazy.created, values / 2);
  EXPECT_GE(lazy.filled, values / 2);
  std::cout << "of " << (eager.bytes >> 20) << " MiB there after create: " << (lazy.created >> 20)
            << " MiB, with the flag " << (eager.created >> 20) << std::endl;
}

}  // namespace
