// Caches over the simulated CUDA device by way of the C ABI, with tensors in device memory: passes that nobody waits for, on one
// stream after another; every call of the runtime that fails; tensors that lie elsewhere.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <memory>
#include <vector>

#include "core/caches/create.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::fail_every_call;
using cuda_arena::open_cpu;
using cuda_arena::open_cuda;
using kvc::Status;
using support::Random;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, q_heads = 4, kv_heads = 2, head_dim = 16, batch = 6, sequences = 3;
constexpr size_t floats_of_call = size_t{batch} * (q_heads + 2 * kv_heads + q_heads) * head_dim;

/// Two layers with windows; null when it cannot be created.
kvc_cache* create_of(const std::shared_ptr<kvc::Device>& device, kvc::StorageType type) {
  kvc::CacheRequest request;
  kvc::CacheBounds& bounds = request.bounds;
  bounds.n_layers = layers;
  bounds.n_kv_heads = kv_heads;
  bounds.max_q_heads = q_heads;
  bounds.head_dim_k = bounds.head_dim_v = head_dim;
  bounds.type_k = bounds.type_v = type;
  bounds.max_sequences = sequences;
  bounds.capacity = 40;
  bounds.max_batch = batch;
  bounds.zero_on_free = true;
  request.causal.reach = 17;
  return cuda_arena::create_cache(device, request);
}

kvc_cache* create(const std::shared_ptr<kvc::Device>& device) {
  return create_of(device, kvc::StorageType::bf16);
}

Arena arena_of(const std::shared_ptr<kvc::Device>& device, int32_t n_calls) {
  return {device, floats_of_call * static_cast<size_t>(n_calls), seed};
}

/// [n, heads, head_dim]
kvc_tensor take(Arena& arena, int32_t n, int32_t heads) { return arena.take({n, heads, head_dim}); }

/// Passes, removals and copies that the seed chooses. The status of the first call that is not OK.
kvc_status live(kvc_cache* cache, Arena& arena, int32_t n_passes, bool with_streams) {
  Random random(seed);
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  if (const kvc_status s = kvc_bind_rope(cache, 0, layers, &rope, nullptr)) return s;
  int32_t next[sequences] = {};
  for (int32_t pass = 0; pass < n_passes; ++pass) {
    int32_t position[batch], sequence[batch], n = random.between(1, batch);
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random.below(sequences);
      position[i] = next[sequence[i]]++;
    }
    void* const stream = reinterpret_cast<void*>(static_cast<uintptr_t>(random.below(4)));
    if (const kvc_status s = kvc_begin(cache, n, position, sequence, nullptr, 0,
                                       with_streams ? stream : nullptr))
      return s;
    for (int32_t layer = 0; layer < layers; ++layer) {
      const kvc_tensor k = take(arena, n, kv_heads), v = take(arena, n, kv_heads),
                       q = take(arena, n, q_heads);
      kvc_tensor out = take(arena, n, q_heads);
      if (layer == 1 && random.chance(0.1)) continue;  // zeros
      if (const kvc_status s = kvc_put(cache, layer, &k, &v)) return s;
      if (const kvc_status s = kvc_attention(cache, layer, &q, &out, nullptr)) return s;
    }
    const bool aborts = random.chance(0.2);
    for (int32_t i = 0; aborts && i < n; ++i) --next[sequence[i]];
    if (const kvc_status s = aborts ? kvc_abort(cache) : kvc_commit(cache)) return s;
    const int32_t which = random.below(sequences);
    if (random.chance(0.15) || next[which] > 30) {
      if (const kvc_status s = kvc_remove(cache, which, 0, KVC_SEQ_END)) return s;
      next[which] = 0;
    } else if (random.chance(0.2) && next[which] > 2) {  // later keys owe a rotation
      if (const kvc_status s = kvc_remove(cache, which, next[which] - 2, next[which] - 1)) return s;
      --next[which];
    } else if (random.chance(0.2)) {
      const int32_t to = (which + 1) % sequences;
      if (const kvc_status s = kvc_copy_prefix(cache, which, to, next[which], &next[to])) return s;
    }
  }
  return KVC_OK;
}

