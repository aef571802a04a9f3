/// The CPU device beside attention: its threads, its memory, rows in and out of cells.
#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cpu/pages.hpp"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/attention/params.hpp"
#include "core/base/half.hpp"
#include "core/base/thread_pool.hpp"
#include "kernels/cpu/rows.hpp"
#include "support/float_environment.hpp"
#include "tests/unit/storage.hpp"
#include "unit/pool.hpp"

namespace {

using namespace kvc;

constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16};

/// Stores rows, moves and clears some, and reads them back: a few rotated on the way, from `first_dim` on.
void check_rows(DType storage_type, DType outer_type, bool transposed, int32_t first_dim) {
  static const PoolPointer pool = make_pool(2);
  std::mt19937 random(99);
  std::normal_distribution<float> normal;
  constexpr int64_t n_tokens = 70, n_heads = 3, dim = 40, n_cells = 100;
  std::vector<std::byte> k(n_heads * n_cells * dim * size_of(storage_type)), v = k;
  LayerStorage storage{.k = make_slab(k.data(), storage_type, n_heads, n_cells, dim),
                       .v = make_slab(v.data(), storage_type, n_heads, n_cells, dim)};
  std::vector<std::byte> in(n_tokens * n_heads * dim * size_of(outer_type)),
      in_v = in, out(in.size()), out_v(in.size());
  for (int64_t i = 0; i < n_tokens * n_heads * dim; ++i) {
    store_element(in.data(), outer_type, i, normal(random));
    store_element(in_v.data(), outer_type, i, normal(random));
  }
  const auto view = [&](std::vector<std::byte>& data) {
    Tensor t{.data = data.data(), .shape = {n_tokens, n_heads, dim}, .ndim = 3, .dtype = outer_type};
    const int64_t stride[2][3] = {{n_heads * dim, dim, 1}, {1, n_tokens, n_tokens * n_heads}};
    std::copy_n(stride[transposed ? 1 : 0], 3, t.stride);
    return t;
  };
  std::vector<int32_t> cell(n_tokens);
  for (int32_t i = 0; i < n_tokens; ++i)
    cell[static_cast<size_t>(i)] = static_cast<int32_t>((i * 37 + 5) % n_cells);
  constexpr size_t room = dim + dim + 1;  // floats of a thread
  std::vector<float> numbers(2 * room);
  std::vector<int32_t> turned(2 * room);
  const cpu::RowScratch scratch = {{numbers.data(), numbers.data() + dim, turned.data()},
                                   room * sizeof(float)};
  cpu::store_rows(
      {.storage = storage, .cell = cell.data(), .n_tokens = n_tokens, .k = view(in), .v = view(in_v)},
      *pool, scratch);

  std::vector<double> frequency;
  for (int32_t i = 0; i < 10; ++i) frequency.push_back(std::pow(100.0, -i / 10.0));
  const Rope rope{
      .frequency = frequency.data(), .n_dims = 20, .halves = transposed, .first_dim = first_dim};
  // Move a few, one of them rotated, one rotated in place; free cells are those that no token has.
  const int32_t from[] = {cell[0], cell[1], cell[2]},
                to[] = {(70 * 37 + 5) % n_cells, (71 * 37 + 5) % n_cells, cell[2]};
  const int32_t offset[] = {0, -7, 11};
  cpu::move_rows(
      {.storage = storage, .rope = rope, .from = from, .to = to, .offset = offset, .n_cells = 3},
      *pool);
  cpu::clear_rows({.storage = storage, .cell = &cell[3], .n_cells = 1}, *pool);
  std::vector<int32_t> wanted = cell, pending(n_tokens, 0);
  wanted[0] = to[0], wanted[1] = to[1], wanted[4] = -1;
  pending[5] = 13;
  cpu::load_rows({.storage = storage,
                  .rope = rope,
                  .cell = wanted.data(),
                  .offset = pending.data(),
                  .n_tokens = n_tokens,
                  .k = view(out),
                  .v = view(out_v)},
                 *pool, scratch);

  const auto stored = [&](float x) {
    uint32_t raw = 0;
    store_element(&raw, storage_type, 0, x);
    return load_element(&raw, storage_type, 0);
  };
  const double coarse = storage_type == DType::bf16 || outer_type == DType::bf16 ? 0.04 : 0.005;
  for (int64_t token = 0; token < n_tokens; ++token) {
    const int32_t rotated_by = token == 1 ? -7 : token == 2 ? 11 : token == 5 ? 13 : 0;
    for (int64_t head = 0; head < n_heads; ++head) {
      for (int32_t d = 0; d < dim; ++d) {
        const Tensor t = view(in);
        const auto at = [&](int64_t i) {
          return token * t.stride[0] + head * t.stride[1] + i * t.stride[2];
        };
        const bool gone = token == 3 || token == 4;
        const float k_in = stored(load_element(in.data(), outer_type, at(d)));
        double expected = k_in;
        const int32_t in_rope = d - first_dim;
        if (rotated_by != 0 && in_rope >= 0 && in_rope < rope.n_dims) {
          const int32_t half = rope.n_dims / 2;
          const int32_t pair = rope.halves ? in_rope % half : in_rope / 2;
          const bool first = rope.halves ? in_rope < half : in_rope % 2 == 0;
          const int32_t other = rope.halves ? (first ? d + half : d - half) : (first ? d + 1 : d - 1);
          const double partner = stored(load_element(in.data(), outer_type, at(other))),
                       angle = rotated_by * frequency[static_cast<size_t>(pair)];
          expected = first ? k_in * std::cos(angle) - partner * std::sin(angle)
                           : k_in * std::cos(angle) + partner * std::sin(angle);
        }
        const float k_out = load_element(out.data(), outer_type, at(d)),
                    v_out = load_element(out_v.data(), outer_type, at(d));
        if (gone) {
          ASSERT_EQ(k_out, 0.0f);
          ASSERT_EQ(v_out, 0.0f);
        } else if (rotated_by != 0) {
          ASSERT_NEAR(k_out, expected, coarse * 2) << token << " " << d;
        } else {
          uint32_t raw = 0;
          store_element(&raw, outer_type, 0, k_in);
          ASSERT_EQ(k_out, load_element(&raw, outer_type, 0)) << token << " " << head << " " << d;
        }
      }
    }
  }
}

