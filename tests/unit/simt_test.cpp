/// The shim that runs kernels on the CPU (tests/simt): what it must notice, and its instructions.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/cuda/ptx.cuh"
#include "support/random.hpp"

namespace kvc::cuda {
namespace {

/// The message of the first of `seeds` orders that goes wrong.
std::string complaint(unsigned threads, const std::function<void()>& body, unsigned seeds = 1) {
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    try {
      simt::launch(2, threads, 4096, body, {.seed = seed});
    } catch (const simt::Error& error) {
      return error.what();
    }
  }
  return "";
}

TEST(Simt, OrderedBarriersAndCollectivesPass) {
  const auto body = [] {
    sync_block();
    (void)shuffle_xor(1.0f, 3);
    sync_warp();
    sync_block();
  };
  EXPECT_EQ(complaint(128, body, 20), "");
}

TEST(Simt, FindsABarrierThatSomeThreadsMiss) {
  const auto body = [] {
    if (thread_index() < 64) sync_block();
  };
  EXPECT_NE(complaint(128, body).find("deadlock: thread"), std::string::npos);
}

TEST(Simt, FindsAWarpBarrierThatALaneMisses) {
  const auto body = [] {
    if (thread_index() != 5) sync_warp();
  };
  EXPECT_NE(complaint(32, body).find("waits in bar.warp.sync"), std::string::npos);
}

TEST(Simt, FindsLanesInDifferentCollectives) {
  const auto body = [] {
    if (thread_index() < 16) {
      (void)shuffle(1, 0);
    } else {
      sync_warp();
    }
  };
  EXPECT_NE(complaint(32, body).find("while its warp is in"), std::string::npos);
}

TEST(Simt, FindsAMisalignedLoad) {
  alignas(16) static const char bytes[64] = {};
  EXPECT_NE(complaint(32, [] { (void)load_stream(bytes + 8); }).find("16 bytes loaded from"),
            std::string::npos);
}

/// Passes 16 numbers of a thread through shared memory by an asynchronous copy; with the wait for it or without.
bool arrives(bool waits, bool reads) {
  alignas(16) static const float from[4] = {1, 2, 3, 4};
  bool right = false;
  simt::launch(1, 32, 4096, [&] {
    if (thread_index() != 0) return;
    float* const to = reinterpret_cast<float*>(shared_memory() + 64);
    std::fill_n(to, 4, 7.0f);
    copy_async(shared_address() + 64, from, reads);
    end_copy_group();
    if (waits) wait_for_copies<0>();
    right = true;
    for (int i = 0; i < 4; ++i) right = right && to[i] == (reads ? from[i] : 0.0f);
  });
  return right;
}

TEST(Simt, CopiesLandWhenTheyAreWaitedFor) {
  EXPECT_TRUE(arrives(true, true));
  EXPECT_TRUE(arrives(true, false));
  EXPECT_FALSE(arrives(false, true));
  EXPECT_FALSE(arrives(false, false));
}

TEST(Simt, AWaitLeavesTheLastGroupsOnTheirWay) {
  alignas(16) static const float from[4] = {1, 2, 3, 4};
  bool has_first = false, has_second = true;
  simt::launch(1, 32, 4096, [&] {
    if (thread_index() != 0) return;
    const float* const shared = reinterpret_cast<float*>(shared_memory());
    copy_async(shared_address(), from, true);
    end_copy_group();
    copy_async(shared_address() + 16, from, true);
    end_copy_group();
    wait_for_copies<1>();
    has_first = shared[3] == 4;
    has_second = shared[7] == 4;
    wait_for_copies<0>();
    if (shared[7] != 4) has_second = true;
  });
  EXPECT_TRUE(has_first);
  EXPECT_FALSE(has_second);
}

TEST(Simt, FindsACopyThatIsMisalignedOrLeavesSharedMemory) {
  alignas(16) static const char bytes[64] = {};
  EXPECT_NE(
      complaint(32, [] { copy_async(shared_address() + 8, bytes, true); }).find("16 bytes copied"),
      std::string::npos);
  EXPECT_NE(
      complaint(32, [] { copy_async(shared_address() + 4096, bytes, true); }).find("a copy to byte 4096"),
      std::string::npos);
}

TEST(Simt, MatricesComeInRowsAndTransposed) {
  const auto element = [](int matrix, int row, int column) {
    return static_cast<uint32_t>(matrix * 64 + row * 8 + column);
  };
  const auto body = [&] {
    auto* const numbers = reinterpret_cast<uint16_t*>(shared_memory());
    for (int i = thread_index(); i < 256; i += 32) numbers[i] = static_cast<uint16_t>(i);
    sync_warp();
    const int lane = thread_index();
    uint32_t plain[4], transposed[4];
    load_matrices(plain, shared_address() + static_cast<uint32_t>(lane) * 16);
    load_matrices_transposed(transposed, shared_address() + static_cast<uint32_t>(lane) * 16);
    for (int m = 0; m < 4; ++m) {
      const int g = lane / 4, t = lane % 4;
      if (plain[m] != (element(m, g, 2 * t) | element(m, g, 2 * t + 1) << 16))
        simt::fail("matrix %d of lane %d", m, lane);
      if (transposed[m] != (element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16))
        simt::fail("transpose %d of lane %d", m, lane);
    }
  };
  EXPECT_EQ(complaint(32, body), "");
  EXPECT_NE(complaint(32,
                      [] {
                        uint32_t m[4];
                        load_matrices(m, shared_address() + 4);
                      })
                .find("a row of a matrix at 4"),
            std::string::npos);
}

TEST(Simt, UnwrittenSharedMemoryIsNaN) {
  float seen = 0;
  simt::launch(1, 32, 4096, [&] { seen = reinterpret_cast<float*>(shared_memory())[7]; });
  EXPECT_TRUE(std::isnan(seen));
}

/// Reverses blocks of 128 numbers by way of shared memory, with or without the barrier between write and read, and the one
/// before the next write.
bool reverses(unsigned seed, bool first_barrier, bool second_barrier) {
  constexpr int n = 1024;
  std::vector<int> out(n, -1);
  simt::launch(1, 128, 512,
               [&] {
                 int* const stage = reinterpret_cast<int*>(shared_memory());
                 for (int begin = 0; begin < n; begin += 128) {
                   stage[thread_index()] = begin + thread_index();
                   if (first_barrier) sync_block();
                   out[static_cast<size_t>(begin + thread_index())] = stage[127 - thread_index()];
                   if (second_barrier) sync_block();
                   (void)shuffle(1, 0);
                 }
               },
               {.seed = seed});
  for (int i = 0; i < n; ++i) {
    if (out[static_cast<size_t>(i)] != i / 128 * 128 + 127 - i % 128) return false;
  }
  return true;
}

TEST(Simt, AMissingBarrierShows) {
  int right = 0, without_first = 0, without_second = 0;
  for (unsigned seed = 1; seed <= 40; ++seed) {
    right += reverses(seed, true, true);
    without_first += reverses(seed, false, true);
    without_second += reverses(seed, true, false);
  }
  EXPECT_EQ(right, 40);
  EXPECT_LT(without_first, 10);
  EXPECT_LT(without_second, 10);
}

TEST(Simt, OrdersDependOnTheSeedAlone) {
  const auto order = [](unsigned seed) {
    std::vector<int> blocks;
    simt::launch(16, 32, 0,
                 [&] {
                   if (thread_index() == 0) blocks.push_back(block_index());
                 },
                 {.seed = seed});
    return blocks;
  };
  EXPECT_EQ(order(3), order(3));
  EXPECT_NE(order(3), order(5));
}

TEST(Simt, AtomicSumsOfBlocksMeet) {
  int32_t sum = 0, last = 0;
  const auto body = [&] {
    if (atomic_add(&sum, 1) == 5 * 64 - 1) ++last;
  };
  simt::launch(5, 64, 0, body, {.seed = 2, .resident = 3});
  EXPECT_EQ(sum, 5 * 64);
  EXPECT_EQ(last, 1);
}

TEST(Simt, CountsLoadsBySector) {
  alignas(32) static const char bytes[2048] = {};
  const auto contiguous = simt::launch(
      1, 32, 0, [] { (void)load_stream(bytes + 16 * thread_index()); }, {.counts_loads = true});
  EXPECT_EQ(contiguous.loaded_bytes, 512u);
  EXPECT_EQ(contiguous.requests, 1u);
  EXPECT_EQ(contiguous.sectors, 16u);
  const auto strided = simt::launch(
      1, 32, 0, [] { (void)load_stream(bytes + 64 * thread_index()); }, {.counts_loads = true});
  EXPECT_EQ(strided.sectors, 32u);
}

TEST(Simt, Permutes) { EXPECT_EQ(permute(0x33221100, 0x77665544, 0x5410), 0x55441100u); }

TEST(Simt, TransposesEightByEight) {
  simt::launch(1, 32, 0, [] {
    const auto lane = static_cast<uint32_t>(thread_index());
    const uint32_t row = lane / 4, column = lane % 4 * 2;
    const uint32_t out = transpose_8x8((row * 8 + column) | (row * 8 + column + 1) << 16);
    if (out != ((column * 8 + row) | ((column + 1) * 8 + row) << 16)) simt::fail("lane %u", lane);
  });
}

template <class T>
void check_products(bool truncates, double tolerance) {
  support::Random random(7);
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8), out(16 * 8);
  const auto rounded = [](float x) { return T::low(T::pack(x, 0.0f)); };
  for (float& x : a) x = rounded(random.value());
  for (float& x : b) x = rounded(random.value());
  for (float& x : c) x = random.value();
  const auto body = [&] {
    const auto lane = static_cast<size_t>(thread_index());
    const size_t g = lane / 4, t = lane % 4 * 2;
    const auto left = [&](size_t row, size_t k) {
      return T::pack(a[row * 16 + k], a[row * 16 + k + 1]);
    };
    const auto right = [&](size_t k) { return T::pack(b[k * 8 + g], b[(k + 1) * 8 + g]); };
    const size_t at[4] = {g * 8 + t, g * 8 + t + 1, (g + 8) * 8 + t, (g + 8) * 8 + t + 1};
    float d[4] = {c[at[0]], c[at[1]], c[at[2]], c[at[3]]};
    mma_16x8x16<T>(d, {left(g, t), left(g + 8, t), left(g, t + 8), left(g + 8, t + 8)},
                   {right(t), right(t + 8)});
    for (size_t i = 0; i < 4; ++i) out[at[i]] = d[i];
  };
  EXPECT_EQ(simt::launch(1, 32, 0, body, {.truncates = truncates}).products, 1u);
  for (size_t row = 0; row < 16; ++row) {
    for (size_t column = 0; column < 8; ++column) {
      double want = static_cast<double>(c[row * 8 + column]), size = std::fabs(want);
      for (size_t k = 0; k < 16; ++k) {
        const double product = static_cast<double>(a[row * 16 + k]) *
                               static_cast<double>(b[k * 8 + column]);
        want += product;
        size += std::fabs(product);
      }
      EXPECT_NEAR(static_cast<double>(out[row * 8 + column]), want, tolerance * size);
    }
  }
}

TEST(Simt, MultipliesMatrices) {
  check_products<Bf16>(true, 0x1p-20);
  check_products<Bf16>(false, 0x1p-22);
  check_products<F16>(true, 0x1p-20);
  check_products<F16>(false, 0x1p-22);
}

TEST(Simt, TensorCoresCutSumsOff) {
  float a[16] = {1, 0x1.8p-24f}, b[16] = {1, 1};
  EXPECT_EQ(truncating_sum(0, a, b), 1.0f);  // rounded to nearest it would be 1 + 2^-23
  a[1] = -0x1p-26f;
  EXPECT_EQ(truncating_sum(0, a, b), 1.0f);
  a[1] = INFINITY;
  EXPECT_EQ(truncating_sum(0, a, b), INFINITY);
}

}  // namespace
}  // namespace kvc::cuda
