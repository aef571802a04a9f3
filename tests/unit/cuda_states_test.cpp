// Caches of states over the simulated CUDA device by way of the C ABI, with tensors in device memory: passes that nobody waits for, on
// one stream after another; states that come from another cache; every call of the runtime that fails.
#include <gtest/gtest.h>

#include <algorithm>
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
constexpr int32_t layers = 2, batch = 6, sequences = 3, heads = 2, head_dim = 24;
constexpr int32_t state_size = 37, channels = 5, width = 3;

/// Where checkpoints are: in the device's memory, a few by request; or pinned, one or two for each sequence and many by themselves.
enum class Checkpoints { on_device, pinned };

kvc::CheckpointRequest request_of(Checkpoints checkpoints) {
  if (checkpoints == Checkpoints::on_device) return {};
  return {.checkpoints = 2, .checkpoint_interval = 2, .checkpoint_min_pos = -1, .on_host = true};
}

/// Null when it cannot be created.
kvc_cache* create(const std::shared_ptr<kvc::Device>& device, kvc::CacheKind kind,
                  int32_t n_sequences = sequences, Checkpoints checkpoints = Checkpoints::on_device) {
  kvc::CacheRequest request;
  request.kind = kind;
  kvc::CacheBounds& bounds = request.bounds;
  bounds.n_layers = layers;
  bounds.max_sequences = n_sequences;
  bounds.max_batch = batch;
  bounds.zero_on_free = true;
  if (kind == kvc::CacheKind::recurrent) {
    request.recurrent.state_size = state_size;
    request.recurrent.conv_channels = channels;
    request.recurrent.conv_dim = width;
    request.recurrent.type_conv = kvc::StorageType::bf16;
    request.recurrent.draft_states = 2;
    request.recurrent.checkpoints = request_of(checkpoints);
  } else {
    bounds.n_kv_heads = bounds.max_q_heads = heads;
    bounds.head_dim_k = bounds.head_dim_v = head_dim;
    request.lightning.draft_states = 2;
    request.lightning.checkpoints = request_of(checkpoints);
  }
  return cuda_arena::create_cache(device, request);
}

/// Puts every part of a layer and reads what was there before.
kvc_status recurrent_layer(kvc_cache* cache, Arena& arena, int32_t layer, int32_t n) {
  int32_t n_sequences = 0, n_rows = 0;
  if (const kvc_status s = kvc_state_layout(cache, 0, nullptr, &n_sequences, nullptr)) return s;
  if (const kvc_status s = kvc_state_slots(cache, 0, nullptr, &n_rows)) return s;
  kvc_tensor before = arena.take({n_sequences, channels, width});
  if (const kvc_status s = kvc_state_get(cache, layer, KVC_PART_CONV, &before)) return s;
  const kvc_tensor x = arena.take({n, channels}), rows = arena.take({n_rows, state_size});
  if (const kvc_status s = kvc_state_conv(cache, layer, &x)) return s;
  return kvc_state_put(cache, layer, KVC_PART_RECURRENT, &rows);
}

kvc_status lightning_layer(kvc_cache* cache, Arena& arena, int32_t layer, int32_t n) {
  const auto take = [&] { return arena.take({n, heads, head_dim}); };
  const kvc_tensor k = take(), v = take(), q = take();
  kvc_tensor out = take();
  return kvc_put_attention(cache, layer, &k, &v, &q, &out, nullptr);
}

/// The state of a checkpoint, which may be on its way there.
kvc_status read_checkpoint(kvc_cache* cache, Arena& arena, int32_t sequence) {
  int32_t at[2], n = 0;
  if (const kvc_status s = kvc_checkpoint_list(cache, sequence, 2, at, &n)) return s;
  if (n == 0) return KVC_OK;
  kvc_tensor state = arena.take({state_size});
  return kvc_state_gather(cache, layers - 1, KVC_PART_RECURRENT, sequence, at[std::min(n, 2) - 1],
                          &state);
}

