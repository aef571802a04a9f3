// The same inputs give the same bits whatever the thread count, at the shapes that matter: 32 query
// heads, 8 KV heads, head size 128; decode at 4k, prefill of 512, a batch of 8 sequences.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <iostream>

#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t q_heads = 32, kv_heads = 8, head_dim = 128;
// Under sanitizers the same cuts of the work in a fraction of the products: each is checked, and slow.
#if defined(__SANITIZE_THREAD__)
constexpr int32_t context = 256, n_sequences = 8, max_batch = 32, mixed_chunk = 24;
#elif defined(KVC_SANITIZED)
constexpr int32_t context = 1024, n_sequences = 8, max_batch = 128, mixed_chunk = 100;
#else
constexpr int32_t context = 4096, n_sequences = 8, max_batch = 512, mixed_chunk = 200;
#endif
constexpr uint64_t seed = 20261121;

/// Numbers drawn once: the caches take their keys, values and queries from it at different offsets.
const std::vector<float>& numbers() {
  static const std::vector<float> all = [] {
    support::Random random(seed);
    std::vector<float> result(static_cast<size_t>(max_batch * q_heads * head_dim) + 65536);
    for (float& value : result) value = static_cast<float>(random.unit() * 2 - 1);
    return result;
  }();
  return all;
}

struct Variant {
  const char* name;
  uint32_t dtype;
  std::function<void(kvc_attention_desc&, kvc_causal_desc&)> apply;
  bool slopes, sinks;
};

/// Everything that attention answered, for one number of threads.
class Answers {
 public:
  Answers(int32_t n_threads, const Variant& variant) : device_(n_threads), cache_(make(variant)) {
    EXPECT_EQ(device_.status, KVC_OK) << support::last_message();
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
    kvc_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_q_heads = q_heads;
    kvc_causal_desc unused = support::causal_desc();
    variant.apply(desc, unused);
    const float* some = numbers().data();
    EXPECT_EQ(kvc_bind_attention(cache_, 0, 1, &desc, variant.slopes ? some + 7 : nullptr,
                                 variant.sinks ? some + 99 : nullptr),
              KVC_OK);
    for (int32_t start = 0; start < context; start += max_batch)
      for (int32_t s = 0; s < n_sequences; ++s) fill(s, start);
    decode({0});
    decode({0, 1, 2, 3, 4, 5, 6, 7});
    decode({3, 3, 3, 5});            // drafts
    mixed();                         // a chunk of a prompt among decodes
    prefill(0, max_batch, context);  // 512 behind 4k
    EXPECT_EQ(kvc_remove(cache_, 0, 0, KVC_SEQ_END), KVC_OK);
    prefill(0, max_batch, 0);  // 512 behind nothing
  }

  const std::vector<float>& bits() const { return answers_; }

 private:
  support::Cache make(const Variant& variant) const {
    kvc_cache_desc desc = support::cache_desc(1, kv_heads, head_dim, head_dim);
    desc.dtype_k = desc.dtype_v = variant.dtype;
    desc.max_sequences = n_sequences;
    desc.capacity = context + 2 * max_batch;
    desc.max_batch = max_batch;
    desc.max_q_heads = q_heads;
    kvc_causal_desc causal = support::causal_desc();
    kvc_attention_desc unused{};
    variant.apply(unused, causal);
    return support::Cache(device_, desc, &causal);
  }

