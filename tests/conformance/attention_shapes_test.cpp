// The same bits for 1, 2, 3 and 8 threads at every shape that speed is measured at, and with each option alone: 32 query heads,
// 8 KV heads, head size 128, f16. attention_threads_test looks closer at fewer shapes, under ThreadSanitizer too.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t q_heads = 32, kv_heads = 8, head_dim = 128;
// Under sanitizers a fraction of the products: each is checked there, and slow.
#ifdef KVC_SANITIZED
constexpr int32_t shrink = 16;
#else
constexpr int32_t shrink = 1;
#endif
constexpr int32_t k1 = 1024 / shrink, max_batch = 2048 / shrink;
constexpr uint64_t seed = 20261128;

/// Drawn once: keys, values and queries are taken from it at different offsets.
float* numbers(int32_t at) {
  static std::vector<float> all = [] {
    support::Random random(seed);
    std::vector<float> result(static_cast<size_t>(max_batch * q_heads * head_dim) + 65536);
    for (float& value : result) value = static_cast<float>(random.unit() * 2 - 1);
    return result;
  }();
  return all.data() + at % 65536;
}

/// What a call asks for besides.
struct Wanted {
  bool lse = false, except = false, mask = false, bias = false, weights = false;
};

struct Answer {
  std::string what;
  std::vector<float> bits;
};

/// A cache on a device of so many threads, and what attention answered.
class Rig {
 public:
  Rig(int32_t n_threads, int32_t n_sequences, int32_t capacity, int32_t reach = 0)
      : device_(n_threads), cache_(make(n_sequences, capacity, reach)) {
    EXPECT_EQ(device_.status, KVC_OK) << support::last_message();
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
    bind(0, false, false);
  }

  void bind(float softcap, bool slopes, bool sinks) {
    kvc_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_q_heads = q_heads;
    desc.softcap = softcap;
    EXPECT_EQ(kvc_bind_attention(cache_, 0, 1, &desc, slopes ? numbers(7) : nullptr,
                                 sinks ? numbers(99) : nullptr),
              KVC_OK);
  }

  /// Sequences [0, n) up to `context`, all a piece further in turn.
  void fill(int32_t n_sequences, int32_t context) {
    for (int32_t s = 0; s < n_sequences; ++s)
      while (support::sequence_info(cache_, s).next < context) {
        const int32_t left = context - support::sequence_info(cache_, s).next;
        open(std::vector<int32_t>(static_cast<size_t>(std::min(left, max_batch)), s), false);
        ASSERT_EQ(kvc_commit(cache_), KVC_OK);
      }
  }

