// The calls on states of the simulated CUDA device beside those of the CPU: the same bytes in every slot and every row, for more slots
// and more tokens than a launch has room for, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <vector>

#include "core/base/half.hpp"
#include "kernels/cpu/states.hpp"
#include "kernels/cuda/state_params.hpp"
#include "kernels/cuda/states.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"

namespace {

using namespace kvc;
using cuda::Error;
using support::Random;

constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr StorageType types[] = {StorageType::f32, StorageType::f16, StorageType::bf16};

/// A part of states in memory of its own, and rows of a tensor.
struct Side {
  std::vector<std::byte> slots, rows;

  StatePart part(StatePart like) {
    like.data = slots.data() + 16;
    return like;
  }
};

class Beside {
 public:
  Beside(uint64_t seed, int64_t n_elements, int32_t n_slots) : random_(seed), n_slots_(n_slots) {
    EXPECT_EQ(ThreadPool::create(1, &pool_), Status::ok);
    simt::device::set_seed(static_cast<unsigned>(seed));
    part_.type = types[random_.below(3)];
    part_.n_elements = n_elements;
    part_.n_slots = n_slots;
    part_.slot_bytes = part_.bytes() + static_cast<size_t>(random_.below(3)) * 4;
    cpu_.slots.resize(part_.slot_bytes * static_cast<size_t>(n_slots) + 16);
    for (std::byte& byte : cpu_.slots) byte = static_cast<std::byte>(random_.bits() & 0xbf);
    cuda_.slots = cpu_.slots;
  }
  ~Beside() { ThreadPool::destroy(pool_); }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  /// Rows of a tensor whose dimensions lie in any order, with gaps.
  void rows(bool loads, int32_t n) {
    StateRows params;
    params.n_rows = n;
    params.row.dtype = dtypes[random_.below(3)];
    const int64_t n_elements = part_.n_elements;
    const int64_t inner = n_elements % 6 == 0 ? random_.pick({1, 2, 3, 6}) : 1;
    const int64_t extents[] = {n_elements / inner, inner};
    params.row.ndim = 2;
    const bool turned = random_.chance(0.5);
    const int64_t gap = random_.below(2);
    for (int32_t d = 0; d < 2; ++d) params.row.shape[d] = extents[d];
    params.row.stride[turned ? 0 : 1] = 1 + random_.below(2) * random_.below(2);
    const int64_t fast = extents[turned ? 0 : 1] * params.row.stride[turned ? 0 : 1];
    params.row.stride[turned ? 1 : 0] = fast + gap;
    params.row_stride = (fast + gap) * extents[turned ? 1 : 0] + gap;
    const size_t bytes = static_cast<size_t>(params.row_stride * n + 8) * size_of(params.row.dtype);
    cpu_.rows.resize(bytes);
    for (std::byte& byte : cpu_.rows) byte = static_cast<std::byte>(random_.bits() & 0xbf);
    cuda_.rows = cpu_.rows;
    const std::vector<int32_t> slots = some_slots(n);
    params.slot = slots.data();
    const auto on = [&](Side& side) {
      StateRows made = params;
      made.part = side.part(part_);
      made.row.data = side.rows.data();
      return made;
    };
    if (loads) {
      cpu::load_states(on(cpu_), *pool_);
      ASSERT_EQ(cuda::load_states(on(cuda_), launcher()), Error::none);
    } else {
      cpu::store_states(on(cpu_), *pool_);
      ASSERT_EQ(cuda::store_states(on(cuda_), launcher()), Error::none);
    }
    compare(loads ? "load" : "store");
  }

