// Encoder caches beyond their vectors: which calls they lack, bad input of those that they have, reserve passes, attention over
// inputs of different lengths against a textbook, and what a refused call leaves behind.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "kvc/encoder.h"
#include "kvc/storage.h"
#include "support/abi.hpp"
#include "support/host_view.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t n_layers = 2, n_kv_heads = 2, n_q_heads = 4, dim_k = 24, dim_v = 16;
constexpr int32_t capacity = 40, max_sequences = 4, max_batch = 12;
constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

/// Numbers of a tensor [rows, heads, dim].
struct Rows {
  Rows(int64_t n, int64_t heads, int64_t dim, support::Random& random)
      : values(static_cast<size_t>(n * heads * dim)) {
    for (float& value : values) value = random.value();
    tensor = support::dense(values.data(), KVC_F32, {n, heads, dim});
  }
  std::vector<float> values;
  kvc_tensor tensor{};
};

class Encoder : public testing::Test {
 protected:
  void create(int32_t inputs = 0, uint64_t flags = 0) {
    kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, dim_k, dim_v);
    desc.kind = KVC_ENCODER;
    desc.max_sequences = max_sequences;
    desc.capacity = capacity;
    desc.max_batch = max_batch;
    desc.flags = flags;
    kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
    encoder.inputs = inputs;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &encoder, &cache_.handle), KVC_OK)
        << support::last_message();
  }

  kvc_status begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                   const std::vector<uint32_t>& flags) {
    return kvc_begin(cache_, static_cast<int32_t>(position.size()), position.data(),
                     sequence.data(), flags.data(), 0, nullptr);
  }

  Rows keys(int64_t n) { return {n, n_kv_heads, dim_k, random_}; }
  Rows values(int64_t n) { return {n, n_kv_heads, dim_v, random_}; }

  void put(int32_t sequence, int64_t length) {
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      const Rows k = keys(length), v = values(length);
      ASSERT_EQ(kvc_encoder_put(cache_, layer, sequence, &k.tensor, &v.tensor), KVC_OK)
          << support::last_message();
    }
  }

  std::array<uint64_t, 2> digest() {
    std::array<uint64_t, 2> value{};
    EXPECT_EQ(kvc_state_digest(cache_, value.data()), KVC_OK);
    return value;
  }

  /// The call returns the status and changes nothing.
  void expect(kvc_status status, const std::function<kvc_status()>& call, const char* what) {
    const auto before = digest();
    EXPECT_EQ(support::name(call()), support::name(status)) << what;
    EXPECT_EQ(digest(), before) << what;
    EXPECT_EQ(kvc_check(cache_), KVC_OK) << what << ": " << support::last_message();
  }

  support::Device device_;
  support::Cache cache_;
  support::Random random_{20261129};
};

constexpr uint32_t input = KVC_TOKEN_ENCODER_INPUT;

TEST_F(Encoder, CallsThatTheKindLacksComeBeforeTheirArguments) {
  create();
  expect(
      KVC_E_NOT_SUPPORTED, [&] { return kvc_set_causal(cache_, -1, nullptr); }, "set_causal");
  expect(
      KVC_E_NOT_SUPPORTED, [&] { return kvc_bind_rope(cache_, 9, -1, nullptr, nullptr); }, "rope");
  expect(
      KVC_E_NOT_SUPPORTED, [&] { return kvc_bind_shift(cache_, nullptr, nullptr); }, "shift");
  const float slopes[n_q_heads] = {};
  kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
  desc.n_q_heads = n_q_heads;
  expect(
      KVC_E_NOT_SUPPORTED, [&] { return kvc_bind_attention(cache_, 0, 1, &desc, slopes, nullptr); },
      "slopes");
  EXPECT_EQ(kvc_bind_attention(cache_, 0, n_layers, &desc, nullptr, slopes), KVC_OK);

  support::Cache causal(device_, support::cache_desc(1, 1, 4, 4));
  EXPECT_EQ(kvc_encoder_put(causal, -1, -1, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_encoder_share(causal, -1, -1), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_encoder_query(causal, -1, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
}

TEST_F(Encoder, WrongShapesSpeakOfTheLengthOfTheInput) {
  create();
  ASSERT_EQ(begin({0}, {1}, {input}), KVC_OK);
  put(1, 5);
  const Rows k = keys(6), v = values(6);
  const auto shown = [&](const std::function<kvc_status()>& call, const char* what) {
    expect(KVC_E_SHAPE, call, what);
    EXPECT_EQ(support::last_message(),
              "k has shape [6, 2, 24], not [5, 2, 24] (length, n_kv_heads, head_dim_k)");
  };
  shown([&] { return kvc_encoder_put(cache_, 1, 1, &k.tensor, &v.tensor); }, "encoder_put");
  shown([&] { return kvc_put(cache_, 1, &k.tensor, &v.tensor); }, "put");
  expect(
      KVC_E_SHAPE, [&] { return kvc_put_codes(cache_, 1, &k.tensor, nullptr, &v.tensor, nullptr); },
      "codes");
  EXPECT_EQ(support::last_message(),
            "k has shape [6, 2, 24], not [5, 2, 24] (length, n_kv_heads, codes_per_row)");
}

/// A sequence without an input is not empty either.
TEST_F(Encoder, ScalesAreBoundWhileTheCacheIsEmpty) {
  kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, dim_k, dim_v);
  desc.kind = KVC_ENCODER;
  desc.max_sequences = max_sequences;
  desc.capacity = capacity;
  desc.max_batch = max_batch;
  desc.dtype_k = desc.dtype_v = KVC_F8_E4M3;
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &cache_.handle), KVC_OK);
  const float scales[n_kv_heads] = {2, 0.5};
  const auto bind = [&] { return kvc_bind_scales(cache_, 0, n_layers, scales, scales); };
  EXPECT_EQ(bind(), KVC_OK) << support::last_message();
  ASSERT_EQ(begin({0, 1}, {2, 2}, {0, 0}), KVC_OK);
  expect(KVC_E_BAD_STATE, bind, "a pass is open");
  ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  expect(KVC_E_BAD_STATE, bind, "tokens without an input");
  EXPECT_NE(support::last_message().find("sequence 2 continues at 2"), std::string::npos);
  ASSERT_EQ(kvc_remove(cache_, 2, 0, KVC_SEQ_END), KVC_OK);
  EXPECT_EQ(bind(), KVC_OK) << support::last_message();
}

