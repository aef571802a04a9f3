// CUDA graphs of encoder caches over the simulated device by way of the C ABI: passes that attend to inputs, between others that put them.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <vector>

#include "unit/cuda_graph_pair.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::expect_status;
using cuda_arena::first_of;
using cuda_arena::open_cuda;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, heads = 2, q_heads = 4, batch = 10, sequences = 3, capacity = 40;

struct Model {
  int32_t head_dim = 64;
  kvc::StorageType type = kvc::StorageType::f16;
};

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Model& model) {
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::encoder;
  request.bounds.n_layers = layers;
  request.bounds.n_kv_heads = heads;
  request.bounds.max_q_heads = q_heads;
  request.bounds.head_dim_k = request.bounds.head_dim_v = model.head_dim;
  request.bounds.type_k = request.bounds.type_v = model.type;
  request.bounds.max_sequences = sequences;
  request.bounds.max_batch = batch;
  request.bounds.capacity = capacity;
  request.bounds.zero_on_free = true;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// Tensors of a layer: an input, and a row for each token of the largest pass.
struct Layer {
  Layer(Arena& arena, int32_t head_dim)
      : k(arena.take({capacity, heads, head_dim})),
        v(arena.take({capacity, heads, head_dim})),
        q(arena.take({batch, q_heads, head_dim})),
        out(arena.take({batch, q_heads, head_dim})),
        lse(arena.take({batch, q_heads})) {}

  static size_t n_floats(int32_t head_dim) {
    return static_cast<size_t>(2 * (capacity * heads + batch * q_heads) * head_dim + batch * q_heads);
  }
  kvc_tensor k, v, q, out, lse;
};

kvc_status attend(kvc_cache* cache, int32_t layer, const Layer& tensors, int32_t n) {
  const kvc_tensor q = first_of(tensors.q, n);
  kvc_tensor out = first_of(tensors.out, n), lse = first_of(tensors.lse, n);
  kvc_attention_extra extra = KVC_ATTENTION_EXTRA_INIT;
  extra.lse = &lse;
  return kvc_attention(cache, layer, &q, &out, &extra);
}

kvc_status attend_layers(kvc_cache* cache, const std::vector<Layer>& tensors, int32_t n) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    if (const kvc_status s = attend(cache, layer, tensors[static_cast<size_t>(layer)], n)) return s;
  }
  return KVC_OK;
}

class Pair : public cuda_arena::GraphPair {
 public:
  Pair(const Model& model, unsigned order)
      : GraphPair(layers * Layer::n_floats(model.head_dim), seed + order,
                  [&](const auto& device) { return create(device, model); }) {
    simt::device::set_seed(order);
    for (int32_t layer = 0; layer < layers; ++layer) {
      called_.emplace_back(of_calls_, model.head_dim);
      replayed_.emplace_back(of_graphs_, model.head_dim);
    }
    for (const int32_t n : {batch, 2})
      graphs_.push_back(cuda_arena::capture(
          by_graphs_, n, [&] { return attend_layers(by_graphs_, replayed_, n); }));
  }

  /// One in three brings an input, which every layer puts before it attends.
  void pass() {
    const int32_t n = random_.between(1, batch);
    int32_t position[batch], sequence[batch];
    uint32_t flags[batch] = {};
    std::vector<int32_t> at = next_;
    const bool puts = random_.chance(0.35);
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random_.chance(0.15) && i > 0 ? KVC_NONE : random_.below(sequences);
      position[i] = sequence[i] == KVC_NONE ? 0 : at[static_cast<size_t>(sequence[i])]++;
    }
    if (puts) flags[0] = KVC_TOKEN_ENCODER_INPUT;
    void* const stream = any_stream();
    fill(stream);
    const auto begin = [&](kvc_cache* cache, uint32_t begin_flags) {
      return kvc_begin(cache, n, position, sequence, flags, begin_flags, stream);
    };
    ASSERT_EQ(begin(by_calls_, 0), KVC_OK) << support::last_message();
    ASSERT_EQ(begin(by_graphs_, puts ? 0u : uint32_t{KVC_BEGIN_REPLAY}), KVC_OK)
        << support::last_message();
    if (puts) {
      const int64_t length = random_.between(1, capacity);
      for (kvc_cache* cache : both()) put_and_attend(cache, sequence[0], length, n);
    } else {
      ASSERT_EQ(attend_layers(by_calls_, called_, n), KVC_OK) << support::last_message();
      launch(n <= 2 && random_.chance(0.7) ? 1 : 0, stream);
    }
    const bool commits = !random_.chance(0.2);
    ASSERT_EQ(on_both(commits ? kvc_commit : kvc_abort), KVC_OK);
    if (commits) next_ = at;
    compare_tensors(stream);
    between();
  }

 private:
  void put_and_attend(kvc_cache* cache, int32_t sequence, int64_t length, int32_t n) {
    for (int32_t layer = 0; layer < layers; ++layer) {
      const Layer& all = (cache == by_calls_ ? called_ : replayed_)[static_cast<size_t>(layer)];
      const kvc_tensor k = first_of(all.k, length), v = first_of(all.v, length);
      ASSERT_EQ(kvc_encoder_put(cache, layer, sequence, &k, &v), KVC_OK) << support::last_message();
      ASSERT_EQ(attend(cache, layer, all, n), KVC_OK) << support::last_message();
    }
  }
  void between() {
    const auto which = static_cast<size_t>(random_.below(sequences));
    const auto sequence = static_cast<int32_t>(which);
    const size_t to = (which + 1) % sequences;
    const int32_t choice = random_.below(6);
    int32_t got = 0;
    if (choice == 0) {
      ASSERT_EQ(on_both([&](kvc_cache* cache) {
                  return kvc_copy_prefix(cache, sequence, static_cast<int32_t>(to), next_[which],
                                         &got);
                }),
                KVC_OK);
      next_[to] = got;
    } else if (choice == 1) {
      const int32_t want = random_.between(0, next_[which]);
      ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_resume(cache, sequence, want, &got); }),
                KVC_OK);
      next_[which] = got;
    }
  }

  std::vector<Layer> called_, replayed_;
  std::vector<int32_t> next_ = std::vector<int32_t>(sequences);
};

