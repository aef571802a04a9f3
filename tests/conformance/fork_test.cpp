// Forks with a live cache: the child has no handles and no threads of kvc's, may use kvc anew, and
// cannot hurt the parent, whatever the parent's threads were doing at that moment. And handles of one
// process in another.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "support/functions.hpp"

namespace {

using support::Specimen;

/// Runs `act` in a child, whose exit status is what it returns. A hanging child ends by SIGALRM.
pid_t start_child(const std::function<int()>& act) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(act());
  }
  return child;
}

void expect_well(pid_t child) {
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the number of the child's first step that failed";
}

/// A device and a cache of its own, passes and attention on several threads. 0, or what failed.
int use_kvc() {
  const support::Device device(3);
  if (device.status != KVC_OK) return 201;
  Specimen own(device);
  if (testing::Test::HasFailure()) return 202;
  own.open(Specimen::n_layers);
  if (support::attention(own.cache, 1, &own.q, &own.out, &own.lse) != KVC_OK) return 203;
  if (kvc_commit(own.cache) != KVC_OK || kvc_check(own.cache) != KVC_OK) return 204;
  return 0;
}

/// Every function refuses the parent's handles, destroy included. 0, or what did not.
int refuse_handles(kvc_device* device, Specimen& specimen) {
  int step = 1;
  std::vector<support::Function> all = support::functions(specimen);
  for (const support::Function& function : support::functions_of_other_kinds())
    all.push_back(function);
  for (const support::Function& function : all) {
    if (function.call(specimen.cache) != KVC_E_HANDLE) return step;
    ++step;
  }
  if (kvc_cache_destroy(specimen.cache) != KVC_E_HANDLE) return 101;
  kvc_cache* none = nullptr;
  uint64_t bytes = 0;
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  if (kvc_cache_create(device, &desc, nullptr, &none) != KVC_E_HANDLE) return 102;
  if (kvc_cache_memory_bytes(device, &desc, nullptr, &bytes) != KVC_E_HANDLE) return 103;
  if (kvc_device_close(device) != KVC_E_HANDLE) return 104;
  return 0;
}

int in_the_child(kvc_device* device, Specimen& specimen) {
  if (const int step = refuse_handles(device, specimen)) return step;
  if (const int step = use_kvc()) return step;
  return refuse_handles(device, specimen);  // now that the child's table is in use
}

TEST(Fork, TheChildHasNoHandles) {
  const support::Device device(3);
  Specimen specimen(device);
  specimen.open(Specimen::n_layers);
  const support::Digest before = support::digest(specimen.cache);
  expect_well(start_child([&] { return in_the_child(device, specimen); }));
  EXPECT_EQ(support::digest(specimen.cache), before) << "the parent lost something";
  EXPECT_EQ(kvc_attention(specimen.cache, 1, &specimen.q, &specimen.out, nullptr), KVC_OK);
}

// Both go on at the same time; the child may fork too.
TEST(Fork, ParentChildAndGrandchildGoOn) {
  const support::Device device(3);
  Specimen specimen(device);
  const pid_t child = start_child([&] {
    const support::Device own_device(2);
    Specimen own(own_device);
    const pid_t grandchild = start_child([&] { return in_the_child(own_device, own); });
    for (int i = 0; i < 100; ++i)
      if (const int step = use_kvc()) return step;
    int status = 0;
    if (waitpid(grandchild, &status, 0) != grandchild || status != 0) return 210;
    return kvc_check(own.cache) == KVC_OK ? 0 : 211;
  });
  for (int i = 0; i < 100; ++i) {
    specimen.open(Specimen::n_layers);
    ASSERT_EQ(kvc_attention(specimen.cache, 0, &specimen.q, &specimen.out, nullptr), KVC_OK);
    ASSERT_EQ(kvc_abort(specimen.cache), KVC_OK);
    ASSERT_EQ(use_kvc(), 0);
  }
  expect_well(child);
  EXPECT_EQ(kvc_check(specimen.cache), KVC_OK) << support::last_message();
}

/// Forks again and again while `act` runs on other threads of the parent.
void fork_during(kvc_device* device, Specimen& specimen, const std::function<void(int)>& act) {
  std::atomic<bool> stop{false};
  std::atomic<int> running{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < 2; ++number) {
    threads.emplace_back([&, number] {
      act(number);
      ++running;
      while (!stop) act(number);
    });
  }
  while (running < 2) std::this_thread::yield();
  for (int i = 0; i < 20; ++i)
    expect_well(start_child([&] { return in_the_child(device, specimen); }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(Fork, WhileThreadsAreInside) {
  const support::Device device(3);
  Specimen idle(device), first(device), second(device);
  Specimen* const used[] = {&first, &second};
  for (Specimen* specimen : used) specimen->open(Specimen::n_layers);
  fork_during(device, idle, [&](int number) {
    Specimen& mine = *used[number];
    EXPECT_EQ(kvc_attention(mine.cache, 0, &mine.q, &mine.out, nullptr), KVC_OK);
    EXPECT_EQ(kvc_fits(mine.cache, 0, nullptr, nullptr, nullptr), KVC_E_INVALID_ARGUMENT);
  });
}

// The lock of the handle table, that of the parent's allocator and the start of threads.
TEST(Fork, WhileHandlesAreMadeAndDestroyed) {
#ifdef KVC_SANITIZED
  // The C library's malloc is in order in a forked child. The one that a sanitizer puts in its place may not be: a lock
  // of its own that another thread held at the fork stays locked, and the child waits for ever.
  GTEST_SKIP() << "the sanitizer's malloc does not survive a fork among threads that allocate";
#endif
  const support::Device device(2);
  Specimen specimen(device);
  fork_during(device, specimen, [](int) {
    const support::Device another(2);
    const support::Cache cache(another, support::cache_desc(1, 1, 4, 4));
    EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
  });
}

// Handles are numbers, and numbers travel. Two processes with the same number of objects in their
// tables, in the same order, still do not understand each other's.
TEST(Fork, HandlesOfAnotherProcess) {
  struct Handles {
    kvc_device* device;
    kvc_cache* cache;
  };
  int to_parent[2], to_child[2];
  ASSERT_EQ(pipe(to_parent), 0);
  ASSERT_EQ(pipe(to_child), 0);
  const pid_t child = start_child([&] {
    const support::Device device(1);
    Specimen specimen(device);
    const Handles mine = {device.handle, specimen.cache.handle};
    Handles parents{};
    if (write(to_parent[1], &mine, sizeof mine) != sizeof mine) return 220;
    if (read(to_child[0], &parents, sizeof parents) != sizeof parents) return 221;
    if (kvc_check(specimen.cache) != KVC_OK) return 222;
    specimen.cache.handle = parents.cache;
    const int step = refuse_handles(parents.device, specimen);
    specimen.cache.handle = mine.cache;
    return step;
  });
  {
    const support::Device device(1);
    Specimen specimen(device);
    const Handles mine = {device.handle, specimen.cache.handle};
    Handles childs{};
    ASSERT_EQ(read(to_parent[0], &childs, sizeof childs), static_cast<ssize_t>(sizeof childs));
    ASSERT_EQ(write(to_child[1], &mine, sizeof mine), static_cast<ssize_t>(sizeof mine));
    specimen.cache.handle = childs.cache;
    EXPECT_EQ(refuse_handles(childs.device, specimen), 0);
    specimen.cache.handle = mine.cache;
    EXPECT_EQ(kvc_check(specimen.cache), KVC_OK);
  }
  expect_well(child);
  for (const int end : {to_parent[0], to_parent[1], to_child[0], to_child[1]}) close(end);
}

}  // namespace