TEST_F(Encoder, BadDescriptors) {
  kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, dim_k, dim_v);
  desc.kind = KVC_ENCODER;
  kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
  uint64_t bytes = 0;
  const auto status = [&] { return kvc_cache_memory_bytes(device_, &desc, &encoder, &bytes); };
  EXPECT_EQ(status(), KVC_OK);
  desc.cells = 1;
  EXPECT_EQ(status(), invalid);
  EXPECT_NE(support::last_message().find("cells is 1"), std::string::npos);
  desc.cells = 0;
  for (const int32_t inputs : {INT32_MIN, -1, (1 << 30) + 1}) {
    encoder.inputs = inputs;
    EXPECT_EQ(status(), invalid) << inputs;
  }
  encoder.inputs = 1 << 25;  // of 64 positions each
  EXPECT_EQ(status(), KVC_E_OVERFLOW);
  encoder.inputs = 0;
  encoder.flags = 1;
  EXPECT_EQ(status(), invalid);
  encoder.flags = 0;
  encoder.mask_dtype = KVC_I32;
  EXPECT_EQ(status(), KVC_E_DTYPE);
  encoder.mask_dtype = KVC_BOOL;
  EXPECT_EQ(status(), KVC_OK);
  encoder.struct_size = 19;
  EXPECT_EQ(status(), invalid);
  kvc_causal_desc other = KVC_CAUSAL_DESC_INIT;
  EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, &other, &bytes), invalid);
  EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, nullptr, &bytes), KVC_OK);
}

TEST_F(Encoder, BadPutsAndShares) {
  create();
  const Rows k = keys(5), v = values(5), longer = keys(6), none = keys(0), most = keys(capacity + 1);
  expect(
      KVC_E_BAD_STATE, [&] { return kvc_encoder_put(cache_, 0, 0, &k.tensor, &v.tensor); }, "idle");
  expect(
      KVC_E_BAD_STATE, [&] { return kvc_encoder_share(cache_, 0, 1); }, "idle share");
  ASSERT_EQ(begin({0, 0, 0}, {0, 1, 2}, {input, input, 0}), KVC_OK);
  const auto put = [&](int32_t layer, int32_t sequence, const Rows& rows) {
    return [&, layer, sequence] {
      return kvc_encoder_put(cache_, layer, sequence, &rows.tensor, &v.tensor);
    };
  };
  expect(invalid, put(n_layers, 0, k), "layer");
  expect(invalid, put(0, max_sequences, k), "sequence");
  expect(invalid, put(0, 2, k), "carries none");
  expect(KVC_E_SHAPE, put(0, 0, none), "no position");
  expect(KVC_E_SHAPE, put(0, 0, most), "too long");
  expect(KVC_E_SHAPE, put(0, 0, longer), "k and v differ");
  expect(
      invalid, [&] { return kvc_encoder_put(cache_, 0, 0, nullptr, &v.tensor); }, "null");
  expect(
      invalid, [&] { return kvc_put(cache_, 0, &k.tensor, &v.tensor); }, "two carry one");
  ASSERT_EQ(put(0, 0, k)(), KVC_OK);
  expect(KVC_E_SHAPE, put(1, 0, longer), "another length");
  expect(
      KVC_E_BAD_STATE, [&] { return kvc_encoder_share(cache_, 0, 1); }, "a layer was put");
  expect(
      invalid, [&] { return kvc_encoder_share(cache_, 1, 1); }, "itself");
  expect(
      invalid, [&] { return kvc_encoder_share(cache_, 2, 0); }, "carries none");
  expect(
      KVC_E_NOT_FOUND, [&] { return kvc_encoder_share(cache_, 1, 3); }, "nothing there");
  ASSERT_EQ(kvc_encoder_share(cache_, 1, 0), KVC_OK) << support::last_message();
  expect(invalid, put(0, 1, k), "shares");
  ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  expect(
      KVC_E_BAD_STATE, [&] { return kvc_encoder_share(cache_, 1, 0); }, "after the pass");
}

