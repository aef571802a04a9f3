// CUDA graphs of caches of states over the simulated device by way of the C ABI: what a graph does has the bits of passes that are not
// captured, and what would be wrong in a graph is refused.
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
using support::Random;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, batch = 12, sequences = 3;
constexpr int32_t state_size = 37, channels = 5;

/// How a cache stores.
struct Stored {
  int32_t width = 3;  // of the convolution
  int32_t draft_states = 0;
  kvc::StorageType type_conv = kvc::StorageType::bf16, type_state = kvc::StorageType::f32;
  bool has_pinned_checkpoints = false;  // which are taken by themselves, too
};

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Stored& setup) {
  kvc::CacheRequest request;
  request.kind = kvc::CacheKind::recurrent;
  request.bounds.n_layers = layers;
  request.bounds.max_sequences = sequences;
  request.bounds.max_batch = batch;
  request.bounds.zero_on_free = true;
  request.recurrent.state_size = state_size;
  request.recurrent.conv_channels = channels;
  request.recurrent.conv_dim = setup.width;
  request.recurrent.type_conv = setup.type_conv;
  request.recurrent.type_state = setup.type_state;
  request.recurrent.draft_states = setup.draft_states;
  if (setup.has_pinned_checkpoints) {
    request.recurrent.checkpoints = {
        .checkpoints = 2, .checkpoint_interval = 2, .checkpoint_min_pos = -1, .on_host = true};
  }
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// Tensors of a layer: what is read of both parts, inputs of the convolution, and states to put.
struct Layer {
  Layer(Arena& arena, int32_t width)
      : conv_before(arena.take({sequences, channels, width})),
        state_before(arena.take({sequences, state_size})),
        x(arena.take({batch, channels})),
        states(arena.take({batch, state_size})) {}

  static size_t n_floats(int32_t width) {
    return static_cast<size_t>(sequences * (channels * width + state_size) +
                               batch * (channels + state_size));
  }
  kvc_tensor conv_before, state_before, x, states;
};

std::vector<Layer> tensors_in(Arena& arena, int32_t width) {
  std::vector<Layer> tensors;
  for (int32_t layer = 0; layer < layers; ++layer) tensors.emplace_back(arena, width);
  return tensors;
}

/// What a model does in a pass, captured or not.
kvc_status run_layers(kvc_cache* cache, const std::vector<Layer>& tensors, int32_t n) {
  int32_t n_sequences = 0, n_rows = 0;
  if (const kvc_status s = kvc_state_layout(cache, 0, nullptr, &n_sequences, nullptr)) return s;
  if (const kvc_status s = kvc_state_slots(cache, 0, nullptr, &n_rows)) return s;
  for (int32_t layer = 0; layer < layers; ++layer) {
    const Layer& all = tensors[static_cast<size_t>(layer)];
    kvc_tensor conv = first_of(all.conv_before, n_sequences);
    kvc_tensor state = first_of(all.state_before, n_sequences);
    const kvc_tensor x = first_of(all.x, n), states = first_of(all.states, n_rows);
    if (const kvc_status s = kvc_state_get(cache, layer, KVC_PART_CONV, &conv)) return s;
    if (const kvc_status s = kvc_state_get(cache, layer, KVC_PART_RECURRENT, &state)) return s;
    if (const kvc_status s = kvc_state_conv(cache, layer, &x)) return s;
    if (const kvc_status s = kvc_state_put(cache, layer, KVC_PART_RECURRENT, &states)) return s;
  }
  return KVC_OK;
}

class Pair : public cuda_arena::GraphPair {
 public:
  Pair(const Stored& setup, unsigned order)
      : GraphPair(layers * Layer::n_floats(setup.width), seed + order,
                  [&](const auto& device) { return create(device, setup); }),
        called_(tensors_in(of_calls_, setup.width)),
        replayed_(tensors_in(of_graphs_, setup.width)) {
    simt::device::set_seed(order);
    for (const int32_t n : {batch, 2})
      graphs_.push_back(
          cuda_arena::capture(by_graphs_, n, [&] { return run_layers(by_graphs_, replayed_, n); }));
  }

  void pass() {
    const int32_t n = random_.chance(0.3) ? random_.between(1, 2) : random_.between(1, batch);
    int32_t position[batch], sequence[batch];
    std::vector<int32_t> at = next_;
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random_.chance(0.15) ? KVC_NONE : random_.below(sequences);
      position[i] = sequence[i] == KVC_NONE ? 0 : at[static_cast<size_t>(sequence[i])]++;
    }
    void* const stream = any_stream();
    fill(stream);
    ASSERT_EQ(kvc_begin(by_calls_, n, position, sequence, nullptr, 0, stream), KVC_OK);
    ASSERT_EQ(run_layers(by_calls_, called_, n), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_begin(by_graphs_, n, position, sequence, nullptr, KVC_BEGIN_REPLAY, stream), KVC_OK)
        << support::last_message();
    launch(n <= 2 && random_.chance(0.7) ? 1 : 0, stream);
    end(at);
    compare_tensors(stream);
    between();
  }

 private:
  void end(const std::vector<int32_t>& at) {
    if (random_.chance(0.2)) {
      ASSERT_EQ(on_both(kvc_abort), KVC_OK);
      return;
    }
    std::vector<int32_t> keep(sequences), all(sequences);
    for (int32_t i = 0; i < sequences; ++i) {
      const auto which = static_cast<size_t>(i);
      const int32_t added = at[which] - next_[which];
      all[which] = i;
      keep[which] = random_.chance(0.3) && added > 1 ? added - 1 : added;
    }
    const kvc_status kept = on_both([&](kvc_cache* cache) {
      return kvc_commit_prefix(cache, sequences, all.data(), keep.data());
    });
    if (kept != KVC_OK) {  // there is no state behind a part of so many tokens
      ASSERT_EQ(on_both(kvc_commit), KVC_OK);
      next_ = at;
      return;
    }
    for (size_t i = 0; i < next_.size(); ++i) next_[i] += keep[i];
  }
  void between() {
    const auto which = static_cast<size_t>(random_.below(sequences));
    const int32_t choice = random_.below(8), back = random_.below(2);
    move_states(choice, which, (which + 1) % sequences, std::max(0, next_[which] - 1 - back), next_);
  }

  const std::vector<Layer> called_, replayed_;
  std::vector<int32_t> next_ = std::vector<int32_t>(sequences);
};

