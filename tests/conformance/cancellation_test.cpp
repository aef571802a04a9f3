// pthread_cancel: every call finishes, and the thread is cancelled at its next cancellation point behind it, also where the
// call itself, or a function of the caller's that it calls, reaches one.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

#include "support/functions.hpp"

namespace {

using support::Specimen;

constexpr kvc_status not_returned = 1;

/// A thread in which a cancellation is pending runs `act`. True when `act` returned and the thread was cancelled behind it.
bool survives(const std::function<void()>& act) {
  struct Run {
    const std::function<void()>& act;
    bool returned = false;
  } run{act};
  pthread_t thread{};
  EXPECT_EQ(pthread_create(
                &thread, nullptr,
                [](void* argument) -> void* {
                  auto* mine = static_cast<Run*>(argument);
                  pthread_cancel(pthread_self());
                  mine->act();
                  mine->returned = true;
                  pthread_testcancel();
                  return nullptr;
                },
                &run),
            0);
  void* result = nullptr;
  pthread_join(thread, &result);
  return run.returned && result == PTHREAD_CANCELED;
}

/// An allocator both of whose functions reach a cancellation point.
kvc_allocator cancellable_allocator() {
  kvc_allocator allocator{};
  allocator.alloc = [](void*, size_t bytes, size_t alignment) -> void* {
    pthread_testcancel();
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  allocator.free = [](void*, void* block, size_t, size_t) {
    pthread_testcancel();
    std::free(block);
  };
  return allocator;
}

kvc_status cancellable_shift(void*, int32_t, int32_t, const int32_t*, const int32_t*, kvc_tensor*) {
  pthread_testcancel();
  return KVC_OK;
}

struct Objects {
  kvc_device* device = nullptr;
  kvc_cache* cache = nullptr;
};

kvc_status open(Objects& objects, int32_t n_threads) {
  const kvc_allocator allocator = cancellable_allocator();
  kvc_device_desc desc{};
  desc.struct_size = sizeof desc;
  desc.n_threads = n_threads;
  return kvc_device_open("cpu", &desc, &allocator, &objects.device);
}

kvc_status create(Objects& objects) {
  const kvc_cache_desc desc = support::cache_desc(2, 1, 4, 4);
  return kvc_cache_create(objects.device, &desc, nullptr, &objects.cache);
}

kvc_status memory_bytes(const Objects& objects) {
  const kvc_cache_desc desc = support::cache_desc(2, 1, 4, 4);
  uint64_t bytes = 0;
  return kvc_cache_memory_bytes(objects.device, &desc, nullptr, &bytes);
}

kvc_status fill_and_shift(kvc_cache* cache) {
  const int32_t position[] = {0, 1, 2, 3}, sequence[] = {0, 0, 0, 0};
  if (kvc_status s = kvc_bind_shift(cache, cancellable_shift, nullptr); s != KVC_OK) return s;
  if (kvc_status s = kvc_begin(cache, 4, position, sequence, nullptr, 0, nullptr); s != KVC_OK)
    return s;
  if (kvc_status s = kvc_commit(cache); s != KVC_OK) return s;
  return kvc_remove(cache, 0, 1, 2);
}

/// One thread each, because the first that is cancelled hides what comes behind.
TEST(Cancellation, EveryCallThatReachesACancellationPointFinishes) {
  for (const int32_t n_threads : {0, 1, 3}) {  // 0 reads the files of the cgroup
    Objects objects;
    const std::pair<const char*, std::function<kvc_status()>> calls[] = {
        {"open", [&] { return open(objects, n_threads); }},
        {"memory_bytes", [&] { return memory_bytes(objects); }},
        {"create", [&] { return create(objects); }},
        {"remove", [&] { return fill_and_shift(objects.cache); }},
        {"close", [&] { return kvc_device_close(objects.device); }},
        {"destroy", [&] { return kvc_cache_destroy(objects.cache); }},
        {"open again", [&] { return open(objects, n_threads); }},
        {"close the last", [&] { return kvc_device_close(objects.device); }},
    };
    for (const auto& [name, call] : calls) {
      kvc_status status = not_returned;
      EXPECT_TRUE(survives([&status, &call = call] { status = call(); })) << name;
      EXPECT_EQ(status, KVC_OK) << name << ": " << support::last_message();
    }
  }
}

// The first handle of a process draws a random secret; a child has no handles yet.
TEST(Cancellation, TheFirstOpenOfAProcessFinishes) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    Objects objects;
    kvc_status status = not_returned;
    const bool survived = survives([&] { status = open(objects, 2); });
    _exit(survived && status == KVC_OK && kvc_device_close(objects.device) == KVC_OK ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(Cancellation, EveryOtherCallFinishes) {
  const support::Device device(3);
  Specimen specimen(device);
  for (const support::Function& function : support::functions(specimen)) {
    specimen.open(Specimen::n_layers);
    kvc_status status = not_returned;
    EXPECT_TRUE(survives([&] { status = function.call(specimen.cache); })) << function.name;
    EXPECT_NE(status, not_returned) << function.name;
    kvc_abort(specimen.cache);
  }
  EXPECT_EQ(kvc_check(specimen.cache), KVC_OK) << support::last_message();
}

TEST(Cancellation, TheThreadsOwnSettingReturns) {
  Objects objects;
  std::thread([&] {
    int state = -1;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
    EXPECT_EQ(open(objects, 2), KVC_OK);
    EXPECT_EQ(create(objects), KVC_OK);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
    EXPECT_EQ(state, PTHREAD_CANCEL_DISABLE);
    EXPECT_EQ(kvc_cache_destroy(objects.cache), KVC_OK);
    EXPECT_EQ(kvc_device_close(objects.device), KVC_OK);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    EXPECT_EQ(state, PTHREAD_CANCEL_ENABLE);
  }).join();
}

struct Worker {
  Objects objects;
  std::atomic<int> rounds{0};
};

/// AddressSanitizer does not see that cancellation leaves the frame of this function, and would take the stack for its own.
[[gnu::no_sanitize_address]] void* use_until_cancelled(void* argument) {
  auto& mine = *static_cast<Worker*>(argument);
  for (;; ++mine.rounds) {
    mine.objects = {};
    open(mine.objects, 2);
    create(mine.objects);
    memory_bytes(mine.objects);
    fill_and_shift(mine.objects.cache);
    pthread_testcancel();
    if (kvc_cache_destroy(mine.objects.cache) == KVC_OK) mine.objects.cache = nullptr;
    if (kvc_device_close(mine.objects.device) == KVC_OK) mine.objects.device = nullptr;
  }
}

// At a moment that nobody chose. What the thread leaves behind is whole: another closes it.
TEST(Cancellation, AtAnyMoment) {
  for (int round = 0; round < 100; ++round) {
    Worker worker;
    pthread_t thread{};
    ASSERT_EQ(pthread_create(&thread, nullptr, use_until_cancelled, &worker), 0);
    while (worker.rounds < 1) std::this_thread::yield();
    for (int spin = 0; spin < 97 * round; ++spin) asm volatile("");
    pthread_cancel(thread);
    void* result = nullptr;
    pthread_join(thread, &result);
    EXPECT_EQ(result, PTHREAD_CANCELED);
    if (worker.objects.cache != nullptr) {
      EXPECT_EQ(kvc_check(worker.objects.cache), KVC_OK);
    }
    EXPECT_EQ(kvc_cache_destroy(worker.objects.cache), KVC_OK);
    EXPECT_EQ(kvc_device_close(worker.objects.device), KVC_OK);
  }
}

}  // namespace