/// Attention over the inputs of several sequences, one of them shared, equals a textbook over what was put.
TEST_F(Encoder, AttentionReadsTheInputOfEachToken) {
  create();
  ASSERT_EQ(begin({0, 0, 0, 1, 0}, {0, 1, 2, 1, 3}, {input, input, input, 0, 0}), KVC_OK);
  ASSERT_EQ(kvc_encoder_share(cache_, 2, 0), KVC_OK);
  const int64_t lengths[] = {33, 7};
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    const Rows k0 = keys(lengths[0]), v0 = values(lengths[0]), k1 = keys(lengths[1]),
               v1 = values(lengths[1]);
    ASSERT_EQ(kvc_encoder_put(cache_, layer, 0, &k0.tensor, &v0.tensor), KVC_OK);
    ASSERT_EQ(kvc_encoder_put(cache_, layer, 1, &k1.tensor, &v1.tensor), KVC_OK);
    const Rows q(5, n_q_heads, dim_k, random_);
    std::vector<float> out(5 * n_q_heads * dim_v, 7.0f), lse(5 * n_q_heads, 7.0f);
    kvc_tensor result = support::dense(out.data(), KVC_F32, {5, n_q_heads, dim_v});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {5, n_q_heads});
    ASSERT_EQ(support::attention(cache_, layer, &q.tensor, &result, &sums), KVC_OK)
        << support::last_message();
    const Rows* k_of[] = {&k0, &k1, &k0, &k1, nullptr};
    const Rows* v_of[] = {&v0, &v1, &v0, &v1, nullptr};
    for (size_t t = 0; t < 5; ++t) {
      for (size_t h = 0; h < n_q_heads; ++h) {
        const size_t row = t * n_q_heads + h, kv_head = h / (n_q_heads / n_kv_heads);
        const size_t n = k_of[t] == nullptr ? 0 : k_of[t]->values.size() / (n_kv_heads * dim_k);
        double sum = 0;
        std::vector<double> expected(dim_v, 0.0);
        for (size_t j = 0; j < n; ++j) {
          double dot = 0;
          for (size_t d = 0; d < dim_k; ++d)
            dot += static_cast<double>(q.values[row * dim_k + d]) *
                   k_of[t]->values[(j * n_kv_heads + kv_head) * dim_k + d];
          const double weight = std::exp(dot / std::sqrt(static_cast<double>(dim_k)));
          sum += weight;
          for (size_t d = 0; d < dim_v; ++d)
            expected[d] += weight * v_of[t]->values[(j * n_kv_heads + kv_head) * dim_v + d];
        }
        for (size_t d = 0; d < dim_v; ++d)
          EXPECT_NEAR(out[row * dim_v + d], n == 0 ? 0 : expected[d] / sum, 1e-5);
        if (n == 0) {
          EXPECT_EQ(lse[row], -HUGE_VALF);
        } else {
          EXPECT_NEAR(lse[row], std::log(sum), 1e-5);
        }
      }
    }
  }
  EXPECT_EQ(kvc_commit(cache_), KVC_OK);
  kvc_stats stats = KVC_STATS_INIT;
  ASSERT_EQ(kvc_cache_stats(cache_, &stats), KVC_OK);
  EXPECT_EQ(stats.cells, 8u * capacity);  // max_sequences + min(max_sequences, max_batch) slots
  EXPECT_EQ(stats.cells_used, 40u);
  EXPECT_EQ(stats.cells_shared, 33u);
}

