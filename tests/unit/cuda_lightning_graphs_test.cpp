// CUDA graphs of linear attention over the simulated device by way of the C ABI: what a graph does has the bits of passes that are not
// captured, and what would be wrong in a graph is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <vector>

#include "kernels/cuda/lightning_params.hpp"
#include "unit/cuda_graph_pair.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::expect_status;
using cuda_arena::first_of;
using cuda_arena::open_cuda;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, heads = 2, q_heads = 4, head_dim_k = 10, head_dim_v = 18;
constexpr int32_t batch = 12, sequences = 3;

struct Model {
  int32_t draft_states = 0, block = 0;
};

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Model& model) {
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::lightning;
  request.bounds.n_layers = layers;
  request.bounds.n_kv_heads = heads;
  request.bounds.max_q_heads = q_heads;
  request.bounds.head_dim_k = head_dim_k;
  request.bounds.head_dim_v = head_dim_v;
  request.bounds.max_sequences = sequences;
  request.bounds.max_batch = batch;
  request.bounds.zero_on_free = true;
  request.lightning.draft_states = model.draft_states;
  request.lightning.block = model.block;
  request.lightning.checkpoints.checkpoint_interval = 9;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  const float slopes[heads] = {0.1f, 0.5f};
  EXPECT_EQ(kvc_bind_decay(cache, 0, layers, slopes), KVC_OK) << support::last_message();
  kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
  desc.n_q_heads = q_heads;
  EXPECT_EQ(kvc_bind_attention(cache, 0, layers, &desc, nullptr, nullptr), KVC_OK);
  return cache;
}

/// Tensors of a layer, with a row for each token of the largest pass.
struct Layer {
  explicit Layer(Arena& arena)
      : k(arena.take({batch, heads, head_dim_k})),
        v(arena.take({batch, heads, head_dim_v})),
        q(arena.take({batch, q_heads, head_dim_k})),
        out(arena.take({batch, q_heads, head_dim_v})) {}

  static constexpr size_t n_floats = size_t{batch} * (heads + q_heads) * (head_dim_k + head_dim_v);
  kvc_tensor k, v, q, out;
};

/// What a model does in a pass, captured or not: the layers attend in one call and in two.
kvc_status run_layers(kvc_cache* cache, const std::vector<Layer>& tensors, int32_t n) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    const Layer& all = tensors[static_cast<size_t>(layer)];
    const kvc_tensor k = first_of(all.k, n), v = first_of(all.v, n), q = first_of(all.q, n);
    kvc_tensor out = first_of(all.out, n);
    if (layer == 0) {
      if (const kvc_status s = kvc_put_attention(cache, layer, &k, &v, &q, &out, nullptr)) return s;
    } else {
      if (const kvc_status s = kvc_put(cache, layer, &k, &v)) return s;
      if (const kvc_status s = kvc_attention(cache, layer, &q, &out, nullptr)) return s;
    }
  }
  return KVC_OK;
}

class Pair : public cuda_arena::GraphPair {
 public:
  Pair(const Model& model, unsigned order)
      : GraphPair(layers * Layer::n_floats, seed + order,
                  [&](const auto& device) { return create(device, model); }) {
    simt::device::set_seed(order);
    for (int32_t layer = 0; layer < layers; ++layer) {
      called_.emplace_back(of_calls_);
      replayed_.emplace_back(of_graphs_);
    }
    for (const int32_t n : {batch, 2, 1})
      graphs_.push_back(
          cuda_arena::capture(by_graphs_, n, [&] { return run_layers(by_graphs_, replayed_, n); }));
  }

