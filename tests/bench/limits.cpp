#include "limits.hpp"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <kvc/kvc.h>

#include "measure.hpp"

namespace bench {
namespace {

// Vectors by compiler extension: these loops run wherever the compiler does. The widest are used when kvc uses them.
using Wide = float __attribute__((vector_size(64)));
using Half = float __attribute__((vector_size(32)));
using Narrow = float __attribute__((vector_size(16)));

/// What is measured here is the machine, whatever the build type. clang has no such attribute.
#if defined(__clang__)
#define KVC_BENCH_OPTIMIZED
#else
#define KVC_BENCH_OPTIMIZED gnu::optimize("O3", "fp-contract=fast")
#endif

/// Twelve chains hide the latency of a multiply-add on two ports. The products are opaque to the compiler.
template <class Vector>
[[gnu::always_inline]] inline float multiply_add(int64_t rounds) {
#if defined(__clang__)
#pragma clang fp contract(fast)
#endif
  Vector chain[12];
  for (int i = 0; i < 12; ++i) chain[i] = Vector{} + 1.0f + static_cast<float>(i);
  Vector factor = Vector{} + 0.999f, addend = Vector{} + 0.001f;
  for (int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < 12; ++i) chain[i] = chain[i] * factor + addend;
  }
  float sum = 0;
  for (const Vector& c : chain) sum += c[0];
  return sum;
}

#if defined(__x86_64__)
[[gnu::target("avx512f"), KVC_BENCH_OPTIMIZED]] float multiply_wide(int64_t n) {
  return multiply_add<Wide>(n);
}
[[gnu::target("avx2,fma"), KVC_BENCH_OPTIMIZED]] float multiply_half(int64_t n) {
  return multiply_add<Half>(n);
}
#endif
[[KVC_BENCH_OPTIMIZED]] float multiply_narrow(int64_t n) { return multiply_add<Narrow>(n); }

struct Multiplier {
  float (*run)(int64_t);
  int lanes;
};

Multiplier multiplier() {
#if defined(__x86_64__)
  for (const char* name : {"avx512", "vnni", "amx"})  // the peak is that of AVX-512's multiply-adds
    if (std::strstr(kvc_build_info(), name) != nullptr) return {multiply_wide, 16};
  if (std::strstr(kvc_build_info(), "avx2") != nullptr) return {multiply_half, 8};
#endif
  return {multiply_narrow, 4};
}

/// One way to read memory: so many streams side by side, each asked for so many bytes ahead into the second-level cache and
/// then into the first (0: left to the hardware).
struct Pattern {
  int streams;
  size_t far, near;
};
constexpr Pattern patterns[] = {{1, 0, 0},       {2, 0, 0},       {4, 0, 0},       {1, 4096, 0},
                                {2, 4096, 0},    {4, 4096, 0},    {2, 12288, 0},   {4, 12288, 0},
                                {1, 4096, 3072}, {2, 4096, 3072}, {4, 4096, 3072}, {2, 9216, 3072}};

/// Reads `bytes` and returns something that depends on all of it.
template <class Vector>
[[gnu::always_inline]] inline uint64_t read_all(const std::byte* from, size_t bytes, Pattern pattern) {
  const size_t stream_bytes = bytes / static_cast<size_t>(pattern.streams) / 256 * 256;
  Vector sum[4] = {};
  for (size_t at = 0; at < stream_bytes; at += 256) {
    for (int s = 0; s < pattern.streams; ++s) {
      const std::byte* line = from + static_cast<size_t>(s) * stream_bytes + at;
      if (pattern.far != 0) {
        for (size_t i = 0; i < 256; i += 64) __builtin_prefetch(line + pattern.far + i, 0, 2);
      }
      if (pattern.near != 0) {
        for (size_t i = 0; i < 256; i += 64) __builtin_prefetch(line + pattern.near + i, 0, 3);
      }
      const auto* vector = reinterpret_cast<const Vector*>(line);
      for (size_t i = 0; i < 256 / sizeof(Vector); ++i) sum[i % 4] += vector[i];
    }
  }
  const Vector all = sum[0] + sum[1] + sum[2] + sum[3];
  return static_cast<uint64_t>(all[0]) + static_cast<uint64_t>(all[1]);
}

using WideWords = uint64_t __attribute__((vector_size(64), may_alias));
using NarrowWords = uint64_t __attribute__((vector_size(16), may_alias));
#if defined(__x86_64__)
[[gnu::target("avx512f"), KVC_BENCH_OPTIMIZED]] uint64_t read_wide(const std::byte* from, size_t n,
                                                                   Pattern p) {
  return read_all<WideWords>(from, n, p);
}
using HalfWords = uint64_t __attribute__((vector_size(32), may_alias));
[[gnu::target("avx2"), KVC_BENCH_OPTIMIZED]] uint64_t read_half(const std::byte* from, size_t n,
                                                                Pattern p) {
  return read_all<HalfWords>(from, n, p);
}
#endif
[[KVC_BENCH_OPTIMIZED]] uint64_t read_narrow(const std::byte* from, size_t n, Pattern p) {
  return read_all<NarrowWords>(from, n, p);
}

/// Memory is read with the widest loads of the machine, whatever kvc's kernels use.
uint64_t read(const std::byte* from, size_t bytes, Pattern pattern) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_wide(from, bytes, pattern);
  if (__builtin_cpu_supports("avx2")) return read_half(from, bytes, pattern);
#endif
  return read_narrow(from, bytes, pattern);
}

