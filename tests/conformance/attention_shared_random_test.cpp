// Long shared prefixes together with everything that hides parts of them or turns their keys: windows, chunks,
// kept-first positions, gaps as wide as the prefix, owed rotations, biases and masks. Against double.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <sstream>

#include "support/attention_cases.hpp"
#include "support/attention_rig.hpp"

namespace {

using support::AttentionOptions;
using support::AttentionRig;
using support::Random;

constexpr uint64_t seed = 20261128;
constexpr int32_t n_sequences = 3;
constexpr uint64_t most_rounds = 1000;

AttentionOptions draw(Random& random) {
  AttentionOptions o;
  o.shared = true;
  o.n_kv_heads = random.pick({1, 1, 2});
  o.n_q_heads = o.n_kv_heads * random.pick({1, 1, 2, 3});
  o.head_dim_k = random.pick({4, 8, 16});
  o.head_dim_v = random.pick({3, 8, 16});
  if (random.chance(0.5)) o.reach = random.pick({1, 4, 50, random.between(1, 700)});
  if (o.reach > 0 && random.chance(0.6)) o.memory = random.pick({KVC_NONE, 700});
  if (random.chance(0.5)) o.chunk = random.pick({7, 300, random.between(1, 700)});
  if (random.chance(0.3)) o.keep_first = random.pick({1, 300, random.between(1, 600)});
  o.rope = o.shifts = random.chance(0.5);
  o.halves = random.chance(0.5);
  o.softcap = random.pick({0.0f, 0.0f, 2.0f});
  o.slopes = random.chance(0.2);
  o.sinks = random.chance(0.3);
  o.lse = random.chance(0.5);
  o.except = random.chance(0.3);
  o.gaps = random.chance(0.5);
  // Where a mask leaves only tokens far away, ALiBi's scores are large, and f32 rounds them.
  o.bias = !o.slopes && random.chance(0.2);
  o.mask = !o.slopes && random.chance(0.2);
  const auto& storage = support::storage_options();
  const bool plain = random.chance(0.6);
  const auto& chosen = storage[static_cast<size_t>(random.below(static_cast<int32_t>(storage.size())))];
  if (!plain) chosen.apply(o);
  o = support::reconciled(o);
  std::ostringstream name;
  name << (plain ? "" : chosen.name) << " heads " << o.n_q_heads << "/" << o.n_kv_heads << " dk "
       << o.head_dim_k << " dv " << o.head_dim_v << " reach " << o.reach << " memory " << o.memory
       << " chunk " << o.chunk << " keep_first " << o.keep_first << " rope " << o.rope
       << " softcap " << o.softcap << " slopes " << o.slopes << " sinks " << o.sinks << " bias "
       << o.bias << " mask " << o.mask;
  o.name = name.str();
  return o;
}

/// One to four tokens for most of the sequences, some behind a gap in which the whole prefix may slide out of sight.
void open_batch(AttentionRig& rig) {
  std::vector<int32_t> position, sequence;
  std::vector<uint32_t> flags;
  for (int32_t s = 0; s < n_sequences; ++s) {
    if (s > 0 && rig.random.chance(0.2)) continue;
    int32_t at = rig.oracle.sequences[static_cast<size_t>(s)].next;
    if (rig.options.gaps) at += rig.random.pick({0, 1, 299, rig.random.between(0, 900)});
    for (int32_t n = rig.random.pick({1, 1, 2, 4}); n > 0; --n) {
      position.push_back(at++);
      sequence.push_back(s);
      flags.push_back(rig.options.except && rig.random.chance(0.3) ? uint32_t{KVC_TOKEN_SEES_LATER}
                                                                   : 0u);
    }
  }
  rig.open(position, sequence, flags);
}

void remove_a_few(AttentionRig& rig, int32_t sequence) {
  const int32_t next = rig.oracle.sequences[static_cast<size_t>(sequence)].next;
  if (!rig.options.shifts || next < 8 || rig.random.chance(0.5)) return;
  const int32_t begin = rig.random.below(next - 4);
  rig.remove(sequence, begin, begin + rig.random.between(1, 4));
}

void run(uint64_t round) {
  Random random(support::derived_seed(seed, round));
  AttentionRig rig(support::shared_device(), draw(random), 1400, 640, random.bits());
  const int32_t prompt = random.pick({256, 300, random.between(256, 600)});
  std::vector<int32_t> position, sequence(static_cast<size_t>(prompt), 0);
  for (int32_t i = 0; i < prompt; ++i) position.push_back(i);
  rig.open(position, sequence);
  rig.commit();
  remove_a_few(rig, 0);
  rig.copy(0, 1);
  rig.copy(random.pick({0, 1}), 2);
  if (random.chance(0.3)) rig.remove(1, random.between(prompt / 2, prompt), KVC_SEQ_END);
  for (int32_t pass = 0; pass < 3; ++pass) {
    remove_a_few(rig, random.below(n_sequences));
    open_batch(rig);
    rig.attend_and_compare();
    rig.commit();
  }
  EXPECT_EQ(kvc_check(rig.cache), KVC_OK) << support::last_message();
  if (::testing::Test::HasFailure())
    std::cout << "seed " << seed << ", round " << round << ": " << rig.options.name << std::endl;
}

TEST(SharedPrefixes, WithEverythingThatHidesPartsOfThem) {
  const uint64_t n_rounds = most_rounds / std::min<size_t>(support::one_pair_in(), 5);
  std::cout << "seed " << seed << ", " << n_rounds << " rounds" << std::endl;
  for (uint64_t round = 0; round < n_rounds && !HasFailure(); ++round) run(round);
}

}  // namespace
