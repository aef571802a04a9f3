// Abort after puts into some layers only, with a window that slides, with a begin far ahead, and every combination of them:
// nothing is left of the pass, and the next one works as if it had never been.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/random.hpp"

namespace {

using support::Array;

constexpr int32_t n_layers = 3, kv_heads = 2, q_heads = 4, dk = 6, dv = 4, n_sequences = 3;
constexpr uint64_t seed = 20261128;

struct Case {
  int32_t reach, memory, keep_first, chunk;
  uint64_t flags;   // of the cache
  int32_t gap;      // how far behind `next` the pass begins
  uint32_t layers;  // a bit for each one that is put before abort
  bool shared;      // sequence 1 is a copy of 0
  bool shifted;     // keys owe a rotation
  bool except;      // tokens that see later ones

  std::string describe() const {
    std::ostringstream text;
    text << "reach " << reach << " memory " << memory << " keep_first " << keep_first << " chunk "
         << chunk << " flags " << flags << " gap " << gap << " layers " << layers
         << (shared ? " shared" : "") << (shifted ? " shifted" : "") << (except ? " except" : "")
         << ", seed " << seed;
    return text.str();
  }
};

/// All that a caller can find out about a cache.
struct State {
  support::Digest digest;
  std::vector<uint64_t> stats;
  std::vector<int32_t> sequences;  // query and runs
  std::vector<std::vector<unsigned char>> bytes;

  explicit State(kvc_cache* cache) : digest(support::digest(cache)) {
    const kvc_stats s = support::stats(cache);
    stats = {s.state, s.cells, s.cells_used, s.cells_shared, s.bytes, s.passes};
    for (int32_t sequence = 0; sequence < n_sequences; ++sequence) {
      const kvc_sequence_info info = support::sequence_info(cache, sequence);
      for (const int32_t each : {info.first, info.next, info.count, info.room, info.lost_below})
        sequences.push_back(each);
      for (const kvc_run& run : support::runs(cache, sequence))
        for (const int32_t each : {run.cell, run.length, run.position, run.offset})
          sequences.push_back(each);
      for (int32_t layer = 0; layer < n_layers && info.count > 0; ++layer) {
        Array k(KVC_F16, {info.count, kv_heads, dk}), v(KVC_F32, {info.count, kv_heads, dv});
        EXPECT_EQ(kvc_gather(cache, layer, sequence, k.tensor(), v.tensor()), KVC_OK);
        bytes.push_back(k.bytes());
        bytes.push_back(v.bytes());
      }
    }
  }
};

void expect_equal(const State& a, const State& b) {
  EXPECT_EQ(a.digest, b.digest);
  EXPECT_EQ(a.stats, b.stats);
  EXPECT_EQ(a.sequences, b.sequences);
  EXPECT_EQ(a.bytes, b.bytes);
}

class Driven {
 public:
  Driven(kvc_device* device, const Case& chosen) : cache(make(device, chosen)), case_(chosen) {
    EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    EXPECT_EQ(kvc_bind_rope(cache, 0, n_layers, &rope, nullptr), KVC_OK);
    for (int32_t i = 0; i < 4; ++i) pass({0, 0, 0, 0, 2});
    if (chosen.shifted) {
      EXPECT_EQ(kvc_remove(cache, 0, 13, 14), KVC_OK) << support::last_message();
    }
    if (chosen.shared) {
      EXPECT_EQ(kvc_copy_prefix(cache, 0, 1, KVC_SEQ_END, nullptr), KVC_OK);
    }
  }

  /// Begins a pass that continues its sequences, `gap` positions further on.
  void begin(const std::vector<int32_t>& sequence, int32_t gap) {
    std::vector<int32_t> position, next;
    std::vector<uint32_t> flags;
    for (int32_t s = 0; s < n_sequences; ++s) {
      const int32_t at = support::sequence_info(cache, s).next;
      next.push_back(at + std::min(gap, INT32_MAX - 16 - at));
    }
    for (const int32_t s : sequence) {
      position.push_back(next[static_cast<size_t>(s)]++);
      flags.push_back(case_.except && position.size() % 2 == 1 ? uint32_t{KVC_TOKEN_SEES_LATER} : 0u);
    }
    ASSERT_EQ(kvc_begin(cache, static_cast<int32_t>(position.size()), position.data(),
                        sequence.data(), flags.data(), 0, nullptr),
              KVC_OK)
        << support::last_message();
  }

