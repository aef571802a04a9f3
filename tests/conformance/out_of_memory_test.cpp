// Every allocation, mapping and thread that opening a device and creating a cache ask for fails once:
// the call says OUT_OF_MEMORY, and nothing is left behind. Not only the caller's allocator: malloc,
// mmap, madvise, getrandom and pthread_create are replaced here. Beside these only the codecs ask, for
// long vectors; no call of a cache does (no_allocation_test).
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <thread>
#include <vector>

#include "kvc/operators.h"
#include "kvc/recurrent.h"
#include "kvc/storage.h"
#include "kvc/wrapper.h"
#include "support/abi.hpp"

#ifdef KVC_SANITIZED

TEST(OutOfMemory, AtEveryRequest) { GTEST_SKIP() << "the sanitizer has replaced malloc already"; }

#else

namespace {

std::atomic<bool> inside{false};   // the library
std::atomic<int32_t> requests{0};  // while inside
std::atomic<int32_t> failing{-1};  // the number of the request that fails
std::atomic<bool> failed{false};
std::atomic<bool> refuse_advice{false};  // but not the one that a child needs
std::atomic<bool> refuse_entropy{false};
std::atomic<int64_t> blocks{0};   // given and not yet taken back, while inside
std::atomic<int64_t> mapped{0};   // bytes, likewise
std::atomic<int64_t> threads{0};  // started

/// Whether this request fails.
bool refuse() {
  if (!inside || requests++ != failing) return false;
  failed = true;
  errno = ENOMEM;  // glibc asserts it of a malloc that failed
  return true;
}

struct Inside {
  Inside() { inside = true; }
  ~Inside() { inside = false; }
};

void* given(void* block) {
  if (inside && block) ++blocks;
  return block;
}

}  // namespace

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