  /// One token or more of each sequence; nothing is kept. Twice: other threads may take other parts.
  void attend(const std::string& what, const std::vector<int32_t>& sequence,
              const Wanted& wanted = {}) {
    open(sequence, wanted.except);
    const auto n = static_cast<int32_t>(sequence.size());
    const kvc_tensor q = support::dense(numbers(777), KVC_F32, {n, q_heads, head_dim});
    int32_t first = 0, columns = 0;
    ASSERT_EQ(kvc_history(cache_, 0, &first, &columns), KVC_OK);
    const kvc_tensor bias = support::dense(numbers(3333), KVC_F32, {columns});
    std::vector<uint8_t> hides(static_cast<size_t>(columns));
    for (size_t c = 0; c < hides.size(); ++c) hides[c] = c % 3 != 1;
    const kvc_tensor mask = support::dense(hides.data(), KVC_BOOL, {columns});
    std::vector<float> all_weights(
        wanted.weights ? static_cast<size_t>(q_heads) * static_cast<size_t>(n * columns) : 1);
    kvc_tensor weights = support::dense(all_weights.data(), KVC_F32, {q_heads, n, columns});
    const kvc_attention_extra extra = support::extra(wanted.bias ? &bias : nullptr,
                                                     wanted.mask ? &mask : nullptr,
                                                     wanted.weights ? &weights : nullptr);
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::vector<float> out(static_cast<size_t>(n * q_heads * head_dim)),
          lse(static_cast<size_t>(n * q_heads));
      kvc_tensor to = support::dense(out.data(), KVC_F32, {n, q_heads, head_dim});
      kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n, q_heads});
      ASSERT_EQ(support::attention(cache_, 0, &q, &to, wanted.lse ? &sums : nullptr, &extra), KVC_OK)
          << support::last_message();
      if (wanted.lse) out.insert(out.end(), lse.begin(), lse.end());
      if (wanted.weights) out.insert(out.end(), all_weights.begin(), all_weights.end());
      answers.push_back({what, std::move(out)});
    }
    ASSERT_EQ(kvc_abort(cache_), KVC_OK);
  }

  std::vector<Answer> answers;

 private:
  support::Cache make(int32_t n_sequences, int32_t capacity, int32_t reach) const {
    kvc_cache_desc desc = support::cache_desc(1, kv_heads, head_dim, head_dim);
    desc.dtype_k = desc.dtype_v = KVC_F16;
    desc.max_sequences = n_sequences;
    desc.capacity = capacity;
    desc.max_batch = max_batch;
    desc.max_q_heads = q_heads;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = reach;
    causal.memory = KVC_NONE;
    return support::Cache(device_, desc, &causal);
  }

  void open(const std::vector<int32_t>& sequence, bool except) {
    std::vector<int32_t> position, next;
    std::vector<uint32_t> flags;
    const int32_t n_sequences = *std::max_element(sequence.begin(), sequence.end()) + 1;
    for (int32_t s = 0; s < n_sequences; ++s)
      next.push_back(support::sequence_info(cache_, s).next);
    for (const int32_t s : sequence) {
      position.push_back(next[static_cast<size_t>(s)]++);
      flags.push_back(except && position.size() % 3 == 0 ? uint32_t{KVC_TOKEN_SEES_LATER} : 0u);
    }
    const auto n = static_cast<int32_t>(position.size());
    ASSERT_EQ(kvc_begin(cache_, n, position.data(), sequence.data(), flags.data(), 0, nullptr), KVC_OK)
        << support::last_message();
    const int32_t at = position[0] % 4096 * 31 + sequence[0] * 977;
    const kvc_tensor k = support::dense(numbers(at), KVC_F32, {n, kv_heads, head_dim});
    const kvc_tensor v = support::dense(numbers(at * 7 + 13), KVC_F32, {n, kv_heads, head_dim});
    ASSERT_EQ(kvc_put(cache_, 0, &k, &v), KVC_OK);
  }

  support::Device device_;
  support::Cache cache_;
};

std::vector<int32_t> tokens_of(int32_t sequence, int32_t n) {
  return std::vector<int32_t>(static_cast<size_t>(n), sequence);
}

std::vector<int32_t> one_of_each(int32_t first, int32_t end) {
  std::vector<int32_t> sequences;
  for (int32_t s = first; s < end; ++s) sequences.push_back(s);
  return sequences;
}

/// Runs `steps` alone and with helpers, and compares.
template <class Steps>
void expect_same_bits(Steps steps) {
  const std::vector<Answer> alone = steps(1);
  for (const int32_t n_threads : {2, 3, 8}) {
    const std::vector<Answer> helped = steps(n_threads);
    ASSERT_EQ(helped.size(), alone.size());
    for (size_t i = 0; i < alone.size(); ++i) {
      ASSERT_EQ(helped[i].bits.size(), alone[i].bits.size());
      EXPECT_EQ(std::memcmp(helped[i].bits.data(), alone[i].bits.data(),
                            alone[i].bits.size() * sizeof(float)),
                0)
          << alone[i].what << " with " << n_threads << " threads, seed " << seed;
    }
  }
  for (const Answer& answer : alone)
    for (const float value : answer.bits) ASSERT_EQ(value, value) << answer.what << ": NaN";
}

