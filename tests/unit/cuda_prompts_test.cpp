// Prompts over the simulated CUDA device of compute capability 9.0 by way of the C ABI: passes of many tokens, whose kernels copy rows
// of consecutive cells at once, end up as on the CPU; graphs that were captured before give their bits, wherever later passes
// find their cells; every call of the runtime that fails poisons.
#include <gtest/gtest.h>

#include <iostream>
#include <memory>
#include <numeric>
#include <vector>

#include "core/caches/create.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::open_cpu;
using support::Random;

constexpr uint64_t seed = 20261201;
constexpr int32_t kv_heads = 2, q_heads = 6, batch = 30, sequences = 2, capacity = 200;
constexpr int32_t rows = 2, q_len = 80;

struct Layout {
  kvc::StorageType type = kvc::StorageType::bf16;
  int32_t dim_k = 64, dim_v = 64;
  bool interleaved = false, v_in_k = false, of_rows = false;
};

std::shared_ptr<kvc::Device> open_sm90() { return cuda_arena::open_cuda(simt::device::sm90); }

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, const Layout& layout) {
  kvc::CacheRequest request;
  kvc::CacheBounds& bounds = request.bounds;
  if (layout.of_rows) request.kind = kvc::CacheKind::transformer;
  bounds.n_layers = 1;
  bounds.n_kv_heads = kv_heads;
  bounds.max_q_heads = q_heads;
  bounds.head_dim_k = layout.dim_k;
  bounds.head_dim_v = layout.dim_v;
  bounds.type_k = bounds.type_v = layout.type;
  bounds.interleaved = layout.interleaved;
  bounds.v_in_k = layout.v_in_k;
  bounds.max_sequences = layout.of_rows ? rows : sequences;
  bounds.capacity = capacity;
  bounds.max_batch = layout.of_rows ? rows * q_len : batch;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  if (cache == nullptr || layout.of_rows || layout.v_in_k) return cache;
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  EXPECT_EQ(kvc_bind_rope(cache, 0, 1, &rope, nullptr), KVC_OK) << support::last_message();
  return cache;
}

/// A cache, and the tensors of its passes.
class Prompts {
 public:
  Prompts(const std::shared_ptr<kvc::Device>& device, const Layout& layout)
      : cache_(create(device, layout)), layout_(layout), arena_(device, n_floats(layout), seed) {
    EXPECT_NE(cache_, nullptr) << kvc::last_message();
    const auto take = [&](int32_t heads, int32_t dim) {
      tensors_.push_back(layout.of_rows ? arena_.take({rows, q_len, heads, dim})
                                        : arena_.take({batch, heads, dim}));
    };
    take(kv_heads, layout.dim_k), take(kv_heads, layout.dim_v);
    take(q_heads, layout.dim_k), take(q_heads, layout.dim_v);
  }
  ~Prompts() {
    simt::device::finish();
    EXPECT_EQ(kvc_cache_destroy(cache_), KVC_OK);
  }
  Prompts(const Prompts&) = delete;
  Prompts& operator=(const Prompts&) = delete;

  operator kvc_cache*() const { return cache_; }

  /// With numbers that the seed decides in all tensors.
  void fill(uint64_t of) {
    Random random(of);
    float* const to = arena_.on_host();
    for (size_t i = 0; i < arena_.taken(); ++i) to[i] = random.value();
  }
  kvc_status begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                   uint32_t flags) {
    return kvc_begin(cache_, static_cast<int32_t>(position.size()), position.data(),
                     sequence.data(), nullptr, flags, nullptr);
  }
  /// n tokens, or all those of rows.
  kvc_status attend(size_t n) {
    std::vector<kvc_tensor> t = tensors_;
    if (!layout_.of_rows)
      for (kvc_tensor& tensor : t) tensor.shape[0] = static_cast<int64_t>(n);
    return kvc_put_attention(cache_, 0, &t[0], layout_.v_in_k ? nullptr : &t[1], &t[2], &t[3],
                             nullptr);
  }
  simt::device::Graph* capture() {
    return cuda_arena::capture(cache_, batch, [&] { return attend(batch); });
  }
  /// Zeros are there then.
  std::vector<float> take_outputs(size_t n_tokens) {
    const auto row = static_cast<size_t>(q_heads * layout_.dim_v);
    const size_t n_all = layout_.of_rows ? rows * q_len : batch;
    float* const out = arena_.on_host() + arena_.taken() - n_all * row;
    const std::vector<float> taken(out, out + n_tokens * row);
    std::fill_n(out, n_all * row, 0.0f);
    return taken;
  }

 private:
  static size_t n_floats(const Layout& layout) {
    const size_t n_tokens = layout.of_rows ? rows * q_len : batch;
    return n_tokens * static_cast<size_t>((kv_heads + q_heads) * (layout.dim_k + layout.dim_v));
  }

  kvc_cache* const cache_;
  const Layout layout_;
  Arena arena_;
  std::vector<kvc_tensor> tensors_;  // k, v, q and out
};

