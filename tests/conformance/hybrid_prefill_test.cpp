// Random small hybrids: prefill(n) = prefill(k) + decode(n − k) through a wrapper, and any other way to the same text: ragged
// batches, aborted passes, drafts of which some tokens are kept, checkpoints that are gone back to, copies. States, keys and values
// are the same bit for bit, and so is what recurrent layers return; what attention returns is the same to rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <map>

#include "support/attention_rig.hpp"
#include "support/hybrid.hpp"

namespace {

using support::Hybrid;
using support::Random;
using support::TextToken;
using support::TokenOutput;

constexpr uint64_t seed = 20261129;
constexpr int32_t n_texts = 3, spare = 3;  // sequences

struct Text {
  std::vector<int32_t> ids;
  int32_t carrier = 0;  // the token with an input
};

std::vector<Text> draw_texts(Random& random) {
  std::vector<Text> texts(n_texts);
  for (Text& text : texts) {
    const int32_t n = random.between(12, 40);
    for (int32_t i = 0; i < n; ++i) text.ids.push_back(random.below(1000));
    text.carrier = random.below(n);
  }
  return texts;
}

/// A model that reads the texts, and what it returned for their tokens.
class Reader {
 public:
  Reader(const support::HybridShape& shape, const std::vector<Text>& texts, const Random& random)
      : texts_(texts),
        random_(random),
        draft_states_(shape.draft_states),
        model(support::shared_device(), shape),
        outputs(texts.size()) {}

  int32_t left(int32_t s) const { return length(s) - done(s); }

  /// The next n[s] tokens of each text.
  void read(const std::vector<int32_t>& n) {
    const std::vector<TextToken> batch = interleaved(next_tokens(n));
    const std::vector<TokenOutput> results = model.run(batch, random_);
    keep(batch, results);
    EXPECT_EQ(kvc_commit(model), KVC_OK) << support::last_message();
  }

  /// Until all texts are read, in whatever way.
  void read_somehow() {
    for (bool more = true; more;) {
      more = false;
      for (int32_t s = 0; s < n_texts; ++s) more = more || left(s) > 0;
      if (!more) break;
      switch (random_.below(6)) {
        case 0: read_and_abort(); break;
        case 1: draft(); break;
        case 2: go_back_to_checkpoint(); break;
        case 3: continue_in_copy(); break;
        default: read(some_counts(4)); break;
      }
      if (::testing::Test::HasFailure()) return;
    }
  }

 private:
  int32_t length(int32_t s) const { return static_cast<int32_t>(text(s).ids.size()); }
  int32_t done(int32_t s) const { return support::sequence_info(model, s).next; }
  const Text& text(int32_t s) const { return texts_[static_cast<size_t>(s)]; }

  std::vector<int32_t> some_counts(int32_t most) {
    std::vector<int32_t> counts;
    for (int32_t s = 0; s < n_texts; ++s)
      counts.push_back(random_.chance(0.7) ? std::min(left(s), random_.between(1, most)) : 0);
    if (std::count(counts.begin(), counts.end(), 0) == n_texts)
      for (int32_t s = 0; s < n_texts; ++s) counts[static_cast<size_t>(s)] = std::min(left(s), 1);
    return counts;
  }

  std::vector<TextToken> next_tokens(const std::vector<int32_t>& n) const {
    std::vector<TextToken> batch;
    for (int32_t s = 0; s < n_texts; ++s)
      for (int32_t i = 0; i < n[static_cast<size_t>(s)]; ++i) {
        const int32_t at = done(s) + i;
        batch.push_back({s, at, text(s).ids[static_cast<size_t>(at)], at == text(s).carrier});
      }
    return batch;
  }

  /// The sequences' tokens in turn, each one's in order.
  std::vector<TextToken> interleaved(std::vector<TextToken> batch) {
    std::vector<TextToken> result;
    while (!batch.empty()) {
      const int32_t s = batch[static_cast<size_t>(random_.below(static_cast<int32_t>(batch.size())))]
                            .sequence;
      const auto first = std::find_if(batch.begin(), batch.end(),
                                      [s](const TextToken& token) { return token.sequence == s; });
      result.push_back(*first);
      batch.erase(first);
    }
    return result;
  }

  /// Tokens that are in no text, behind those that the batch has. Of those that are dropped one may carry an input.
  void add_junk(std::vector<TextToken>& batch, int32_t sequence, int32_t n, bool dropped = false) {
    int32_t next = done(sequence);
    bool may_carry = dropped && random_.chance(0.5);
    for (const TextToken& token : batch)
      if (token.sequence == sequence) {
        next = token.position + 1;
        may_carry = may_carry && !token.carries;
      }
    for (int32_t i = 0; i < n; ++i, may_carry = false)
      batch.push_back({sequence, next + i, 5000 + random_.below(99), may_carry});
  }

  void keep(const std::vector<TextToken>& batch, const std::vector<TokenOutput>& results) {
    for (size_t t = 0; t < batch.size(); ++t)
      outputs[static_cast<size_t>(batch[t].sequence)][batch[t].position] = results[t];
  }

  void read_and_abort() {
    std::vector<TextToken> batch = next_tokens(some_counts(3));
    add_junk(batch, random_.below(n_texts), random_.between(1, 6), true);
    model.run(batch, random_);
    EXPECT_EQ(kvc_abort(model), KVC_OK) << support::last_message();
  }