TEST(CudaCache, PassesThatNobodyWaitsForAreThoseOfTheCpu) {
  constexpr int32_t n_passes = 60;
  std::cout << "seed " << seed << std::endl;
  const std::shared_ptr<kvc::Device> cpu = open_cpu(), cuda = open_cuda();
  Arena expected = arena_of(cpu, n_passes * layers);
  kvc_cache* const reference = create(cpu);
  ASSERT_EQ(live(reference, expected, n_passes, false), KVC_OK) << support::last_message();
  for (const unsigned order : {1u, 2u, 3u, 4u}) {
    simt::device::set_seed(order);
    Arena arena = arena_of(cuda, n_passes * layers);
    kvc_cache* const cache = create(cuda);
    ASSERT_NE(cache, nullptr) << support::last_message();
    ASSERT_EQ(live(cache, arena, n_passes, true), KVC_OK) << support::last_message();
    ASSERT_EQ(arena.taken(), expected.taken());
    const float* const there = arena.on_host();
    for (size_t i = 0; i < arena.taken(); ++i)
      ASSERT_NEAR(there[i], expected.on_host()[i], 4e-6f) << "float " << i << ", order " << order;
    EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    uint64_t digest[2], wanted[2];
    ASSERT_EQ(kvc_state_digest(cache, digest), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_state_digest(reference, wanted), KVC_OK);
    EXPECT_TRUE(std::equal(digest, digest + 2, wanted)) << "order " << order;
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_EQ(kvc_cache_destroy(reference), KVC_OK);
}

TEST(CudaCache, EveryCallOfTheRuntimeMayFail) {
  constexpr int32_t n_passes = 6;
  const auto live_once = [](kvc_cache* cache, Arena& arena) {
    return live(cache, arena, n_passes, true);
  };
  EXPECT_GE(fail_every_call(size_t{n_passes * layers} * floats_of_call, seed, create, live_once), 48);
}

/// Rows of one layer of f32.
kvc_cache* create_rows(const std::shared_ptr<kvc::Device>& device, int32_t n_rows) {
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::transformer;
  request.bounds.n_layers = 1;
  request.bounds.n_kv_heads = kv_heads;
  request.bounds.head_dim_k = request.bounds.head_dim_v = head_dim;
  request.bounds.max_sequences = n_rows;
  request.bounds.capacity = 8;
  request.bounds.max_batch = 2 * n_rows;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// A batch of rows takes what another cache has read, on another stream, and that one goes on at once.
void insert_rows(const std::shared_ptr<kvc::Device>& device, bool with_streams, uint64_t (&digest)[2]) {
  Arena arena = arena_of(device, 40);
  kvc_cache* const one = create_rows(device, 1);
  kvc_cache* const all = create_rows(device, 3);
  const auto pass = [&](kvc_cache* cache, int32_t n_rows, uintptr_t stream) {
    void* const given = with_streams ? reinterpret_cast<void*>(stream) : nullptr;
    ASSERT_EQ(kvc_begin_rows(cache, 2, 0, nullptr, nullptr, nullptr, given), KVC_OK);
    kvc_tensor kv[2];
    for (kvc_tensor& tensor : kv) {
      tensor = take(arena, 2 * n_rows, kv_heads);
      const int64_t shape[] = {n_rows, 2, kv_heads, head_dim};
      const kvc_tensor flat = tensor;
      kvc_tensor_dense(flat.data, KVC_F32, 4, shape, &tensor);
      tensor.device_type = flat.device_type;
      tensor.device_id = flat.device_id;
    }
    ASSERT_EQ(kvc_put(cache, 0, &kv[0], &kv[1]), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
  };
  for (int32_t slot = 0; slot < 3; ++slot) {
    pass(one, 1, 2);
    if (slot > 0) pass(all, 3, 3);
    ASSERT_EQ(kvc_insert(all, one, slot), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_remove(one, 0, 0, KVC_SEQ_END), KVC_OK);
    pass(one, 1, 2);  // over the columns that were inserted
    ASSERT_EQ(kvc_remove(one, 0, 0, KVC_SEQ_END), KVC_OK);
  }
  ASSERT_EQ(kvc_state_digest(all, digest), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(one), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(all), KVC_OK);
}

TEST(CudaCache, RowsAreInsertedFromACacheOnAnotherStream) {
  uint64_t wanted[2] = {}, digest[2] = {};
  insert_rows(open_cpu(), false, wanted);
  for (unsigned order = 1; order <= 20; ++order) {
    simt::device::set_seed(order);
    insert_rows(open_cuda(), true, digest);
    EXPECT_TRUE(std::equal(digest, digest + 2, wanted)) << "order " << order;
  }
}

/// Scales and sinks of a layer are brought to the device by the first call that needs them, and by the first after they have changed.
/// Graphs bring theirs along.
class CudaConstants : public testing::Test {
 protected:
  void bind(float factor) {
    kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
    desc.n_q_heads = q_heads;
    for (int32_t layer = 0; layer < layers; ++layer) {
      const float own = factor * static_cast<float>(layer + 1);
      const float k_scales[kv_heads] = {own, 2 * own}, v_scales[kv_heads] = {3 * own, own};
      const float sinks[q_heads] = {own, -own, 0.5f, 0};
      for (kvc_cache* const cache : {on_cuda_, on_cpu_}) {
        ASSERT_EQ(kvc_bind_scales(cache, layer, layer + 1, k_scales, v_scales), KVC_OK);
        ASSERT_EQ(kvc_bind_attention(cache, layer, layer + 1, &desc, nullptr, sinks), KVC_OK);
      }
    }
  }
  /// A token in all layers. Returns the launches of attention in the last one.
  int64_t pass(int32_t position) {
    const int32_t sequence = 0;
    int64_t n_launches = 0;
    const auto once = [&](kvc_cache* cache, Arena& arena) {
      EXPECT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
      for (int32_t layer = 0; layer < layers; ++layer) {
        const kvc_tensor k = take(arena, 1, kv_heads), v = take(arena, 1, kv_heads),
                         q = take(arena, 1, q_heads);
        kvc_tensor out = take(arena, 1, q_heads);
        EXPECT_EQ(kvc_put(cache, layer, &k, &v), KVC_OK) << support::last_message();
        const int64_t before = simt::device::n_launches();
        EXPECT_EQ(kvc_attention(cache, layer, &q, &out, nullptr), KVC_OK);
        n_launches = simt::device::n_launches() - before;
      }
      EXPECT_EQ(kvc_commit(cache), KVC_OK);
    };
    once(on_cpu_, of_cpu_);
    once(on_cuda_, of_cuda_);
    return n_launches;
  }
  void capture() {
    Arena arena = arena_of(cuda_, layers);
    const auto attend = [&]() -> kvc_status {
      const kvc_tensor q = take(arena, 1, q_heads);
      kvc_tensor out = take(arena, 1, q_heads);
      const kvc_tensor k = take(arena, 1, kv_heads);
      if (const kvc_status s = kvc_put(on_cuda_, 1, &k, &k)) return s;
      return kvc_attention(on_cuda_, 1, &q, &out, nullptr);
    };
    simt::device::destroy_graph(cuda_arena::capture(on_cuda_, 1, attend));
  }
  void empty() {
    for (kvc_cache* const cache : {on_cuda_, on_cpu_})
      ASSERT_EQ(kvc_remove(cache, 0, 0, KVC_SEQ_END), KVC_OK);
  }
  void TearDown() override {
    for (size_t i = 0; i < of_cpu_.taken(); ++i)
      ASSERT_NEAR(of_cuda_.on_host()[i], of_cpu_.on_host()[i], 4e-5f) << "float " << i;
    for (kvc_cache* const cache : {on_cuda_, on_cpu_}) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }

  const std::shared_ptr<kvc::Device> cpu_ = open_cpu(), cuda_ = open_cuda();
  kvc_cache* const on_cpu_ = create_of(cpu_, kvc::StorageType::f8_e4m3);
  kvc_cache* const on_cuda_ = create_of(cuda_, kvc::StorageType::f8_e4m3);
  Arena of_cpu_ = arena_of(cpu_, 8 * layers), of_cuda_ = arena_of(cuda_, 8 * layers);
};

TEST_F(CudaConstants, AreBroughtWhereTheyAreNotThereOrHaveChanged) {
  bind(0.01f);
  EXPECT_EQ(pass(0), 4) << "two of scales, one of sinks, one of attention";
  EXPECT_EQ(pass(1), 1);
  empty();
  bind(0.02f);
  EXPECT_EQ(pass(0), 4);
  EXPECT_EQ(pass(1), 1);
}

TEST_F(CudaConstants, AreBroughtEachTimeWhereAGraphBringsThem) {
  bind(0.01f);
  EXPECT_EQ(pass(0), 4);
  capture();
  EXPECT_EQ(pass(1), 4);
  EXPECT_EQ(pass(2), 4);
}

TEST(CudaCache, TensorsOfTheHostAreRefused) {
  const std::shared_ptr<kvc::Device> cuda = open_cuda();
  Arena arena = arena_of(cuda, 1);
  kvc_cache* const cache = create(cuda);
  const int32_t position = 0, sequence = 0;
  ASSERT_EQ(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
  const kvc_tensor k = take(arena, 1, kv_heads);
  std::vector<float> data(kv_heads * head_dim);
  const kvc_tensor on_host = support::dense(data.data(), KVC_F32, {1, kv_heads, head_dim});
  kvc_tensor of_another_device = k;
  of_another_device.device_id = 0;
  EXPECT_EQ(kvc_put(cache, 0, &k, &on_host), KVC_E_DEVICE_MISMATCH);
  EXPECT_EQ(kvc_put(cache, 0, &of_another_device, &k), KVC_E_DEVICE_MISMATCH);
  EXPECT_EQ(kvc_put(cache, 0, &k, &k), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

TEST(CudaCache, WhatTheDeviceLacksIsRefused) {
  const std::shared_ptr<kvc::Device> cuda = open_cuda();
  const auto refusal = [&](auto change) {
    kvc::CacheRequest request;
    request.bounds.n_layers = request.bounds.n_kv_heads = request.bounds.max_sequences = 1;
    request.bounds.head_dim_k = request.bounds.head_dim_v = 32;
    request.bounds.capacity = request.bounds.max_batch = 4;
    change(request);
    uint64_t bytes = 0;
    std::shared_ptr<kvc::Cache> cache;
    EXPECT_EQ(kvc::cache_memory_bytes(cuda, request, &bytes), Status::not_supported);
    EXPECT_EQ(kvc::create_cache(cuda, request, &cache), Status::not_supported);
    return support::last_message();
  };
  EXPECT_NE(refusal([](auto& r) { r.bounds.head_dim_k = 4096; }).find("head_dim_k 4096"),
            std::string::npos);
}

}  // namespace
