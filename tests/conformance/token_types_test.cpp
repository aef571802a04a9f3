// Token types: which tokens see each other because of them, as masks that are written down here by hand, which batches are
// refused, and long blocks against double in every kernel.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "support/abi.hpp"
#include "support/attention_rig.hpp"

namespace {

using support::AttentionOptions;
using support::AttentionRig;

constexpr uint64_t seed = 20261129;

/// A cache of one layer, passes whose K and V are zeros, and the mask of the open pass as text.
class TokenTypes : public testing::Test {
 protected:
  void create(int32_t reach, int32_t chunk, int32_t keep_first) {
    kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
    desc.max_sequences = 2;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = reach;
    causal.memory = reach > 0 ? 32 : 0;
    causal.chunk = chunk;
    causal.keep_first = keep_first;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &causal, &cache_.handle), KVC_OK)
        << support::last_message();
  }

  /// Tokens of sequence 0 from its next position on, one per letter: a to z are types, . has none.
  kvc_status begin(const std::string& letters) {
    const int32_t next = support::sequence_info(cache_, 0).next;
    std::vector<int32_t> position, sequence(letters.size(), 0);
    std::vector<uint32_t> flags;
    for (const char letter : letters) {
      position.push_back(next + static_cast<int32_t>(flags.size()));
      flags.push_back(letter == '.' ? 0 : KVC_TOKEN_TYPE(letter - 'a' + 1));
    }
    return begin(position, sequence, flags);
  }

  kvc_status begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                   const std::vector<uint32_t>& flags) {
    const auto n = static_cast<int32_t>(position.size());
    const kvc_status fits = kvc_fits(cache_, n, position.data(), sequence.data(), flags.data());
    const kvc_status status = kvc_begin(cache_, n, position.data(), sequence.data(), flags.data(),
                                        0, nullptr);
    EXPECT_EQ(status, fits);
    if (status != KVC_OK) return status;
    n_tokens_ = n;
    std::vector<float> zeros(static_cast<size_t>(n) * 4);
    const int64_t shape[] = {n, 1, 4};
    kvc_tensor k = {};
    EXPECT_EQ(kvc_tensor_dense(zeros.data(), KVC_F32, 3, shape, &k), KVC_OK);
    EXPECT_EQ(kvc_put(cache_, 0, &k, &k), KVC_OK);
    return status;
  }

  /// A line per token: x where it sees the cell, else a dot. Sequence 0 fills the pool from cell 0 on.
  std::vector<std::string> mask() {
    int32_t first_cell = -1, n_cells = 0;
    EXPECT_EQ(kvc_history(cache_, 0, &first_cell, &n_cells), KVC_OK);
    EXPECT_EQ(first_cell, 0);
    std::vector<uint8_t> bits(static_cast<size_t>(n_tokens_) * static_cast<size_t>(n_cells));
    const int64_t shape[] = {n_tokens_, n_cells};
    kvc_tensor into = {};
    EXPECT_EQ(kvc_tensor_dense(bits.data(), KVC_BOOL, 2, shape, &into), KVC_OK);
    EXPECT_EQ(kvc_mask(cache_, 0, &into), KVC_OK) << support::last_message();
    std::vector<std::string> lines;
    for (int32_t t = 0; t < n_tokens_; ++t) {
      lines.emplace_back();
      for (int32_t c = 0; c < n_cells; ++c)
        lines.back() += bits[static_cast<size_t>(t * n_cells + c)] != 0 ? 'x' : '.';
    }
    return lines;
  }

  using Lines = std::vector<std::string>;
  support::Device device_;
  support::Cache cache_;
  int32_t n_tokens_ = 0;
};

TEST_F(TokenTypes, ABlockSeesItselfWholeAndNothingBehindIt) {
  create(0, 0, 0);
  ASSERT_EQ(begin(".aa.bbb"), KVC_OK) << support::last_message();
  EXPECT_EQ(mask(),
            (Lines{"x......", "xxx....", "xxx....", "xxxx...", "xxxxxxx", "xxxxxxx", "xxxxxxx"}));
  // The next pass knows nothing of the types of the last one.
  ASSERT_EQ(begin("aa"), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"xxxxxxxxx", "xxxxxxxxx"}));
}

TEST_F(TokenTypes, ABlockReachesPastTheWindow) {
  create(1, 0, 0);
  ASSERT_EQ(begin(".aaaa."), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"x.....", "xxxxx.", ".xxxx.", ".xxxx.", ".xxxx.", "....xx"}));
}

TEST_F(TokenTypes, ABlockMeetsTheKeptFirstPart) {
  create(1, 0, 3);
  ASSERT_EQ(begin("..aaaa."), KVC_OK);
  EXPECT_EQ(mask(),
            (Lines{"x......", "xx.....", "xxxxxx.", "xxxxxx.", "xxxxxx.", "xxxxxx.", "xxx..xx"}));
  ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  ASSERT_EQ(begin(".bbb"), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"xxx...xx...", "xxx....xxxx", "xxx.....xxx", "xxx.....xxx"}));
}

TEST_F(TokenTypes, ABlockEndsAtAChunk) {
  create(0, 4, 0);
  ASSERT_EQ(begin("..aaaa"), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"x.....", "xx....", "xxxx..", "xxxx..", "....xx", "....xx"}));
}

