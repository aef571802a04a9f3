// CUDA graphs of passes of rows over the simulated device by way of the C ABI: transformer caches, and lightning ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <vector>

#include "unit/cuda_graph_pair.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::expect_status;
using cuda_arena::open_cuda;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, heads = 2, q_heads = 4, rows = 3, q_max = 4, capacity = 40;

struct Model {
  int32_t head_dim = 64;
  kvc::StorageType type = kvc::StorageType::bf16;
  bool ring = false;
  int32_t reach = 0;
  kvc::CacheKind kind = kvc::CacheKind::transformer;

  bool is_transformer() const { return kind == kvc::CacheKind::transformer; }
};

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Model& model,
                  int32_t n_rows = rows) {
  kvc::CacheRequest request;
  request.kind = model.kind;
  request.bounds.n_layers = layers;
  request.bounds.n_kv_heads = heads;
  request.bounds.max_q_heads = q_heads;
  request.bounds.head_dim_k = request.bounds.head_dim_v = model.head_dim;
  request.bounds.max_sequences = n_rows;
  request.bounds.max_batch = n_rows * q_max;
  request.bounds.zero_on_free = true;
  if (model.is_transformer()) {
    request.bounds.type_k = request.bounds.type_v = model.type;
    request.bounds.capacity = capacity;
    request.transformer.ring = model.ring;
    request.transformer.reach = model.reach;
  } else {
    request.lightning.draft_states = q_max;
  }
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  const float slopes[] = {0.1f, 0.5f};
  if (model.is_transformer()) return cache;
  EXPECT_EQ(kvc_bind_decay(cache, 0, layers, slopes), KVC_OK) << support::last_message();
  return cache;
}

/// Floats of a layer's tensors, with a row for each token of the largest pass.
struct Layer {
  explicit Layer(Arena& arena, int32_t head_dim)
      : k(arena.take({rows, q_max, heads, head_dim})),
        v(arena.take({rows, q_max, heads, head_dim})),
        q(arena.take({rows, q_max, q_heads, head_dim})),
        out(arena.take({rows, q_max, q_heads, head_dim})) {}

  static size_t n_floats(int32_t head_dim) {
    return static_cast<size_t>(2 * rows * q_max * (heads + q_heads) * head_dim);
  }
  kvc_tensor k, v, q, out;
};

/// Of so many rows and tokens, one behind the other.
kvc_tensor of_pass(kvc_tensor tensor, int32_t n_rows, int32_t q_len) {
  tensor.shape[0] = n_rows;
  tensor.shape[1] = q_len;
  tensor.strides[0] = q_len * tensor.strides[1];
  return tensor;
}

kvc_status run_layers(kvc_cache* cache, const std::vector<Layer>& tensors, int32_t n_rows,
                      int32_t q_len) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    const Layer& all = tensors[static_cast<size_t>(layer)];
    const kvc_tensor k = of_pass(all.k, n_rows, q_len), v = of_pass(all.v, n_rows, q_len);
    const kvc_tensor q = of_pass(all.q, n_rows, q_len);
    kvc_tensor out = of_pass(all.out, n_rows, q_len);
    if (const kvc_status s = kvc_put_attention(cache, layer, &k, &v, &q, &out, nullptr)) return s;
  }
  return KVC_OK;
}

class Pair : public cuda_arena::GraphPair {
 public:
  Pair(const Model& model, unsigned order)
      : GraphPair(layers * Layer::n_floats(model.head_dim), seed + order,
                  [&](const auto& device) { return create(device, model); }),
        model_(model) {
    simt::device::set_seed(order);
    for (int32_t layer = 0; layer < layers; ++layer) {
      called_.emplace_back(of_calls_, model.head_dim);
      replayed_.emplace_back(of_graphs_, model.head_dim);
    }
    for (const int32_t q_len : {q_max, 1}) graphs_.push_back(capture(q_len));
  }

