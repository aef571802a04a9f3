// What a token gets has the same bits alone and beside others, for any number of threads, wherever its sequence's cells lie, and
// with padding in the pass or without: for every storage type, and where factors of products may be rounded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "kvc/operators.h"
#include "support/abi.hpp"

namespace {

constexpr int32_t n_kv_heads = 4, n_q_heads = 32, head_dim = 32, max_batch = 96;

struct Storage {
  const char* name;
  uint32_t dtype;
  uint64_t flags;
  uint32_t runtime_dtype = 0;  // of the operator that is bound; 0: none is
};
void PrintTo(const Storage& storage, std::ostream* out) { *out << storage.name; }

/// The same numbers for the same sequence and position, whoever asks.
std::vector<float> row(int32_t salt, int32_t sequence, int32_t position, int32_t n) {
  uint64_t state = static_cast<uint64_t>(salt) << 40 | static_cast<uint64_t>(sequence) << 32 |
                   static_cast<uint64_t>(position);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& x : values) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX
    x = static_cast<float>(static_cast<int32_t>(state >> 33) - (1 << 30)) * 0x1p-29f;
  }
  return values;
}

class SameBits : public testing::TestWithParam<Storage> {
 protected:
  struct Tokens {
    std::vector<int32_t> position, sequence;
  };

  /// A cache of its own, filled as the test says; sequence 0 of each is the one that is compared.
  class World {
   public:
    World(int32_t n_threads, int32_t n_sequences, int32_t capacity) : device_(n_threads) {
      kvc_cache_desc desc = support::cache_desc(1, n_kv_heads, head_dim, head_dim);
      desc.dtype_k = desc.dtype_v = GetParam().dtype;
      desc.flags = GetParam().flags;
      desc.max_sequences = n_sequences;
      desc.capacity = capacity;
      desc.max_batch = max_batch;
      EXPECT_EQ(kvc_cache_create(device_, &desc, nullptr, &cache_.handle), KVC_OK)
          << support::last_message();
      if (GetParam().runtime_dtype != 0) bind_operator();
    }

    /// Runs a pass and returns the rows of sequence 0 in it.
    std::vector<float> pass(const Tokens& tokens, bool keeps_result = true) {
      const auto n = static_cast<int32_t>(tokens.position.size());
      std::vector<float> k, v, q, out(static_cast<size_t>(n * n_q_heads * head_dim));
      const auto append = [](std::vector<float>& to, const std::vector<float>& from) {
        to.insert(to.end(), from.begin(), from.end());
      };
      for (size_t i = 0; i < tokens.position.size(); ++i) {
        const int32_t s = std::max(0, tokens.sequence[i]), p = tokens.position[i];
        append(k, row(1, s, p, n_kv_heads * head_dim));
        append(v, row(2, s, p, n_kv_heads * head_dim));
        append(q, row(3, s, p, n_q_heads * head_dim));
      }
      const kvc_tensor tk = support::dense(k.data(), KVC_F32, {n, n_kv_heads, head_dim});
      const kvc_tensor tv = support::dense(v.data(), KVC_F32, {n, n_kv_heads, head_dim});
      const kvc_tensor tq = support::dense(q.data(), KVC_F32, {n, n_q_heads, head_dim});
      kvc_tensor to = support::dense(out.data(), KVC_F32, {n, n_q_heads, head_dim});
      EXPECT_EQ(
          kvc_begin(cache_, n, tokens.position.data(), tokens.sequence.data(), nullptr, 0, nullptr),
          KVC_OK)
          << support::last_message();
      EXPECT_EQ(kvc_put(cache_, 0, &tk, &tv), KVC_OK) << support::last_message();
      std::vector<float> own;
      if (keeps_result) {
        EXPECT_EQ(kvc_attention(cache_, 0, &tq, &to, nullptr), KVC_OK) << support::last_message();
        for (size_t i = 0; i < tokens.sequence.size(); ++i) {
          const auto width = static_cast<ptrdiff_t>(n_q_heads * head_dim);
          const auto begin = out.begin() + static_cast<ptrdiff_t>(i) * width;
          if (tokens.sequence[i] == 0) own.insert(own.end(), begin, begin + width);
        }
      }
      EXPECT_EQ(kvc_commit(cache_), KVC_OK) << support::last_message();
      return own;
    }

