// Sequences on one prompt over the simulated CUDA device by way of the C ABI: a graph reads the prompt once for all of them, too, and
// gives the same bits.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "core/caches/create.hpp"
#include "support/abi.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::Arena;

constexpr int32_t prompt = 140, sequences = 6, kv_heads = 1, q_heads = 4;
constexpr int32_t most_tokens = 5 * sequences;
constexpr size_t n_floats = size_t{1} << 20;

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, int32_t head_dim) {
  kvc::CacheRequest request;
  kvc::CacheBounds& bounds = request.bounds;
  bounds.n_layers = 1;
  bounds.n_kv_heads = kv_heads;
  bounds.max_q_heads = q_heads;
  bounds.head_dim_k = bounds.head_dim_v = head_dim;
  bounds.type_k = bounds.type_v = kvc::StorageType::bf16;
  bounds.max_sequences = sequences;
  bounds.capacity = 200;
  bounds.max_batch = prompt;
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  return cache;
}

/// A cache, and a pass of some tokens for each of some sequences.
class Decoding {
 public:
  Decoding(const std::shared_ptr<kvc::Device>& device, int32_t head_dim)
      : cache_(create(device, head_dim)), head_dim_(head_dim), arena_(device, n_floats, 7) {
    std::vector<int32_t> position, sequence(prompt, 0);
    for (int32_t i = 0; i < prompt; ++i) position.push_back(i);
    EXPECT_EQ(begin(position, sequence, 0), KVC_OK) << support::last_message();
    const kvc_tensor k = take(prompt, kv_heads), v = take(prompt, kv_heads);
    EXPECT_EQ(kvc_put(cache_, 0, &k, &v), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_commit(cache_), KVC_OK);
    for (int32_t s = 1; s < sequences; ++s)
      EXPECT_EQ(kvc_copy_prefix(cache_, 0, s, prompt, nullptr), KVC_OK);
    for (const int32_t heads : {kv_heads, kv_heads, q_heads, q_heads})
      tensors_.push_back(take(most_tokens, heads));
  }
  ~Decoding() { EXPECT_EQ(kvc_cache_destroy(cache_), KVC_OK); }
  Decoding(const Decoding&) = delete;
  Decoding& operator=(const Decoding&) = delete;

  /// n tokens of each sequence.
  kvc_status begin_tokens(int32_t n, uint32_t flags) {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t i = 0; i < n; ++i) {
        position.push_back(prompt + i);
        sequence.push_back(s);
      }
    }
    return begin(position, sequence, flags);
  }
  kvc_status begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                   uint32_t flags) {
    return kvc_begin(cache_, static_cast<int32_t>(position.size()), position.data(),
                     sequence.data(), nullptr, flags, nullptr);
  }
  kvc_status attend(int32_t n_tokens) {
    std::vector<kvc_tensor> t = tensors_;
    for (kvc_tensor& tensor : t) tensor.shape[0] = n_tokens;
    return kvc_put_attention(cache_, 0, &t[0], &t[1], &t[2], &t[3], nullptr);
  }
  simt::device::Graph* capture(int32_t n_tokens) {
    return cuda_arena::capture(cache_, n_tokens, [&] { return attend(n_tokens); });
  }
  /// The outputs of the pass, which is aborted.
  std::vector<float> take_outputs(int32_t n_tokens) {
    EXPECT_EQ(kvc_abort(cache_), KVC_OK);
    simt::device::finish();
    float* const out = arena_.on_host() + arena_.taken() - most_tokens * row();
    std::vector<float> outputs(out, out + static_cast<size_t>(n_tokens) * row());
    std::fill_n(out, most_tokens * row(), 0.0f);
    return outputs;
  }

 private:
  size_t row() const { return static_cast<size_t>(q_heads * head_dim_); }
  kvc_tensor take(int32_t n, int32_t heads) { return arena_.take({n, heads, head_dim_}); }

  kvc_cache* const cache_;
  const int32_t head_dim_;
  Arena arena_;
  std::vector<kvc_tensor> tensors_;  // k, v, q and out
};

/// 64 is served by the kernels with tensor cores, 20 by the general one. One token of each sequence makes narrow tiles, and for
/// 64 three make medium ones and five wide ones. Where all are narrow, those of prefixes and of lists are launches of one width.
TEST(CudaPrefixGraphs, HaveTheBitsOfPassesThatAreNotCaptured) {
  const std::shared_ptr<kvc::Device> cuda = cuda_arena::open_cuda(), cpu = cuda_arena::open_cpu();
  for (const int32_t head_dim : {64, 20}) {
    Decoding decoding(cuda, head_dim), reference(cpu, head_dim);
    simt::device::Graph* const graph = decoding.capture(most_tokens);
    for (const int32_t n : {1, 3, 5}) {
      const int32_t n_tokens = n * sequences;
      // First, for what another pass leaves of prefixes would do for it.
      ASSERT_EQ(decoding.begin_tokens(n, KVC_BEGIN_REPLAY), KVC_OK) << support::last_message();
      ASSERT_EQ(simt::device::launch_graph(*graph, nullptr), kvc::cuda::Error::none);
      const std::vector<float> replayed = decoding.take_outputs(n_tokens);
      ASSERT_EQ(decoding.begin_tokens(n, 0), KVC_OK) << support::last_message();
      ASSERT_EQ(decoding.attend(n_tokens), KVC_OK) << support::last_message();
      const std::vector<float> eager = decoding.take_outputs(n_tokens);
      EXPECT_EQ(replayed, eager) << head_dim << ", " << n << " tokens each";
      ASSERT_EQ(reference.begin_tokens(n, 0), KVC_OK);
      ASSERT_EQ(reference.attend(n_tokens), KVC_OK);
      const std::vector<float> wanted = reference.take_outputs(n_tokens);
      for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(eager[i], wanted[i], 4e-6f) << i;
    }
    simt::device::destroy_graph(graph);
  }
}

}  // namespace