void expect_near(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 4e-6f) << i;
}

void expect_same_digest(kvc_cache* cache, kvc_cache* reference) {
  uint64_t digest[2], wanted[2];
  ASSERT_EQ(kvc_state_digest(cache, digest), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_state_digest(reference, wanted), KVC_OK);
  EXPECT_TRUE(std::equal(digest, digest + 2, wanted));
}

/// The n-th of several passes of a prompt. Where a sequence is long, or the pass is a third one, something in it goes first, so that
/// other tokens come to lie between those that stay.
void make_room(std::vector<kvc_cache*> caches, int32_t which, int32_t n, int32_t& next) {
  int32_t from = -1, to = 0;
  if (next > capacity - batch)
    from = 40, to = next;
  else if (n % 3 == 2 && next > 100)
    from = 20, to = 60;
  if (from < 0) return;
  for (kvc_cache* cache : caches)
    ASSERT_EQ(kvc_remove(cache, which, from, to), KVC_OK) << support::last_message();
  next -= to - from;
}

/// Each pass by calls, and aborted, by a graph, and on the CPU.
void check_passes(const Layout& layout, int32_t n_passes) {
  Prompts prompts(open_sm90(), layout), reference(open_cpu(), layout);
  simt::device::Graph* const graph = prompts.capture();
  Random random(seed);
  int32_t next[sequences] = {};
  for (int32_t n = 0; n < n_passes; ++n) {
    const int32_t which = random.chance(0.8) ? 0 : 1;
    make_room({prompts, reference}, which, layout.v_in_k ? 0 : n, next[which]);
    std::vector<int32_t> position, sequence;
    for (int32_t i = random.between(20, batch); i > 0; --i) {
      position.push_back(next[which]++);
      sequence.push_back(which);
    }
    prompts.fill(seed + static_cast<uint64_t>(n)), reference.fill(seed + static_cast<uint64_t>(n));
    SCOPED_TRACE(n);
    const size_t n_tokens = position.size();
    const int64_t before = simt::device::n_boxes();
    ASSERT_EQ(prompts.begin(position, sequence, 0), KVC_OK) << support::last_message();
    ASSERT_EQ(prompts.attend(n_tokens), KVC_OK) << support::last_message();
    const std::vector<float> called = prompts.take_outputs(n_tokens);
    const int64_t between = simt::device::n_boxes();
    ASSERT_EQ(kvc_abort(prompts), KVC_OK);
    ASSERT_EQ(prompts.begin(position, sequence, KVC_BEGIN_REPLAY), KVC_OK) << support::last_message();
    ASSERT_EQ(simt::device::launch_graph(*graph, nullptr), kvc::cuda::Error::none);
    ASSERT_EQ(prompts.take_outputs(n_tokens), called);
    ASSERT_EQ(simt::device::n_boxes() - between, between - before);
    ASSERT_EQ(kvc_commit(prompts), KVC_OK);
    ASSERT_EQ(reference.begin(position, sequence, 0), KVC_OK);
    ASSERT_EQ(reference.attend(n_tokens), KVC_OK) << support::last_message();
    expect_near(called, reference.take_outputs(n_tokens));
    if (testing::Test::HasFatalFailure()) return;
    ASSERT_EQ(kvc_commit(reference), KVC_OK);
  }
  expect_same_digest(prompts, reference);
  simt::device::destroy_graph(graph);
}

