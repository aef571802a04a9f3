// Padding tokens: the same passes in two caches, one with padding between the tokens and NaN wherever padding has a row. What
// comes back has to be equal bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

using support::Random;

constexpr int32_t n_layers = 2, n_kv_heads = 2, n_q_heads = 4, head_dim = 32;
constexpr int32_t n_sequences = 3, capacity = 96, cells = 120, max_batch = 24;
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

/// A pass without padding, and where its tokens lie in the pass with padding.
struct Batch {
  std::vector<int32_t> position, sequence;
  std::vector<uint32_t> flags;
  std::vector<int32_t> slot;  // [n_tokens] ascending
  int32_t n_slots = 0;

  int32_t n_tokens() const { return static_cast<int32_t>(position.size()); }

  /// One entry per token becomes one per slot; padding gets `fill`.
  template <class T>
  std::vector<T> padded(const std::vector<T>& rows, T fill) const {
    const size_t width = rows.size() / position.size();
    std::vector<T> result(static_cast<size_t>(n_slots) * width, fill);
    for (size_t i = 0; i < slot.size(); ++i)
      std::copy_n(&rows[i * width], width, &result[static_cast<size_t>(slot[i]) * width]);
    return result;
  }
  std::vector<bool> is_padding() const {
    std::vector<bool> result(static_cast<size_t>(n_slots), true);
    for (const int32_t s : slot) result[static_cast<size_t>(s)] = false;
    return result;
  }
};

struct Variant {
  const char* name;
  int32_t reach, keep_first;
  bool rope;
  uint32_t dtype_k = KVC_F32, dtype_v = KVC_F32;
};
void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

/// What one cache returned in a layer. The bits are compared, so NaN would be too.
struct Result {
  std::vector<float> out, lse, weights;
};

class Padding : public testing::TestWithParam<Variant> {
 protected:
  Padding() {
    for (support::Cache* cache : {&bare_, &padded_}) create(*cache);
  }