TEST_F(TokenTypes, SequencesAndPaddingMayLieBetweenTheTokensOfABlock) {
  create(0, 0, 0);
  const uint32_t image = KVC_TOKEN_TYPE(7);
  ASSERT_EQ(begin({0, 0, 0, 1}, {0, 1, KVC_NONE, 0}, {image, image, 0, image}), KVC_OK)
      << support::last_message();
  const Lines lines = mask();
  EXPECT_EQ(lines[0].substr(0, 2), "xx");
  EXPECT_EQ(lines[3].substr(0, 2), "xx");
  EXPECT_EQ(std::count(lines[1].begin(), lines[1].end(), 'x'), 1);  // of another sequence
  EXPECT_EQ(std::count(lines[2].begin(), lines[2].end(), 'x'), 0);  // padding
}

TEST_F(TokenTypes, TheExceptSetIsVisibleBesides) {
  create(0, 0, 0);
  ASSERT_EQ(begin("aa.."), KVC_OK);
  const int32_t first = 0;
  ASSERT_EQ(kvc_set_causal(cache_, 1, &first), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"xxxx", "xx..", "xxx.", "xxxx"}));
  ASSERT_EQ(kvc_set_causal(cache_, 0, nullptr), KVC_OK);
  EXPECT_EQ(mask(), (Lines{"xx..", "xx..", "xxx.", "xxxx"}));
}

TEST_F(TokenTypes, ATypeInTwoPlacesIsRefused) {
  create(0, 0, 0);
  for (const char* batch : {"a.a", "aba", ".bb.ccb"}) {
    EXPECT_EQ(begin(batch), KVC_E_INVALID_ARGUMENT) << batch;
    EXPECT_NE(support::last_message().find("sequence 0 has tokens of type "), std::string::npos)
        << support::last_message();
  }
  EXPECT_EQ(begin(std::vector<int32_t>{0, 0, 1}, {0, 1, 1},
                  {KVC_TOKEN_TYPE(0xffff), KVC_TOKEN_TYPE(0xffff), KVC_TOKEN_TYPE(1)}),
            KVC_OK);
}

TEST_F(TokenTypes, CommitPrefixKeepsBlocksWhole) {
  create(0, 4, 0);
  ASSERT_EQ(begin("..aaaab"), KVC_OK);  // positions 2 and 3 are one block, 4 and 5 another
  const int32_t sequence = 0;
  for (const int32_t keep : {3, 5}) {
    EXPECT_EQ(kvc_commit_prefix(cache_, 1, &sequence, &keep), KVC_E_INVALID_ARGUMENT) << keep;
    EXPECT_NE(support::last_message().find("type"), std::string::npos) << support::last_message();
  }
  const int32_t keep = 4;
  EXPECT_EQ(kvc_commit_prefix(cache_, 1, &sequence, &keep), KVC_OK) << support::last_message();
  EXPECT_EQ(support::sequence_info(cache_, 0).next, 4);
}

TEST_F(TokenTypes, AReservePassIgnoresThem) {
  create(0, 0, 0);
  const uint32_t flags[] = {KVC_TOKEN_TYPE(1), 0, KVC_TOKEN_TYPE(1)};
  EXPECT_EQ(kvc_begin(cache_, 3, nullptr, nullptr, flags, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
}

/// Blocks of every size, so that decode, medium and prefill kernels all see ranges that end behind their rows.
TEST(LongBlocks, AgainstDouble) {
  const std::vector<std::function<void(AttentionOptions&)>> variants = {
      [](AttentionOptions& o) { o.lse = o.weights = true; },
      [](AttentionOptions& o) { o.reach = 50, o.dtype_k = o.dtype_v = KVC_F16; },
      [](AttentionOptions& o) { o.reach = 30, o.keep_first = 40, o.n_q_heads = 8; },
      [](AttentionOptions& o) { o.chunk = 200, o.slopes = true, o.dtype_k = o.dtype_v = KVC_BF16; },
      [](AttentionOptions& o) { o.mask = o.bias = o.rope = o.shifts = true; },
  };
  double worst = 0;
  for (size_t variant = 0; variant < variants.size(); ++variant) {
    AttentionOptions options;
    variants[variant](options);
    options.name = "variant " + std::to_string(variant);
    AttentionRig rig(support::shared_device(), options, 1200, 300,
                     support::derived_seed(seed, variant));
    for (const int32_t n : {300, 3, 1, 17, 64, 290}) {
      const int32_t next = rig.oracle.sequences[0].next;
      std::vector<int32_t> position, sequence(static_cast<size_t>(n), 0);
      std::vector<uint32_t> flags;
      const int32_t before = n / 10, behind = n / 20;  // text around the image
      for (int32_t i = 0; i < n; ++i) {
        position.push_back(next + i);
        flags.push_back(i < before || i >= n - behind ? 0 : KVC_TOKEN_TYPE(9));
      }
      rig.open(position, sequence, flags);
      worst = std::max(worst, rig.attend_and_compare());
      rig.commit();
      if (options.shifts && n == 3) rig.remove(0, 100, 107);
      if (HasFailure()) return;
    }
    EXPECT_EQ(kvc_check(rig.cache), KVC_OK) << support::last_message();
  }
  std::cout << variants.size() << " caches, seed " << seed << ", largest error " << worst
            << "e-6 of the largest |v|" << std::endl;
  EXPECT_GT(worst, 0);
}

}  // namespace
