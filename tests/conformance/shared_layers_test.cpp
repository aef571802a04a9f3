// Layers that share keys and values call attention with the owner's number: bit for bit what a cache answers in which the
// owner's keys and values were put for each of them.
#include <gtest/gtest.h>

#include <vector>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/random.hpp"

namespace {

using support::Array;

constexpr int32_t n_owners = 2, kv_heads = 2, q_heads = 6, dk = 40, dv = 24;
constexpr int32_t owner_of[] = {0, 1, 1, 0, 1};  // of each layer of the model
constexpr int32_t n_layers = std::size(owner_of);
constexpr uint64_t seed = 20261128;

struct Case {
  uint32_t dtype;
  int32_t reach;
  bool bound;  // constants of the model; else every call brings its own number of query heads
};

/// The same passes on a cache that shares and on one that holds everything per layer.
class Pair {
 public:
  explicit Pair(const Case& chosen)
      : case_(chosen), shared_(make(n_owners)), separate_(make(n_layers)), random_(seed) {
    EXPECT_EQ(shared_.status, KVC_OK) << support::last_message();
    EXPECT_EQ(separate_.status, KVC_OK) << support::last_message();
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    EXPECT_EQ(kvc_bind_rope(shared_, 0, n_owners, &rope, nullptr), KVC_OK);
    EXPECT_EQ(kvc_bind_rope(separate_, 0, n_layers, &rope, nullptr), KVC_OK);
    for (int32_t layer = 0; chosen.bound && layer < n_owners; ++layer) bind(shared_, layer, layer);
    for (int32_t layer = 0; chosen.bound && layer < n_layers; ++layer)
      bind(separate_, layer, owner_of[layer]);
  }

  void pass(const std::vector<int32_t>& sequence) {
    begin(sequence);
    const auto n = static_cast<int64_t>(sequence.size());
    std::vector<Array> k, v;
    for (int32_t owner = 0; owner < n_owners; ++owner) {
      k.emplace_back(KVC_F32, std::vector<int64_t>{n, kv_heads, dk}).fill(random_);
      v.emplace_back(KVC_F32, std::vector<int64_t>{n, kv_heads, dv}).fill(random_);
    }
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      const auto owner = static_cast<size_t>(owner_of[layer]);
      const bool owns = layer < n_owners;  // each owner is the first of its layers
      const int64_t heads = case_.bound ? q_heads : kv_heads * (1 + layer % 3);
      Array q(KVC_F32, {n, heads, dk}), out(KVC_F32, {n, heads, dv}), wanted(KVC_F32, {n, heads, dv});
      Array lse(KVC_F32, {n, heads}), wanted_lse(KVC_F32, {n, heads});
      q.fill(random_);
      if (owns) {
        EXPECT_EQ(kvc_attention(shared_, owner_of[layer], q.tensor(), out.tensor(), nullptr), KVC_E_BAD_STATE)
            << "not put yet";
        ASSERT_EQ(kvc_put(shared_, layer, k[owner].tensor(), v[owner].tensor()), KVC_OK);
      }
      ASSERT_EQ(kvc_put(separate_, layer, k[owner].tensor(), v[owner].tensor()), KVC_OK);
      const support::Digest before = support::digest(shared_);
      ASSERT_EQ(support::attention(shared_, owner_of[layer], q.tensor(), out.tensor(), lse.tensor()), KVC_OK)
          << support::last_message();
      ASSERT_EQ(support::attention(separate_, layer, q.tensor(), wanted.tensor(), wanted_lse.tensor()), KVC_OK)
          << support::last_message();
      EXPECT_EQ(out.bytes(), wanted.bytes()) << "layer " << layer << ", seed " << seed;
      EXPECT_EQ(lse.bytes(), wanted_lse.bytes()) << "layer " << layer << ", seed " << seed;
      EXPECT_EQ(support::digest(shared_), before);
    }
    for (kvc_cache* cache : caches()) ASSERT_EQ(kvc_commit(cache), KVC_OK) << "every owner was put";
  }

  void copy_prefix(int32_t source, int32_t destination) {
    for (kvc_cache* cache : caches())
      ASSERT_EQ(kvc_copy_prefix(cache, source, destination, KVC_SEQ_END, nullptr), KVC_OK);
  }

  void remove(int32_t sequence, int32_t begin, int32_t end) {
    for (kvc_cache* cache : caches())
      ASSERT_EQ(kvc_remove(cache, sequence, begin, end), KVC_OK) << support::last_message();
  }

 private:
  std::vector<kvc_cache*> caches() const { return {shared_.handle, separate_.handle}; }

  support::Cache make(int32_t layers) const {
    kvc_cache_desc desc = support::cache_desc(layers, kv_heads, dk, dv);
    desc.dtype_k = desc.dtype_v = case_.dtype;
    desc.max_sequences = 3;
    desc.capacity = 400;
    desc.max_batch = 64;
    desc.max_q_heads = q_heads;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = case_.reach;
    causal.memory = case_.reach > 0 ? case_.reach + 8 : 0;
    causal.keep_first = case_.reach > 0 ? 2 : 0;
    return support::Cache(device_, desc, &causal);
  }

  static void bind(kvc_cache* cache, int32_t layer, int32_t owner) {
    kvc_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_q_heads = q_heads;
    desc.softcap = owner == 1 ? 5.0f : 0.0f;
    const std::vector<float> slopes(q_heads, 0.02f), sinks(q_heads, 0.5f);
    EXPECT_EQ(kvc_bind_attention(cache, layer, layer + 1, &desc, owner == 0 ? slopes.data() : nullptr,
                                 owner == 1 ? sinks.data() : nullptr),
              KVC_OK);
  }

  void begin(const std::vector<int32_t>& sequence) {
    std::vector<int32_t> position, next;
    for (int32_t s = 0; s < 3; ++s) next.push_back(support::sequence_info(shared_, s).next);
    for (const int32_t s : sequence) position.push_back(next[static_cast<size_t>(s)]++);
    for (kvc_cache* cache : caches())
      ASSERT_EQ(kvc_begin(cache, static_cast<int32_t>(position.size()), position.data(),
                          sequence.data(), nullptr, 0, nullptr),
                KVC_OK)
          << support::last_message();
  }

  Case case_;
  support::Device device_{2};
  support::Cache shared_, separate_;
  support::Random random_;
};

TEST(SharedLayers, AnswerAsIfEachHadItsOwn) {
  for (const uint32_t dtype : {KVC_F32, KVC_F16, KVC_BF16}) {
    for (const int32_t reach : {0, 30}) {
      for (const bool bound : {true, false}) {
        Pair pair({dtype, reach, bound});
        for (int32_t i = 0; i < 3; ++i) pair.pass(std::vector<int32_t>(60, 0));
        pair.copy_prefix(0, 1);
        pair.pass({0});
        pair.pass({1, 0, 1, 2});
        pair.remove(0, 170, 174);  // keys owe a rotation
        pair.pass({0, 1});
        pair.pass(std::vector<int32_t>(20, 0));
        if (HasFailure()) return;
      }
    }
  }
}

}  // namespace