TEST(Rows, StoreLoadMoveAndClear) {
  for (const DType storage_type : dtypes) {
    for (const DType outer_type : dtypes) {
      for (const bool transposed : {false, true}) {
        for (const int32_t first_dim : {0, 3, 20}) {
          check_rows(storage_type, outer_type, transposed, first_dim);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ThreadPool, EveryItemOnceAndNoThreadTwice) {
  const PoolPointer pool = make_pool(4);
  struct Job {
    std::vector<std::atomic<int32_t>> done{std::vector<std::atomic<int32_t>>(1000)};
    std::atomic<int32_t> running[4] = {};
    std::atomic<int32_t> wrong{0};
  };
  for (int32_t round = 0; round < 2000; ++round) {
    Job job;
    const int32_t n_items = 1 + round % 37;
    pool->run(
        n_items,
        [](void* context, int32_t item, int32_t thread) noexcept {
          Job& mine = *static_cast<Job*>(context);
          if (thread < 0 || thread >= 4 || mine.running[thread].fetch_add(1) != 0) mine.wrong++;
          mine.done[static_cast<size_t>(item)].fetch_add(1);
          mine.running[thread].fetch_sub(1);
        },
        &job);
    ASSERT_EQ(job.wrong, 0);
    for (int32_t i = 0; i < 1000; ++i)
      ASSERT_EQ(job.done[static_cast<size_t>(i)], i < n_items ? 1 : 0);
    if (round % 400 == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep
  }
}

TEST(ThreadPool, ManyCallersShareOnePool) {
  const PoolPointer pool = make_pool(3);
  std::vector<std::thread> callers;
  std::atomic<int32_t> wrong{0};
  for (int32_t c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int32_t round = 0; round < 500; ++round) {
        std::atomic<int32_t> sum{0};
        pool->run(
            20,
            [](void* context, int32_t item, int32_t) noexcept {
              static_cast<std::atomic<int32_t>*>(context)->fetch_add(item);
            },
            &sum);
        if (sum != 190) wrong++;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

/// The worker of a pool of two, whose caller is kept on one CPU.
class OneWorker : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(sched_getaffinity(0, sizeof all_, &all_), 0);
    if (CPU_COUNT(&all_) < 2) GTEST_SKIP() << "one CPU alone";
    while (!CPU_ISSET(caller_cpu_, &all_)) ++caller_cpu_;
    pool_ = make_pool(2);
    const cpu_set_t one = only(caller_cpu_);
    if (sched_setaffinity(0, sizeof one, &one) != 0) GTEST_SKIP() << "may not choose its CPU";
  }
  void TearDown() override { sched_setaffinity(0, sizeof all_, &all_); }

  static cpu_set_t only(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return set;
  }
  static cpu_set_t cpus_of(pid_t thread) {
    cpu_set_t set;
    CPU_ZERO(&set);
    EXPECT_EQ(sched_getaffinity(thread, sizeof set, &set), 0);
    return set;
  }

  /// Runs jobs until the worker has taken part; where it may run while it works.
  cpu_set_t at_work() {
    struct Seen {
      std::atomic<pid_t> worker{0};
      cpu_set_t cpus{};
    } seen;
    const auto look = [](void* context, int32_t, int32_t thread) noexcept {
      auto& out = *static_cast<Seen*>(context);
      if (thread == 1 && out.worker == 0) {
        out.cpus = cpus_of(0);
        out.worker = gettid();
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    };
    for (int i = 0; i < 1000 && seen.worker == 0; ++i) pool_->run(8, look, &seen);
    EXPECT_NE(seen.worker, 0) << "the worker never took part";
    worker_ = seen.worker;
    return seen.cpus;
  }

  /// Waits until the worker keeps away from the caller's CPU, as it does when it sleeps.
  bool keeps_away() const {
    for (int i = 0; i < 1000; ++i) {
      const cpu_set_t cpus = cpus_of(worker_);
      if (!CPU_ISSET(caller_cpu_, &cpus)) return CPU_COUNT(&cpus) == CPU_COUNT(&all_) - 1;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  cpu_set_t all_{};
  int caller_cpu_ = 0;
  pid_t worker_ = 0;
  PoolPointer pool_;
};

TEST_F(OneWorker, SleepsAwayFromTheCallerAndWorksAnywhere) {
  for (int i = 0; i < 3; ++i) {
    const cpu_set_t cpus = at_work();
    EXPECT_TRUE(CPU_EQUAL(&cpus, &all_)) << i;
    EXPECT_TRUE(keeps_away()) << i;
  }
}

TEST_F(OneWorker, KeepsToWhatSomebodyElseHasDecided) {
  at_work();
  ASSERT_TRUE(keeps_away());
  const cpu_set_t decided = only(caller_cpu_);
  ASSERT_EQ(sched_setaffinity(worker_, sizeof decided, &decided), 0);
  const cpu_set_t cpus = at_work();
  EXPECT_TRUE(CPU_EQUAL(&cpus, &decided));
}

TEST_F(OneWorker, WakesElsewhereThanACallerThatHasMoved) {
  at_work();
  ASSERT_TRUE(keeps_away());
  do caller_cpu_ = (caller_cpu_ + 1) % CPU_SETSIZE;
  while (!CPU_ISSET(caller_cpu_, &all_));
  const cpu_set_t one = only(caller_cpu_);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  std::atomic<int> woken_on{-1};
  const auto look = [](void* context, int32_t, int32_t thread) noexcept {
    int none = -1;
    if (thread == 1)
      static_cast<std::atomic<int>*>(context)->compare_exchange_strong(none, sched_getcpu());
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  };
  for (int i = 0; i < 1000 && woken_on < 0; ++i) pool_->run(8, look, &woken_on);
  ASSERT_GE(woken_on, 0) << "the worker never took part";
  EXPECT_NE(woken_on, caller_cpu_);
  const cpu_set_t cpus = at_work();
  EXPECT_TRUE(CPU_EQUAL(&cpus, &all_));
  EXPECT_TRUE(keeps_away());
}

// A thread inherits the environment of the one that starts it.
TEST(ThreadPool, WorkersComputeByDefaultWhoeverStartedThem) {
  struct Seen {
    std::atomic<int32_t> by_workers{0}, wrong{0};
  };
  for (const std::string& name : support::InEnvironment::names()) {
    PoolPointer pool;
    {
      const support::InEnvironment environment(name);
      pool = make_pool(2);
    }
    Seen seen;
    for (int i = 0; i < 10000 && seen.by_workers == 0; ++i) {
      pool->run(
          8,
          [](void* context, int32_t, int32_t thread) noexcept {
            Seen& mine = *static_cast<Seen*>(context);
            if (thread == 0) return std::this_thread::sleep_for(std::chrono::microseconds(10));
            ++mine.by_workers;
            if (!support::computes_by_default()) ++mine.wrong;
          },
          &seen);
    }
    EXPECT_GT(seen.by_workers, 0) << name;
    EXPECT_EQ(seen.wrong, 0) << name;
  }
}

TEST(ThreadPool, RefusesWhatItCannotDo) {
  ThreadPool* pool = nullptr;
  EXPECT_EQ(ThreadPool::create(-1, &pool), Status::invalid_argument);
  EXPECT_EQ(pool, nullptr);
  ASSERT_EQ(ThreadPool::create(0, &pool), Status::ok);
  EXPECT_GE(pool->n_threads(), 1);
  ThreadPool::destroy(pool);
}

/// On a machine with pages of 64 KiB, munmap would refuse addresses that are multiples of 4096 alone, and what lies beyond
/// a block would stay mapped.
TEST(CpuDevice, CutsBlocksFromMappingsAtPagesOfAnySize) {
  for (const size_t page : {size_t{4} << 10, size_t{16} << 10, size_t{64} << 10}) {
    for (const size_t bytes :
         {size_t{1}, size_t{5000}, size_t{70000}, size_t{2} << 20, (size_t{3} << 20) + 4096}) {
      const size_t alignment = cpu::alignment_for(bytes);
      const cpu::MappingSize mapping = cpu::mapping_for(bytes, alignment, page);
      EXPECT_GE(mapping.wanted, bytes);
      EXPECT_LT(mapping.wanted, bytes + page);
      EXPECT_EQ(mapping.bytes % page, 0u);
      for (uintptr_t address = uintptr_t{5} << 20; address < uintptr_t{7} << 20; address += page) {
        const auto [front, back] = cpu::ends_of(address, mapping, alignment);
        EXPECT_EQ((address + front) % alignment, 0u);
        EXPECT_EQ(front % page, 0u);
        EXPECT_EQ(back % page, 0u);
        EXPECT_EQ(front + mapping.wanted + back, mapping.bytes);
      }
    }
    EXPECT_EQ(cpu::mapping_for(SIZE_MAX - 10, 4096, page).bytes, 0u);
    EXPECT_EQ(cpu::mapping_for(SIZE_MAX - (size_t{1} << 20), cpu::huge_page, page).bytes, 0u);
  }
}

TEST(CpuDevice, AllocatesZerosWhereAskedTo) {
  std::shared_ptr<Device> device;
  ASSERT_EQ(cpu::CpuDevice::create({.n_threads = 1}, &device), Status::ok);
  for (const size_t bytes : {size_t{1}, size_t{5000}, size_t{3} << 20}) {
    auto* block = static_cast<unsigned char*>(device->allocate(Place::device, bytes, true));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(block) % (bytes >= (size_t{2} << 20) ? size_t{2} << 20 : 4096),
        0u);
    EXPECT_EQ(block[0], 0);
    EXPECT_EQ(block[bytes - 1], 0);
    device->release(Place::device, block, bytes);
  }
  EXPECT_EQ(device->allocate(Place::device, SIZE_MAX - 10, false), nullptr);

  struct Host {
    int32_t live = 0;
    bool refuse = false;
  } host;
  Allocator allocator;
  allocator.user = &host;
  allocator.alloc = [](void* user, size_t bytes, size_t alignment) -> void* {
    auto* mine = static_cast<Host*>(user);
    if (mine->refuse) return nullptr;
    mine->live++;
    void* block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    std::memset(block, 0xee, bytes);
    return block;
  };
  allocator.free = [](void* user, void* block, size_t, size_t) {
    static_cast<Host*>(user)->live--;
    std::free(block);
  };
  ASSERT_EQ(cpu::CpuDevice::create({.n_threads = 1, .allocator = &allocator}, &device), Status::ok);
  auto* block = static_cast<unsigned char*>(device->allocate(Place::device, 10000, false));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(block[9999], 0);
  EXPECT_EQ(host.live, 1);
  device->release(Place::device, block, 10000);
  EXPECT_EQ(host.live, 0);
  host.refuse = true;
  EXPECT_EQ(device->allocate(Place::device, 10, false), nullptr);
}

TEST(CpuDevice, ReadsAndWritesStoredBytes) {
  std::shared_ptr<Device> device;
  ASSERT_EQ(cpu::CpuDevice::create({.n_threads = 1}, &device), Status::ok);
  std::unique_ptr<CacheDevice> cache;
  ASSERT_EQ(device->attach({}, nullptr, &cache), Status::ok);
  constexpr int32_t n_cells = 9, dim = 5;
  std::vector<std::byte> memory(2 * (n_cells * dim * 2 + 6), std::byte{0x55});
  const Slab slab = make_slab(memory.data(), DType::f16, 2, n_cells, dim, 6);
  const int32_t cell[] = {7, 0, 3};
  std::byte wrote[3 * 4];
  for (size_t i = 0; i < sizeof wrote; ++i) wrote[i] = static_cast<std::byte>(i + 1);
  RowBytes rows = {.plane = slab.codes,
                   .head = 1,
                   .cell = cell,
                   .n_rows = 3,
                   .first_byte = 4,
                   .n_bytes = 4,
                   .data = wrote};
  ASSERT_EQ(cache->write_rows(rows), Status::ok);
  for (int32_t i = 0; i < 3; ++i)
    EXPECT_EQ(std::memcmp(slab.row(1, cell[i]) + 4, wrote + 4 * i, 4), 0);
  EXPECT_EQ(std::count(memory.begin(), memory.end(), std::byte{0x55}),
            static_cast<std::ptrdiff_t>(memory.size() - sizeof wrote));
  std::byte read[sizeof wrote] = {};
  rows.data = read;
  ASSERT_EQ(cache->read_rows(rows), Status::ok);
  EXPECT_EQ(std::memcmp(read, wrote, sizeof wrote), 0);
}

TEST(Registry, KeepsTheFirstOfAName) {
  static const DeviceEntry mine = {.name = "registry test", .open = cpu::CpuDevice::create};
  EXPECT_EQ(find_device(mine.name), nullptr);
  EXPECT_TRUE(register_device(mine));
  EXPECT_FALSE(register_device(mine));
  ASSERT_NE(find_device(mine.name), nullptr);
  EXPECT_EQ(find_device(mine.name)->open, mine.open);
  EXPECT_EQ(find_device("no such device"), nullptr);
  EXPECT_EQ(registered_device(-1), nullptr);
  EXPECT_EQ(registered_device(INT32_MAX), nullptr);
}

}  // namespace