  void convolution(int32_t n_channels, int32_t n_rows, int32_t most_tokens) {
    ConvRows params;
    params.n_channels = n_channels;
    params.width = static_cast<int32_t>(part_.n_elements / n_channels);
    params.n_rows = n_rows;
    const std::vector<int32_t> slots = some_slots(2 * n_rows);
    std::vector<ConvRow> rows;
    int32_t n_tokens = 0;
    for (int32_t i = 0; i < n_rows; ++i) {
      rows.push_back({slots[static_cast<size_t>(2 * i)], slots[static_cast<size_t>(2 * i + 1)],
                      n_tokens, random_.between(1, most_tokens)});
      n_tokens += rows.back().n_tokens;
    }
    std::vector<int32_t> order(static_cast<size_t>(n_tokens));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(random_.below(static_cast<int32_t>(i)))]);
    params.row = rows.data();
    params.order = order.data();
    params.x.dtype = dtypes[random_.below(3)];
    params.x.ndim = 2;
    params.x.shape[0] = n_tokens;
    params.x.shape[1] = n_channels;
    params.x.stride[1] = random_.between(1, 2);
    params.x.stride[0] = n_channels * params.x.stride[1] + random_.below(3);
    cpu_.rows.resize(static_cast<size_t>(params.x.stride[0] * n_tokens + 8) * 4);
    for (std::byte& byte : cpu_.rows) byte = static_cast<std::byte>(random_.bits() & 0xbf);
    cuda_.rows = cpu_.rows;
    const auto on = [&](Side& side) {
      ConvRows made = params;
      made.part = side.part(part_);
      made.x.data = side.rows.data();
      return made;
    };
    cpu::store_conv(on(cpu_), *pool_);
    ASSERT_EQ(cuda::store_conv(on(cuda_), launcher()), Error::none);
    compare("convolution");
  }

  void copies(bool from_another) {
    const int32_t n = n_slots_ / 2;
    const std::vector<int32_t> slots = some_slots(2 * n);
    Side other = {cpu_.slots, {}};
    std::reverse(other.slots.begin(), other.slots.end());
    const StatePart source = other.part(part_);
    const auto on = [&](Side& side) {
      return StateCopies{side.part(part_), from_another ? &source : nullptr, slots.data(),
                         slots.data() + n, n};
    };
    cpu::copy_states(on(cpu_), *pool_);
    ASSERT_EQ(cuda::copy_states(on(cuda_), launcher()), Error::none);
    compare("copy");
  }

  void clears() {
    const std::vector<int32_t> slots = some_slots(n_slots_ / 2);
    const auto on = [&](Side& side) {
      return StateClears{side.part(part_).data, part_.slot_bytes, part_.bytes(), slots.data(),
                         static_cast<int32_t>(slots.size())};
    };
    cpu::clear_states(on(cpu_), *pool_);
    ASSERT_EQ(cuda::clear_states(on(cuda_), launcher()), Error::none);
    compare("clear");
  }

  Random random_;

 private:
  cuda::Launcher launcher() { return {nullptr, random_.between(1, 6)}; }
  std::vector<int32_t> some_slots(int32_t n) {
    std::vector<int32_t> all(static_cast<size_t>(n_slots_));
    std::iota(all.begin(), all.end(), 0);
    for (size_t i = all.size(); i > 1; --i)
      std::swap(all[i - 1], all[static_cast<size_t>(random_.below(static_cast<int32_t>(i)))]);
    all.resize(static_cast<size_t>(n));
    return all;
  }
  void compare(const char* what) {
    ASSERT_EQ(cuda::runtime::synchronize(nullptr), Error::none);
    ASSERT_TRUE(cpu_.slots == cuda_.slots) << what;
    ASSERT_TRUE(cpu_.rows == cuda_.rows) << what;
  }

  const int32_t n_slots_;
  ThreadPool* pool_ = nullptr;
  StatePart part_;
  Side cpu_, cuda_;
};

TEST(CudaStateKernels, DoWhatTheCpuDoes) {
  constexpr uint64_t seed = 20261130;
  std::cout << "seeds from " << seed << std::endl;
  struct Size {
    int64_t n_elements;
    int32_t n_slots;
  };
  uint64_t next = seed;
  for (const Size& size : {Size{1, 9}, Size{37, 12}, Size{1024, 6}, Size{3000, 6}, Size{4098, 4},
                           Size{6, 2 * cuda::launch_slots + 30}}) {
    SCOPED_TRACE("seed " + std::to_string(next) + ", elements " + std::to_string(size.n_elements));
    for (int32_t round = 0; round < 3; ++round) {
      Beside beside(next++, size.n_elements, size.n_slots);
      for (int32_t i = 0; i < 3 && !HasFatalFailure(); ++i) {
        const int32_t n = beside.random_.chance(0.5) ? size.n_slots
                                                     : beside.random_.between(1, size.n_slots);
        beside.rows(i % 2 == 0, n);
        beside.rows(i % 2 != 0, n);
        beside.copies(beside.random_.chance(0.5));
        beside.clears();
      }
      if (HasFatalFailure()) return;
    }
  }
}

/// Pieces of a launch hold a part of a row's columns where its tokens do not all fit in.
TEST(CudaStateKernels, ConvolutionsOfAnyWidth) {
  struct Size {
    int32_t n_channels, width, n_rows, most_tokens;
  };
  uint64_t seed = 20261230;
  std::cout << "seeds from " << seed << std::endl;
  for (const Size& size : {Size{5, 3, 4, 6}, Size{1, 1, 3, 2}, Size{300, 4, 3, 5},
                           Size{40, 70, 2, 80}, Size{2, 4, cuda::launch_slots + 9, 5},
                           Size{1, 3, 900, 9}, Size{2, cuda::launch_tokens + 500, 2, 3000}}) {
    SCOPED_TRACE("seed " + std::to_string(seed) + ", width " + std::to_string(size.width));
    Beside beside(seed++, int64_t{size.n_channels} * size.width, 2 * size.n_rows + 1);
    for (int32_t i = 0; i < 3; ++i) {
      beside.convolution(size.n_channels, size.n_rows, size.most_tokens);
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
