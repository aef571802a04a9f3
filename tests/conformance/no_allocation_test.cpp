// Between the return of create and destroy nothing is allocated, mapped or started: the random
// operations run with every way to memory and to threads intercepted. This program defines malloc and
// its relatives, mmap, pthread_create and clone, and also every kvc_* function, which it wraps: only
// what happens inside the library is counted, on whatever thread.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <new>
#include <thread>

#include "support/fuzz_world.hpp"

namespace {

std::atomic<int> watching{0};          // calls that are inside the library now
std::atomic<uint64_t> allocations{0};  // while watching
std::atomic<uint64_t> mappings{0};
std::atomic<uint64_t> threads{0};
std::atomic<uint64_t> watched_calls{0};

void note(std::atomic<uint64_t>& counter) {
  if (watching.load(std::memory_order_relaxed) > 0) counter.fetch_add(1, std::memory_order_relaxed);
}

uint64_t total() { return allocations + mappings + threads; }

template <class Function>
Function* next(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

struct Watch {
  Watch() { ++watching; }
  ~Watch() { --watching; }
};

}  // namespace

// ---- Memory and threads ------------------------------------------------------------------------

extern "C" {

#ifndef KVC_SANITIZED
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  note(allocations);
  return __libc_malloc(size);
}
void* calloc(size_t n, size_t size) {
  note(allocations);
  return __libc_calloc(n, size);
}
void* realloc(void* block, size_t size) {
  note(allocations);
  return __libc_realloc(block, size);
}
void* memalign(size_t alignment, size_t size) {
  note(allocations);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  note(allocations);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** block, size_t alignment, size_t size) {
  note(allocations);
  *block = __libc_memalign(alignment, size);
  return *block ? 0 : ENOMEM;
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  note(mappings);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
void* mmap64(void* address, size_t size, int protection, int flags, int file, off64_t at) noexcept {
  note(mappings);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, at));
}
#endif

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) noexcept {
  note(threads);
  static auto* const real = next(&pthread_create, "pthread_create");
  return real(thread, attributes, start, argument);
}

// ---- The library, wrapped ------------------------------------------------------------------------

// Defines kvc_NAME as a call of the library's kvc_NAME that is watched. PARAMETERS as in the header.
#define WATCHED(NAME, PARAMETERS, ...)            \
  kvc_status NAME PARAMETERS noexcept {           \
    static auto* const real = next(&NAME, #NAME); \
    ++watched_calls;                              \
    const Watch watch;                            \
    return real(__VA_ARGS__);                     \
  }

using Desc = kvc_attention_desc;
using Ints = const int32_t*;
using In = const kvc_tensor*;
using Out = kvc_tensor*;

WATCHED(kvc_begin, (kvc_cache * c, int32_t n, Ints p, Ints s, const uint32_t* t, uint32_t f, void* m),
        c, n, p, s, t, f, m)
WATCHED(kvc_fits, (const kvc_cache* c, int32_t n, Ints p, Ints s), c, n, p, s)
WATCHED(kvc_put, (kvc_cache * c, int32_t l, In k, In v), c, l, k, v)
WATCHED(kvc_set_causal, (kvc_cache * c, int32_t n, Ints e), c, n, e)
WATCHED(kvc_commit, (kvc_cache * c), c)
WATCHED(kvc_commit_prefix, (kvc_cache * c, int32_t n, Ints s, Ints k), c, n, s, k)
WATCHED(kvc_abort, (kvc_cache * c), c)
WATCHED(kvc_can_resume, (const kvc_cache* c, int32_t s, int32_t w, int32_t* b), c, s, w, b)
WATCHED(kvc_resume, (kvc_cache * c, int32_t s, int32_t w, int32_t* g), c, s, w, g)
WATCHED(kvc_copy_prefix, (kvc_cache * c, int32_t s, int32_t d, int32_t l, int32_t* g), c, s, d, l, g)
WATCHED(kvc_reorder, (kvc_cache * c, int32_t n, Ints d, Ints s), c, n, d, s)
WATCHED(kvc_remove, (kvc_cache * c, int32_t s, int32_t b, int32_t e), c, s, b, e)
WATCHED(kvc_sequence_query, (const kvc_cache* c, int32_t s, kvc_sequence_info* o), c, s, o)
WATCHED(kvc_cache_stats, (const kvc_cache* c, kvc_stats* o), c, o)
WATCHED(kvc_state_digest, (const kvc_cache* c, uint64_t* o), c, o)
WATCHED(kvc_check, (const kvc_cache* c), c)
WATCHED(kvc_bind_attention,
        (kvc_cache * c, int32_t b, int32_t e, const Desc* d, const float* a, const float* s), c, b,
        e, d, a, s)
WATCHED(kvc_bind_rope,
        (kvc_cache * c, int32_t b, int32_t e, const kvc_rope_desc* d, const float* f), c, b, e, d, f)
WATCHED(kvc_attention, (kvc_cache * c, int32_t l, In q, Out o, Out s), c, l, q, o, s)
WATCHED(kvc_attention_with,
        (kvc_cache * c, int32_t l, In q, Out o, Out s, const kvc_attention_extra* e), c, l, q, o, s, e)
WATCHED(kvc_put_attention, (kvc_cache * c, int32_t l, In k, In v, In q, Out o, Out s), c, l, k, v,
        q, o, s)
WATCHED(kvc_get, (kvc_cache * c, int32_t l, Out k, Out v), c, l, k, v)
WATCHED(kvc_history, (kvc_cache * c, int32_t* f, int32_t* n), c, f, n)
WATCHED(kvc_mask, (kvc_cache * c, Out i), c, i)
WATCHED(kvc_gather, (kvc_cache * c, int32_t l, int32_t s, Out k, Out v), c, l, s, k, v)
WATCHED(kvc_runs, (const kvc_cache* c, int32_t s, int32_t m, kvc_run* r, int32_t* n), c, s, m, r, n)

}  // extern "C"