TEST(CudaInputGraphs, AttendWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  unsigned order = 1;
  for (const Model& model : {Model{}, Model{.head_dim = 24, .type = kvc::StorageType::f32},
                             Model{.head_dim = 32, .type = kvc::StorageType::q8_0}}) {
    Pair pair(model, order++);
    for (int32_t i = 0; i < 30; ++i) {
      pair.pass();
      if (HasFailure()) FAIL() << "pass " << i << " of model " << order - 2;
    }
    pair.compare_digests();
  }
}

TEST(CudaInputGraphs, WhatAGraphCannotDoIsRefused) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  const Model model;
  kvc_cache* const cache = create(device, model);
  Arena arena(device, layers * Layer::n_floats(model.head_dim), seed);
  std::vector<Layer> tensors;
  for (int32_t layer = 0; layer < layers; ++layer) tensors.emplace_back(arena, model.head_dim);
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  ASSERT_EQ(kvc_begin(cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream), KVC_OK);
  const kvc_tensor q = first_of(tensors[0].q, 2);
  kvc_tensor k = tensors[0].k, v = tensors[0].v, out = first_of(tensors[0].out, 2);
  expect_status(kvc_put(cache, 0, &k, &v), KVC_E_NOT_SUPPORTED, "a put of an encoder's input");
  expect_status(kvc_encoder_put(cache, 0, 1, &k, &v), KVC_E_NOT_SUPPORTED,
                "a put of an encoder's input");
  expect_status(kvc_put_attention(cache, 0, &k, &v, &q, &out, nullptr), KVC_E_NOT_SUPPORTED,
                "a put of an encoder's input");
  expect_status(kvc_encoder_share(cache, 0, 1), KVC_E_NOT_SUPPORTED, "kvc_encoder_share");
  int32_t first = -1, cells = 0;
  EXPECT_EQ(kvc_history(cache, 0, &first, &cells), KVC_OK);
  kvc_tensor mask = support::dense(arena.on_host(), KVC_F32, {2, cells});
  mask.device_type = k.device_type, mask.device_id = k.device_id;
  expect_status(kvc_mask(cache, 0, &mask), KVC_E_NOT_SUPPORTED, "kvc_mask");
  expect_status(kvc_gather(cache, 0, 0, &k, &v), KVC_E_SHAPE, "");
  k.shape[0] = v.shape[0] = 0;
  expect_status(kvc_gather(cache, 0, 0, &k, &v), KVC_E_NOT_SUPPORTED, "kvc_gather");
  EXPECT_EQ(attend_layers(cache, tensors, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";

  const int32_t position[] = {0, 1}, sequence[] = {0, 0};
  const uint32_t flags[] = {0, KVC_TOKEN_ENCODER_INPUT};
  expect_status(kvc_begin(cache, 2, position, sequence, flags, KVC_BEGIN_REPLAY, nullptr),
                KVC_E_NOT_SUPPORTED, "token_flags[1] has KVC_TOKEN_ENCODER_INPUT");
  ASSERT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, KVC_BEGIN_REPLAY, nullptr), KVC_OK);
  EXPECT_EQ(kvc_history(cache, 0, &first, &cells), KVC_OK);
  EXPECT_EQ(first, 0);
  EXPECT_GE(cells, sequences * capacity);
  expect_status(kvc_attention(cache, 0, &q, &out, nullptr), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_abort(cache), KVC_OK);
  simt::device::destroy_graph(graph);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

}  // namespace