  /// Some right tokens and some wrong ones: the right ones are kept.
  void draft() {
    std::vector<int32_t> right, sequences, counts = {0, 0, 0};
    std::vector<TextToken> batch;
    for (int32_t s = 0; s < n_texts; ++s) {
      if (left(s) == 0 || random_.chance(0.3)) continue;
      const int32_t n = std::min(left(s), random_.between(1, draft_states_));
      counts = {0, 0, 0};
      counts[static_cast<size_t>(s)] = n;
      const std::vector<TextToken> kept = next_tokens(counts);
      batch.insert(batch.end(), kept.begin(), kept.end());
      sequences.push_back(s);
      right.push_back(n);
    }
    if (batch.empty()) return;
    const std::vector<TextToken> kept = batch;
    for (size_t i = 0; i < sequences.size(); ++i)
      add_junk(batch, sequences[i], draft_states_ + 1 - right[i], true);
    std::vector<TokenOutput> results = model.run(batch, random_);
    keep(kept, results);
    EXPECT_EQ(
        kvc_commit_prefix(model, static_cast<int32_t>(right.size()), sequences.data(), right.data()),
        KVC_OK)
        << support::last_message();
  }

  void go_back_to_checkpoint() {
    const int32_t s = random_.below(n_texts), at = done(s);
    EXPECT_EQ(kvc_checkpoint_take(model, s), KVC_OK) << support::last_message();
    std::vector<TextToken> batch;
    add_junk(batch, s, random_.between(1, 6));
    model.run(batch, random_);
    EXPECT_EQ(kvc_commit(model), KVC_OK) << support::last_message();
    int32_t got = -1;
    EXPECT_EQ(kvc_resume(model, s, at, &got), KVC_OK) << support::last_message();
    EXPECT_EQ(got, at);
  }

  /// The text goes on in a copy; what becomes of the original changes nothing.
  void continue_in_copy() {
    const int32_t s = random_.below(n_texts), copy = spare;
    int32_t got = -1;
    EXPECT_EQ(kvc_copy_prefix(model, s, copy, INT32_MAX, &got), KVC_OK) << support::last_message();
    std::vector<TextToken> batch;
    add_junk(batch, s, random_.between(1, 6));
    model.run(batch, random_);
    EXPECT_EQ(kvc_commit(model), KVC_OK) << support::last_message();
    const int32_t dst[] = {s}, src[] = {copy};
    EXPECT_EQ(kvc_reorder(model, 1, dst, src), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_remove(model, copy, 0, KVC_SEQ_END), KVC_OK) << support::last_message();
  }

  const std::vector<Text> texts_;
  Random random_;
  const int32_t draft_states_;

 public:
  Hybrid model;
  std::vector<std::map<int32_t, TokenOutput>> outputs;  // [texts] by position
};

void compare(Reader& way, Reader& whole, const char* name) {
  for (int32_t s = 0; s < n_texts; ++s) {
    const auto &got = way.outputs[static_cast<size_t>(s)],
               &wanted = whole.outputs[static_cast<size_t>(s)];
    ASSERT_EQ(got.size(), wanted.size()) << name;
    for (const auto& [position, output] : wanted) {
      const TokenOutput& other = got.at(position);
      ASSERT_EQ(other.exact, output.exact) << name << ", text " << s << " position " << position;
      ASSERT_EQ(other.attended.size(), output.attended.size());
      for (size_t i = 0; i < output.attended.size(); ++i)
        ASSERT_NEAR(other.attended[i], output.attended[i], 1e-5)
            << name << ", text " << s << " position " << position;
    }
    ASSERT_EQ(way.model.contents(s), whole.model.contents(s)) << name << ", text " << s;
  }
  ASSERT_EQ(kvc_check(way.model), KVC_OK) << support::last_message();
}

void compare_ways(uint64_t number) {
  Random random(support::derived_seed(seed, number));
  const support::HybridShape shape = support::draw_hybrid(random);
  SCOPED_TRACE(shape.describe());
  const std::vector<Text> texts = draw_texts(random);
  const auto reader = [&] { return Reader(shape, texts, Random(random.bits())); };
  Reader whole = reader(), decoded = reader(), somehow = reader();
  std::vector<int32_t> all, first;
  for (int32_t s = 0; s < n_texts; ++s) {
    all.push_back(whole.left(s));
    first.push_back(random.below(whole.left(s)));
  }
  whole.read(all);
  if (std::count(first.begin(), first.end(), 0) < n_texts) decoded.read(first);
  for (bool more = true; more && !::testing::Test::HasFailure();) {
    std::vector<int32_t> one;
    for (int32_t s = 0; s < n_texts; ++s) one.push_back(std::min(decoded.left(s), 1));
    more = std::count(one.begin(), one.end(), 1) > 0;
    if (more) decoded.read(one);
  }
  compare(decoded, whole, "prefill(k) + decode(n - k)");
  // What has slid depends on how a text was cut; without a limit the states are the same.
  if (!shape.limited) {
    ASSERT_EQ(decoded.model.digest(), whole.model.digest());
  }
  somehow.read_somehow();
  compare(somehow, whole, "another way");
}

TEST(HybridPrefill, EqualsPrefillAndDecode) {
  constexpr uint64_t n_models = 150;
  for (uint64_t number = 0; number < n_models && !HasFailure(); ++number) {
    SCOPED_TRACE("model " + std::to_string(number));
    compare_ways(number);
  }
  std::cout << n_models << " models, seed " << seed << std::endl;
}

}  // namespace