namespace {

#ifdef KVC_SANITIZED
// Part of the sanitizers' interface, but in a header that GCC does not install.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                         void (*)(const volatile void*));

void on_malloc(const volatile void*, size_t) { note(allocations); }
void on_free(const volatile void*) {}
#endif

size_t running_threads() {
  size_t n = 0;
  for ([[maybe_unused]] const auto& each : std::filesystem::directory_iterator("/proc/self/task"))
    ++n;
  return n;
}

class NoAllocation : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
#ifdef KVC_SANITIZED
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
#endif
  }
};

// Each way is really seen; else the zero below would say nothing.
TEST_F(NoAllocation, EveryWayIsWatched) {
  const auto counts = [](std::atomic<uint64_t>& counter, const auto& act) {
    const uint64_t before = counter;
    {
      const Watch watch;
      act();
    }
    return counter - before;
  };
  void* volatile block = nullptr;
  EXPECT_GE(counts(allocations, [&] { block = std::malloc(100); }), 1u);
  std::free(block);
  EXPECT_GE(counts(allocations, [&] { block = std::calloc(10, 10); }), 1u);
  EXPECT_GE(counts(allocations, [&] { block = std::realloc(block, 1000); }), 1u);
  std::free(block);
  EXPECT_GE(counts(allocations, [&] { block = std::aligned_alloc(64, 128); }), 1u);
  std::free(block);
  EXPECT_GE(counts(allocations, [&] { block = ::operator new(100); }), 1u);
  ::operator delete(block);
  EXPECT_GE(counts(allocations, [&] { block = ::operator new (128, std::align_val_t{64}); }), 1u);
  ::operator delete (block, std::align_val_t{64});
#ifndef KVC_SANITIZED
  EXPECT_GE(
      counts(mappings,
             [&] { block = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }),
      1u);
  munmap(block, 4096);
  // What create does is seen as well.
  kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  const support::Device device(1);
  EXPECT_GE(counts(mappings, [&] { const support::Cache cache(device, desc); }), 1u);
#endif
  EXPECT_GE(counts(threads, [] { std::thread([] {}).join(); }), 1u);
  EXPECT_GE(counts(threads, [] { const support::Device three(3); }), 2u);
}

TEST_F(NoAllocation, RandomOperations) {
  constexpr uint64_t seed = 20261121, operations_per_world = 1500;
  const support::Device alone(1), helped(3);
  ASSERT_EQ(alone.status, KVC_OK);
  ASSERT_EQ(helped.status, KVC_OK);
  const size_t threads_before = running_threads();
  fuzz::Coverage coverage;
  const uint64_t calls_before = watched_calls;
  for (uint64_t world_number = 0; world_number < 2 * fuzz::setup_names().size(); ++world_number) {
    support::Random random(support::derived_seed(seed, world_number));
    const std::string& name = fuzz::setup_names()[world_number / 2];
    const fuzz::Setup setup = fuzz::draw_setup(name, random);
    const uint64_t before = total();
    fuzz::World world(world_number % 2 ? helped : alone, setup, support::Random(random.bits()),
                      coverage);
    EXPECT_EQ(total(), before) << name << ": while the first constants were bound and cells poisoned";
    for (const uint64_t until = coverage.operations + operations_per_world;
         coverage.operations < until;) {
      ASSERT_NO_THROW(world.step()) << world.history();
      ASSERT_EQ(total(), before) << allocations << " allocations, " << mappings << " mappings, "
                                 << threads << " threads, seed " << seed << "\n"
                                 << world.history();
    }
  }
  EXPECT_EQ(running_threads(), threads_before);
  EXPECT_GT(watched_calls - calls_before, coverage.operations);
  std::cout << coverage.operations << " operations, " << watched_calls - calls_before
            << " calls watched, seed " << seed << std::endl;
}

}  // namespace
