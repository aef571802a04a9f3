// CUDA graphs of caches of states over the simulated device by way of the C ABI: what a graph does has the bits of passes that are not
// captured, and what would be wrong in a graph is refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <memory>
#include <vector>

#include "core/caches/create.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::open_cuda;
using support::Random;
namespace runtime = kvc::cuda::runtime;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, batch = 12, sequences = 3;
constexpr int32_t state_size = 37, channels = 5;

/// How a cache stores.
struct Stored {
  int32_t width = 3;  // of the convolution
  int32_t draft_states = 0;
  kvc::StorageType type_conv = kvc::StorageType::bf16, type_state = kvc::StorageType::f32;
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
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// The tensors of a pass in device memory, of each layer: what is read of both parts, inputs of the convolution, and states to put.
class Tensors {
 public:
  Tensors(const std::shared_ptr<kvc::Device>& device, int32_t width)
      : device_(device), width_(width) {
    data_ = static_cast<float*>(device_->allocate(kvc::Place::device, bytes(), false));
    EXPECT_NE(data_, nullptr);
  }
  ~Tensors() { device_->release(kvc::Place::device, data_, bytes()); }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  size_t n_floats() const { return static_cast<size_t>(layers * of_layer()); }
  size_t bytes() const { return n_floats() * sizeof(float); }
  float* data() const { return data_; }

  kvc_tensor conv_before(int32_t layer, int32_t n) const {
    return placed(support::dense(at(layer), KVC_F32, {n, channels, width_}));
  }
  kvc_tensor state_before(int32_t layer, int32_t n) const {
    return placed(support::dense(at(layer) + sequences * channels * width_, KVC_F32, {n, state_size}));
  }
  kvc_tensor x(int32_t layer, int32_t n) const {
    return placed(support::dense(at(layer) + behind_before(), KVC_F32, {n, channels}));
  }
  kvc_tensor states(int32_t layer, int32_t n) const {
    return placed(
        support::dense(at(layer) + behind_before() + batch * channels, KVC_F32, {n, state_size}));
  }

 private:
  int32_t behind_before() const { return sequences * (channels * width_ + state_size); }
  int32_t of_layer() const { return behind_before() + batch * (channels + state_size); }
  float* at(int32_t layer) const { return data_ + layer * of_layer(); }
  kvc_tensor placed(kvc_tensor tensor) const {
    tensor.device_type = device_->info().type;
    tensor.device_id = device_->info().id;
    return tensor;
  }