/// Passes, cuts and copies that the seed chooses. The status of the first call that is not OK.
kvc_status live(kvc_cache* cache, kvc::CacheKind kind, Arena& arena, int32_t n_passes,
                bool with_streams) {
  const bool is_recurrent = kind == kvc::CacheKind::recurrent;
  const float slopes[heads] = {0.01f, 0.3f};
  if (!is_recurrent) {
    if (const kvc_status s = kvc_bind_decay(cache, 0, layers, slopes)) return s;
  }
  Random random(seed);
  int32_t next[sequences] = {};
  for (int32_t pass = 0; pass < n_passes; ++pass) {
    int32_t position[batch], sequence[batch], added[sequences] = {}, n = random.between(1, batch);
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random.below(sequences);
      position[i] = next[sequence[i]] + added[sequence[i]]++;
    }
    void* const stream = reinterpret_cast<void*>(static_cast<uintptr_t>(random.below(4)));
    if (const kvc_status s = kvc_begin(cache, n, position, sequence, nullptr, 0,
                                       with_streams ? stream : nullptr))
      return s;
    for (int32_t layer = 0; layer < layers; ++layer) {
      if (layer == 1 && random.chance(0.1)) continue;  // stays as it was, or decays
      if (const kvc_status s = is_recurrent ? recurrent_layer(cache, arena, layer, n)
                                            : lightning_layer(cache, arena, layer, n))
        return s;
    }
    const bool aborts = random.chance(0.2);
    for (int32_t i = 0; !aborts && i < sequences; ++i) next[i] += added[i];
    if (const kvc_status s = aborts ? kvc_abort(cache) : kvc_commit(cache)) return s;
    const int32_t which = random.below(sequences), to = (which + 1) % sequences;
    if (random.chance(0.2)) {
      if (const kvc_status s = kvc_checkpoint_take(cache, which)) return s;
    } else if (random.chance(0.2)) {
      if (const kvc_status s = kvc_resume(cache, which, std::max(0, next[which] - random.below(3)),
                                          &next[which]))
        return s;
    } else if (random.chance(0.2)) {
      if (const kvc_status s = kvc_copy_prefix(cache, which, to, next[which], &next[to])) return s;
    } else if (is_recurrent && random.chance(0.2)) {
      if (const kvc_status s = read_checkpoint(cache, arena, which)) return s;
    }
  }
  return KVC_OK;
}

constexpr size_t floats_of_pass = size_t{layers} *
                                  (4 * batch * heads * head_dim +
                                   batch * 2 * (state_size + channels * width) + state_size);

/// The states of all sequences, as the CPU has them.
void read_states(kvc_cache* cache, Arena& arena) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    kvc_tensor states = arena.take({sequences, heads, head_dim, head_dim});
    ASSERT_EQ(kvc_lightning_read(cache, layer, 0, sequences, &states), KVC_OK);
  }
}