TEST(CudaStateGraphs, DoPassesWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  using enum kvc::StorageType;
  unsigned order = 1;
  for (const Stored& setup :
       {Stored{}, Stored{.draft_states = 2}, Stored{.width = 1, .type_conv = f32},
        Stored{.width = 20, .draft_states = 3, .type_conv = f16, .type_state = bf16},
        Stored{.draft_states = 1, .has_pinned_checkpoints = true}}) {
    Pair pair(setup, order++);
    for (int32_t i = 0; i < 40; ++i) {
      pair.pass();
      if (HasFailure()) FAIL() << "pass " << i << " of set-up " << order - 2;
    }
    pair.compare_digests();
  }
}

/// Passes of the wrapper, calls on the layers of its child.
TEST(CudaStateGraphs, DoPassesOfWrappers) {
  simt::device::set_seed(9);
  const std::shared_ptr<kvc::Device> device = open_cuda();
  const int32_t child[] = {0, 0}, layer[] = {0, 1}, sequence[] = {0, 1, 0, 2};
  uint64_t digest[2][2];
  for (const bool graphs : {false, true}) {
    Arena arena(device, layers * Layer::n_floats(3), seed);
    const std::vector<Layer> tensors = tensors_in(arena, 3);
    std::vector<float> inputs(arena.size());
    Random random(seed);
    kvc_cache *states = create(device, {}), *model = nullptr;
    ASSERT_EQ(kvc_cache_wrap(&states, 1, child, layer, layers, &model), KVC_OK);
    void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
    simt::device::Graph* graph = nullptr;
    if (graphs)
      graph = cuda_arena::capture(model, 4, [&] { return run_layers(states, tensors, 4); });
    for (int32_t pass = 0; pass < 3; ++pass) {
      const int32_t position[] = {2 * pass, pass, 2 * pass + 1, pass};
      for (float& number : inputs) number = random.value();
      arena.write(inputs, stream);
      ASSERT_EQ(
          kvc_begin(model, 4, position, sequence, nullptr, graphs ? KVC_BEGIN_REPLAY : 0, stream),
          KVC_OK)
          << support::last_message();
      if (graphs) {
        ASSERT_EQ(simt::device::launch_graph(*graph, stream), kvc::cuda::Error::none);
      } else {
        ASSERT_EQ(run_layers(states, tensors, 4), KVC_OK) << support::last_message();
      }
      ASSERT_EQ(kvc_commit(model), KVC_OK);
      ASSERT_EQ(kvc::cuda::runtime::synchronize(stream), kvc::cuda::Error::none);
    }
    ASSERT_EQ(kvc_state_digest(model, digest[graphs]), KVC_OK);
    if (graphs) simt::device::destroy_graph(graph);
    for (kvc_cache* cache : {model, states}) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_TRUE(std::equal(digest[0], digest[0] + 2, digest[1]));
}

/// What they do to states, on their stream and beside it, cannot become part of a graph.
TEST(CudaStateGraphs, CallsThatMoveStatesAreRefusedInACapture) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  kvc_cache* const cache = create(device, {.draft_states = 2, .has_pinned_checkpoints = true});
  Arena arena(device, 2 * layers * Layer::n_floats(3), seed);
  const std::vector<Layer> of_pass = tensors_in(arena, 3), of_graph = tensors_in(arena, 3);
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0}, other[] = {1};
  int32_t at = 0;
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, stream), KVC_OK);
  ASSERT_EQ(run_layers(cache, of_pass, 3), KVC_OK) << support::last_message();
  uint64_t before[2], after[2];
  ASSERT_EQ(kvc_state_digest(cache, before), KVC_OK);

  const auto refuses = [](kvc_status status, const char* call) {
    expect_status(status, KVC_E_NOT_SUPPORTED, call);
    expect_status(status, KVC_E_NOT_SUPPORTED, "while the stream is being captured");
  };
  const auto refuse_moves = [&] {
    refuses(kvc_resume(cache, 0, 1, &at), "kvc_resume");
    refuses(kvc_copy_prefix(cache, 0, 1, 3, &at), "kvc_copy_prefix");
    refuses(kvc_reorder(cache, 1, other, sequence), "kvc_reorder");
    refuses(kvc_remove(cache, 0, 0, KVC_SEQ_END), "kvc_remove");
    refuses(kvc_checkpoint_take(cache, 0), "kvc_checkpoint_take");
  };
  const auto reserve = [&] {
    return kvc_begin(cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream);
  };
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  expect_status(reserve(), KVC_E_BAD_STATE, "commit it before the capture begins");
  refuse_moves();
  refuses(kvc_commit(cache), "kvc_commit");
  refuses(kvc_commit_prefix(cache, 1, sequence, position + 1), "kvc_commit_prefix");
  refuses(kvc_abort(cache), "kvc_abort");
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  simt::device::destroy_graph(graph);
  ASSERT_EQ(kvc_state_digest(cache, after), KVC_OK) << support::last_message();
  EXPECT_TRUE(std::equal(before, before + 2, after)) << "no call has changed anything";

  ASSERT_EQ(kvc_commit(cache), KVC_OK) << support::last_message();
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  ASSERT_EQ(reserve(), KVC_OK) << support::last_message();
  refuse_moves();
  EXPECT_EQ(run_layers(cache, of_graph, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK) << support::last_message();
  refuse_moves();
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  simt::device::destroy_graph(graph);
  EXPECT_EQ(kvc_resume(cache, 0, 2, &at), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

TEST(CudaStateGraphs, WhatAGraphCannotDoIsRefused) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  kvc_cache* const cache = create(device, {});
  Arena arena(device, layers * Layer::n_floats(3), seed);
  const std::vector<Layer> tensors = tensors_in(arena, 3);
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  const auto begin = [&](int32_t n) {
    return kvc_begin(cache, n, position, sequence, nullptr, KVC_BEGIN_REPLAY, nullptr);
  };
  expect_status(begin(1), KVC_E_BAD_STATE, "captured");
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  ASSERT_EQ(kvc_begin(cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream), KVC_OK);
  kvc_tensor state = tensors[0].state_before;
  state.ndim = 1;
  state.shape[0] = state_size;
  state.strides[0] = 1;
  expect_status(kvc_state_gather(cache, 0, KVC_PART_RECURRENT, 0, 0, &state), KVC_E_NOT_SUPPORTED,
                "kvc_state_gather");
  EXPECT_EQ(run_layers(cache, tensors, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  expect_status(begin(3), KVC_E_INVALID_ARGUMENT, "n_tokens is 3");
  ASSERT_EQ(begin(2), KVC_OK) << support::last_message();
  expect_status(run_layers(cache, tensors, 2), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  const kvc_tensor x = first_of(tensors[0].x, 2), states = first_of(tensors[0].states, 1);
  expect_status(kvc_state_conv(cache, 0, &x), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  expect_status(kvc_state_put(cache, 0, KVC_PART_RECURRENT, &states), KVC_E_BAD_STATE,
                "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_abort(cache), KVC_OK);
  simt::device::destroy_graph(graph);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

}  // namespace