    /// Fills all sequences up to a length, a few tokens of each at a time: their cells lie among each other's.
    void fill(int32_t n_sequences, int32_t length) {
      const int32_t at_once = max_batch / n_sequences;
      for (int32_t begin = 0; begin < length; begin += at_once) {
        Tokens tokens;
        for (int32_t s = 0; s < n_sequences; ++s) {
          for (int32_t p = begin; p < std::min(begin + at_once, length); ++p)
            tokens.position.push_back(p), tokens.sequence.push_back(s);
        }
        (void)pass(tokens, false);
      }
    }

   private:
    void bind_operator() {
      kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
      desc.runtime_dtype = GetParam().runtime_dtype;
      kvc_operator* op = nullptr;
      EXPECT_EQ(kvc_operator_create(device_, "flash", &desc, &op), KVC_OK) << support::last_message();
      EXPECT_EQ(kvc_bind_operator(cache_, 0, 1, KVC_MODE_ALL, op), KVC_OK) << support::last_message();
      EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
    }

    support::Device device_;
    support::Cache cache_;
  };

  /// `n` tokens of each of the first sequences, with padding between them or without.
  static Tokens batch(int32_t n_sequences, int32_t first, int32_t n, bool padded) {
    Tokens tokens;
    for (int32_t s = n_sequences - 1; s >= 0; --s) {
      for (int32_t i = 0; i < n; ++i) {
        if (padded) tokens.position.push_back(0), tokens.sequence.push_back(KVC_NONE);
        tokens.position.push_back(first + i), tokens.sequence.push_back(s);
      }
    }
    return tokens;
  }

  static void expect_same(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
    ASSERT_EQ(a.size(), b.size()) << what;
    ASSERT_FALSE(a.empty());
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << what;
  }
};

/// Histories of one stretch and of several; one token, a draft and a prompt.
TEST_P(SameBits, AloneAndBesideOthers) {
  constexpr int32_t n_others = 15;  // enough for all threads, so that nothing need be cut for their sake
  for (const int32_t history : {90, 2600}) {
    World alone(1, 1, history + 32), beside(2, 1 + n_others, history + 32),
        padded(2, 1, history + 32);
    alone.fill(1, history);
    beside.fill(1 + n_others, history);
    padded.fill(1, history);
    int32_t at = history;
    for (const int32_t n : {1, 2, 6}) {
      const std::vector<float> wanted = alone.pass(batch(1, at, n, false));
      const std::string where = "history " + std::to_string(history) + ", " + std::to_string(n) +
                                " tokens";
      expect_same(beside.pass(batch(1 + n_others, at, n, false)), wanted,
                  (where + ", beside").c_str());
      expect_same(padded.pass(batch(1, at, n, true)), wanted, (where + ", padded").c_str());
      at += n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    StorageTypes, SameBits,
    testing::Values(
        Storage{"f32", KVC_F32, 0}, Storage{"f16", KVC_F16, 0}, Storage{"bf16", KVC_BF16, 0},
        Storage{"f16_interleaved", KVC_F16, KVC_CACHE_INTERLEAVED}, Storage{"f8_e4m3", KVC_F8_E4M3, 0},
        Storage{"f8_e5m2", KVC_F8_E5M2, 0}, Storage{"q8_0", KVC_Q8_0, 0},
        Storage{"q4_0", KVC_Q4_0, 0}, Storage{"int8", KVC_INT8, 0}, Storage{"nf4", KVC_NF4, 0},
        Storage{"q4_0_rotated", KVC_Q4_0, KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V},
        Storage{"bf16_in_bf16", KVC_BF16, 0, KVC_BF16}, Storage{"f16_in_bf16", KVC_F16, 0, KVC_BF16},
        Storage{"f16_in_f16", KVC_F16, 0, KVC_F16}, Storage{"q8_0_in_bf16", KVC_Q8_0, 0, KVC_BF16},
        Storage{"int8_in_f16", KVC_INT8, 0, KVC_F16}),
    [](const auto& storage) { return std::string(storage.param.name); });

}  // namespace