void passes_that_nobody_waits_for(kvc::CacheKind kind, Checkpoints checkpoints) {
  constexpr int32_t n_passes = 60;
  constexpr size_t n = n_passes * floats_of_pass +
                       size_t{layers} * sequences * heads * head_dim * head_dim;
  const bool is_recurrent = kind == kvc::CacheKind::recurrent;
  std::cout << "seed " << seed << std::endl;
  Arena expected(open_cpu(), n, seed);
  kvc_cache* const reference = create(open_cpu(), kind, sequences, checkpoints);
  ASSERT_EQ(live(reference, kind, expected, n_passes, false), KVC_OK) << support::last_message();
  if (!is_recurrent) read_states(reference, expected);
  for (const unsigned order : {1u, 2u, 3u, 4u}) {
    simt::device::set_seed(order);
    const std::shared_ptr<kvc::Device> cuda = open_cuda();
    Arena arena(cuda, n, seed);
    kvc_cache* const cache = create(cuda, kind, sequences, checkpoints);
    ASSERT_NE(cache, nullptr) << support::last_message();
    ASSERT_EQ(live(cache, kind, arena, n_passes, true), KVC_OK) << support::last_message();
    if (!is_recurrent) read_states(cache, arena);
    ASSERT_EQ(arena.taken(), expected.taken());
    const float* const there = arena.on_host();
    const float tolerance = is_recurrent ? 0 : 2e-4f;  // of sums of some dozen products
    for (size_t i = 0; i < arena.taken(); ++i)
      ASSERT_NEAR(there[i], expected.on_host()[i], tolerance) << "float " << i << ", order " << order;
    EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    uint64_t digest[2], wanted[2];
    ASSERT_EQ(kvc_state_digest(cache, digest), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_state_digest(reference, wanted), KVC_OK);
    if (is_recurrent) {
      EXPECT_TRUE(std::equal(digest, digest + 2, wanted)) << "order " << order;
    }
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_EQ(kvc_cache_destroy(reference), KVC_OK);
}

TEST(CudaStates, RecurrentPassesThatNobodyWaitsForAreThoseOfTheCpu) {
  passes_that_nobody_waits_for(kvc::CacheKind::recurrent, Checkpoints::on_device);
}
TEST(CudaStates, LightningPassesThatNobodyWaitsForAreThoseOfTheCpu) {
  passes_that_nobody_waits_for(kvc::CacheKind::lightning, Checkpoints::on_device);
}
TEST(CudaStates, CheckpointsInPinnedMemoryAreThoseOfTheCpu) {
  passes_that_nobody_waits_for(kvc::CacheKind::recurrent, Checkpoints::pinned);
}
TEST(CudaStates, LightningCheckpointsInPinnedMemoryAreThoseOfTheCpu) {
  passes_that_nobody_waits_for(kvc::CacheKind::lightning, Checkpoints::pinned);
}

/// A batch of rows takes the state of another cache, on another stream, and that one goes on at once.
void insert_states(bool with_streams, Checkpoints of_one, Checkpoints of_all, uint64_t (&digest)[2]) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  Arena arena(device, size_t{60} * 2 * sequences * heads * head_dim, seed);
  kvc_cache* const one = create(device, kvc::CacheKind::lightning, 1, of_one);
  kvc_cache* const all = create(device, kvc::CacheKind::lightning, sequences, of_all);
  const float slopes[heads] = {0.01f, 0.3f};
  for (kvc_cache* cache : {one, all}) ASSERT_EQ(kvc_bind_decay(cache, 0, layers, slopes), KVC_OK);
  const auto pass = [&](kvc_cache* cache, int32_t n_rows, uintptr_t stream) {
    void* const given = with_streams ? reinterpret_cast<void*>(stream) : nullptr;
    ASSERT_EQ(kvc_begin_rows(cache, 1, 0, nullptr, nullptr, nullptr, given), KVC_OK);
    for (int32_t layer = 0; layer < layers; ++layer) {
      const kvc_tensor k = arena.take({n_rows, 1, heads, head_dim});
      const kvc_tensor v = arena.take({n_rows, 1, heads, head_dim});
      ASSERT_EQ(kvc_put(cache, layer, &k, &v), KVC_OK) << support::last_message();
    }
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
  };
  for (int32_t slot = 0; slot < sequences; ++slot) {
    pass(one, 1, 2);
    ASSERT_EQ(kvc_checkpoint_take(one, 0), KVC_OK);
    pass(one, 1, 2);
    if (slot > 0) pass(all, sequences, 3);
    ASSERT_EQ(kvc_insert(all, one, slot), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_remove(one, 0, 0, KVC_SEQ_END), KVC_OK);
    pass(one, 1, 2);  // over the states that were inserted
    ASSERT_EQ(kvc_remove(one, 0, 0, KVC_SEQ_END), KVC_OK);
  }
  ASSERT_EQ(kvc_state_digest(all, digest), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(one), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(all), KVC_OK);
}

/// In whatever order the streams get on.
TEST(CudaStates, StatesAreInsertedFromACacheOnAnotherStream) {
  using enum Checkpoints;
  struct Places {
    Checkpoints of_one, of_all;
  };
  for (const Places& places : {Places{on_device, on_device}, Places{pinned, pinned},
                               Places{on_device, pinned}, Places{pinned, on_device}}) {
    uint64_t wanted[2] = {}, digest[2] = {};
    insert_states(false, places.of_one, places.of_all, wanted);
    for (unsigned order = 1; order <= 10; ++order) {
      simt::device::set_seed(order);
      insert_states(true, places.of_one, places.of_all, digest);
      EXPECT_TRUE(std::equal(digest, digest + 2, wanted)) << "order " << order;
    }
  }
}

