// Names of operators come and go while other threads look them up, create, bind and attend: each caller's table is released once, and
// nobody is called through one that has ended. One operator is used by one thread at a time (BUSY).
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "kvc/operators.h"
#include "support/abi.hpp"
#include "support/array.hpp"

namespace {

using support::Array;

struct Table {
  std::atomic<int32_t> n_calls{0}, n_released{0};
};

/// Writes what no built-in operator would.
kvc_status write_ones(void* user, const kvc_operator_call* call) {
  auto& table = *static_cast<Table*>(user);
  ++table.n_calls;
  if (table.n_released > 0) return KVC_E_INTERNAL;
  for (int32_t i = 0; i < call->n_q_heads * 4; ++i) static_cast<float*>(call->out->data)[i] = 1;
  return KVC_OK;
}

void release(void* user) { ++static_cast<Table*>(user)->n_released; }

constexpr int32_t n_threads = 4;
#ifdef KVC_SANITIZED
constexpr int32_t n_rounds = 50;
#else
constexpr int32_t n_rounds = 300;
#endif

/// A round of one thread: registers, attends with what it finds under another thread's name, and lets everything go.
void play(kvc_device* device, int32_t thread, std::vector<Table>& tables) {
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK);
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.modes = KVC_MODE_ALL;
  kvc_operator_functions functions = KVC_OPERATOR_FUNCTIONS_INIT;
  functions.forward_native = write_ones;
  functions.release = release;
  Array q(KVC_F32, {1, 1, 4}), out(KVC_F32, {1, 1, 4});
  q.fill(1);
  const std::string own = "of-" + std::to_string(thread);
  const std::string other = "of-" + std::to_string((thread + 1) % n_threads);
  for (int32_t round = 0; round < n_rounds; ++round) {
    Table& table = tables[static_cast<size_t>(thread * n_rounds + round)];
    ASSERT_EQ(
        kvc_operator_register(device, own.c_str(), KVC_OPERATOR_REPLACE, &info, &functions, &table),
        KVC_OK);
    kvc_operator* op = nullptr;
    const kvc_status created = kvc_operator_create(device, other.c_str(), nullptr, &op);
    ASSERT_TRUE(created == KVC_OK || created == KVC_E_NOT_FOUND) << support::last_message();
    ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_ALL, op), KVC_OK);
    ASSERT_EQ(kvc_operator_destroy(op), KVC_OK);
    const int32_t position = 0, sequence = 0;
    ASSERT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_put_attention(cache, 0, q.tensor(), q.tensor(), q.tensor(), out.tensor(), nullptr), KVC_OK)
        << support::last_message();
    ASSERT_EQ(out.get(0), 1);
    ASSERT_EQ(kvc_abort(cache), KVC_OK);
    kvc_operator_info found = KVC_OPERATOR_INFO_INIT;
    for (int32_t i = 0; kvc_operator_at(device, i, &found) == KVC_OK; ++i) {
    }
    if (round % 3 != 0) continue;
    ASSERT_EQ(kvc_operator_unregister(device, own.c_str()), KVC_OK);
  }
}

TEST(OperatorThreads, NamesComeAndGo) {
  std::vector<Table> tables(static_cast<size_t>(n_threads * n_rounds));
  {
    const support::Device device(2);
    std::vector<std::thread> threads;
    for (int32_t thread = 0; thread < n_threads; ++thread)
      threads.emplace_back([&device, &tables, thread] { play(device, thread, tables); });
    for (std::thread& thread : threads) thread.join();
  }
  int32_t n_calls = 0;
  for (const Table& table : tables) {
    EXPECT_EQ(table.n_released, 1);
    n_calls += table.n_calls;
  }
  EXPECT_GT(n_calls, 0);
}

TEST(OperatorThreads, OneCallAtATime) {
  const support::Device device(2);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = desc.n_kv_heads = 1;
  desc.max_q_len = desc.max_kv_len = 200;
  desc.head_dim_k = 16;
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "vanilla", &desc, &op), KVC_OK) << support::last_message();
  support::Random random(1);
  Array q(KVC_F32, {1, 200, 1, 16});
  q.fill(random);
  std::atomic<int32_t> done{0};
  const auto attend = [&] {
    Array out(KVC_F32, {1, 200, 1, 16});
    for (int32_t round = 0; round < 20; ++round) {
      const kvc_status status = kvc_operator_forward(
          op, nullptr, q.tensor(), q.tensor(), q.tensor(), nullptr, nullptr, nullptr, out.tensor());
      ASSERT_TRUE(status == KVC_OK || status == KVC_E_BUSY) << support::last_message();
      done += status == KVC_OK;
    }
  };
  std::thread one(attend), other(attend);
  one.join();
  other.join();
  EXPECT_GT(done, 0);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

}  // namespace
