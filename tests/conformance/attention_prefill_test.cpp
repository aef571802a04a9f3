// A prompt at once or in pieces: prefill(n) = prefill(k) + decode(n - k), for every feature and pair of
// features. And the same bits for 1, 2, 3 and 8 threads.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <iostream>

#include "support/attention_cases.hpp"
#include "support/attention_rig.hpp"

namespace {

using support::Array;
using support::AttentionOptions;

constexpr uint64_t seed = 20261121;
constexpr int32_t n_tokens = 150;

/// One prompt with its queries, and a cache that takes it in pieces.
class Prompt {
 public:
  Prompt(const AttentionOptions& options, support::Random& random)
      : options_(options),
        k_(options.dtype_in, {n_tokens, options.n_kv_heads, options.head_dim_k}),
        v_(options.dtype_in, {n_tokens, options.n_kv_heads, options.head_dim_v}),
        q_(options.dtype_q, {n_tokens, options.n_q_heads, options.head_dim_k}) {
    k_.fill(random);
    v_.fill(random);
    q_.fill(random);
    int32_t at = 0;
    for (int32_t i = 0; i < n_tokens; ++i) {
      if (options.gaps) at += random.below(3);
      position_.push_back(at++);
    }
  }

  /// The outputs of all tokens when they come in pieces of these sizes.
  std::vector<double> attend(const std::vector<int32_t>& pieces, support::Digest* digest) const {
    support::AttentionRig rig(support::shared_device(), options_, 200, n_tokens, seed);
    std::vector<double> result;
    int32_t start = 0;
    for (const int32_t n : pieces) {
      const std::vector<int32_t> sequence(static_cast<size_t>(n), 0);
      EXPECT_EQ(
          kvc_begin(rig.cache, n, position_.data() + start, sequence.data(), nullptr, 0, nullptr),
          KVC_OK)
          << support::last_message();
      const kvc_tensor k = part(k_, start, n), v = part(v_, start, n), q = part(q_, start, n);
      Array out(options_.dtype_out, {n, options_.n_q_heads, options_.head_dim_v});
      EXPECT_EQ(kvc_put_attention(rig.cache, 0, &k, options_.v_in_k ? nullptr : &v, &q,
                                  out.tensor(), nullptr),
                KVC_OK)
          << support::last_message();
      EXPECT_EQ(kvc_commit(rig.cache), KVC_OK);
      const std::vector<double> rows = out.doubles();
      result.insert(result.end(), rows.begin(), rows.end());
      start += n;
    }
    *digest = support::digest(rig.cache);
    return result;
  }

 private:
  static kvc_tensor part(const Array& whole, int32_t start, int32_t n) {
    kvc_tensor view = *whole.tensor();
    view.byte_offset += static_cast<uint64_t>(start * view.strides[0]) *
                        model::element_bytes(view.dtype);
    view.shape[0] = n;
    return view;
  }

  AttentionOptions options_;
  Array k_, v_, q_;
  std::vector<int32_t> position_;
};

struct Feature {
  const char* name;
  std::function<void(AttentionOptions&)> apply;
};

std::vector<Feature> features_of_attention() {
  return {
      {"reach", [](auto& o) { o.reach = 19; }},
      {"memory", [](auto& o) { o.reach = o.reach ? o.reach : 30, o.memory = 50; }},
      {"chunk", [](auto& o) { o.chunk = 32; }},
      {"keep_first", [](auto& o) { o.keep_first = 4, o.reach = o.reach ? o.reach : 16; }},
      {"softcap", [](auto& o) { o.softcap = 1.5f; }},
      {"alibi", [](auto& o) { o.slopes = true; }},
      {"sinks", [](auto& o) { o.sinks = true; }},
      {"grouped", [](auto& o) { o.n_q_heads = 4 * o.n_kv_heads; }},
      {"multi-query", [](auto& o) { o.n_kv_heads = 1, o.n_q_heads = 6; }},
      {"dk 72 dv 40", [](auto& o) { o.head_dim_k = 72, o.head_dim_v = 40; }},
      {"f16", [](auto& o) { o.dtype_k = o.dtype_v = KVC_F16; }},
      {"bf16", [](auto& o) { o.dtype_k = o.dtype_v = KVC_BF16; }},
      {"q f16", [](auto& o) { o.dtype_q = KVC_F16; }},
      {"gaps", [](auto& o) { o.gaps = true; }},
      {"padding", [](auto& o) { o.padding = 32; }},
  };
}

const std::vector<Feature>& features() {
  static const std::vector<Feature> list = [] {
    std::vector<Feature> all = features_of_attention();
    for (const support::StorageOption& each : support::storage_options())
      all.push_back({each.name, each.apply});
    return all;
  }();
  return list;
}

void compare_splits(const AttentionOptions& options, uint64_t number) {
  support::Random random(support::derived_seed(seed, number));
  const Prompt prompt(options, random);
  support::Digest whole_digest{}, digest{};
  const std::vector<double> whole = prompt.attend({n_tokens}, &whole_digest);
  const int32_t k = random.between(1, n_tokens - 1);
  std::vector<int32_t> decode = {k}, pieces;
  decode.insert(decode.end(), static_cast<size_t>(n_tokens - k), 1);
  for (int32_t left = n_tokens; left > 0; left -= pieces.back())
    pieces.push_back(std::min(left, random.between(1, 40)));
  for (const std::vector<int32_t>& split : {decode, pieces}) {
    const std::vector<double> parts = prompt.attend(split, &digest);
    ASSERT_EQ(parts.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i)
      ASSERT_LE(std::fabs(whole[i] - parts[i]), 1e-5) << options.name << ", k " << k;
    // What has slid depends on how the prompt was cut; without a limit the states are the same.
    if (options.reach == 0) {
      ASSERT_EQ(digest, whole_digest) << options.name;
    }
  }
}

TEST(Prefill, EqualsPrefillAndDecode) {
  const std::vector<Feature>& list = features();
  uint64_t number = 0, n_run = 0;
  for (size_t a = 0; a < list.size(); ++a) {
    for (size_t b = a; b < list.size(); ++b) {
      const uint64_t pair = number++;
      if (a != b && pair % support::one_pair_in() != 0) continue;
      AttentionOptions options;
      list[a].apply(options);
      list[b].apply(options);
      options.name = std::string(list[a].name) + " + " + list[b].name;
      compare_splits(support::reconciled(options), pair);
      ++n_run;
      if (HasFailure()) return;
    }
  }
  std::cout << n_run << " features and pairs, seed " << seed << std::endl;
}

}  // namespace