  void pass() {
    const int32_t n = random_.chance(0.5) ? random_.between(1, 2) : random_.between(1, batch);
    const bool is_prompt = random_.chance(0.3);
    int32_t position[batch], sequence[batch];
    uint32_t flags[batch] = {};
    std::vector<int32_t> at = next_;
    added_.assign(sequences, 0);
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random_.chance(0.15) ? KVC_NONE : is_prompt ? 0 : random_.below(sequences);
      position[i] = 0;
      if (sequence[i] == KVC_NONE) continue;
      const auto which = static_cast<size_t>(sequence[i]);
      at[which] += random_.chance(0.1) ? random_.below(4) : 0;
      position[i] = at[which]++;
      flags[i] = random_.chance(0.1) ? uint32_t{KVC_TOKEN_MASKED} : 0u;
      added_[which] += 1;
    }
    void* const stream = any_stream();
    fill(stream);
    const bool replays = random_.chance(0.8);  // or a pass between two graphs, whose K has another type
    const auto begin = [&](kvc_cache* cache, uint32_t begin_flags) {
      return kvc_begin(cache, n, position, sequence, flags, begin_flags, stream);
    };
    ASSERT_EQ(begin(by_calls_, 0), KVC_OK) << support::last_message();
    ASSERT_EQ(begin(by_graphs_, replays ? uint32_t{KVC_BEGIN_REPLAY} : 0u), KVC_OK)
        << support::last_message();
    if (replays) {
      ASSERT_EQ(run_layers(by_calls_, called_, n), KVC_OK) << support::last_message();
      launch(n == 1 && random_.chance(0.7) ? 2 : n <= 2 && random_.chance(0.7) ? 1 : 0, stream);
    } else {
      ASSERT_EQ(run_in_bf16(by_calls_, called_, n), KVC_OK) << support::last_message();
      ASSERT_EQ(run_in_bf16(by_graphs_, replayed_, n), KVC_OK) << support::last_message();
    }
    compare_states();
    end(at);
    compare_tensors(stream);
    between();
  }

 private:
  /// The upper half of a float is that number in bf16.
  static kvc_status run_in_bf16(kvc_cache* cache, std::vector<Layer> tensors, int32_t n) {
    for (Layer& layer : tensors) {
      for (kvc_tensor* tensor : {&layer.k, &layer.v}) {
        tensor->dtype = KVC_BF16;
        tensor->data = static_cast<char*>(tensor->data) + 2;
        for (int32_t d = 0; d < 3; ++d) tensor->strides[d] *= 2;
      }
    }
    return run_layers(cache, tensors, n);
  }

  /// As they are within the pass.
  void compare_states() {
    if (!random_.chance(0.2)) return;
    Arena to(device_, 2 * sequences * heads * head_dim_k * head_dim_v, seed);
    std::vector<kvc_tensor> states;
    for (kvc_cache* cache : both()) {
      states.push_back(to.take({sequences, heads, head_dim_k, head_dim_v}));
      ASSERT_EQ(kvc_lightning_read(cache, 1, 0, sequences, &states.back()), KVC_OK);
    }
    const float* const there = to.on_host();
    EXPECT_TRUE(std::equal(there, there + to.size() / 2, there + to.size() / 2));
  }

  void end(const std::vector<int32_t>& at) {
    if (random_.chance(0.2)) {
      ASSERT_EQ(on_both(kvc_abort), KVC_OK);
      return;
    }
    int32_t all[sequences], keep[sequences];
    bool cuts = false;
    for (int32_t i = 0; i < sequences; ++i) {
      all[i] = i;
      keep[i] = added_[static_cast<size_t>(i)];
      if (keep[i] > 1 && random_.chance(0.4)) cuts = true, --keep[i];
    }
    const kvc_status kept = on_both(
        [&](kvc_cache* cache) { return kvc_commit_prefix(cache, sequences, all, keep); });
    if (kept != KVC_OK) {  // there is no state behind a part of so many tokens
      ASSERT_EQ(on_both(kvc_commit), KVC_OK);
    } else if (cuts) {
      n_cut_ += 1;
    }
    for (int32_t i = 0; i < sequences; ++i) {
      kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
      ASSERT_EQ(kvc_sequence_query(by_calls_, i, &info), KVC_OK);
      next_[static_cast<size_t>(i)] = info.next;
      EXPECT_TRUE(kept == KVC_OK || info.next == at[static_cast<size_t>(i)]);
    }
  }

  void between() {
    const auto which = static_cast<size_t>(random_.below(sequences));
    const size_t to = (which + 1) % sequences;
    const int32_t choice = random_.below(8);
    move_states(choice, which, to, std::max(0, next_[which] - 1), next_);
    if (choice == 3) {
      const auto sequence = static_cast<int32_t>(which);
      const int32_t destination[] = {sequence, static_cast<int32_t>(to)};
      const int32_t source[] = {static_cast<int32_t>(to), sequence};
      ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_reorder(cache, 2, destination, source); }),
                KVC_OK);
      std::swap(next_[which], next_[to]);
    }
  }

 public:
  int32_t n_cut() const { return n_cut_; }

 private:
  std::vector<Layer> called_, replayed_;
  std::vector<int32_t> next_ = std::vector<int32_t>(sequences);
  std::vector<int32_t> added_;
  int32_t n_cut_ = 0;
};

TEST(CudaLightningGraphs, DoPassesWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  unsigned order = 1;
  for (const Model& model :
       {Model{}, Model{.draft_states = 3}, Model{.draft_states = 20, .block = 3}}) {
    Pair pair(model, order++);
    for (int32_t i = 0; i < 40; ++i) {
      pair.pass();
      if (HasFailure()) FAIL() << "pass " << i << " of model " << order - 2;
    }
    pair.compare_digests();
    EXPECT_EQ(pair.n_cut() > 0, model.draft_states > 0);
  }
}