TEST(Shapes, OneSequence) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 1, 16 * k1 + max_batch);
    rig.attend("512 on nothing", tokens_of(0, k1 / 2));
    rig.fill(1, k1 / 2);
    rig.attend("512 on 512", tokens_of(0, k1 / 2));
    rig.fill(1, k1);
    rig.attend("1 on 1k", tokens_of(0, 1));
    for (int32_t n = 2; n <= 64; ++n) rig.attend(std::to_string(n) + " on 1k", tokens_of(0, n));
    for (const int32_t context : {4 * k1, 16 * k1}) {
      rig.fill(1, context);
      rig.attend("1 on " + std::to_string(context), tokens_of(0, 1));
    }
    return std::move(rig.answers);
  });
}

/// A prefill of 512, then a decode at 4k.
void attend_with_each_option(Rig& rig) {
  for (const int32_t context : {0, 4 * k1}) {
    rig.fill(1, context);
    const std::vector<int32_t> batch = tokens_of(0, context == 0 ? k1 / 2 : 1);
    const std::string shape = std::to_string(batch.size()) + " on " + std::to_string(context);
    rig.attend(shape + ", no option", batch);
    rig.attend(shape + ", log-sum-exp", batch, {true, false, false, false, false});
    rig.attend(shape + ", except", batch, {false, true, false, false, false});
    rig.attend(shape + ", mask", batch, {false, false, true, false, false});
    rig.attend(shape + ", bias", batch, {false, false, false, true, false});
    rig.attend(shape + ", weights", batch, {false, false, false, false, true});
    rig.bind(20, false, false);
    rig.attend(shape + ", softcap", batch);
    rig.bind(0, true, false);
    rig.attend(shape + ", ALiBi", batch);
    rig.bind(0, false, true);
    rig.attend(shape + ", sinks", batch);
    rig.bind(0, false, false);
  }
}

TEST(Shapes, EachOptionAlone) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 1, 4 * k1 + max_batch);
    attend_with_each_option(rig);
    return std::move(rig.answers);
  });
}

TEST(Shapes, AWindow) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 1, 4 * k1 + max_batch, k1 / 4);
    rig.attend("512 on nothing", tokens_of(0, k1 / 2));
    rig.fill(1, 4 * k1);
    rig.attend("1 on 4k", tokens_of(0, 1));
    rig.attend("512 on 4k", tokens_of(0, k1 / 2));
    return std::move(rig.answers);
  });
}

TEST(Shapes, EightSequences) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 8, 4 * k1 + max_batch);
    rig.fill(8, 4 * k1);
    rig.attend("8 on 4k", one_of_each(0, 8));
    return std::move(rig.answers);
  });
}

TEST(Shapes, AChunkAmongDecodes) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 32, 4 * k1 + 480 / shrink);
    rig.fill(32, 4 * k1);
    std::vector<int32_t> batch = one_of_each(1, 32);
    const std::vector<int32_t> chunk = tokens_of(0, 480 / shrink);
    batch.insert(batch.end(), chunk.begin(), chunk.end());
    rig.attend("480 and 31 on 4k", batch);
    rig.attend("32 on 4k", one_of_each(0, 32));
    return std::move(rig.answers);
  });
}

// Too long for make test; tests/CMakeLists.txt runs it with the long ones.
TEST(Shapes, DISABLED_LongOnes) {
  expect_same_bits([](int32_t n_threads) {
    Rig rig(n_threads, 1, 64 * k1 + max_batch);
    rig.attend("2048 on nothing", tokens_of(0, max_batch));
    rig.fill(1, 2 * k1);
    rig.attend("2048 on 2048", tokens_of(0, max_batch));
    rig.fill(1, 64 * k1);
    rig.attend("1 on 64k", tokens_of(0, 1));
    return std::move(rig.answers);
  });
}

}  // namespace