/// put_attention() is put and attention, or neither: the length that it would have set included.
TEST_F(Encoder, ARefusedPutAttentionSetsNoLength) {
  create();
  ASSERT_EQ(begin({0}, {0}, {input}), KVC_OK);
  const Rows k = keys(9), v = values(9), q(1, n_q_heads, dim_k, random_);
  std::vector<float> out(n_q_heads * dim_v), bias(n_q_heads * 9, 0.0f);
  kvc_tensor result = support::dense(out.data(), KVC_F32, {1, n_q_heads, dim_v});
  kvc_tensor columns = support::dense(bias.data(), KVC_F32, {n_q_heads, 1, 8});
  kvc_attention_extra extra = KVC_ATTENTION_EXTRA_INIT;
  extra.bias = &columns;
  const auto call = [&] {
    return kvc_put_attention(cache_, 0, &k.tensor, &v.tensor, &q.tensor, &result, &extra);
  };
  expect(KVC_E_SHAPE, call, "a bias of 8 columns for 9 positions");
  int32_t length = -1;
  EXPECT_EQ(kvc_encoder_query(cache_, 0, nullptr, &length), KVC_OK);
  EXPECT_EQ(length, 0);
  columns = support::dense(bias.data(), KVC_F32, {n_q_heads, 1, 9});
  EXPECT_EQ(call(), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_encoder_query(cache_, 0, nullptr, &length), KVC_OK);
  EXPECT_EQ(length, 9);
}

TEST_F(Encoder, AFullCacheRefusesABatchAndKeepsThePass) {
  create(2);
  ASSERT_EQ(begin({0, 0}, {0, 1}, {input, input}), KVC_OK);
  put(0, 3);
  put(1, 4);
  expect(
      KVC_E_CACHE_FULL, [&] { return begin({0}, {2}, {input}); }, "no slot");
  EXPECT_NE(support::last_message().find("1 encoder inputs"), std::string::npos)
      << support::last_message();
  ASSERT_EQ(begin({1}, {0}, {0}), KVC_OK) << support::last_message();
  expect(
      KVC_E_CACHE_FULL, [&] { return begin({2}, {0}, {input}); },
      "the old input is needed until the commit");
  ASSERT_EQ(kvc_remove(cache_, 1, 0, KVC_SEQ_END), KVC_OK);
  EXPECT_EQ(begin({2}, {0}, {input}), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_abort(cache_), KVC_OK);
}

TEST_F(Encoder, AReservePassHasTheLargestShapesAndChangesNothing) {
  create();
  const auto before = digest();
  ASSERT_EQ(kvc_begin(cache_, max_batch, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr),
            KVC_OK);
  const Rows k = keys(3), v = values(3), q(max_batch, n_q_heads, dim_k, random_);
  EXPECT_EQ(kvc_put(cache_, 0, &k.tensor, &v.tensor), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_encoder_put(cache_, 1, 3, &k.tensor, &v.tensor), KVC_OK);
  EXPECT_EQ(kvc_encoder_put(cache_, 1, max_sequences, &k.tensor, &v.tensor), invalid);
  EXPECT_EQ(kvc_encoder_share(cache_, 0, 1), KVC_OK);
  EXPECT_EQ(kvc_encoder_share(cache_, 1, 1), invalid);
  kvc_tensor view{};
  EXPECT_EQ(kvc_get(cache_, 0, &view, nullptr), KVC_OK);
  EXPECT_EQ(view.shape[0], 8 * capacity);
  std::vector<float> out(static_cast<size_t>(max_batch) * n_q_heads * dim_v);
  kvc_tensor result = support::dense(out.data(), KVC_F32, {max_batch, n_q_heads, dim_v});
  EXPECT_EQ(kvc_attention(cache_, 0, &q.tensor, &result, nullptr), KVC_OK);
  EXPECT_EQ(kvc_commit(cache_), KVC_OK);
  EXPECT_EQ(digest(), before);
}

/// Zeros where a slot was freed: what the next view of get() spans holds nothing of another tenant.
TEST_F(Encoder, ZeroOnFreeClearsTheSlot) {
  create(1, KVC_CACHE_ZERO_ON_FREE);
  ASSERT_EQ(begin({0}, {0}, {input}), KVC_OK);
  put(0, capacity);
  kvc_tensor view{};
  ASSERT_EQ(kvc_get(cache_, 1, &view, nullptr), KVC_OK);
  const auto* stored = static_cast<const float*>(support::on_host(view).data);
  EXPECT_NE(stored[0], 0);
  ASSERT_EQ(kvc_abort(cache_), KVC_OK);
  for (int64_t cell = 0; cell < capacity; ++cell)
    for (int64_t d = 0; d < dim_k; ++d)
      ASSERT_EQ(stored[cell * view.strides[0] + view.strides[1] + d], 0) << cell;
}

}  // namespace