void every_call_may_fail(kvc::CacheKind kind, Checkpoints checkpoints) {
  constexpr int32_t n_passes = 4;
  const auto create_one = [&](const std::shared_ptr<kvc::Device>& device) {
    return create(device, kind, sequences, checkpoints);
  };
  const auto live_once = [kind](kvc_cache* cache, Arena& arena) {
    return live(cache, kind, arena, n_passes, true);
  };
  EXPECT_GE(fail_every_call(n_passes * floats_of_pass, seed, create_one, live_once), 28);
}

TEST(CudaStates, EveryCallOfTheRuntimeMayFailInARecurrentCache) {
  every_call_may_fail(kvc::CacheKind::recurrent, Checkpoints::on_device);
}
TEST(CudaStates, EveryCallOfTheRuntimeMayFailInALightningCache) {
  every_call_may_fail(kvc::CacheKind::lightning, Checkpoints::on_device);
}
TEST(CudaStates, EveryCallOfTheRuntimeMayFailBesidePinnedMemory) {
  every_call_may_fail(kvc::CacheKind::recurrent, Checkpoints::pinned);
}

/// Waits of the calls of a pass whose end takes checkpoints, and of a step back: none.
TEST(CudaStates, CheckpointsInPinnedMemoryLetNobodyWait) {
  const std::shared_ptr<kvc::Device> cuda = open_cuda();
  Arena arena(cuda, 20 * floats_of_pass, seed);
  kvc_cache* const cache = create(cuda, kvc::CacheKind::recurrent, sequences, Checkpoints::pinned);
  const int64_t before = simt::device::n_waits();
  EXPECT_EQ(live(cache, kvc::CacheKind::recurrent, arena, 20, true), KVC_OK);
  EXPECT_EQ(simt::device::n_waits(), before);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

/// As many as a state has parts, where none is too large to come at once.
TEST(CudaStates, ADigestWaitsOnceForEachPart) {
  const std::shared_ptr<kvc::Device> cuda = open_cuda();
  Arena arena(cuda, floats_of_pass, seed);
  for (const Checkpoints checkpoints : {Checkpoints::on_device, Checkpoints::pinned}) {
    kvc_cache* const cache = create(cuda, kvc::CacheKind::lightning, 1, checkpoints);
    const float slopes[heads] = {0.01f, 0.3f};
    const int32_t position[] = {0, 1}, sequence[] = {0, 0};
    EXPECT_EQ(kvc_bind_decay(cache, 0, layers, slopes), KVC_OK);
    EXPECT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK);
    EXPECT_EQ(kvc_commit(cache), KVC_OK);
    EXPECT_EQ(kvc_checkpoint_take(cache, 0), KVC_OK);
    const int64_t before = simt::device::n_waits();
    uint64_t digest[2];
    EXPECT_EQ(kvc_state_digest(cache, digest), KVC_OK) << support::last_message();
    EXPECT_EQ(simt::device::n_waits() - before, 2 * layers) << "a state and a checkpoint";
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
}

TEST(CudaStates, PinnedMemoryMayBeMissing) {
  const std::shared_ptr<kvc::Device> cuda = open_cuda();
  int32_t n_refused = 0;
  kvc_cache* cache = nullptr;
  for (int64_t n = 1; cache == nullptr; ++n) {
    simt::device::fail_call(n, kvc::cuda::Error::out_of_memory, false);
    cache = create(cuda, kvc::CacheKind::recurrent, sequences, Checkpoints::pinned);
    const std::string said = cache == nullptr ? support::last_message() : "";
    n_refused += said.find("for checkpoints in host memory") != std::string::npos;
  }
  simt::device::fail_call(0, kvc::cuda::Error::none, false);
  EXPECT_GE(n_refused, 1);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

TEST(CudaStates, KeysThatAreTooLongAreRefused) {
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::lightning;
  request.bounds.n_layers = request.bounds.n_kv_heads = request.bounds.max_sequences = 1;
  request.bounds.head_dim_k = 513;
  request.bounds.head_dim_v = 32;
  request.bounds.max_batch = 4;
  uint64_t bytes = 0;
  EXPECT_EQ(kvc::cache_memory_bytes(open_cuda(), request, &bytes), Status::not_supported);
  EXPECT_NE(support::last_message().find("head_dim_k 513"), std::string::npos);
  request.bounds.head_dim_k = 512;
  EXPECT_EQ(kvc::cache_memory_bytes(open_cuda(), request, &bytes), Status::ok);
}

}  // namespace