/// A pass by calls, and one by a graph.
void do_one_pass(int32_t n_heads, const std::vector<int32_t>& position,
                 const std::vector<int32_t>& sequence) {
  constexpr int32_t dim = 4;
  const auto n = static_cast<int32_t>(position.size());
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::lightning;
  request.bounds.n_layers = 1;
  request.bounds.n_kv_heads = request.bounds.max_q_heads = n_heads;
  request.bounds.head_dim_k = request.bounds.head_dim_v = dim;
  request.bounds.max_sequences = 300;
  request.bounds.max_batch = n;
  const std::shared_ptr<kvc::Device> device = open_cuda();
  const std::vector<float> slopes(static_cast<size_t>(n_heads), 0.125f);
  uint64_t digest[2][2];
  std::vector<float> out[2];
  for (const bool graphs : {false, true}) {
    Arena arena(device, static_cast<size_t>(4 * n * n_heads * dim), seed);
    kvc_cache* const cache = cuda_arena::create_cache(device, request);
    ASSERT_EQ(kvc_bind_decay(cache, 0, 1, slopes.data()), KVC_OK);
    kvc_tensor tensors[4];
    for (kvc_tensor& tensor : tensors) tensor = arena.take({n, n_heads, dim});
    const auto work = [&] {
      return kvc_put_attention(cache, 0, &tensors[0], &tensors[1], &tensors[2], &tensors[3], nullptr);
    };
    simt::device::Graph* const graph = graphs ? cuda_arena::capture(cache, n, work) : nullptr;
    ASSERT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), nullptr,
                        graphs ? KVC_BEGIN_REPLAY : 0, nullptr),
              KVC_OK)
        << support::last_message();
    if (graphs) {
      ASSERT_EQ(simt::device::launch_graph(*graph, nullptr), kvc::cuda::Error::none);
    } else {
      ASSERT_EQ(work(), KVC_OK) << support::last_message();
    }
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
    out[graphs] = arena.read(nullptr);
    ASSERT_EQ(kvc_state_digest(cache, digest[graphs]), KVC_OK);
    if (graphs) simt::device::destroy_graph(graph);
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_TRUE(out[0] == out[1]);
  EXPECT_TRUE(std::equal(digest[0], digest[0] + 2, digest[1]));
}

/// A sequence that calls cut into segments, and more segments, blocks and tokens than an upload brings at once.
TEST(CudaLightningGraphs, DoLongPasses) {
  constexpr int32_t n = 1500;
  std::vector<int32_t> position(n), sequence(n, 0);
  for (int32_t i = 0; i < n; ++i) position[static_cast<size_t>(i)] = 2 * i;
  for (int32_t i = 0; i < 299; ++i) {  // single tokens before the long sequence and behind it
    const auto token = static_cast<size_t>(i < 3 ? i : n - 1 - i);
    sequence[token] = i + 1;
    position[token] = i % 7;
  }
  do_one_pass(1, position, sequence);
}

TEST(CudaLightningGraphs, DoPassesOfMoreHeadsThanALaunchHasRoomFor) {
  do_one_pass(kvc::cuda::launch_heads + 2, {0, 0, 1, 3}, {0, 1, 1, 1});
}

TEST(CudaLightningGraphs, WhatAGraphCannotDoIsRefused) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  kvc_cache* const cache = create(device, {});
  Arena arena(device, layers * Layer::n_floats + heads * head_dim_k * head_dim_v, seed);
  std::vector<Layer> tensors;
  for (int32_t layer = 0; layer < layers; ++layer) tensors.emplace_back(arena);
  const int32_t position[] = {0, 1, 2, 3, 4}, sequence[] = {0, 0, 0};
  const auto begin = [&](int32_t n) {
    return kvc_begin(cache, n, position + 2, sequence, nullptr, KVC_BEGIN_REPLAY, nullptr);
  };
  expect_status(begin(1), KVC_E_BAD_STATE, "captured");
  ASSERT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(run_layers(cache, tensors, 2), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_commit(cache), KVC_OK);

  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  ASSERT_EQ(kvc_begin(cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream), KVC_OK);
  kvc_tensor state = arena.take({1, heads, head_dim_k, head_dim_v});
  expect_status(kvc_lightning_read(cache, 0, 0, 1, &state), KVC_E_NOT_SUPPORTED,
                "kvc_lightning_read");
  const kvc_tensor q = first_of(tensors[0].q, 2), v = first_of(tensors[0].v, 2);
  kvc_tensor k = first_of(tensors[0].k, 2), out = first_of(tensors[0].out, 2);
  expect_status(kvc_attention(cache, 1, &q, &out, nullptr), KVC_E_BAD_STATE,
                "since the capture began");
  EXPECT_EQ(run_layers(cache, tensors, 2), KVC_OK) << support::last_message();
  expect_status(kvc_attention(cache, 0, &q, &out, nullptr), KVC_E_BAD_STATE,
                "since the capture began");
  k.dtype = KVC_F16;
  expect_status(kvc_put(cache, 0, &k, &v), KVC_E_NOT_SUPPORTED, "K of f32 and V of f32");
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  expect_status(kvc_lightning_write(cache, 0, 0, 1, &state), KVC_E_NOT_SUPPORTED,
                "kvc_lightning_write");
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";

  expect_status(begin(3), KVC_E_INVALID_ARGUMENT, "n_tokens is 3");
  ASSERT_EQ(begin(2), KVC_OK) << support::last_message();
  expect_status(kvc_put(cache, 0, &v, &v), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  expect_status(kvc_attention(cache, 0, &q, &out, nullptr), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_abort(cache), KVC_OK);
  simt::device::destroy_graph(graph);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

}  // namespace
