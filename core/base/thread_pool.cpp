#include "core/base/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>

#include "core/base/float_environment.hpp"
#include "core/base/thread_start.hpp"

namespace kvc {
namespace {

constexpr int32_t max_threads = 256;

/// How long a worker looks for the next job before it sleeps. Decode calls come layer by layer, some tens of
/// microseconds apart; waking a sleeper costs 50 µs and more on a virtual machine.
constexpr auto worker_spin = std::chrono::microseconds(40);

/// How long the caller looks for the end of the items that workers still hold. When a worker shares the caller's
/// core, it finishes only after the caller has gone to sleep.
constexpr auto caller_spin = std::chrono::microseconds(30);

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Spins until `done()` or for `limit`; true when done.
template <class Done>
bool spin(std::chrono::microseconds limit, Done done) noexcept {
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int32_t i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

/// Where a worker may run while it sleeps: on all that it was allowed, but for the caller's CPU. Linux in a virtual machine
/// takes a CPU that sleeps for one that the host has taken away, and so wakes a thread on the CPU of the one that wakes it,
/// where it waits for milliseconds while other CPUs are idle.
///
/// A caller that has moved in the meantime moves the sleeper's place, too: of two CPUs it would be the caller's own.
class SleepingPlace {
 public:
  /// The worker, before it sleeps.
  void enter(int cpu) noexcept {
    const Guard guard(*this);
    thread_ = pthread_self();
    asleep_ = pthread_getaffinity_np(thread_, sizeof before_, &before_) == 0;
    now_ = before_;
    if (asleep_) keep_away_from(cpu);
  }

  /// A caller, whether the worker sleeps or not.
  void caller_moved(int cpu) noexcept {
    if (locked_.test_and_set(std::memory_order_acquire)) return;  // it is awake, or about to be
    if (asleep_ && is_as_left()) keep_away_from(cpu);
    locked_.clear(std::memory_order_release);
  }

  /// The worker, when it has woken. Takes nothing back when somebody else has decided meanwhile.
  void leave() noexcept {
    const Guard guard(*this);
    if (asleep_ && !CPU_EQUAL(&now_, &before_) && is_as_left())
      pthread_setaffinity_np(thread_, sizeof before_, &before_);
    asleep_ = false;
  }

 private:
  struct Guard {
    explicit Guard(SleepingPlace& place) noexcept : locked(place.locked_) {
      while (locked.test_and_set(std::memory_order_acquire))
        relax();  // for a system call of a caller's
    }
    ~Guard() { locked.clear(std::memory_order_release); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    std::atomic_flag& locked;
  };

  bool is_as_left() const noexcept {
    cpu_set_t mask;
    return pthread_getaffinity_np(thread_, sizeof mask, &mask) == 0 && CPU_EQUAL(&mask, &now_);
  }

  void keep_away_from(int cpu) noexcept {
    cpu_set_t others = before_;
    if (cpu >= 0 && cpu < CPU_SETSIZE) CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0 || CPU_EQUAL(&others, &now_)) return;
    if (pthread_setaffinity_np(thread_, sizeof others, &others) == 0) now_ = others;
  }

  std::atomic_flag locked_;
  bool asleep_ = false;
  pthread_t thread_{};
  cpu_set_t before_{};
  cpu_set_t now_{};
};

/// What remains of the current job, in one word: its number and how many items nobody has taken yet. A worker that
/// comes late holds an old word, and its attempt to take an item fails.
constexpr uint64_t word_of(uint32_t job, uint32_t remaining) {
  return static_cast<uint64_t>(job) << 32 | remaining;
}
constexpr uint32_t remaining_of(uint64_t word) { return static_cast<uint32_t>(word); }

/// CPUs that a cgroup quota file grants, rounded up; 0 when there is no limit.
int32_t quota_of(const char* quota_path, const char* period_path) noexcept {
  char text[64] = {};
  FILE* file = std::fopen(quota_path, "re");
  if (!file) return 0;
  const size_t n_read = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  long long quota = 0;
  long long period = 0;
  if (n_read == 0) return 0;
  if (!period_path) {
    if (std::sscanf(text, "%lld %lld", &quota, &period) != 2) return 0;  // "max 100000": no limit
  } else {
    if (std::sscanf(text, "%lld", &quota) != 1) return 0;
    file = std::fopen(period_path, "re");
    if (!file) return 0;
    const int n_fields = std::fscanf(file, "%lld", &period);
    std::fclose(file);
    if (n_fields != 1) return 0;
  }
  if (quota <= 0 || period <= 0) return 0;
  const long long cpus = (quota + period - 1) / period;
  return cpus < max_threads ? static_cast<int32_t>(cpus) : max_threads;
}

int32_t allowed_threads() noexcept {
  cpu_set_t mask;
  int32_t n_threads = 1;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
    n_threads = CPU_COUNT(&mask);
  } else {
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    if (online > 0) n_threads = static_cast<int32_t>(online);
  }
  int32_t quota = quota_of("/sys/fs/cgroup/cpu.max", nullptr);
  if (quota == 0) {
    quota = quota_of("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  }
  if (quota > 0 && quota < n_threads) n_threads = quota;
  if (n_threads > max_threads) n_threads = max_threads;
  return n_threads > 0 ? n_threads : 1;
}

}  // namespace

struct ThreadPool::State {
  struct Worker {
    State* state = nullptr;
    int32_t thread = 0;
    pthread_t handle{};
    SleepingPlace place;
  };

  // The job. Written while no item is to be had, read only by those who have taken one.
  Work work = nullptr;
  void* context = nullptr;
  uint32_t n_items = 0;
  uint32_t job = 0;

  alignas(64) std::atomic<uint64_t> word{0};     // see word_of
  alignas(64) std::atomic<uint32_t> pending{0};  // items not finished
  std::atomic<uint32_t> caller_sleeps{0};
  alignas(64) std::atomic<uint32_t> bell{0};  // changes when sleepers are to look again
  std::atomic<int32_t> n_sleeping{0};
  std::atomic<int> caller_cpu{-1};  // of the last job
  std::atomic<bool> stop{false};
  std::atomic<int32_t> n_arrived{0};  // workers that run
  alignas(64) std::atomic<bool> busy{false};

  int32_t n_threads = 1;
  int32_t n_started = 0;
  pid_t owner = 0;
  Worker* workers = nullptr;

  bool take_and_run(int32_t thread) noexcept;
  void wake_one() noexcept;
  void serve(Worker& worker) noexcept;
  void note_caller() noexcept;
  void arrive() noexcept;
  void await_arrivals() noexcept;
  static void* start(void* argument) noexcept;
};

/// Takes one item and runs it; false when there is none.
bool ThreadPool::State::take_and_run(int32_t thread) noexcept {
  uint64_t seen = word.load(std::memory_order_acquire);
  do {
    if (remaining_of(seen) == 0) return false;
  } while (!word.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel,
                                       std::memory_order_acquire));
  // Having taken an item of this job we keep it open: its fields cannot change under us.
  work(context, static_cast<int32_t>(n_items - remaining_of(seen)), thread);
  if (pending.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
      caller_sleeps.load(std::memory_order_seq_cst) != 0) {
    pending.notify_one();
  }
  return true;
}

void ThreadPool::State::wake_one() noexcept {
  if (n_sleeping.load(std::memory_order_seq_cst) == 0) return;
  bell.fetch_add(1, std::memory_order_seq_cst);
  bell.notify_one();
}

/// Remembers where the caller is. Costs system calls only when it has moved and somebody sleeps.
void ThreadPool::State::note_caller() noexcept {
  const int cpu = sched_getcpu();
  if (caller_cpu.exchange(cpu, std::memory_order_seq_cst) == cpu ||
      n_sleeping.load(std::memory_order_seq_cst) == 0)
    return;
  for (int32_t i = 1; i <= n_started; ++i) workers[i].place.caller_moved(cpu);
}

void ThreadPool::State::serve(Worker& worker) noexcept {
  const auto something_to_do = [this]() noexcept {
    return remaining_of(word.load(std::memory_order_acquire)) != 0 ||
           stop.load(std::memory_order_relaxed);
  };
  while (!stop.load(std::memory_order_acquire)) {
    while (take_and_run(worker.thread)) {
    }
    if (spin(worker_spin, something_to_do)) continue;
    worker.place.enter(caller_cpu.load(std::memory_order_relaxed));
    // Announce the sleep, then look once more: the caller rings only when it sees a sleeper.
    const uint32_t rung = bell.load(std::memory_order_seq_cst);
    n_sleeping.fetch_add(1, std::memory_order_seq_cst);
    if (remaining_of(word.load(std::memory_order_seq_cst)) == 0 &&
        !stop.load(std::memory_order_seq_cst)) {
      bell.wait(rung, std::memory_order_seq_cst);
    }
    n_sleeping.fetch_sub(1, std::memory_order_seq_cst);
    worker.place.leave();
    // Each that wakes wakes one more, so that the caller pays for one wake-up however many workers there are.
    if (remaining_of(word.load(std::memory_order_seq_cst)) > 1) wake_one();
  }
}

void ThreadPool::State::arrive() noexcept {
  n_arrived.fetch_add(1, std::memory_order_release);
  n_arrived.notify_one();
}

void ThreadPool::State::await_arrivals() noexcept {
  for (int32_t n = n_arrived.load(std::memory_order_acquire); n < n_started;
       n = n_arrived.load(std::memory_order_acquire)) {
    n_arrived.wait(n, std::memory_order_acquire);
  }
}

void* ThreadPool::State::start(void* argument) noexcept {
  auto* worker = static_cast<Worker*>(argument);
  const FloatEnvironment environment;  // a thread inherits that of the one that starts it
  worker->state->arrive();
  worker->state->serve(*worker);
  return nullptr;
}

Status ThreadPool::create(int32_t n_threads, ThreadPool** out) noexcept {
  *out = nullptr;
  if (n_threads < 0 || n_threads > max_threads) {
    return fail(Status::invalid_argument, "n_threads %d out of range [0, %d]", n_threads, max_threads);
  }
  if (n_threads == 0) n_threads = allowed_threads();
  auto* pool = new (std::nothrow) ThreadPool;
  auto* state = new (std::nothrow) State;
  auto* workers = new (std::nothrow) State::Worker[static_cast<size_t>(n_threads)];
  if (!pool || !state || !workers) {
    delete pool;
    delete state;
    delete[] workers;
    return fail(Status::out_of_memory, "no memory for a pool of %d threads", n_threads);
  }
  pool->state_ = state;
  state->workers = workers;
  state->n_threads = n_threads;
  state->owner = getpid();

  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // a thread inherits the mask of the one that starts it
  const ThreadStart start_thread;
  int error = 0;
  for (int32_t i = 1; i < n_threads && error == 0; ++i) {
    workers[i].state = state;
    workers[i].thread = i;
    error = start_thread(&workers[i].handle, State::start, &workers[i]);
    if (error == 0) state->n_started = i;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) {
    const int32_t n_started = state->n_started;
    destroy(pool);
    return fail(
        Status::out_of_memory, "%d of %d threads started, then the system refused one: errno %d%s",
        n_started + 1, n_threads, error,
        error == EAGAIN ? " (EAGAIN: a limit on threads or memory, see ulimit -u, ulimit -v "
                          "and pids.max of the cgroup)"
                        : "");
  }
  // What a runtime allocates for a thread that starts (sanitizers do) falls into create too.
  state->await_arrivals();
  *out = pool;
  return Status::ok;
}

void ThreadPool::destroy(ThreadPool* pool) noexcept {
  if (!pool) return;
  State* state = pool->state_;
  // A forked child has inherited the pool without its threads: there is nobody to stop and nobody to wait for.
  if (state->owner == getpid()) {
    state->stop.store(true, std::memory_order_seq_cst);
    state->bell.fetch_add(1, std::memory_order_seq_cst);
    state->bell.notify_all();
    for (int32_t i = 1; i <= state->n_started; ++i) pthread_join(state->workers[i].handle, nullptr);
  }
  delete[] state->workers;
  delete state;
  delete pool;
}

int32_t ThreadPool::n_threads() const noexcept { return state_->n_threads; }

void ThreadPool::run(int32_t n_items, Work work, void* context) noexcept {
  State& state = *state_;
  if (n_items <= 0) return;
  if (n_items == 1 || state.n_threads == 1 || state.busy.exchange(true, std::memory_order_acquire)) {
    for (int32_t item = 0; item < n_items; ++item) work(context, item, 0);
    return;
  }
  const auto count = static_cast<uint32_t>(n_items);
  state.work = work;
  state.context = context;
  state.n_items = count;
  state.pending.store(count, std::memory_order_relaxed);
  state.word.store(word_of(++state.job, count), std::memory_order_seq_cst);
  state.note_caller();
  state.wake_one();
  while (state.take_and_run(0)) {
  }
  const auto finished = [&state]() noexcept {
    return state.pending.load(std::memory_order_acquire) == 0;
  };
  if (!spin(caller_spin, finished)) {
    state.caller_sleeps.store(1, std::memory_order_seq_cst);
    for (uint32_t left = state.pending.load(std::memory_order_seq_cst); left != 0;
         left = state.pending.load(std::memory_order_seq_cst)) {
      state.pending.wait(left, std::memory_order_seq_cst);
    }
    state.caller_sleeps.store(0, std::memory_order_relaxed);
  }
  state.busy.store(false, std::memory_order_release);
}

}  // namespace kvc