  std::shared_ptr<kvc::Device> device_;
  int32_t width_;
  float* data_ = nullptr;
};

/// What a model does in a pass, captured or not.
kvc_status run_layers(kvc_cache* cache, const Tensors& tensors, int32_t n) {
  int32_t n_sequences = 0, n_rows = 0;
  if (const kvc_status s = kvc_state_layout(cache, 0, nullptr, &n_sequences, nullptr)) return s;
  if (const kvc_status s = kvc_state_slots(cache, 0, nullptr, &n_rows)) return s;
  for (int32_t layer = 0; layer < layers; ++layer) {
    kvc_tensor conv = tensors.conv_before(layer, n_sequences);
    kvc_tensor state = tensors.state_before(layer, n_sequences);
    const kvc_tensor x = tensors.x(layer, n), states = tensors.states(layer, n_rows);
    if (const kvc_status s = kvc_state_get(cache, layer, KVC_PART_CONV, &conv)) return s;
    if (const kvc_status s = kvc_state_get(cache, layer, KVC_PART_RECURRENT, &state)) return s;
    if (const kvc_status s = kvc_state_conv(cache, layer, &x)) return s;
    if (const kvc_status s = kvc_state_put(cache, layer, KVC_PART_RECURRENT, &states)) return s;
  }
  return KVC_OK;
}

simt::device::Graph* capture(kvc_cache* cache, const Tensors& tensors, int32_t n) {
  return cuda_arena::capture(cache, n, [&] { return run_layers(cache, tensors, n); });
}

/// A cache that passes are done in one by one, and one in which graphs do them.
class Pair {
 public:
  Pair(const Stored& setup, unsigned order)
      : device_(open_cuda()),
        eager_(create(device_, setup)),
        replayed_(create(device_, setup)),
        of_eager_(device_, setup.width),
        of_graphs_(device_, setup.width),
        random_(seed + order) {
    simt::device::set_seed(order);
    for (const int32_t n : {batch, 2}) graphs_.push_back(capture(replayed_, of_graphs_, n));
  }
  ~Pair() {
    simt::device::finish();
    for (simt::device::Graph* graph : graphs_) simt::device::destroy_graph(graph);
    for (kvc_cache* cache : both()) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  void pass() {
    const int32_t n = random_.chance(0.3) ? random_.between(1, 2) : random_.between(1, batch);
    int32_t position[batch], sequence[batch];
    std::vector<int32_t> at = next_;
    for (int32_t i = 0; i < n; ++i) {
      sequence[i] = random_.chance(0.15) ? KVC_NONE : random_.below(sequences);
      position[i] = sequence[i] == KVC_NONE ? 0 : at[static_cast<size_t>(sequence[i])]++;
    }
    void* const stream = reinterpret_cast<void*>(static_cast<uintptr_t>(random_.below(4)));
    std::vector<float> inputs(of_eager_.n_floats());
    for (float& number : inputs) number = random_.value();
    for (const Tensors* tensors : {&of_eager_, &of_graphs_})
      ASSERT_EQ(runtime::copy_to_device(tensors->data(), inputs.data(), tensors->bytes(), stream),
                kvc::cuda::Error::none);
    ASSERT_EQ(kvc_begin(eager_, n, position, sequence, nullptr, 0, stream), KVC_OK);
    ASSERT_EQ(run_layers(eager_, of_eager_, n), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_begin(replayed_, n, position, sequence, nullptr, KVC_BEGIN_REPLAY, stream), KVC_OK)
        << support::last_message();
    const bool small = n <= 2 && random_.chance(0.7);
    ASSERT_EQ(simt::device::launch_graph(*graphs_[small ? 1 : 0], stream), kvc::cuda::Error::none);
    end(at);
    compare(stream);
    between();
  }

  void compare_digests() {
    uint64_t digest[2], wanted[2];
    ASSERT_EQ(kvc_state_digest(eager_, wanted), KVC_OK);
    ASSERT_EQ(kvc_state_digest(replayed_, digest), KVC_OK);
    EXPECT_TRUE(std::equal(digest, digest + 2, wanted));
    for (kvc_cache* cache : both()) EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  }

 private:
  std::array<kvc_cache*, 2> both() const { return {eager_, replayed_}; }

  void end(const std::vector<int32_t>& at) {
    if (random_.chance(0.2)) {
      for (kvc_cache* cache : both()) ASSERT_EQ(kvc_abort(cache), KVC_OK);
      return;
    }
    std::vector<int32_t> keep(sequences), all(sequences);
    for (int32_t i = 0; i < sequences; ++i) {
      const auto which = static_cast<size_t>(i);
      const int32_t added = at[which] - next_[which];
      all[which] = i;
      keep[which] = random_.chance(0.3) && added > 1 ? added - 1 : added;
    }
    const kvc_status status = kvc_commit_prefix(eager_, sequences, all.data(), keep.data());
    ASSERT_EQ(kvc_commit_prefix(replayed_, sequences, all.data(), keep.data()), status);
    if (status != KVC_OK) {  // there is no state behind a part of so many tokens
      for (kvc_cache* cache : both()) ASSERT_EQ(kvc_commit(cache), KVC_OK);
      next_ = at;
      return;
    }
    for (size_t i = 0; i < next_.size(); ++i) next_[i] += keep[i];
  }
  void compare(void* stream) {
    std::vector<float> there[2];
    for (const bool graphs : {false, true}) {
      const Tensors& tensors = graphs ? of_graphs_ : of_eager_;
      there[graphs].resize(tensors.n_floats());
      ASSERT_EQ(runtime::copy_to_host(there[graphs].data(), tensors.data(), tensors.bytes(), stream),
                kvc::cuda::Error::none);
    }
    ASSERT_EQ(runtime::synchronize(stream), kvc::cuda::Error::none);
    ASSERT_EQ(there[0], there[1]);
  }
  void between() {
    const auto which = static_cast<size_t>(random_.below(sequences));
    const auto sequence = static_cast<int32_t>(which);
    const size_t to = (which + 1) % sequences;
    const int32_t choice = random_.below(8);
    for (kvc_cache* cache : both()) {
      int32_t at = 0;
      if (choice == 0) {
        ASSERT_EQ(kvc_checkpoint_take(cache, sequence), KVC_OK);
      } else if (choice == 1) {
        ASSERT_EQ(kvc_resume(cache, sequence, std::max(0, next_[which] - 1), &at), KVC_OK);
      } else if (choice == 2) {
        ASSERT_EQ(kvc_copy_prefix(cache, sequence, static_cast<int32_t>(to), next_[which], &at),
                  KVC_OK);
      }
      if (cache == eager_) at_ = at;
    }
    if (choice == 1) next_[which] = at_;
    if (choice == 2) next_[to] = at_;
  }

  std::shared_ptr<kvc::Device> device_;
  kvc_cache *eager_, *replayed_;
  Tensors of_eager_, of_graphs_;
  Random random_;
  std::vector<simt::device::Graph*> graphs_;
  std::vector<int32_t> next_ = std::vector<int32_t>(sequences);
  int32_t at_ = 0;
};

TEST(CudaStateGraphs, DoPassesWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  using enum kvc::StorageType;
  unsigned order = 1;
  for (const Stored& setup :
       {Stored{}, Stored{.draft_states = 2}, Stored{.width = 1, .type_conv = f32},
        Stored{.width = 20, .draft_states = 3, .type_conv = f16, .type_state = bf16}}) {
    Pair pair(setup, order++);
    for (int32_t i = 0; i < 40; ++i) {
      pair.pass();
      if (HasFatalFailure()) FAIL() << "pass " << i << " of set-up " << order - 2;
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
    const Tensors tensors(device, 3);
    std::vector<float> inputs(tensors.n_floats());
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
      ASSERT_EQ(runtime::copy_to_device(tensors.data(), inputs.data(), tensors.bytes(), stream),
                kvc::cuda::Error::none);
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
      ASSERT_EQ(runtime::synchronize(stream), kvc::cuda::Error::none);
    }
    ASSERT_EQ(kvc_state_digest(model, digest[graphs]), KVC_OK);
    if (graphs) simt::device::destroy_graph(graph);
    for (kvc_cache* cache : {model, states}) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  EXPECT_TRUE(std::equal(digest[0], digest[0] + 2, digest[1]));
}

TEST(CudaStateGraphs, WhatAGraphCannotDoIsRefused) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  kvc_cache* const cache = create(device, {});
  const Tensors tensors(device, 3);
  const auto expect = [](kvc_status status, kvc_status expected, const char* words) {
    EXPECT_EQ(support::name(status), support::name(expected)) << words;
    EXPECT_NE(support::last_message().find(words), std::string::npos) << support::last_message();
  };
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  const auto begin = [&](int32_t n) {
    return kvc_begin(cache, n, position, sequence, nullptr, KVC_BEGIN_REPLAY, nullptr);
  };
  expect(begin(1), KVC_E_BAD_STATE, "captured");
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  ASSERT_EQ(kvc_begin(cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream), KVC_OK);
  kvc_tensor state = tensors.state_before(0, 1);
  state.ndim = 1;
  state.shape[0] = state_size;
  state.strides[0] = 1;
  expect(kvc_state_gather(cache, 0, KVC_PART_RECURRENT, 0, 0, &state), KVC_E_NOT_SUPPORTED,
         "kvc_state_gather");
  EXPECT_EQ(run_layers(cache, tensors, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  expect(begin(3), KVC_E_INVALID_ARGUMENT, "n_tokens is 3");
  ASSERT_EQ(begin(2), KVC_OK) << support::last_message();
  expect(run_layers(cache, tensors, 2), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  const kvc_tensor x = tensors.x(0, 2), states = tensors.states(0, 1);
  expect(kvc_state_conv(cache, 0, &x), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  expect(kvc_state_put(cache, 0, KVC_PART_RECURRENT, &states), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_abort(cache), KVC_OK);
  simt::device::destroy_graph(graph);
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

}  // namespace