  /// Puts a layer; what it puts depends on how many layers were put before. Attends, too.
  std::vector<float> put_attention(int32_t layer, int64_t n) {
    support::Random random(seed + ++n_put_);
    Array k(KVC_F32, {n, kv_heads, dk}), v(KVC_F32, {n, kv_heads, dv});
    Array q(KVC_F32, {n, q_heads, dk}), out(KVC_F32, {n, q_heads, dv});
    for (Array* each : {&k, &v, &q}) each->fill(random);
    EXPECT_EQ(
        kvc_put_attention(cache, layer, k.tensor(), v.tensor(), q.tensor(), out.tensor(), nullptr),
        KVC_OK)
        << support::last_message();
    return out.floats();
  }

  /// A whole pass; what attention answered.
  std::vector<float> pass(const std::vector<int32_t>& sequence, int32_t gap = 0) {
    std::vector<float> answers;
    begin(sequence, gap);
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      const std::vector<float> out = put_attention(layer, static_cast<int64_t>(sequence.size()));
      answers.insert(answers.end(), out.begin(), out.end());
    }
    EXPECT_EQ(kvc_commit(cache), KVC_OK);
    return answers;
  }

  /// The pass that is given up; the puts that follow are those of a cache that never saw it.
  void abort(const std::vector<int32_t>& sequence) {
    const uint64_t n_put = n_put_;
    begin(sequence, case_.gap);
    for (int32_t layer = 0; layer < n_layers; ++layer)
      if (case_.layers >> layer & 1u) put_attention(layer, static_cast<int64_t>(sequence.size()));
    const support::Digest open = support::digest(cache);
    EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_abort(cache), KVC_OK);
    EXPECT_NE(support::digest(cache), open) << "the open pass left no trace in the digest";
    n_put_ = n_put;
  }

  support::Cache cache;

 private:
  static support::Cache make(kvc_device* device, const Case& chosen) {
    kvc_cache_desc desc = support::cache_desc(n_layers, kv_heads, dk, dv);
    desc.dtype_k = KVC_F16;
    desc.max_sequences = n_sequences;
    desc.capacity = 64;
    desc.max_batch = 6;
    desc.max_q_heads = q_heads;
    desc.flags = chosen.flags;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = chosen.reach;
    causal.memory = chosen.memory;
    causal.keep_first = chosen.keep_first;
    causal.chunk = chosen.chunk;
    return support::Cache(device, desc, &causal);
  }

  Case case_;
  uint64_t n_put_ = 0;
};

void run(kvc_device* device, const Case& chosen) {
  SCOPED_TRACE(chosen.describe());
  Driven aborted(device, chosen), untroubled(device, chosen);
  // The sequence that goes on, one more, and a new one; twice, so that an abort follows an abort.
  for (const std::vector<int32_t>& batch :
       {std::vector<int32_t>{0, 0, 2}, std::vector<int32_t>{1, 0, 0, 1, 2}}) {
    const State before(aborted.cache);
    aborted.abort(batch);
    expect_equal(before, State(aborted.cache));
    EXPECT_EQ(kvc_check(aborted.cache), KVC_OK) << support::last_message();
  }
  for (const int32_t gap : {0, 0, chosen.gap}) {
    const std::vector<float> answers = aborted.pass({0, 1, 0}, gap);
    const std::vector<float> wanted = untroubled.pass({0, 1, 0}, gap);
    ASSERT_EQ(answers.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(answers[i], wanted[i], 1e-5);
    EXPECT_EQ(support::digest(aborted.cache), support::digest(untroubled.cache));
    EXPECT_EQ(kvc_check(aborted.cache), KVC_OK) << support::last_message();
  }
}

TEST(Abort, LeavesNothingInAnyCombination) {
  struct Window {
    int32_t reach, memory, keep_first, chunk;
  };
  const Window windows[] = {{0, 0, 0, 0}, {5, 0, 0, 0}, {5, 9, 0, 0},
                            {5, 0, 3, 0}, {5, 8, 3, 4}, {0, 6, 0, 5}};
  const support::Device device(1);
  int32_t runs = 0;
  for (const Window& w : windows) {
    for (const int32_t gap : {0, 2, 1000, INT32_MAX}) {
      for (uint32_t layers = 0; layers < 1u << n_layers; ++layers) {
        for (uint32_t kind = 0; kind < 8; ++kind) {
          const bool shifted = (kind & 2u) != 0;
          run(device, {w.reach, w.memory, w.keep_first, w.chunk,
                       (kind & 4u) != 0 ? uint64_t{KVC_CACHE_ZERO_ON_FREE} : 0, gap, layers,
                       (kind & 1u) != 0, shifted, (runs & 1) != 0});
          if (HasFailure()) return;
          ++runs;
        }
      }
    }
  }
  EXPECT_EQ(runs, 6 * 4 * 8 * 8);
}

}  // namespace