  void open(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence) {
    const auto n = static_cast<int32_t>(position.size());
    ASSERT_EQ(kvc_begin(cache_, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    float* data = const_cast<float*>(numbers().data());
    const int32_t at = position[0] * 31 + sequence[0] * 977;
    const kvc_tensor k = support::dense(data + at % 50000, KVC_F32, {n, kv_heads, head_dim});
    const kvc_tensor v = support::dense(data + (at * 7 + 13) % 50000, KVC_F32,
                                        {n, kv_heads, head_dim});
    ASSERT_EQ(kvc_put(cache_, 0, &k, &v), KVC_OK);
  }

  void attend(int32_t n) {
    std::vector<float> out(static_cast<size_t>(n * q_heads * head_dim));
    std::vector<float> lse(static_cast<size_t>(n * q_heads));
    float* data = const_cast<float*>(numbers().data());
    const kvc_tensor q = support::dense(data + 777, KVC_F32, {n, q_heads, head_dim});
    kvc_tensor to = support::dense(out.data(), KVC_F32, {n, q_heads, head_dim});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n, q_heads});
    for (int repeat = 0; repeat < 2; ++repeat) {  // again: other threads may take other parts
      ASSERT_EQ(support::attention(cache_, 0, &q, &to, &sums), KVC_OK) << support::last_message();
      answers_.insert(answers_.end(), out.begin(), out.end());
      answers_.insert(answers_.end(), lse.begin(), lse.end());
    }
    ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  }

  void fill(int32_t sequence, int32_t start) {
    std::vector<int32_t> position;
    for (int32_t i = 0; i < max_batch; ++i) position.push_back(start + i);
    open(position, std::vector<int32_t>(position.size(), sequence));
    ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  }

  void decode(const std::vector<int32_t>& sequences) {
    std::vector<int32_t> position, next;
    for (int32_t s = 0; s < n_sequences; ++s)
      next.push_back(support::sequence_info(cache_, s).next);
    for (const int32_t s : sequences) position.push_back(next[static_cast<size_t>(s)]++);
    open(position, sequences);
    attend(static_cast<int32_t>(sequences.size()));
  }

  void mixed() {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 1; s < n_sequences; ++s) {
      position.push_back(support::sequence_info(cache_, s).next);
      sequence.push_back(s);
    }
    const int32_t next = support::sequence_info(cache_, 0).next;
    for (int32_t i = 0; i < mixed_chunk; ++i) {
      position.push_back(next + i);
      sequence.push_back(0);
    }
    open(position, sequence);
    attend(static_cast<int32_t>(position.size()));
  }

  void prefill(int32_t sequence, int32_t n, int32_t at_least) {
    const int32_t next = support::sequence_info(cache_, sequence).next;
    ASSERT_GE(next, at_least);
    std::vector<int32_t> position;
    for (int32_t i = 0; i < n; ++i) position.push_back(next + i);
    open(position, std::vector<int32_t>(position.size(), sequence));
    attend(n);
  }

  support::Device device_;
  support::Cache cache_;
  std::vector<float> answers_;
};

TEST(Threads, SameBits) {
  const auto plain = [](kvc_attention_desc&, kvc_causal_desc&) {};
  const std::vector<Variant> variants = {
      {"f16", KVC_F16, plain, false, false},
      {"f32", KVC_F32, plain, false, true},
      {"q8_0", KVC_Q8_0, plain, false, false},
      {"nf4", KVC_NF4, plain, false, false},
      {"bf16, softcap, ALiBi, sinks, window", KVC_BF16,
       [](kvc_attention_desc& a, kvc_causal_desc& c) {
         a.softcap = 20, c.reach = 1000, c.memory = KVC_NONE, c.keep_first = 4;
       },
       true, true},
  };
  for (const Variant& variant : variants) {
    const Answers alone(1, variant);
    ASSERT_FALSE(HasFailure());
    for (const int32_t n_threads : {2, 3, 8}) {
      const Answers helped(n_threads, variant);
      ASSERT_EQ(helped.bits().size(), alone.bits().size());
      EXPECT_EQ(std::memcmp(helped.bits().data(), alone.bits().data(),
                            alone.bits().size() * sizeof(float)),
                0)
          << variant.name << " with " << n_threads << " threads, seed " << seed;
    }
    for (const float value : alone.bits()) ASSERT_EQ(value, value) << "NaN";
  }
}

}  // namespace