  void pass() {
    const int32_t q_len = random_.chance(0.5) ? 1 : random_.between(1, q_max);
    int32_t valid[rows];
    for (int32_t& n : valid) n = random_.chance(0.2) ? random_.below(q_len + 1) : q_len;
    std::vector<int32_t> types(static_cast<size_t>(rows * q_len));
    for (int32_t& type : types) type = random_.below(3);
    const bool has_types = model_.is_transformer() && random_.chance(0.3);
    const kvc_tensor mask = any_mask(q_len);
    const bool has_mask = !model_.ring && random_.chance(0.3);
    void* const stream = any_stream();
    fill(stream);
    const auto begin = [&](kvc_cache* cache) {
      const uint32_t flags = cache == by_graphs_ ? KVC_ROWS_REPLAY : 0;
      return kvc_begin_rows(cache, q_len, flags, valid, has_mask ? &mask : nullptr,
                            has_types ? types.data() : nullptr, stream);
    };
    const kvc_status begun = on_both(begin);
    if (begun == KVC_E_CACHE_FULL) return set_rows();
    ASSERT_EQ(begun, KVC_OK) << support::last_message();
    if (model_.is_transformer() && random_.chance(0.2)) {
      const int32_t except[] = {0, rows * q_len - 1};
      ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_set_causal(cache, 2, except); }), KVC_OK);
    }
    ASSERT_EQ(run_layers(by_calls_, called_, rows, q_len), KVC_OK) << support::last_message();
    launch(q_len == 1 && random_.chance(0.7) ? 1 : 0, stream);
    end(valid);
    compare_tensors(stream);
    between();
  }

 private:
  simt::device::Graph* capture(int32_t q_len) {
    void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
    simt::device::Graph* graph = nullptr;
    EXPECT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
    EXPECT_EQ(kvc_begin_rows(by_graphs_, q_len, KVC_ROWS_RESERVE, nullptr, nullptr, nullptr, stream), KVC_OK)
        << support::last_message();
    EXPECT_EQ(run_layers(by_graphs_, replayed_, rows, q_len), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_commit(by_graphs_), KVC_OK);
    EXPECT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none);
    return graph;
  }
  kvc_tensor any_mask(int32_t q_len) {
    const int32_t columns = model_.is_transformer() ? capacity : q_len;
    shown_.resize(static_cast<size_t>(rows * columns));
    for (uint8_t& shown : shown_) shown = random_.chance(0.8) ? 1 : 0;
    return support::dense(shown_.data(), KVC_BOOL, {rows, columns});
  }
  void end(const int32_t (&valid)[rows]) {
    if (random_.chance(0.2)) {
      ASSERT_EQ(on_both(kvc_abort), KVC_OK);
      return;
    }
    int32_t all[rows], keep[rows];
    for (int32_t row = 0; row < rows; ++row) {
      all[row] = row;
      keep[row] = valid[row] > 1 && random_.chance(0.3) ? valid[row] - 1 : valid[row];
    }
    const auto keep_some = [&](kvc_cache* cache) {
      return kvc_commit_prefix(cache, rows, all, keep);
    };
    if (on_both(keep_some) == KVC_OK) return;  // or a token that stays sees one that does not
    ASSERT_EQ(on_both(kvc_commit), KVC_OK);
  }
  int32_t next(int32_t row) {
    int32_t index = 0;
    EXPECT_EQ(kvc_rows_query(by_calls_, row, 1, &index, nullptr), KVC_OK);
    return index;
  }
  void set_rows() {
    const int32_t row = random_.below(rows), index = random_.between(0, next(row) / 2);
    const int32_t starts = model_.is_transformer() ? index / 2 : 0;
    (void)on_both([&](kvc_cache* cache) { return kvc_rows_set(cache, row, 1, &index, &starts); });
  }
  /// A row from another cache, which attends in a pass of its own.
  void insert() {
    const int32_t slot = random_.below(rows);
    kvc_cache* others[] = {create(device_, model_, 1), create(device_, model_, 1)};
    for (const int32_t i : {0, 1}) {
      ASSERT_EQ(kvc_begin_rows(others[i], 2, 0, nullptr, nullptr, nullptr, any_stream()), KVC_OK);
      ASSERT_EQ(run_layers(others[i], i == 0 ? called_ : replayed_, 1, 2), KVC_OK);
      ASSERT_EQ(kvc_commit(others[i]), KVC_OK);
    }
    ASSERT_EQ(on_both([&](kvc_cache* cache) {
                return kvc_insert(cache, others[cache == by_calls_ ? 0 : 1], slot);
              }),
              KVC_OK)
        << support::last_message();
    for (kvc_cache* other : others) ASSERT_EQ(kvc_cache_destroy(other), KVC_OK);
  }
  void between() {
    const int32_t row = random_.below(rows), to = (row + 1) % rows;
    switch (random_.below(8)) {
      case 0: return set_rows();
      case 1: return insert();
      case 2: {
        const int32_t want = random_.between(0, next(row));
        ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_resume(cache, row, want, nullptr); }),
                  KVC_OK);
        return;
      }
      case 3: {
        const int32_t destination[] = {row, to}, source[] = {to, row};
        ASSERT_EQ(
            on_both([&](kvc_cache* cache) { return kvc_reorder(cache, 2, destination, source); }),
            KVC_OK);
        return;
      }
      default: return;
    }
  }

  const Model model_;
  std::vector<Layer> called_, replayed_;
  std::vector<uint8_t> shown_;
};