  void create(support::Cache& cache) {
    kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, head_dim, head_dim);
    desc.dtype_k = GetParam().dtype_k;
    desc.dtype_v = GetParam().dtype_v;
    desc.max_sequences = n_sequences;
    desc.capacity = capacity;
    desc.cells = cells;
    desc.max_batch = max_batch;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = GetParam().reach;
    causal.keep_first = GetParam().keep_first;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &causal, &cache.handle), KVC_OK)
        << support::last_message();
    if (!GetParam().rope) return;
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    ASSERT_EQ(kvc_bind_rope(cache, 0, n_layers, &rope, nullptr), KVC_OK) << support::last_message();
  }

  Batch draw() {
    Batch batch;
    batch.n_slots = random_.between(1, max_batch);
    std::vector<int32_t> next(n_sequences);
    for (int32_t s = 0; s < n_sequences; ++s)
      next[static_cast<size_t>(s)] = support::sequence_info(bare_, s).next;
    for (int32_t i = 0; i < batch.n_slots; ++i) {
      if (random_.chance(0.4)) continue;
      const int32_t s = random_.below(n_sequences);
      batch.slot.push_back(i);
      batch.sequence.push_back(s);
      batch.position.push_back(next[static_cast<size_t>(s)]++);
      batch.flags.push_back(random_.chance(0.1) ? KVC_TOKEN_SEES_LATER : 0);
    }
    return batch;
  }

  std::vector<float> values(int64_t n) {
    std::vector<float> result(static_cast<size_t>(n));
    for (float& x : result) x = random_.value();
    return result;
  }

  /// kvc_begin() of both; the status is the same, and kvc_fits() predicts it. Padding's positions are not checked.
  kvc_status begin(const Batch& batch) {
    const std::vector<int32_t> position = batch.padded(batch.position, -7);
    const std::vector<int32_t> sequence = batch.padded(batch.sequence, KVC_NONE);
    const std::vector<uint32_t> flags = batch.padded(batch.flags, 0u);
    const kvc_status status = kvc_begin(bare_, batch.n_tokens(), batch.position.data(),
                                        batch.sequence.data(), batch.flags.data(), 0, nullptr);
    EXPECT_EQ(kvc_fits(padded_, batch.n_slots, position.data(), sequence.data(), flags.data()),
              status);
    EXPECT_EQ(kvc_begin(padded_, batch.n_slots, position.data(), sequence.data(), flags.data(), 0,
                        nullptr),
              status);
    return status;
  }

  /// The mask of the open pass, one row per slot. Both caches span the same cells.
  void compare_masks(const Batch& batch) {
    const int64_t n_columns = columns(bare_);
    ASSERT_EQ(columns(padded_), n_columns);
    std::vector<uint8_t> bare(static_cast<size_t>(batch.n_tokens() * n_columns));
    std::vector<uint8_t> padded(static_cast<size_t>(batch.n_slots * n_columns), 9);
    kvc_tensor into = support::dense(bare.data(), KVC_BOOL, {batch.n_tokens(), n_columns});
    ASSERT_EQ(kvc_mask(bare_, 0, &into), KVC_OK);
    into = support::dense(padded.data(), KVC_BOOL, {batch.n_slots, n_columns});
    ASSERT_EQ(kvc_mask(padded_, 0, &into), KVC_OK);
    EXPECT_EQ(padded, batch.padded(bare, uint8_t{0}));
  }

  int64_t columns(kvc_cache* cache) {
    int32_t first = 0, n = 0;
    EXPECT_EQ(kvc_history(cache, 0, &first, &n), KVC_OK);
    return n;
  }

  /// Puts a layer of both caches and attends, with or without a bias and a mask of every row.
  void attend(const Batch& batch, int32_t layer) {
    const int64_t n = batch.n_tokens(), n_columns = columns(bare_);
    const std::vector<float> k = values(n * n_kv_heads * head_dim),
                             v = values(n * n_kv_heads * head_dim);
    const std::vector<float> q = values(n * n_q_heads * head_dim);
    std::vector<float> bias;
    std::vector<uint8_t> mask;
    if (random_.chance(0.5)) {
      bias = values(n * n_columns);
      for (int64_t i = 0; i < n * n_columns; ++i) mask.push_back(random_.chance(0.8) ? 1 : 0);
    }
    const Result bare = attend(bare_, layer, n, n_columns, k, v, q, bias, mask);
    const Result padded = attend(padded_, layer, batch.n_slots, n_columns, batch.padded(k, nan),
                                 batch.padded(v, nan), batch.padded(q, nan),
                                 batch.padded(bias, nan), batch.padded(mask, uint8_t{1}));
    expect_same_bits(padded.out, batch.padded(bare.out, 0.0f), "out");
    expect_same_bits(padded.lse, batch.padded(bare.lse, -infinity), "lse");
    // Weights have the heads first, so the rows of a head are what padding lies between.
    for (int64_t head = 0; head < n_q_heads; ++head) {
      const auto rows = [&](const std::vector<float>& all, int64_t n_rows) {
        const auto first = all.begin() + head * n_rows * n_columns;
        return std::vector<float>(first, first + n_rows * n_columns);
      };
      expect_same_bits(rows(padded.weights, batch.n_slots),
                       batch.padded(rows(bare.weights, n), 0.0f), "weights");
    }
  }

  Result attend(kvc_cache* cache, int32_t layer, int64_t n, int64_t n_columns, std::vector<float> k,
                std::vector<float> v, std::vector<float> q, std::vector<float> bias,
                std::vector<uint8_t> mask) {
    Result result;
    result.out.assign(static_cast<size_t>(n * n_q_heads * head_dim), nan);
    result.lse.assign(static_cast<size_t>(n * n_q_heads), nan);
    result.weights.assign(static_cast<size_t>(n_q_heads * n * n_columns), nan);
    const kvc_tensor kt = support::dense(k.data(), KVC_F32, {n, n_kv_heads, head_dim});
    const kvc_tensor vt = support::dense(v.data(), KVC_F32, {n, n_kv_heads, head_dim});
    const kvc_tensor qt = support::dense(q.data(), KVC_F32, {n, n_q_heads, head_dim});
    const kvc_tensor bias_t = support::dense(bias.data(), KVC_F32, {n, n_columns});
    const kvc_tensor mask_t = support::dense(mask.data(), KVC_BOOL, {n, n_columns});
    kvc_tensor out = support::dense(result.out.data(), KVC_F32, {n, n_q_heads, head_dim});
    kvc_tensor lse = support::dense(result.lse.data(), KVC_F32, {n, n_q_heads});
    kvc_tensor weights = support::dense(result.weights.data(), KVC_F32, {n_q_heads, n, n_columns});
    kvc_attention_extra extra = support::extra(bias.empty() ? nullptr : &bias_t,
                                               mask.empty() ? nullptr : &mask_t, &weights);
    extra.lse = &lse;
    EXPECT_EQ(kvc_put_attention(cache, layer, &kt, &vt, &qt, &out, &extra), KVC_OK)
        << support::last_message();
    return result;
  }

  static void expect_same_bits(const std::vector<float>& got, const std::vector<float>& wanted,
                               const char* what) {
    ASSERT_EQ(got.size(), wanted.size()) << what;
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)), 0) << what;
  }

  /// Names some tokens, and in the padded cache every padding token besides.
  void set_causal(const Batch& batch) {
    std::vector<int32_t> bare, padded;
    for (int32_t i = 0; i < batch.n_tokens(); ++i) {
      if (!random_.chance(0.3)) continue;
      bare.push_back(i);
      padded.push_back(batch.slot[static_cast<size_t>(i)]);
    }
    const std::vector<bool> is_padding = batch.is_padding();
    for (int32_t i = 0; i < batch.n_slots; ++i)
      if (is_padding[static_cast<size_t>(i)]) padded.push_back(i);
    EXPECT_EQ(kvc_set_causal(bare_, static_cast<int32_t>(bare.size()), bare.data()), KVC_OK);
    EXPECT_EQ(kvc_set_causal(padded_, static_cast<int32_t>(padded.size()), padded.data()), KVC_OK);
  }

  /// Ends both passes in one of the three ways. A refused prefix is refused by both.
  void end(const Batch& batch) {
    const auto both = [&](auto&& call) {
      const kvc_status status = call(bare_);
      EXPECT_EQ(call(padded_), status);
      return status;
    };
    if (random_.chance(0.2)) {
      both([](kvc_cache* cache) { return kvc_abort(cache); });
      return;
    }
    if (random_.chance(0.5)) {
      const int32_t sequence = random_.below(n_sequences);
      const auto n = std::count(batch.sequence.begin(), batch.sequence.end(), sequence);
      const int32_t keep = random_.below(static_cast<int32_t>(n) +
                                         2);  // one more than there are is refused
      if (both([&](kvc_cache* cache) { return kvc_commit_prefix(cache, 1, &sequence, &keep); }) ==
          KVC_OK)
        return;
    }
    EXPECT_EQ(both([](kvc_cache* cache) { return kvc_commit(cache); }), KVC_OK);
  }

  void compare_states() {
    ASSERT_EQ(support::digest(padded_), support::digest(bare_));
    ASSERT_EQ(kvc_check(padded_), KVC_OK) << support::last_message();
    for (int32_t s = 0; s < n_sequences; ++s) {
      const kvc_sequence_info a = support::sequence_info(bare_, s),
                              b = support::sequence_info(padded_, s);
      ASSERT_EQ(std::memcmp(&a, &b, sizeof a), 0) << "sequence " << s;
    }
  }

  /// Makes room where the pool is full, and moves positions where the cache has RoPE.
  void remove_something() {
    const int32_t sequence = random_.below(n_sequences);
    const int32_t begin = GetParam().rope ? random_.below(8) : 0,
                  end = GetParam().rope ? begin + 20 : INT32_MAX;
    const kvc_status status = kvc_remove(bare_, sequence, begin, end);
    EXPECT_EQ(kvc_remove(padded_, sequence, begin, end), status);
  }

  static constexpr uint64_t seed = 2810;
  Random random_{seed};
  support::Device device_{2};
  support::Cache bare_, padded_;
};

