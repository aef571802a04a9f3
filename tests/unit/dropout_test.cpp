// Philox4x32-10 by its published vectors, and what it does to the weights of a call: the share that is kept, and that neighbours
// have nothing to do with each other.
#include "core/attention/dropout.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "support/vectors.hpp"

namespace {

using nlohmann::json;

json vectors() { return support::vectors("attention.json"); }

TEST(Philox, IsThatOfItsAuthors) {
  const json all = vectors()["philox"];
  ASSERT_EQ(all.size(), 3u);
  for (const json& one : all) {
    const kvc::PhiloxWords counter = one["counter"], words = one["words"];
    EXPECT_EQ(kvc::philox(counter, one["key"][0], one["key"][1]), words);
  }
}

TEST(Dropout, RoundsProbabilitiesOnce) {
  const json all = vectors()["dropout"];
  ASSERT_EQ(all.size(), 12u);
  for (const json& one : all) {
    const kvc::Dropout dropout = kvc::Dropout::of(0, one["prob"].get<float>(), 0);
    EXPECT_EQ(dropout.keep_factor, one["factor"].get<float>());
  }
  EXPECT_EQ(kvc::Dropout::of(0, 0, 0).threshold, 0u);
  EXPECT_EQ(kvc::Dropout::of(0, 0.5f, 0).threshold, 1u << 31);
  EXPECT_EQ(kvc::Dropout::of(0, std::nextafter(1.0f, 0.0f), 0).threshold, UINT32_MAX - 255);
}

/// Kept as 1 and dropped as 0, of neighbouring keys, queries, heads, layers and sequences.
struct Counts {
  int64_t kept = 0, total = 0;
  double share() const { return static_cast<double>(kept) / static_cast<double>(total); }
  void add(bool keeps) {
    kept += keeps;
    ++total;
  }
};

TEST(Dropout, KeepsItsShareAndNeighboursIndependently) {
  constexpr int32_t n = 400;
  for (const float probability : {0.1f, 0.25f, 0.5f, 0.9f}) {
    const double expected = 1 - static_cast<double>(probability);
    const kvc::Dropout first = kvc::Dropout::of(123456789, probability, 3);
    const kvc::Dropout next_seed = kvc::Dropout::of(123456790, probability, 3);
    const kvc::Dropout high_seed = kvc::Dropout::of(123456789 + (uint64_t{1} << 32), probability, 3);
    const kvc::Dropout next_layer = kvc::Dropout::of(123456789, probability, 4);
    Counts kept, agree_key, agree_query, agree_head, agree_layer, agree_sequence, agree_seed,
        agree_high;
    for (int32_t p = 0; p < n; ++p) {
      kvc::DropoutRow row(first, 5, p, 2), query(first, 5, p + 1, 2), head(first, 5, p, 3),
          layer(next_layer, 5, p, 2), sequence(first, 6, p, 2), seed(next_seed, 5, p, 2),
          high(high_seed, 5, p, 2);
      bool before = false;
      for (int32_t j = 0; j < n; ++j) {
        const bool keeps = row.keeps(j);
        kept.add(keeps);
        if (j > 0) agree_key.add(keeps == before);
        before = keeps;
        agree_query.add(keeps == query.keeps(j));
        agree_head.add(keeps == head.keeps(j));
        agree_layer.add(keeps == layer.keeps(j));
        agree_sequence.add(keeps == sequence.keeps(j));
        agree_seed.add(keeps == seed.keeps(j));
        agree_high.add(keeps == high.keeps(j));
      }
    }
    // Five standard deviations of a share of 160 000; the seed is fixed, so this passes always or never.
    EXPECT_NEAR(kept.share(), expected, 5 * std::sqrt(expected * (1 - expected) / (n * n)));
    const double by_chance = expected * expected + (1 - expected) * (1 - expected);
    for (const Counts* agree : {&agree_key, &agree_query, &agree_head, &agree_layer,
                                &agree_sequence, &agree_seed, &agree_high})
      EXPECT_NEAR(agree->share(), by_chance, 5 * 0.5 / n);
  }
}

/// A key's word does not depend on which keys were asked for before.
TEST(Dropout, DoesNotDependOnOrder) {
  const kvc::Dropout dropout = kvc::Dropout::of(42, 0.5f, 1);
  std::vector<bool> forward, backward(1000);
  kvc::DropoutRow one(dropout, 0, 7, 0), other(dropout, 0, 7, 0);
  for (int32_t j = 0; j < 1000; ++j) forward.push_back(one.keeps(j));
  for (int32_t j = 1000; j-- > 0;) backward[static_cast<size_t>(j)] = other.keeps(j);
  EXPECT_EQ(forward, backward);
}

}  // namespace