void do_passes(const Model& model, unsigned order) {
  Pair pair(model, order);
  for (int32_t i = 0; i < 30; ++i) {
    pair.pass();
    if (testing::Test::HasFailure()) FAIL() << "pass " << i << " of model " << order;
  }
  pair.compare_digests();
}

TEST(CudaRowGraphs, DoPassesWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  do_passes({}, 1);
  do_passes({.head_dim = 24, .type = kvc::StorageType::f32, .reach = 7}, 2);
  do_passes({.type = kvc::StorageType::f16, .ring = true}, 3);
  do_passes({.head_dim = 32, .type = kvc::StorageType::q8_0, .ring = true}, 4);
}

TEST(CudaRowGraphs, DoPassesOfLinearAttention) {
  do_passes({.head_dim = 12, .kind = kvc::CacheKind::lightning}, 5);
}

TEST(CudaRowGraphs, WhatAGraphCannotDoIsRefused) {
  const std::shared_ptr<kvc::Device> device = open_cuda();
  const Model model;
  kvc_cache *const cache = create(device, model), *const other = create(device, model, 1);
  Arena arena(device, layers * Layer::n_floats(model.head_dim), seed);
  std::vector<Layer> tensors;
  for (int32_t layer = 0; layer < layers; ++layer) tensors.emplace_back(arena, model.head_dim);
  const auto begin = [&](int32_t q_len, uint32_t flags, void* stream) {
    return kvc_begin_rows(cache, q_len, flags, nullptr, nullptr, nullptr, stream);
  };
  expect_status(begin(1, KVC_ROWS_REPLAY, nullptr), KVC_E_BAD_STATE, "captured");
  expect_status(begin(1, KVC_ROWS_REPLAY | KVC_ROWS_RESERVE, nullptr), KVC_E_INVALID_ARGUMENT,
                "RESERVE");
  void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
  ASSERT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
  expect_status(begin(2, 0, stream), KVC_E_BAD_STATE, "RESERVE");
  ASSERT_EQ(begin(2, KVC_ROWS_RESERVE, stream), KVC_OK) << support::last_message();
  kvc_tensor mask = arena.take({0});
  mask = support::dense(mask.data, KVC_F32, {rows, 1, 2, capacity});
  mask.device_type = tensors[0].k.device_type, mask.device_id = tensors[0].k.device_id;
  expect_status(kvc_mask(cache, 0, &mask), KVC_E_NOT_SUPPORTED, "kvc_mask");
  const int32_t index[] = {0};
  expect_status(kvc_rows_set(cache, 0, 1, index, nullptr), KVC_E_NOT_SUPPORTED, "kvc_rows_set");
  expect_status(kvc_insert(cache, other, 0), KVC_E_NOT_SUPPORTED, "kvc_insert");
  EXPECT_EQ(run_layers(cache, tensors, rows, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_commit(cache), KVC_OK);
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  expect_status(begin(3, KVC_ROWS_REPLAY, nullptr), KVC_E_INVALID_ARGUMENT, "n_tokens is 9");
  ASSERT_EQ(begin(2, KVC_ROWS_REPLAY, nullptr), KVC_OK) << support::last_message();
  expect_status(run_layers(cache, tensors, rows, 2), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_abort(cache), KVC_OK);
  simt::device::destroy_graph(graph);
  for (kvc_cache* each : {cache, other}) EXPECT_EQ(kvc_cache_destroy(each), KVC_OK);
}

}  // namespace