TEST_P(Padding, ChangesNothingForTheOthers) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  int n_full = 0, n_passes = 0;
  for (int step = 0; step < 300; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const Batch batch = draw();
    if (batch.n_tokens() == 0) continue;
    const kvc_status status = begin(batch);
    if (status != KVC_OK) {
      ASSERT_EQ(status, KVC_E_CACHE_FULL) << support::last_message();
      ++n_full;
      remove_something();
      compare_states();
      if (HasFailure()) return;
      continue;
    }
    ++n_passes;
    compare_masks(batch);
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      if (random_.chance(0.2)) set_causal(batch);
      attend(batch, layer);
    }
    end(batch);
    compare_states();
    if (HasFailure()) return;
  }
  EXPECT_GT(n_passes, 150);
  EXPECT_TRUE(n_full > 5 || GetParam().reach > 0) << "the pool should fill up";
}

// Nothing is put, nothing slides, and attention returns zeros.
TEST_P(Padding, AloneNeedsNoPut) {
  Batch batch;
  batch.n_slots = 5;
  for (int32_t i = 0; i < 5; ++i) {
    batch.slot.push_back(i);
    batch.position.push_back(i);
    batch.sequence.push_back(0);
    batch.flags.push_back(0);
  }
  ASSERT_EQ(begin(batch), KVC_OK);
  for (int32_t layer = 0; layer < n_layers; ++layer) attend(batch, layer);
  ASSERT_EQ(kvc_commit(bare_), KVC_OK);

  const std::vector<int32_t> position(max_batch, INT32_MAX), sequence(max_batch, KVC_NONE);
  const support::Digest before = support::digest(bare_);
  ASSERT_EQ(kvc_begin(bare_, max_batch, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK)
      << support::last_message();
  EXPECT_EQ(columns(bare_), 0);
  std::vector<float> q(max_batch * n_q_heads * head_dim, nan), out(q.size(), nan),
      lse(max_batch * n_q_heads, nan);
  const kvc_tensor q_t = support::dense(q.data(), KVC_F32, {max_batch, n_q_heads, head_dim});
  kvc_tensor out_t = support::dense(out.data(), KVC_F32, {max_batch, n_q_heads, head_dim});
  kvc_tensor lse_t = support::dense(lse.data(), KVC_F32, {max_batch, n_q_heads});
  ASSERT_EQ(support::attention(bare_, 1, &q_t, &out_t, &lse_t), KVC_OK) << support::last_message();
  EXPECT_EQ(out, std::vector<float>(out.size(), 0.0f));
  EXPECT_EQ(lse, std::vector<float>(lse.size(), -infinity));
  kvc_tensor k{}, v{};
  EXPECT_EQ(kvc_get_codes(bare_, 0, &k, nullptr, &v, nullptr), KVC_OK) << support::last_message();
  EXPECT_EQ(k.shape[0], 0);

  // It is fully put, so the next pass may begin without a commit.
  EXPECT_EQ(kvc_begin(bare_, max_batch, position.data(), sequence.data(), nullptr, 0, nullptr),
            KVC_OK);
  EXPECT_EQ(kvc_commit(bare_), KVC_OK);
  EXPECT_EQ(support::digest(bare_), before);
}

TEST_P(Padding, CountsTowardsMaxBatch) {
  const std::vector<int32_t> position(max_batch + 1, 0), sequence(max_batch + 1, KVC_NONE);
  EXPECT_EQ(kvc_begin(bare_, max_batch + 1, position.data(), sequence.data(), nullptr, 0, nullptr),
            KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_fits(bare_, max_batch + 1, position.data(), sequence.data(), nullptr),
            KVC_E_INVALID_ARGUMENT);
}

INSTANTIATE_TEST_SUITE_P(Caches, Padding,
                         testing::Values(Variant{"unlimited", 0, 0, false},
                                         Variant{"rope", 0, 0, true}, Variant{"window", 9, 0, false},
                                         Variant{"sinks", 9, 3, false},
                                         Variant{"codes", 0, 0, true, KVC_Q8_0, KVC_NF4},
                                         Variant{"small_floats", 9, 0, false, KVC_F8_E4M3, KVC_INT8},
                                         Variant{"nibbles", 9, 3, true, KVC_Q4_0, KVC_F8_E5M2}),
                         [](const auto& variant) { return std::string(variant.param.name); });

}  // namespace