std::atomic<uint64_t> sink;

}  // namespace

size_t bytes_beyond_caches() {
  const long last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::max(size_t{1} << 30, 4 * static_cast<size_t>(std::max(last_level, 0L)));
}

/// Processors that this process may use, and a thread's place among them.
class Places {
 public:
  Places() { sched_getaffinity(0, sizeof all_, &all_); }

  void take(int thread) const {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(nth(thread % CPU_COUNT(&all_)), &one);
    sched_setaffinity(0, sizeof one, &one);
  }
  void leave() const { sched_setaffinity(0, sizeof all_, &all_); }

 private:
  int nth(int n) const {
    int cpu = 0;
    while (!CPU_ISSET(cpu, &all_) || n-- > 0) ++cpu;
    return cpu;
  }
  cpu_set_t all_;
};

/// Threads sleep between jobs, so that they do not disturb the kernel under test; a job's time starts when all are awake,
/// each in a place of its own: left alone they wake on one processor and may share it for the whole job.
struct Limits::State {
  enum class Job { none, read, copy, write, multiply, stop };

  Places places;
  std::vector<std::thread> threads;
  std::byte* buffer = nullptr;  // windows into it rotate
  const size_t buffer_bytes = bytes_beyond_caches();
  size_t offset = 0;
  std::atomic<int> generation{0};
  std::atomic<int> awake{0};
  std::atomic<int> done{0};
  Job job = Job::none;
  size_t bytes = 0;  // per thread
  Pattern pattern = patterns[0];
  const std::vector<std::byte*>* to = nullptr;  // of copy and write
  const std::vector<std::byte*>* from = nullptr;
  double duration = 0;  // of multiply
  std::vector<double> rate;

  int n_threads() const { return static_cast<int>(threads.size()) + 1; }

  void work(int thread) {
    awake.fetch_add(1);
    while (awake.load() < n_threads()) {
    }
    if (job == Job::read) {
      sink += read(buffer + offset + static_cast<size_t>(thread) * bytes, bytes, pattern);
    } else if (job == Job::copy) {
      const size_t share = static_cast<size_t>(thread) * bytes;
      for (size_t i = 0; i < to->size(); ++i)
        std::memcpy((*to)[i] + share, (*from)[i] + share, bytes);
    } else if (job == Job::write) {
      for (std::byte* const each : *to)
        std::memset(each + static_cast<size_t>(thread) * bytes, 1, bytes);
    } else if (job == Job::multiply) {
      const Multiplier multiply = multiplier();
      constexpr int64_t rounds = 20000;
      double operations = 0;
      const double start = now();
      do {
        sink += static_cast<uint64_t>(multiply.run(rounds));
        operations += 2.0 * 12 * multiply.lanes * rounds;
      } while (now() - start < duration);
      rate[static_cast<size_t>(thread)] = operations / (now() - start);
    }
    done.fetch_add(1);
  }

