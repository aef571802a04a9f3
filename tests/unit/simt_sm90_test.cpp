/// What the shim knows of GPUs of compute capability 9.0 (tests/simt/sm90.hpp): what it must notice, and its instructions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/ptx_sm90.cuh"
#include "support/random.hpp"

namespace kvc::cuda {
namespace {

constexpr size_t shared = 32 << 10;

/// The message of the first of `seeds` orders that goes wrong.
std::string complaint(unsigned threads, const std::function<void()>& body, unsigned seeds = 4) {
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    try {
      simt::launch(2, threads, shared, body, {.seed = seed});
    } catch (const simt::Error& error) {
      return error.what();
    }
  }
  return "";
}
void expect_complaint(const char* what, unsigned threads, const std::function<void()>& body) {
  EXPECT_NE(complaint(threads, body).find(what), std::string::npos) << complaint(threads, body);
}

TEST(SimtSm90, BarriersOfSomeThreads) {
  const auto body = [](int first, int n) {
    return [first, n] {
      if (thread_index() >= first) sync_threads(3, n);
    };
  };
  EXPECT_EQ(complaint(128, body(64, 64), 20), "");
  expect_complaint("waits in bar.sync", 128, body(32, 128));
  expect_complaint("barrier 0 of 128", 128, [] { sync_threads(0, 128); });
  expect_complaint("barrier 1 of", 128, [] { sync_threads(1, thread_index() < 32 ? 64 : 96); });
}

/// Numbers go through two stages from one warp to another, which count phases as `wrong` says.
struct Wrong {
  bool parity = false, count = false, full = false, empty = false;
};
std::function<void()> stages(const Wrong& wrong) {
  return [wrong] {
    constexpr int n_steps = 9;
    const int lane = thread_index() % 32;
    const auto full = [](int step) { return shared_address() + 8 * (step % 2); };
    const auto empty = [&](int step) { return full(step) + 16; };
    const auto at = [](int step) {
      return reinterpret_cast<int*>(shared_memory()) + 64 + step % 2 * 32;
    };
    if (thread_index() == 0) {
      for (int i = 0; i < 2; ++i) {
        init_barrier(full(i), wrong.count ? 33 : 32);
        init_barrier(empty(i), 32);
      }
    }
    sync_block();
    for (int step = 0; step < n_steps; ++step) {
      const int parity = step / 2 % 2;
      if (thread_index() < 32) {
        if (!wrong.empty) wait_for_phase(empty(step), parity ^ 1);
        at(step)[lane] = 100 * step + lane;
        arrive(full(step));
      } else {
        if (!wrong.full) wait_for_phase(full(step), wrong.parity ? parity ^ 1 : parity);
        const int got = at(step)[31 - lane];
        if (got != 100 * step + 31 - lane) simt::fail("step %d has %d", step, got);
        arrive(empty(step));
      }
    }
  };
}

TEST(SimtSm90, BarriersInSharedMemoryCountPhases) {
  EXPECT_EQ(complaint(64, stages({}), 40), "");
  expect_complaint("step", 64, stages({.parity = true}));
  expect_complaint("waits in mbarrier", 64, stages({.count = true}));
  expect_complaint("step", 64, stages({.full = true}));
  expect_complaint("step", 64, stages({.empty = true}));
  expect_complaint("no barrier at byte 8", 32, [] { arrive(shared_address() + 8); });
  expect_complaint("a barrier of 1 at byte 4", 32, [] { init_barrier(shared_address() + 4, 1); });
  expect_complaint("a second barrier", 32, [] { init_barrier(shared_address(), 1); });
}

TEST(SimtSm90, CopiesArriveWhenTheyHaveLanded) {
  alignas(16) static const float from[4] = {1, 2, 3, 4};
  const auto body = [](bool waits) {
    return [waits] {
      if (thread_index() != 0) return;
      const uint32_t barrier = shared_address(), to = barrier + 64;
      const float* const there = reinterpret_cast<float*>(shared_memory() + 64);
      init_barrier(barrier, 1);
      copy_async(to, from, true);
      arrive_when_copied(barrier);
      if (waits) wait_for_phase(barrier, 0);
      if (there[3] != 4) simt::fail("not there");
    };
  };
  EXPECT_EQ(complaint(32, body(true), 20), "");
  EXPECT_NE(complaint(32, body(false)), "");
}

/// A box of 16 lines with 40 of 64 dims, behind others; threads look at it, and products do.
struct BoxFlaw {
  int bytes_missing = 0, off = 0, phase = 0;
  bool published = true, is_clean = true, waits = true;
};
std::string box_complaint(const BoxFlaw& flaw, unsigned seeds = 8) {
  constexpr int n_lines = 16, dim = 104, first_dim = 64, first_row = 3, at = 1024;
  alignas(16) static uint16_t rows[2][40][dim];
  uint16_t next = 0;
  for (auto& head : rows)
    for (auto& row : head)
      for (uint16_t& x : row) x = ++next;
  RowMap map;  // as that of runtime_simt.cpp
  const MappedRows of = {rows, sizeof rows[0][0], sizeof rows[0], dim, 40, 2, n_lines};
  std::memcpy(&map, &of, sizeof of);
  const auto body = [&] {
    const int t = thread_index();
    if (t >= 32) return;
    if (t == 0) init_barrier(shared_address(), 1);
    if (flaw.published) publish_shared();
    if (!flaw.is_clean) shared_memory()[at + 700 + t] = 1;
    sync_warp();
    if (t == 0) {
      arrive_and_expect(shared_address(), n_lines * 128 - flaw.bytes_missing);
      copy_box(shared_address() + at + flaw.off, map, first_dim, first_row, 1, shared_address());
    }
    if (flaw.waits) wait_for_phase(shared_address(), flaw.phase);
    for (int i = t; i < n_lines * 64; i += 32) {
      const int line = i / 64, of_line = i % 64,
                byte = at + line * 128 + (of_line / 8 ^ line % 8) * 16 + of_line % 8 * 2;
      uint16_t got[2];
      std::memcpy(got, shared_memory() + byte, 2);
      std::memcpy(got + 1, simt::sm90::published() + byte, 2);
      const uint16_t wanted = first_dim + of_line < dim
                                  ? rows[1][first_row + line][first_dim + of_line]
                                  : uint16_t{0};
      if (got[0] != wanted || got[1] != wanted) simt::fail("line %d is not there", line);
    }
  };
  return complaint(32, body, seeds);
}

TEST(SimtSm90, BoxesArriveByTheirBytes) {
  EXPECT_EQ(box_complaint({}, 20), "");
  const auto complains = [](const BoxFlaw& flaw, const char* what) {
    EXPECT_NE(box_complaint(flaw).find(what), std::string::npos) << box_complaint(flaw);
  };
  complains({.bytes_missing = 1024}, "is not there");
  complains({.bytes_missing = -16}, "waits in mbarrier.try_wait");
  complains({.off = 128}, "a box of 16 rows at byte 1152");
  complains({.off = 30 << 10}, "a box of 16 rows at byte 31744");
  complains({.phase = 1}, "is not there");
  complains({.published = false}, "was not published");
  complains({.is_clean = false}, "and not published");
  complains({.waits = false}, "is not there");
}

TEST(SimtSm90, RegistersAreGivenAndTaken) {
  const auto body = [](auto give, auto take) {
    return [give, take] {
      if (thread_index() / 128 == 2) {
        give();
      } else {
        take();
      }
    };
  };
  EXPECT_EQ(complaint(384, body([] { give_registers<40>(); }, [] { take_registers<232>(); })), "");
  expect_complaint("waits in setmaxnreg.inc", 384,
                   body([] { give_registers<48>(); }, [] { take_registers<232>(); }));
  expect_complaint("registers after 168", 384,
                   body([] { take_registers<40>(); }, [] { take_registers<232>(); }));
  expect_complaint("42 registers", 384, body([] { give_registers<42>(); }, [] {}));
}

// ---- Products -----------------------------------------------------------------------------------------------------------------

/// Where an element lies whose line of 64 begins a plane.
uint16_t* element(int plane_at, int line, int at) {
  const int byte = plane_at + line * 128 + (at / 8 ^ line % 8) * 16 + at % 8 * 2;
  return reinterpret_cast<uint16_t*>(shared_memory() + byte);
}

struct Flaw {
  bool published = true, fenced = true, waited = true, kept = true, agreed = true;
};

/// 64 × 64 by 64 × n, once with the left factor in shared memory and the right one by columns, once more of that from registers,
/// and the right one by rows: the sums are of both.
template <class T, int n>
std::vector<float> multiplied(const std::vector<float>& a, const std::vector<float>& b,
                              unsigned seed, bool from_registers, const Flaw& flaw) {
  std::vector<float> out(64 * n);
  const auto body = [&] {
    const int t = thread_index(), row = t / 32 * 16 + t % 32 / 4, pair = t % 4 * 2;
    constexpr int right_at = 8192, plane = 8192;
    for (int i = t; i < 64 * 64; i += 128)
      *element(0, i / 64, i % 64) = static_cast<uint16_t>(T::pack(a[static_cast<size_t>(i)], 0));
    for (int i = t; i < 64 * n; i += 128) {
      const auto x = static_cast<uint16_t>(T::pack(b[static_cast<size_t>(i)], 0));
      const int inner = i / n, column = i % n;
      if (from_registers) {
        *element(right_at + column / 64 * plane, inner, column % 64) = x;
      } else {
        *element(right_at, column, inner) = x;
      }
    }
    if (flaw.published) publish_shared();
    sync_block();
    uint32_t left[4][4];
    for (int k = 0; k < 4; ++k) {
      for (int word = 0; word < 4; ++word) {
        const auto at = static_cast<size_t>((row + word % 2 * 8) * 64 + 16 * k + pair + word / 2 * 8);
        left[k][word] = T::pack(a[at], a[at + 1]);
      }
    }
    float d[n / 8][4];
    for (auto& some : d)
      for (float& x : some) x = 1;
    if (flaw.fenced) fence_products();
    for (int k = 0; k < 4; ++k) {
      if (from_registers) {
        multiply_registers<T, n>(
            d, left[k], matrix_at(shared_address() + right_at + k * 16 * 128, plane), true);
      } else {
        const int skipped = flaw.agreed || t < 64 ? 32 * k : 0;
        multiply_shared<T, n>(d, matrix_at(shared_address() + skipped, 0),
                              matrix_at(shared_address() + right_at + 32 * k, 0), true);
      }
    }
    end_product_group();
    if (!flaw.kept) left[3][0] = 0;
    if (flaw.waited) wait_for_products<0>(d);
    for (int i = 0; i < n / 8; ++i)
      for (int e = 0; e < 4; ++e)
        out[static_cast<size_t>((row + e / 2 * 8) * n + 8 * i + pair + e % 2)] = d[i][e];
    if (!flaw.waited) wait_for_products<0>(d);
  };
  simt::launch(1, 128, shared, body, {.seed = seed});
  return out;
}

template <class T, int n>
bool multiplies(unsigned seed, bool from_registers, const Flaw& flaw = {}) {
  support::Random random(seed);
  const auto rounded = [&] { return T::low(T::pack(random.value(), 0.0f)); };
  std::vector<float> a(64 * 64), b(64 * n);
  for (float& x : a) x = rounded();
  for (float& x : b) x = rounded();
  const std::vector<float> got = multiplied<T, n>(a, b, seed, from_registers, flaw);
  for (size_t row = 0; row < 64; ++row) {
    for (size_t column = 0; column < n; ++column) {
      double want = 1, size = 1;
      for (size_t k = 0; k < 64; ++k) {
        const double product = static_cast<double>(a[row * 64 + k]) *
                               static_cast<double>(b[k * n + column]);
        want += product;
        size += std::fabs(product);
      }
      if (!(std::fabs(static_cast<double>(got[row * n + column]) - want) <= 0x1p-19 * size))
        return false;
    }
  }
  return true;
}

TEST(SimtSm90, MultipliesMatrices) {
  for (unsigned seed = 1; seed <= 2; ++seed) {
    for (const bool from_registers : {false, true}) {
      EXPECT_TRUE((multiplies<Bf16, 64>(seed, from_registers)));
      EXPECT_TRUE((multiplies<F16, 64>(seed, from_registers)));
      EXPECT_TRUE((multiplies<Bf16, 128>(seed, from_registers)));
      EXPECT_TRUE((multiplies<F16, 128>(seed, from_registers)));
    }
  }
}

std::string product_complaint(const Flaw& flaw) {
  try {
    multiplies<Bf16, 64>(1, false, flaw);
  } catch (const simt::Error& error) {
    return error.what();
  }
  return "";
}

TEST(SimtSm90, FindsProductsOfWhatIsNotThere) {
  EXPECT_FALSE((multiplies<Bf16, 64>(1, false, {.published = false})));
  EXPECT_FALSE((multiplies<Bf16, 64>(1, false, {.waited = false})));
  int n_noticed = 0;  // by those that run late
  for (unsigned seed = 1; seed <= 8; ++seed)
    n_noticed += !multiplies<Bf16, 64>(seed, true, {.kept = false});
  EXPECT_GT(n_noticed, 0);
  EXPECT_NE(product_complaint({.fenced = false}).find("without a fence"), std::string::npos);
  EXPECT_NE(product_complaint({.agreed = false}).find("multiply other matrices"), std::string::npos);
}

TEST(SimtSm90, FindsGroupsThatPart) {
  expect_complaint("waits in wgmma.fence", 128, [] {
    if (thread_index() < 96) fence_products();
  });
  expect_complaint("while its group is in", 128, [] {
    if (thread_index() < 96) {
      fence_products();
    } else {
      end_product_group();
    }
  });
  expect_complaint("has ended with copies", 32, [] {
    alignas(16) static const char bytes[16] = {};
    if (thread_index() != 0) return;
    init_barrier(shared_address(), 1);
    copy_async(shared_address() + 64, bytes, true);
    arrive_when_copied(shared_address());
  });
  expect_complaint("has ended with products", 128, [] {
    float d[8][4] = {};
    fence_products();
    multiply_shared<Bf16, 64>(d, matrix_at(shared_address(), 0),
                              matrix_at(shared_address() + 8192, 0), true);
    end_product_group();
  });
}

}  // namespace
}  // namespace kvc::cuda