void* malloc(size_t size) { return refuse() ? nullptr : given(__libc_malloc(size)); }
void* calloc(size_t n, size_t size) { return refuse() ? nullptr : given(__libc_calloc(n, size)); }
void* aligned_alloc(size_t alignment, size_t size) {
  return refuse() ? nullptr : given(__libc_memalign(alignment, size));
}
int posix_memalign(void** block, size_t alignment, size_t size) {
  *block = refuse() ? nullptr : given(__libc_memalign(alignment, size));
  return *block ? 0 : ENOMEM;
}
void free(void* block) {
  if (inside && block) --blocks;
  __libc_free(block);
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  if (refuse()) return MAP_FAILED;
  if (inside) mapped += static_cast<int64_t>(size);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
int munmap(void* address, size_t size) noexcept {
  if (inside) mapped -= static_cast<int64_t>(size);
  return static_cast<int>(syscall(SYS_munmap, address, size));
}

int madvise(void* address, size_t size, int advice) noexcept {
  if (inside && (advice == MADV_WIPEONFORK ? refuse() : refuse_advice.load())) {
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(syscall(SYS_madvise, address, size, advice));
}
ssize_t getrandom(void* buffer, size_t size, unsigned flags) {
  if (inside && refuse_entropy) {
    errno = EAGAIN;
    return -1;
  }
  return syscall(SYS_getrandom, buffer, size, flags);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) noexcept {
  static auto* const real = reinterpret_cast<decltype(&pthread_create)>(
      dlsym(RTLD_NEXT, "pthread_create"));
  if (refuse()) return EAGAIN;
  if (inside) ++threads;
  return real(thread, attributes, start, argument);
}

}  // extern "C"

namespace {

struct Kind {
  kvc_cache_desc desc;
  const void* kind_desc;
};

constexpr int32_t n_wrapped = 4;  // the last one has no pass in common with those

/// Creates a cache of each kind and a wrapper of the first ones; as many as there is memory for, which end again.
kvc_status caches_once(kvc_device* device, const std::array<Kind, 5>& kinds) {
  kvc_cache* caches[5] = {};
  int32_t n = 0;
  kvc_status status = KVC_OK;
  for (const Kind& kind : kinds) {
    uint64_t bytes = 0;
    auto* cache = reinterpret_cast<kvc_cache*>(&bytes);
    status = kvc_cache_memory_bytes(device, &kind.desc, kind.kind_desc, &bytes);
    if (status == KVC_OK) status = kvc_cache_create(device, &kind.desc, kind.kind_desc, &cache);
    if (status == KVC_OK) {
      caches[n++] = cache;
      continue;
    }
    if (cache) status = KVC_E_INTERNAL;
    break;
  }
  if (status == KVC_OK) {
    const int32_t child = 0, layer = 0;
    auto* wrapper = reinterpret_cast<kvc_cache*>(&status);
    status = kvc_cache_wrap(caches, n_wrapped, &child, &layer, 1, &wrapper);
    if (status != KVC_OK && wrapper) status = KVC_E_INTERNAL;
    if (status == KVC_OK) status = kvc_cache_destroy(wrapper);
  }
  for (kvc_cache* cache : caches)
    if (kvc_cache_destroy(cache) != KVC_OK) status = KVC_E_INTERNAL;
  return status;
}

kvc_status attend(void*, const kvc_operator_call*) { return KVC_OK; }

/// Creates an operator that attends without a cache, and registers one of the caller's; both end again.
kvc_status operators_once(kvc_device* device) {
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = desc.max_q_len = desc.max_kv_len = desc.n_kv_heads = desc.head_dim_k = 2;
  auto* op = reinterpret_cast<kvc_operator*>(&desc);
  kvc_status status = kvc_operator_create(device, "vanilla", &desc, &op);
  if (status != KVC_OK) return op ? KVC_E_INTERNAL : status;
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.modes = KVC_MODE_ALL;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = attend;
  status = kvc_operator_register(device, "mine,another", 0, &info, &functions, nullptr);
  if (status == KVC_OK) status = kvc_operator_unregister(device, "another");
  return kvc_operator_destroy(op) == KVC_OK ? status : KVC_E_INTERNAL;
}

/// Opens a device of three threads, asks what caches take, creates and wraps them, ends all. OK, or what failed.
kvc_status live_once() {
  kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
  recurrent.state_size = recurrent.conv_channels = 8;
  recurrent.conv_dim = 3;
  std::array<Kind, 5> kinds = {};
  kinds[0].desc = kinds[1].desc = support::cache_desc(2, 2, 8, 8);
  kinds[1].desc.kind = KVC_ENCODER;
  kinds[2] = {KVC_CACHE_DESC_INIT, &recurrent};
  kinds[2].desc.kind = KVC_RECURRENT;
  kinds[2].desc.n_layers = 2;
  kinds[2].desc.max_batch = 16;
  kinds[3].desc = kinds[4].desc = kinds[0].desc;
  kinds[3].desc.kind = KVC_LIGHTNING;
  kinds[3].desc.capacity = 0;
  kinds[4].desc.kind = KVC_TRANSFORMER;
  for (Kind& kind : kinds) {
    kind.desc.max_sequences = 3;
    kind.desc.flags = KVC_CACHE_PREFAULT;
  }
  kvc_device_desc settings = KVC_DEVICE_DESC_INIT;
  settings.n_threads = 3;
  auto* device = reinterpret_cast<kvc_device*>(&settings);
  const Inside library;
  const kvc_status opened = kvc_device_open("cpu", &settings, nullptr, &device);
  if (opened != KVC_OK) return device ? KVC_E_INTERNAL : opened;
  kvc_status status = caches_once(device, kinds);
  if (status == KVC_OK) status = operators_once(device);
  return kvc_device_close(device) == KVC_OK ? status : KVC_E_INTERNAL;
}

/// Whether the process has this many threads, or soon will: a joined thread may still be on its way out.
bool has_threads(int64_t n) {
  for (int32_t wait_ms = 0; wait_ms < 1000; ++wait_ms) {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    if (std::distance(begin(tasks), end(tasks)) == n) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

TEST(OutOfMemory, AtEveryRequest) {
  ASSERT_EQ(live_once(), KVC_OK) << support::last_message();
  ASSERT_EQ(live_once(), KVC_OK);  // what is made once per process is there now
  int32_t n = 0;
  for (;; ++n) {
    // The C library keeps stacks of ended threads and the like, so the first two rounds may leave
    // something; a leak leaves it in the third round too.
    int64_t blocks_before = 0, mapped_before = 0;
    kvc_status status = KVC_OK;
    for (int round = 0; round < 3; ++round) {
      blocks_before = blocks;
      mapped_before = mapped;
      requests = 0;
      failing = n;
      failed = false;
      status = live_once();
      failing = -1;
      ASSERT_EQ(status != KVC_OK, failed) << "request " << n << " failed and nobody noticed";
      if (failed) {
        ASSERT_EQ(support::name(status), "OUT_OF_MEMORY") << n << ": " << support::last_message();
        ASSERT_FALSE(support::last_message().empty());
      }
    }
    EXPECT_EQ(blocks, blocks_before) << "request " << n << " failed and blocks were left behind";
    EXPECT_EQ(mapped, mapped_before) << "request " << n << " failed and memory stays mapped";
    EXPECT_TRUE(has_threads(1)) << "request " << n << " failed and threads were left behind";
    if (!failed) break;
  }
  std::cout << n << " requests failed one after another" << std::endl;
  EXPECT_GE(n, 5);
  EXPECT_GE(threads, 2);
  ASSERT_EQ(live_once(), KVC_OK) << "it has recovered";
}

// Pages are only asked to be huge and present; a kernel that knows neither serves as well.
TEST(OutOfMemory, AdviceMayBeRefused) {
  refuse_advice = true;
  EXPECT_EQ(live_once(), KVC_OK) << support::last_message();
  refuse_advice = false;
}

TEST(OutOfMemory, CodecsOfLongVectors) {
  for (const int64_t dim : {4096, 8192}) {
    std::vector<float> values(static_cast<size_t>(dim), 1);
    std::vector<int8_t> codes(values.size(), 7);
    float scale = 0;
    kvc_codec_desc codec = KVC_CODEC_DESC_INIT;
    codec.dtype = KVC_INT8;
    kvc_tensor x = support::dense(values.data(), KVC_F32, {dim}),
               to = support::dense(codes.data(), KVC_I8, {dim}),
               scales = support::dense(&scale, KVC_F32, {1});
    struct Statuses {
      kvc_status encode, decode;
    };
    const auto both = [&](int32_t request) {
      const Inside library;
      requests = 0;
      failing = request;
      const Statuses status = {kvc_encode(&codec, &x, &to, &scales),
                               kvc_decode(&codec, &to, &scales, &x)};
      failing = -1;
      return status;
    };
    const int64_t blocks_before = blocks;
    const Statuses status = both(-1);
    EXPECT_EQ(status.encode, KVC_OK) << support::last_message();
    EXPECT_EQ(status.decode, KVC_OK) << support::last_message();
    EXPECT_EQ(requests, dim > 4096 ? 2 : 0) << "one a call";
    EXPECT_EQ(codes[0], 127);
    if (dim > 4096) {
      codes[0] = 7;
      EXPECT_EQ(both(0).encode, KVC_E_OUT_OF_MEMORY);
      EXPECT_EQ(codes[0], 7) << "nothing is written";
      EXPECT_EQ(both(1).decode, KVC_E_OUT_OF_MEMORY);
      EXPECT_FALSE(support::last_message().empty());
    }
    EXPECT_EQ(blocks, blocks_before);
  }
}

// ---- What happens once per process: the table of handles and its secret --------------------------

constexpr int nothing_left_to_refuse = 10;

/// Runs this test program again for DISABLED_FreshProcess alone; its exit status.
int in_a_fresh_process(const std::string& request) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("KVC_TEST_REQUEST", request.c_str(), 1);
    execl("/proc/self/exe", "out_of_memory_test", "--gtest_also_run_disabled_tests",
          "--gtest_filter=OutOfMemory.DISABLED_FreshProcess", "--gtest_brief=1", nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(OutOfMemory, DISABLED_FreshProcess) {
  const char* request = std::getenv("KVC_TEST_REQUEST");
  if (!request) GTEST_SKIP() << "a part of AtEveryFirstRequest";
  refuse_entropy = std::string(request) == "entropy";
  if (!refuse_entropy) failing = std::atoi(request);
  const kvc_status status = live_once();
  failing = -1;
  if (!failed) std::exit(status == KVC_OK ? nothing_left_to_refuse : 1);
  ASSERT_EQ(support::name(status), "OUT_OF_MEMORY") << support::last_message();
  ASSERT_EQ(live_once(), KVC_OK) << "it has not recovered: " << support::last_message();
}

TEST(OutOfMemory, AtEveryFirstRequest) {
  int n = 0, status = 0;
  while (status == 0 && n < 100) status = in_a_fresh_process(std::to_string(n++));
  EXPECT_EQ(status, nothing_left_to_refuse) << "request " << n - 1;
  EXPECT_GE(n, 8);
}

TEST(OutOfMemory, NoEntropy) { EXPECT_EQ(in_a_fresh_process("entropy"), nothing_left_to_refuse); }

}  // namespace

#endif