TEST(CudaPrompts, AreThoseOfTheCpuAndOfGraphs) {
  std::cout << "seed " << seed << std::endl;
  for (const Layout& layout :
       {Layout{}, Layout{.type = kvc::StorageType::f16, .dim_k = 96, .dim_v = 128},
        Layout{.dim_k = 72, .dim_v = 40, .interleaved = true},
        Layout{.type = kvc::StorageType::f16, .dim_k = 80, .dim_v = 64, .v_in_k = true}}) {
    SCOPED_TRACE(std::string(kvc::format_of(layout.type).name) + ", " + std::to_string(layout.dim_k));
    const int64_t before = simt::device::n_boxes();
    check_passes(layout, 12);
    if (HasFatalFailure()) return;
    EXPECT_GT(simt::device::n_boxes(), before);
  }
}

/// Rows of a batch, whose lists count from their own first cells.
TEST(CudaPrompts, OfRowsAreThoseOfTheCpu) {
  const Layout layout = {.of_rows = true};
  Prompts prompts(open_sm90(), layout), reference(open_cpu(), layout);
  const int64_t before = simt::device::n_boxes();
  for (uint64_t n = 0; n < 2; ++n) {
    for (Prompts* each : {&prompts, &reference}) {
      each->fill(seed + n);
      ASSERT_EQ(kvc_begin_rows(*each, q_len, 0, nullptr, nullptr, nullptr, nullptr), KVC_OK)
          << support::last_message();
      ASSERT_EQ(each->attend(rows * q_len), KVC_OK) << support::last_message();
      ASSERT_EQ(kvc_commit(*each), KVC_OK);
    }
    constexpr size_t n_tokens = rows * q_len;
    expect_near(prompts.take_outputs(n_tokens), reference.take_outputs(n_tokens));
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(simt::device::n_boxes(), before);
  expect_same_digest(prompts, reference);
}

/// Tensors of a call on as many tokens as a pass may have.
struct Tensors {
  explicit Tensors(Arena& arena)
      : k(arena.take({batch, kv_heads, 64})),
        v(arena.take({batch, kv_heads, 64})),
        q(arena.take({batch, q_heads, 64})),
        out(arena.take({batch, q_heads, 64})) {}
  static constexpr size_t n_floats = size_t{batch} * 2 * (kv_heads + q_heads) * 64;

  kvc_status attend(kvc_cache* cache) {
    return kvc_put_attention(cache, 0, &k, &v, &q, &out, nullptr);
  }
  kvc_tensor k, v, q, out;
};

template <class Live>
int64_t fail_every_call(Live live) {
  const auto create_plain = [](const auto& device) { return create(device, {}); };
  return cuda_arena::fail_every_call(Tensors::n_floats, seed, create_plain, live, open_sm90());
}

TEST(CudaPrompts, EveryCallOfTheRuntimeMayFail) {
  const int64_t n_failed = fail_every_call([](kvc_cache* cache, Arena& arena) -> kvc_status {
    Tensors tensors(arena);
    std::vector<int32_t> position(batch), sequence(batch, 0);
    for (int32_t first = 0; first < 3 * batch; first += batch) {
      std::iota(position.begin(), position.end(), first);
      if (const kvc_status s = kvc_begin(cache, batch, position.data(), sequence.data(), nullptr, 0,
                                         nullptr))
        return s;
      if (const kvc_status s = tensors.attend(cache)) return s;
      if (const kvc_status s = kvc_commit(cache)) return s;
    }
    return KVC_OK;
  });
  EXPECT_GE(n_failed, 60);
}

TEST(CudaPrompts, EveryCallOfACaptureMayFail) {
  const int64_t n_failed = fail_every_call([](kvc_cache* cache, Arena& arena) {
    Tensors tensors(arena);
    void* const stream = reinterpret_cast<void*>(uintptr_t{0x99});
    const auto pass = [&]() -> kvc_status {
      if (const kvc_status s = kvc_begin(cache, batch, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE,
                                         stream))
        return s;
      if (const kvc_status s = tensors.attend(cache)) return s;
      return kvc_commit(cache);
    };
    EXPECT_EQ(simt::device::begin_capture(stream), kvc::cuda::Error::none);
    const kvc_status status = pass();
    simt::device::Graph* graph = nullptr;
    simt::device::end_capture(stream, &graph);
    simt::device::destroy_graph(graph);
    return status;
  });
  EXPECT_GE(n_failed, 36);
}

}  // namespace
