// Sequences that share prefixes of many lengths, in one batch: kernels may read the shared keys once
// for all of them, and the answers are those of sequences that share nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

#ifdef KVC_SANITIZED
constexpr int32_t head_dim = 4;  // each product is checked there
#else
constexpr int32_t head_dim = 32;
#endif
constexpr int32_t kv_heads = 2, q_heads = 4, prompt = 900, n_sequences = 8;

class Batch {
 public:
  explicit Batch(bool shares) : device_(2), cache_(make()), shares_(shares) {
    support::Random random(20261121);
    for (auto* data : {&k_, &v_, &q_}) {
      data->resize(static_cast<size_t>((prompt + n_sequences) * q_heads * head_dim));
      for (float& value : *data) value = static_cast<float>(random.unit() * 2 - 1);
    }
  }

  /// Sequence i holds the first length[i] tokens of the prompt, the first of them all of it. One token
  /// more for each, in the order of `batch`: what it sees.
  std::vector<float> decode(const std::vector<int32_t>& length, const std::vector<int32_t>& batch) {
    fill(0, prompt);
    for (int32_t s = 1; s < n_sequences; ++s) {
      const int32_t n = length[static_cast<size_t>(s)];
      int32_t got = 0;
      if (shares_ || n == 0) {
        EXPECT_EQ(kvc_copy_prefix(cache_, 0, s, n, &got), KVC_OK);
      } else {
        fill(s, n);
      }
      EXPECT_EQ(support::sequence_info(cache_, s).next, n);
    }
    std::vector<int32_t> position;
    for (const int32_t s : batch) position.push_back(support::sequence_info(cache_, s).next);
    const auto n = static_cast<int32_t>(batch.size());
    put(n, prompt, position.data(), batch.data());
    std::vector<float> out(static_cast<size_t>(n * q_heads * head_dim));
    const kvc_tensor q = support::dense(q_.data(), KVC_F32, {n, q_heads, head_dim});
    kvc_tensor to = support::dense(out.data(), KVC_F32, {n, q_heads, head_dim});
    EXPECT_EQ(kvc_attention(cache_, 0, &q, &to, nullptr), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_abort(cache_), KVC_OK);
    for (int32_t s = 0; s < n_sequences; ++s)
      EXPECT_EQ(kvc_remove(cache_, s, 0, KVC_SEQ_END), KVC_OK);
    return out;
  }

 private:
  support::Cache make() const {
    kvc_cache_desc desc = support::cache_desc(1, kv_heads, head_dim, head_dim);
    desc.max_sequences = n_sequences;
    desc.capacity = desc.max_batch = prompt + 1;
    return support::Cache(device_, desc);
  }

  void fill(int32_t sequence, int32_t n) {
    std::vector<int32_t> position, sequences(static_cast<size_t>(n), sequence);
    for (int32_t i = 0; i < n; ++i) position.push_back(i);
    put(n, 0, position.data(), sequences.data());
    ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  }

  /// The values of the tokens are those from `row` on.
  void put(int32_t n, int32_t row, const int32_t* position, const int32_t* sequence) {
    ASSERT_EQ(kvc_begin(cache_, n, position, sequence, nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    const int32_t at = row * kv_heads * head_dim;
    const kvc_tensor k = support::dense(k_.data() + at, KVC_F32, {n, kv_heads, head_dim});
    const kvc_tensor v = support::dense(v_.data() + at, KVC_F32, {n, kv_heads, head_dim});
    ASSERT_EQ(kvc_put(cache_, 0, &k, &v), KVC_OK);
  }

  support::Device device_;
  support::Cache cache_;
  bool shares_;
  std::vector<float> k_, v_, q_;
};

TEST(SharedPrefixes, AnswerAsIfNothingWereShared) {
  Batch shared(true), separate(false);
  const std::vector<std::vector<int32_t>> lengths = {
      {prompt, prompt, prompt, prompt, prompt, prompt, prompt, prompt},
      {prompt, 899, 800, 600, 440, 300, 260, 0},
      {prompt, 5, 100, 257, 300, 500, 800, 900},
      {prompt, 890, 300, 880, 0, 870, 270, 860},
      {prompt, 256, 257, 255, 512, 511, 513, 1}};
  const std::vector<std::vector<int32_t>> batches = {
      {0, 1, 2, 3, 4, 5, 6, 7}, {7, 6, 5, 4, 3, 2, 1, 0}, {3, 0, 7, 1}};
  for (size_t i = 0; i < lengths.size(); ++i) {
    for (const std::vector<int32_t>& batch : batches) {
      const std::vector<float> found = shared.decode(lengths[i], batch);
      const std::vector<float> expected = separate.decode(lengths[i], batch);
      ASSERT_EQ(found.size(), expected.size());
      for (size_t e = 0; e < found.size(); ++e)
        ASSERT_LE(std::fabs(found[e] - expected[e]), 1e-5f)
            << "lengths " << i << ", token " << e / (q_heads * head_dim);
    }
  }
}

}  // namespace
