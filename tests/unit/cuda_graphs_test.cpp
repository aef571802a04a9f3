// CUDA graphs over the simulated device by way of the C ABI: what a captured pass does for other passes has the bits of passes that
// are not captured, and calls that a graph would do wrongly are refused.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/caches/create.hpp"
#include "kernels/cuda/schedule.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::open_cuda;
using support::Random;
namespace runtime = kvc::cuda::runtime;

constexpr uint64_t seed = 20261130;
constexpr int32_t layers = 2, q_heads = 4, kv_heads = 2, batch = 12, sequences = 3, capacity = 50;

/// How a cache stores, and what it sees.
struct Setup {
  int32_t head_dim = 16;
  kvc::StorageType k = kvc::StorageType::bf16, v = kvc::StorageType::bf16;
  bool rotates = false;
  bool wraps = false;  // a cache with a window beside one without, a layer each

  std::string words() const {
    return std::string(kvc::format_of(k).name) + " and " + kvc::format_of(v).name +
           (rotates ? ", rotated" : "") + (wraps ? ", wrapped" : "");
  }
};

bool can_rotate(kvc::StorageType type) { return !kvc::is_plain(type) && !kvc::is_f8(type); }

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Setup& setup,
                  kvc::CacheKind kind = kvc::CacheKind::causal, int32_t n_layers = layers,
                  int32_t reach = 0) {
  kvc::CacheRequest request;
  request.kind = kind;
  kvc::CacheBounds& bounds = request.bounds;
  bounds.n_layers = n_layers;
  bounds.n_kv_heads = kv_heads;
  bounds.max_q_heads = 2 * q_heads;
  bounds.head_dim_k = bounds.head_dim_v = setup.head_dim;
  bounds.type_k = setup.k;
  bounds.type_v = setup.v;
  bounds.rotate_k = setup.rotates && can_rotate(setup.k);
  bounds.rotate_v = setup.rotates && can_rotate(setup.v);
  bounds.max_sequences = sequences;
  bounds.capacity = capacity;
  bounds.max_batch = batch;
  bounds.zero_on_free = kind == kvc::CacheKind::causal;
  request.causal.reach = reach;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// A cache with constants: keys that rotate, slopes and sinks, scales of f8. A wrapper has children.
class Model {
 public:
  Model(const std::shared_ptr<kvc::Device>& device, const Setup& setup) {
    if (setup.wraps) {
      const int32_t child[] = {0, 1}, layer[] = {0, 0};
      for (const int32_t reach : {0, 17})
        children_.push_back(create(device, setup, kvc::CacheKind::causal, 1, reach));
      EXPECT_EQ(kvc_cache_wrap(children_.data(), 2, child, layer, layers, &cache_), KVC_OK);
    } else {
      cache_ = create(device, setup);
    }
    bind(setup);
  }
  ~Model() {
    children_.insert(children_.begin(), cache_);
    for (kvc_cache* cache : children_) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  operator kvc_cache*() const { return cache_; }

 private:
  void bind(const Setup& setup) {
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    EXPECT_EQ(kvc_bind_rope(cache_, 0, layers, &rope, nullptr), KVC_OK) << support::last_message();
    kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
    desc.n_q_heads = q_heads;
    const float slopes[q_heads] = {0.5f, 0.25f, 0.125f, 0.0625f}, sinks[q_heads] = {0, 1, -1, 2};
    EXPECT_EQ(kvc_bind_attention(cache_, 1, layers, &desc, slopes, sinks), KVC_OK);
    const float scales[2][kv_heads] = {{0.02f, 0.5f}, {0.25f, 0.01f}};
    for (int32_t layer = 0; layer < layers; ++layer) {
      const float* const k = kvc::is_f8(setup.k) ? scales[layer] : nullptr;
      const float* const v = kvc::is_f8(setup.v) ? scales[1 - layer] : nullptr;
      EXPECT_EQ(kvc_bind_scales(cache_, layer, layer + 1, k, v), KVC_OK) << support::last_message();
    }
  }

  kvc_cache* cache_ = nullptr;
  std::vector<kvc_cache*> children_;
};

/// The tensors of one pass, in device memory: of each layer k, v, q, out and lse, and a bias over all cells.
class Tensors {
 public:
  Tensors(const std::shared_ptr<kvc::Device>& device, int32_t head_dim, int32_t n_cells)
      : device_(device), head_dim_(head_dim), n_cells_(n_cells) {
    data_ = static_cast<float*>(device_->allocate(kvc::Place::device, bytes(), false));
    EXPECT_NE(data_, nullptr);
  }
  ~Tensors() { device_->release(kvc::Place::device, data_, bytes()); }
  Tensors(const Tensors&) = delete;
  Tensors& operator=(const Tensors&) = delete;

  size_t n_floats() const {
    return layers * of_layer() + size_t{batch} * static_cast<size_t>(n_cells_);
  }
  size_t bytes() const { return n_floats() * sizeof(float); }
  float* data() const { return data_; }

  kvc_tensor k(int32_t layer, int32_t n) const { return rows(layer, 0, n, kv_heads); }
  kvc_tensor v(int32_t layer, int32_t n) const { return rows(layer, kv_heads, n, kv_heads); }
  kvc_tensor q(int32_t layer, int32_t n) const { return rows(layer, 2 * kv_heads, n, q_heads); }
  kvc_tensor out(int32_t layer, int32_t n) const {
    return rows(layer, 2 * kv_heads + q_heads, n, q_heads);
  }
  kvc_tensor lse(int32_t layer, int32_t n) const {
    return placed(support::dense(at(layer) + heads_before_lse() * row(), KVC_F32, {n, q_heads}));
  }
  /// Columns [first, first + n_columns) of it.
  kvc_tensor bias(int32_t n, int32_t first, int32_t n_columns) const {
    kvc_tensor tensor = support::dense(data_ + layers * of_layer() + first, KVC_F32,
                                       {1, n, n_columns});
    tensor.strides[0] = int64_t{batch} * n_cells_;
    tensor.strides[1] = n_cells_;
    return placed(tensor);
  }

 private:
  static constexpr size_t heads_before_lse() { return 2 * kv_heads + 2 * q_heads; }
  size_t row() const { return size_t{batch} * static_cast<size_t>(head_dim_); }
  size_t of_layer() const { return heads_before_lse() * row() + size_t{batch} * q_heads; }
  float* at(int32_t layer) const { return data_ + static_cast<size_t>(layer) * of_layer(); }
  kvc_tensor rows(int32_t layer, int32_t first_head, int32_t n, int32_t heads) const {
    return placed(support::dense(at(layer) + static_cast<size_t>(first_head) * row(), KVC_F32,
                                 {n, heads, head_dim_}));
  }
  kvc_tensor placed(kvc_tensor tensor) const {
    tensor.device_type = device_->info().type;
    tensor.device_id = device_->info().id;
    return tensor;
  }

  std::shared_ptr<kvc::Device> device_;
  int32_t head_dim_, n_cells_;
  float* data_ = nullptr;
};

/// What a model does in a pass, captured or not.
kvc_status run_layers(kvc_cache* cache, const Tensors& tensors, int32_t n) {
  for (int32_t layer = 0; layer < layers; ++layer) {
    const kvc_tensor k = tensors.k(layer, n), v = tensors.v(layer, n), q = tensors.q(layer, n);
    kvc_tensor out = tensors.out(layer, n), lse = tensors.lse(layer, n);
    int32_t first = 0, cells = 0;
    if (const kvc_status s = kvc_history(cache, layer, &first, &cells)) return s;
    const kvc_tensor bias = tensors.bias(n, first, cells);
    kvc_attention_extra extra = KVC_ATTENTION_EXTRA_INIT;
    extra.lse = &lse;
    if (layer == 1) extra.bias = &bias;
    if (const kvc_status s = kvc_put_attention(cache, layer, &k, &v, &q, &out, &extra)) return s;
  }
  return KVC_OK;
}

simt::device::Graph* capture(kvc_cache* cache, const Tensors& tensors, int32_t n) {
  return cuda_arena::capture(cache, n, [&] { return run_layers(cache, tensors, n); });
}

struct Pass {
  int32_t n = 0, position[batch], sequence[batch];
  std::vector<int32_t> except;
  bool commits = true;
};

/// A cache that passes are done in one by one, and one in which graphs do them.
class Pair {
 public:
  Pair(const Setup& setup, unsigned order)
      : device_(open_cuda()),
        eager_(device_, setup),
        replayed_(device_, setup),
        of_eager_(device_, setup.head_dim, sequences * capacity),
        of_graphs_(device_, setup.head_dim, sequences * capacity),
        random_(seed + order) {
    simt::device::set_seed(order);
    for (const int32_t n : {batch, 2}) graphs_.push_back(capture(replayed_, of_graphs_, n));
  }
  ~Pair() {
    simt::device::finish();
    for (simt::device::Graph* graph : graphs_) simt::device::destroy_graph(graph);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;

  void pass() {
    const Pass pass = choose();
    void* const stream = reinterpret_cast<void*>(static_cast<uintptr_t>(random_.below(4)));
    inputs_.emplace_back(of_eager_.n_floats());
    for (float& number : inputs_.back()) number = random_.value();
    fill(of_eager_, stream);
    fill(of_graphs_, stream);
    ASSERT_EQ(begin(eager_, pass, 0, stream), KVC_OK) << support::last_message();
    ASSERT_EQ(run_layers(eager_, of_eager_, pass.n), KVC_OK) << support::last_message();
    ASSERT_EQ(begin(replayed_, pass, KVC_BEGIN_REPLAY, stream), KVC_OK) << support::last_message();
    const bool small = pass.n <= 2 && random_.chance(0.5);
    ASSERT_EQ(simt::device::launch_graph(*graphs_[small ? 1 : 0], stream), kvc::cuda::Error::none);
    for (kvc_cache* const cache : both())
      ASSERT_EQ(pass.commits ? kvc_commit(cache) : kvc_abort(cache), KVC_OK)
          << support::last_message();
    remember(of_eager_, stream);
    remember(of_graphs_, stream);
    between();
  }

  void compare() {
    simt::device::finish();
    for (size_t i = 0; i + 1 < outputs_.size(); i += 2)
      ASSERT_EQ(outputs_[i], outputs_[i + 1]) << "pass " << i / 2;
    uint64_t digest[2], wanted[2];
    ASSERT_EQ(kvc_state_digest(eager_, wanted), KVC_OK);
    ASSERT_EQ(kvc_state_digest(replayed_, digest), KVC_OK);
    EXPECT_TRUE(std::equal(digest, digest + 2, wanted));
    for (kvc_cache* const cache : both()) EXPECT_EQ(kvc_check(cache), KVC_OK);
  }

 private:
  std::array<kvc_cache*, 2> both() const { return {eager_, replayed_}; }
  Pass choose() {
    Pass pass;
    pass.n = random_.between(1, batch);
    pass.commits = !random_.chance(0.2);
    const bool is_prompt = random_.chance(0.3);  // whose tiles are wide
    std::vector<int32_t> at = next_;
    for (int32_t i = 0; i < pass.n; ++i) {
      pass.sequence[i] = random_.chance(0.15) ? KVC_NONE : is_prompt ? 0 : random_.below(sequences);
      pass.position[i] = pass.sequence[i] == KVC_NONE ? 0
                                                      : at[static_cast<size_t>(pass.sequence[i])]++;
      if (pass.sequence[i] != KVC_NONE && random_.chance(0.1)) pass.except.push_back(i);
    }
    if (pass.commits) next_ = at;
    return pass;
  }
  static kvc_status begin(kvc_cache* cache, const Pass& pass, uint32_t flags, void* stream) {
    if (const kvc_status s = kvc_begin(cache, pass.n, pass.position, pass.sequence, nullptr, flags,
                                       stream))
      return s;
    return kvc_set_causal(cache, static_cast<int32_t>(pass.except.size()), pass.except.data());
  }
  void fill(const Tensors& tensors, void* stream) {
    ASSERT_EQ(runtime::copy_to_device(tensors.data(), inputs_.back().data(), tensors.bytes(), stream),
              kvc::cuda::Error::none);
  }
  void remember(const Tensors& tensors, void* stream) {
    outputs_.emplace_back(tensors.n_floats());
    ASSERT_EQ(runtime::copy_to_host(outputs_.back().data(), tensors.data(), tensors.bytes(), stream),
              kvc::cuda::Error::none);
    ASSERT_EQ(runtime::synchronize(stream), kvc::cuda::Error::none);  // tensors are used again
  }
  /// Removals, after which keys owe rotations, and copies, which share them.
  void between() {
    const auto which = static_cast<size_t>(random_.below(sequences));
    const auto sequence = static_cast<int32_t>(which);
    for (kvc_cache* const cache : both()) ASSERT_EQ(kvc_check(cache), KVC_OK);
    if (next_[which] > capacity - 2 * batch) {
      for (kvc_cache* const cache : both())
        ASSERT_EQ(kvc_remove(cache, sequence, 0, KVC_SEQ_END), KVC_OK);
      next_[which] = 0;
    } else if (next_[which] > 2 && random_.chance(0.3)) {
      for (kvc_cache* const cache : both())
        ASSERT_EQ(kvc_remove(cache, sequence, next_[which] - 2, next_[which] - 1), KVC_OK);
      --next_[which];
    } else if (random_.chance(0.2)) {
      const size_t to = (which + 1) % sequences;
      for (kvc_cache* const cache : both())
        ASSERT_EQ(kvc_copy_prefix(cache, sequence, static_cast<int32_t>(to), next_[which], nullptr),
                  KVC_OK);
      next_[to] = next_[which];
    }
  }

  std::shared_ptr<kvc::Device> device_;
  Model eager_, replayed_;
  Tensors of_eager_, of_graphs_;
  Random random_;
  std::vector<simt::device::Graph*> graphs_;
  std::vector<int32_t> next_ = std::vector<int32_t>(sequences);
  std::vector<std::vector<float>> inputs_, outputs_;
};

void do_passes(const Setup& setup, unsigned order, int32_t n) {
  SCOPED_TRACE(setup.words());
  Pair pair(setup, order);
  for (int32_t i = 0; i < n && !testing::Test::HasFatalFailure(); ++i) pair.pass();
  pair.compare();
}

/// 64 is served by the kernels with tensor cores, 16 by the wide one and the general one.
TEST(CudaGraphs, DoPassesWithTheBitsOfPassesThatAreNotCaptured) {
  std::cout << "seed " << seed << std::endl;
  for (const int32_t head_dim : {16, 64}) {
    for (unsigned order = 0; order < 2; ++order) do_passes({.head_dim = head_dim}, order, 25);
  }
}

TEST(CudaGraphs, DoPassesOfEveryStorageType) {
  using enum kvc::StorageType;
  for (const kvc::StorageType type : {f32, f16, f8_e4m3, f8_e5m2, q8_0, q4_0, int8, nf4}) {
    for (const bool rotates : {false, true}) {
      const kvc::StorageType v = rotates ? int8 : type;
      do_passes({.head_dim = 32, .k = type, .v = v, .rotates = rotates}, 5, 8);
    }
  }
}

TEST(CudaGraphs, DoPassesOfWrappers) {
  do_passes({.head_dim = 64, .wraps = true}, 6, 20);
  do_passes({.head_dim = 32, .k = kvc::StorageType::q8_0, .v = kvc::StorageType::nf4, .wraps = true},
            7, 12);
}

/// Codes and scales as they are, of the tokens of a pass that is no padding.
TEST(CudaGraphs, PutCodes) {
  constexpr int32_t n = 5, dim = 32;
  const std::shared_ptr<kvc::Device> device = open_cuda();
  const int32_t position[] = {0, 0, 1, 0, 0}, sequence[] = {1, KVC_NONE, 1, 0, KVC_NONE};
  for (const kvc::StorageType type : {kvc::StorageType::bf16, kvc::StorageType::q8_0}) {
    const bool has_scales = type == kvc::StorageType::q8_0;
    uint64_t digest[2][2];
    for (const bool graphs : {false, true}) {
      kvc_cache* const cache = create(device, {.head_dim = dim, .k = type, .v = type},
                                      kvc::CacheKind::causal, 1);
      cuda_arena::Arena arena(device, size_t{2} * n * kv_heads * (dim + 1), seed);
      kvc_tensor tensors[4];
      for (kvc_tensor* codes : {&tensors[0], &tensors[2]}) {
        *codes = arena.take({n, kv_heads, dim});
        codes->dtype = has_scales ? KVC_I8 : KVC_BF16;
      }
      for (kvc_tensor* scales : {&tensors[1], &tensors[3]}) {
        *scales = arena.take({n, kv_heads, 1});
        scales->dtype = KVC_F16;
      }
      const auto put = [&] {
        return kvc_put_codes(cache, 0, &tensors[0], has_scales ? &tensors[1] : nullptr, &tensors[2],
                             has_scales ? &tensors[3] : nullptr);
      };
      simt::device::Graph* const graph = graphs ? cuda_arena::capture(cache, n, put) : nullptr;
      ASSERT_EQ(
          kvc_begin(cache, n, position, sequence, nullptr, graphs ? KVC_BEGIN_REPLAY : 0, nullptr),
          KVC_OK);
      if (graphs) {
        ASSERT_EQ(simt::device::launch_graph(*graph, nullptr), kvc::cuda::Error::none);
      } else {
        ASSERT_EQ(put(), KVC_OK) << support::last_message();
      }
      ASSERT_EQ(kvc_commit(cache), KVC_OK);
      ASSERT_EQ(kvc_state_digest(cache, digest[graphs]), KVC_OK);
      if (graphs) simt::device::destroy_graph(graph);
      EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
    }
    EXPECT_TRUE(std::equal(digest[0], digest[0] + 2, digest[1]));
  }
}

/// A graph has as many launches as any plan of its tokens may need: one more would be left out in silence.
TEST(CudaGraphs, HaveLaunchesForAnyPlan) {
  Random random(seed);
  int32_t most = 0;
  for (int32_t round = 0; round < 200; ++round) {
    kvc::AttentionBounds bounds;
    bounds.n_kv_heads = random.between(1, 8);
    bounds.max_q_heads = bounds.n_kv_heads * random.between(1, 16);
    bounds.max_batch = random.between(1, 400);
    bounds.n_token_entries = random.between(100, 4000);
    std::vector<std::byte> memory(kvc::cuda::Schedule::host_bytes(bounds));
    kvc::cuda::Schedule schedule(bounds, memory.data());
    std::vector<kvc::AttentionRow> rows(static_cast<size_t>(random.between(1, bounds.max_batch)));
    std::vector<kvc::TokenList> lists(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto list = static_cast<int32_t>(i), n = static_cast<int32_t>(bounds.n_token_entries);
      rows[i].token = rows[i].list = list;
      rows[i].end = lists[i].total = lists[i].count[0] = random.chance(0.5) ? n
                                                                            : random.between(1, n);
    }
    kvc::AttentionPlan plan;
    plan.rows = rows.data();
    plan.lists = lists.data();
    plan.n_rows = plan.n_lists = static_cast<int32_t>(rows.size());
    const kvc::cuda::Cut cut = {{bounds.n_kv_heads, bounds.max_q_heads / bounds.n_kv_heads},
                                random.chance(0.5),
                                random.chance(0.5) ? kvc::cuda::wide_columns_max : 0};
    schedule.cut(plan, cut);
    for (const kvc::cuda::Width width : kvc::cuda::widths) {
      int32_t n = 0;
      for (int32_t i = 0; i < schedule.n_waves(); ++i) n += schedule.wave(i).width == width ? 1 : 0;
      ASSERT_LE(n, kvc::cuda::Schedule::most_waves(bounds, cut, width, plan.n_rows)) << round;
      most = std::max(most, n);
    }
  }
  EXPECT_GE(most, 3);
}

/// A cache with the tensors of a pass, and a stream that is captured.
class CudaGraphCalls : public testing::Test {
 protected:
  kvc_status begin(uint32_t flags, int32_t n = 2) {
    static constexpr int32_t position[] = {0, 1, 2}, sequence[batch] = {};
    return kvc_begin(cache_, n, position, sequence, nullptr, flags, stream_);
  }
  void expect(kvc_status status, kvc_status expected, const char* words) {
    EXPECT_EQ(support::name(status), support::name(expected)) << words;
    EXPECT_NE(support::last_message().find(words), std::string::npos) << support::last_message();
  }
  void SetUp() override { simt::device::set_seed(3); }
  void TearDown() override {
    simt::device::finish();
    EXPECT_EQ(kvc_cache_destroy(cache_), KVC_OK);
  }

  std::shared_ptr<kvc::Device> device_ = open_cuda();
  kvc_cache* cache_ = create(device_, {});
  Tensors tensors_{device_, 16, sequences* capacity};
  void* const stream_ = reinterpret_cast<void*>(uintptr_t{0x77});
};

TEST_F(CudaGraphCalls, OnlyReservePassesAreCaptured) {
  ASSERT_EQ(simt::device::begin_capture(stream_), kvc::cuda::Error::none);
  expect(begin(0), KVC_E_BAD_STATE, "KVC_BEGIN_RESERVE");
  expect(kvc_commit(cache_), KVC_E_BAD_STATE, "no pass is open");
  ASSERT_EQ(begin(KVC_BEGIN_RESERVE), KVC_OK) << support::last_message();
  kvc_tensor k = tensors_.k(0, 2), q = tensors_.q(0, 2);
  int32_t first = -1, cells = 0;
  EXPECT_EQ(kvc_history(cache_, 0, &first, &cells), KVC_OK);
  EXPECT_EQ(first, 0);
  EXPECT_EQ(cells, sequences * capacity);
  kvc_tensor mask = tensors_.bias(2, 0, cells);
  mask.ndim = 2, mask.shape[0] = 2, mask.shape[1] = cells, mask.strides[0] = mask.strides[1],
  mask.strides[1] = 1;
  expect(kvc_mask(cache_, 0, &mask), KVC_E_NOT_SUPPORTED, "kvc_mask");
  kvc_tensor nothing = tensors_.k(0, 1);
  nothing.shape[0] = 0;
  expect(kvc_gather(cache_, 0, 0, &nothing, &nothing), KVC_E_NOT_SUPPORTED, "kvc_gather");
  kvc_tensor codes = k;
  codes.dtype = KVC_BF16;
  EXPECT_EQ(kvc_put_codes(cache_, 0, &codes, nullptr, &codes, nullptr), KVC_OK);
  ASSERT_EQ(kvc_put(cache_, 0, &k, &k), KVC_OK);
  kvc_tensor out = tensors_.out(0, 2);
  ASSERT_EQ(kvc_attention(cache_, 0, &q, &out, nullptr), KVC_OK) << support::last_message();
  kvc_tensor few = q, few_out = out;
  few.shape[1] = few_out.shape[1] = kv_heads;
  expect(kvc_attention(cache_, 0, &few, &few_out, nullptr), KVC_E_NOT_SUPPORTED, "query heads");
  EXPECT_EQ(kvc_commit(cache_), KVC_OK);
  simt::device::Graph* graph = nullptr;
  ASSERT_EQ(simt::device::end_capture(stream_, &graph), kvc::cuda::Error::none)
      << "no call has broken it";
  simt::device::destroy_graph(graph);
}

/// A sequence has two query heads of a KV head for each token: more than 8 columns make medium tiles, where there are any, and more
/// than 16 wide ones.
TEST_F(CudaGraphCalls, LaunchesThatNoPassNeedsAreLeftOut) {
  const auto launches = [](kvc_cache* cache, Tensors& tensors, int32_t n) {
    const int64_t before = simt::device::n_launches();
    simt::device::destroy_graph(capture(cache, tensors, n));
    return (simt::device::n_launches() - before) / layers;
  };
  EXPECT_EQ(launches(cache_, tensors_, 1), 2) << "a put, and narrow tiles";
  EXPECT_EQ(launches(cache_, tensors_, 2), 3) << "sequences may share a prefix";
  EXPECT_EQ(launches(cache_, tensors_, 8), 3);
  EXPECT_EQ(launches(cache_, tensors_, 9), 4) << "a sequence may have all tokens";
  kvc_cache* const with_medium = create(device_, {.head_dim = 64});
  Tensors tensors(device_, 64, sequences * capacity);
  EXPECT_EQ(launches(with_medium, tensors, 1), 2);
  EXPECT_EQ(launches(with_medium, tensors, 4), 3);
  EXPECT_EQ(launches(with_medium, tensors, 5), 4);
  EXPECT_EQ(launches(with_medium, tensors, 8), 4);
  EXPECT_EQ(launches(with_medium, tensors, 9), 5);
  simt::device::finish();
  EXPECT_EQ(kvc_cache_destroy(with_medium), KVC_OK);
}

TEST_F(CudaGraphCalls, AReplayNeedsWhatItReplays) {
  expect(begin(KVC_BEGIN_REPLAY), KVC_E_BAD_STATE, "captured");
  expect(begin(KVC_BEGIN_REPLAY | KVC_BEGIN_RESERVE), KVC_E_INVALID_ARGUMENT, "KVC_BEGIN_RESERVE");
  const int64_t launches = simt::device::n_launches();
  ASSERT_EQ(begin(KVC_BEGIN_RESERVE), KVC_OK);
  EXPECT_EQ(run_layers(cache_, tensors_, 2), KVC_OK);
  EXPECT_EQ(kvc_commit(cache_), KVC_OK);
  EXPECT_EQ(simt::device::n_launches(), launches) << "nothing was captured";
  expect(begin(KVC_BEGIN_REPLAY), KVC_E_BAD_STATE, "captured");

  simt::device::destroy_graph(capture(cache_, tensors_, 2));
  expect(begin(KVC_BEGIN_REPLAY, 3), KVC_E_INVALID_ARGUMENT, "n_tokens is 3");
  ASSERT_EQ(begin(KVC_BEGIN_REPLAY), KVC_OK) << support::last_message();
  const kvc_tensor k = tensors_.k(0, 2), q = tensors_.q(0, 2);
  kvc_tensor out = tensors_.out(0, 2);
  expect(kvc_put(cache_, 0, &k, &k), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  expect(kvc_attention(cache_, 0, &q, &out, nullptr), KVC_E_BAD_STATE, "KVC_BEGIN_REPLAY");
  EXPECT_EQ(kvc_put_attention(cache_, 0, &k, &k, &q, &out, nullptr), KVC_E_BAD_STATE);
  int32_t first = -1, cells = 0;
  EXPECT_EQ(kvc_history(cache_, 0, &first, &cells), KVC_OK);
  EXPECT_EQ(first, 0);
  EXPECT_EQ(cells, sequences * capacity);
  EXPECT_EQ(kvc_abort(cache_), KVC_OK);
}

}  // namespace