  double run(Job what) {
    places.take(0);
    const double elapsed = run_here(what);
    places.leave();
    return elapsed;
  }

  double run_here(Job what) {
    job = what;
    awake = done = 0;
    generation.fetch_add(1);
    generation.notify_all();
    if (what == Job::stop) return 0;
    while (awake.load() < n_threads() - 1) {
    }
    const double start = now();
    work(0);
    while (done.load() < n_threads()) {
    }
    return now() - start;
  }

  void loop(int thread) {
    places.take(thread);
    for (int seen = 0;;) {
      generation.wait(seen);
      seen = generation.load();
      if (job == Job::stop) return;
      work(thread);
    }
  }
};

Blocks::Blocks(size_t n, size_t bytes)
    : memory_(static_cast<std::byte*>(std::aligned_alloc(size_t{2} << 20, n * bytes))) {
  std::memset(memory_, 1, n * bytes);
  for (size_t i = 0; i < n; ++i) at.push_back(memory_ + i * bytes);
}

Limits::Limits(int n_threads) : state_(new State()) {
  const size_t buffer_bytes = state_->buffer_bytes;
  void* memory = mmap(nullptr, buffer_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  madvise(memory, buffer_bytes, MADV_HUGEPAGE);
  std::memset(memory, 1, buffer_bytes);
  state_->buffer = static_cast<std::byte*>(memory);
  state_->rate.resize(static_cast<size_t>(n_threads));
  state_->threads.resize(static_cast<size_t>(n_threads - 1));
  for (int t = 1; t < n_threads; ++t)
    state_->threads[static_cast<size_t>(t - 1)] = std::thread([this, t] { state_->loop(t); });
  choose_pattern();
}

Limits::~Limits() {
  state_->run(State::Job::stop);
  for (std::thread& thread : state_->threads) thread.join();
  munmap(state_->buffer, state_->buffer_bytes);
  delete state_;
}

/// The pattern with the best median, found once: the best of several single reads would favour lucky moments. All of them
/// are read in turn, because memory may be slow for a while.
void Limits::choose_pattern() {
  std::vector<double> rates[std::size(patterns)];
  for (int round = 0; round < 9; ++round) {
    for (size_t i = 0; i < std::size(patterns); ++i) {
      state_->pattern = patterns[i];
      rates[i].push_back(read_rate(size_t{64} << 20));
    }
  }
  size_t best = 0;
  for (size_t i = 1; i < std::size(patterns); ++i)
    if (median(rates[i]) > median(rates[best])) best = i;
  state_->pattern = patterns[best];
}

double Limits::read_rate(size_t bytes) {
  const auto n = static_cast<size_t>(state_->n_threads());
  state_->bytes = std::min(bytes, state_->buffer_bytes / 2) / n / 4096 * 4096;
  if (state_->offset + state_->bytes * n > state_->buffer_bytes) state_->offset = 0;
  const double elapsed = state_->run(State::Job::read);
  state_->offset += state_->bytes * n;
  return static_cast<double>(state_->bytes * n) / elapsed;
}

void Limits::clean_caches() {
  for (int half = 0; half < 2; ++half) read_rate(state_->buffer_bytes / 2);
}

double Limits::copy_seconds(const std::vector<std::byte*>& to, const std::vector<std::byte*>& from,
                            size_t bytes) {
  state_->bytes = bytes / static_cast<size_t>(state_->n_threads());
  state_->to = &to;
  state_->from = &from;
  return state_->run(State::Job::copy);
}

double Limits::write_seconds(const std::vector<std::byte*>& to, size_t bytes) {
  state_->bytes = bytes / static_cast<size_t>(state_->n_threads());
  state_->to = &to;
  return state_->run(State::Job::write);
}

double Limits::multiply_rate() {
  state_->duration = 0.004;
  state_->run(State::Job::multiply);
  double sum = 0;
  for (const double rate : state_->rate) sum += rate;
  return sum;
}

void Limits::other_work(double seconds) {
  state_->duration = seconds;
  state_->run(State::Job::multiply);
}

}  // namespace bench
