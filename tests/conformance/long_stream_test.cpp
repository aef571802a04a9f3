// A stream without an end: it keeps its first tokens and a window behind them, and every step drops the oldest token of the
// window and decodes one more. Ten thousand such shifts of every key leave what attention returns as exact as it was after
// a few: keys rotate once, by all that they owe, however often they were shifted.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <iostream>
#include <vector>

#include "model/oracle.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t dim = 16, n_first = 4, n_kept = 4096, n_steps = 10000, n_compared = 200;
constexpr uint64_t seed = 20261130;

struct Token {
  std::vector<double> k, v;  // k without its rotation
};

/// The cache, and beside it in double the tokens that it still holds, as they came.
class Stream {
 public:
  explicit Stream(uint32_t dtype) : dtype_(dtype), device_(1), cache_(make()), random_(seed) {
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    rope.pairs = KVC_ROPE_HALVES;
    EXPECT_EQ(kvc_bind_rope(cache_, 0, 1, &rope, nullptr), KVC_OK);
    rope_.n_dims = dim;
    rope_.halves = true;
    for (int32_t i = 0; i < dim / 2; ++i)
      rope_.frequency.push_back(std::pow(10000.0, -2.0 * i / dim));
  }

  /// Drops a token if all places are taken, then decodes one. Attention is left out where nobody looks at it.
  void step(bool attends) {
    if (tokens_.size() == n_kept) {
      EXPECT_EQ(kvc_remove(cache_, 0, n_first, n_first + 1), KVC_OK) << support::last_message();
      tokens_.erase(tokens_.begin() + n_first);
    }
    const auto position = static_cast<int32_t>(tokens_.size());
    tokens_.push_back({some(), some()});
    const Token& token = tokens_.back();
    std::vector<double> turned = token.k;
    model::turn(rope_, position, turned.data());
    std::vector<float> k(turned.begin(), turned.end()), v(token.v.begin(), token.v.end());
    const int32_t sequence = 0;
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {1, 1, dim});
    const kvc_tensor values = support::dense(v.data(), KVC_F32, {1, 1, dim});
    EXPECT_EQ(kvc_begin(cache_, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    EXPECT_EQ(kvc_put(cache_, 0, &keys, &values), KVC_OK) << support::last_message();
    if (attends) attend();
    EXPECT_EQ(kvc_commit(cache_), KVC_OK);
  }

  /// By how much the last attention errs, of the largest |v|.
  double error() const {
    std::vector<double> exact(dim, 0);
    double sum = 0, largest = 0;
    for (size_t j = 0; j < tokens_.size(); ++j) {
      std::vector<double> key = tokens_[j].k;
      model::turn(rope_, static_cast<double>(j), key.data());
      double score = 0;
      for (size_t i = 0; i < dim; ++i) score += double{query_[i]} * key[i];
      const double weight = std::exp(score / std::sqrt(double{dim}));
      sum += weight;
      for (size_t i = 0; i < dim; ++i) {
        exact[i] += weight * tokens_[j].v[i];
        largest = std::max(largest, std::fabs(tokens_[j].v[i]));
      }
    }
    double error = 0;
    for (size_t i = 0; i < dim; ++i) {
      const double off = std::fabs(double{out_[i]} - exact[i] / sum);
      if (!(off <= error)) error = off;  // NaN stays
    }
    return error / largest;
  }

  kvc_cache* handle() const { return cache_; }

 private:
  support::Cache make() const {
    kvc_cache_desc desc = support::cache_desc(1, 1, dim, dim);
    desc.dtype_k = desc.dtype_v = dtype_;
    desc.capacity = n_kept;
    desc.max_batch = 1;
    desc.max_q_heads = 1;
    return support::Cache(device_, desc);
  }

  void attend() {
    const std::vector<double> q = some();
    query_.assign(q.begin(), q.end());
    const kvc_tensor queries = support::dense(query_.data(), KVC_F32, {1, 1, dim});
    kvc_tensor outputs = support::dense(out_.data(), KVC_F32, {1, 1, dim});
    EXPECT_EQ(kvc_attention(cache_, 0, &queries, &outputs, nullptr), KVC_OK)
        << support::last_message();
  }

  std::vector<double> some() {
    std::vector<double> values(dim);
    for (double& x : values) x = random_.value();
    return values;
  }

  uint32_t dtype_;
  support::Device device_;
  support::Cache cache_;
  support::Random random_;
  model::Rope rope_;
  std::deque<Token> tokens_;
  std::vector<float> query_, out_ = std::vector<float>(dim);  // of the last attention
};

TEST(LongStream, TenThousandShiftsCostNoMoreThanAFew) {
  struct Case {
    const char* name;
    uint32_t dtype;
    double bound;  // of the largest |v|: a few roundings of the type, of keys and of values
  };
  for (const Case& each : {Case{"f32", KVC_F32, 4e-7}, Case{"f16", KVC_F16, 2e-4},
                           Case{"bf16", KVC_BF16, 1.6e-3}, Case{"int8", KVC_INT8, 4e-3}}) {
    Stream stream(each.dtype);
    ASSERT_FALSE(HasFailure()) << each.name;
    const auto worst_of = [&stream](int32_t n) {
      double worst = 0;
      for (int32_t i = 0; i < n; ++i) {
        stream.step(true);
        const double error = stream.error();
        if (!(error <= worst)) worst = error;
      }
      return worst;
    };
    for (int32_t i = 0; i < n_kept; ++i) stream.step(false);
    const double early = worst_of(n_compared);
    for (int32_t i = n_compared; i < n_steps; ++i) stream.step(false);
    const double late = worst_of(n_compared);
    std::cout << each.name << ": " << early << " in the first " << n_compared
              << " steps that drop a token, " << late << " after " << n_steps << ", seed " << seed
              << std::endl;
    EXPECT_LE(early, each.bound) << each.name;
    EXPECT_LE(late, each.bound) << each.name;
    EXPECT_LE(late, 2 * early) << each.name << " drifts";
    EXPECT_EQ(kvc_check(stream.handle()), KVC_OK) << support::last_message();
  }
}

}  // namespace
