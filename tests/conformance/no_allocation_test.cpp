// Of the interposer, which lets fuzz_operations say that nothing is allocated, mapped or started between create and
// destroy: it sees every way to memory and threads and wraps every function; else that zero would say nothing. A shift
// function, which random operations bind too, is counted here call by call, and so is a step through kvc.hpp.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <kvc/kvc.hpp>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/interposer/interposer.hpp"

namespace {

using interposer::Counts;

/// What is counted while `act` runs.
template <class Act>
Counts counted(const Act& act) {
  const Counts before = interposer::taken();
  {
    const interposer::Watch watch;
    act();
  }
  const Counts after = interposer::taken();
  return {after.allocations - before.allocations, after.mappings - before.mappings,
          after.threads - before.threads};
}

TEST(NoAllocation, EveryWayToMemoryIsSeen) {
  void* volatile block = nullptr;
  EXPECT_GE(counted([&] { block = std::malloc(100); }).allocations, 1u);
  std::free(block);
  EXPECT_GE(counted([&] { block = std::calloc(10, 10); }).allocations, 1u);
  EXPECT_GE(counted([&] { block = std::realloc(block, 1000); }).allocations, 1u);
  std::free(block);
  EXPECT_GE(counted([&] { block = std::aligned_alloc(64, 128); }).allocations, 1u);
  std::free(block);
  EXPECT_GE(counted([&] { block = ::operator new(100); }).allocations, 1u);
  ::operator delete(block);
  const std::align_val_t wide{64};
  EXPECT_GE(counted([&] { block = ::operator new(128, wide); }).allocations, 1u);
  ::operator delete(block, wide);
}

#ifndef KVC_SANITIZED
TEST(NoAllocation, EveryWayToMappingsIsSeen) {
  void* block = nullptr;
  const int kind = MAP_PRIVATE | MAP_ANONYMOUS;
  EXPECT_EQ(counted([&] { block = mmap(nullptr, 4096, PROT_READ, kind, -1, 0); }).mappings, 1u);
  EXPECT_EQ(counted([&] { block = mremap(block, 4096, 8192, MREMAP_MAYMOVE); }).mappings, 1u);
  ASSERT_NE(block, MAP_FAILED);
  munmap(block, 8192);
  const support::Device device(1);
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  EXPECT_GE(counted([&] { const support::Cache cache(device, desc); }).mappings, 1u);
}

TEST(NoAllocation, ClonesAreSeen) {
  std::vector<char> stack(1 << 16);
  pid_t child = -1;
  const auto idle = [](void*) { return 0; };
  EXPECT_EQ(counted([&] { child = clone(idle, &stack.back() - 15, SIGCHLD, nullptr); }).threads, 1u);
  ASSERT_GT(child, 0);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}
#endif

TEST(NoAllocation, EveryThreadIsSeen) {
  EXPECT_EQ(counted([] { std::thread([] {}).join(); }).threads, 1u);
  EXPECT_EQ(counted([] { const support::Device three(3); }).threads, 2u);
}

// A function that was forgotten would not be watched.
TEST(NoAllocation, EveryFunctionOfACacheIsWrapped) {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "../abi/layout.txt";
  std::ifstream golden(path);
  ASSERT_TRUE(golden.is_open()) << path;
  Dl_info own{}, found{};
  ASSERT_NE(dladdr(reinterpret_cast<void*>(&interposer::taken), &own), 0);
  int32_t wrapped = 0;
  for (std::string word, name; golden >> word;) {
    if (word != "function" || !(golden >> name)) continue;
    std::string arguments;
    std::getline(golden, arguments);
    if (arguments.find("kvc_cache *cache") == std::string::npos || name == "kvc_cache_destroy")
      continue;
    ASSERT_NE(dladdr(dlsym(RTLD_DEFAULT, name.c_str()), &found), 0) << name;
    EXPECT_EQ(found.dli_fbase, own.dli_fbase) << name << " is not wrapped";
    ++wrapped;
  }
  EXPECT_GE(wrapped, 20);
}

/// Leaves keys where they are.
kvc_status leave(void*, int32_t, int32_t, const int32_t*, const int32_t*, kvc_tensor*) {
  return KVC_OK;
}

TEST(NoAllocation, StepsThroughTheCppHeader) {
  const kvc::Device device("cpu");
  kvc::CacheDesc desc;
  desc.n_layers = 2, desc.n_kv_heads = 2, desc.head_dim_k = 8;
  desc.max_sequences = 2, desc.capacity = 16, desc.max_batch = 4;
  kvc::Cache cache(device, desc, kvc::TransformerDesc());
  const std::vector<float> x(2 * 2 * 8, 0.5f);
  std::vector<float> out(x.size()), lse(2 * 2);
  kvc::Rows rows;  // one token each
  rows.valid = {1, 0}, rows.token_types = {0, 0};
  const Counts counts = counted([&] {
    for (int32_t step = 0; step < 3; ++step) {
      rows.valid[1] = step % 2;
      kvc::Pass pass(cache, rows);
      kvc::AttentionExtra extra;
      extra.lse = kvc::Tensor(lse, {2, 1, 2});
      for (int32_t layer = 0; layer < 2; ++layer)
        cache.put_attention(layer, {x, {2, 1, 2, 8}}, {x, {2, 1, 2, 8}}, {x, {2, 1, 2, 8}},
                            {out, {2, 1, 2, 8}}, extra);
      pass.commit();
    }
  });
  EXPECT_EQ(counts.total(), 0u);
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{3, 1}));
}

TEST(NoAllocation, ShiftFunctions) {
  const support::Device device(3);
  kvc_cache_desc desc = support::cache_desc(2, 2, 8, 8);
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  support::Array k(KVC_F32, {8, 2, 8});
  const std::vector<int32_t> position = {0, 1, 2, 3, 4, 5, 6, 7}, sequence(8);
  const Counts before = interposer::taken();
  const uint64_t calls_before = interposer::watched_calls();
  ASSERT_EQ(kvc_bind_shift(cache, leave, nullptr), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_begin(cache, 8, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
  for (int32_t layer = 0; layer < 2; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, k.tensor(), k.tensor()), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(kvc_remove(cache, 0, 2, 4), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  EXPECT_EQ(interposer::taken().total(), before.total());
  EXPECT_EQ(interposer::watched_calls() - calls_before, 7u);
}

}  // namespace
