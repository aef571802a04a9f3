// Calls on results over parts of the keys: merging, sinks, repeated heads, dropout masks and modes. Against double, in any layout;
// what is wrong with their tensors is refused and changes nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "kvc/experimental.h"
#include "kvc/operators.h"
#include "kvc/rows.h"
#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/vectors.hpp"
#include "tests/model/formats.hpp"

namespace {

using support::Array, support::Random;

double log_add_exp(double a, double b) {
  const double larger = std::max(a, b);
  return std::isinf(larger) ? larger : larger + std::log(std::exp(a - larger) + std::exp(b - larger));
}

/// Log-sum-exps, some of rows that saw nothing.
void fill_lse(Array& lse, Random& random) {
  for (int64_t i = 0; i < lse.count(); ++i)
    lse.set(i, random.chance(0.2) ? -HUGE_VAL : 30.0 * static_cast<double>(random.value()));
}

TEST(Partials, MergeInDouble) {
  Random random(20261129);
  for (int32_t round = 0; round < 200; ++round) {
    const uint32_t types[] = {KVC_F32, KVC_F16, KVC_BF16};
    const uint32_t type = types[random.below(3)];
    std::vector<int64_t> shape = {1 + random.below(3), 1 + random.below(4), 1 + random.below(9)};
    if (random.chance(0.3)) shape.insert(shape.begin(), 1 + random.below(3));
    if (random.chance(0.2)) shape.erase(shape.begin(), shape.end() - 2);
    const std::vector<int64_t> heads(shape.begin(), shape.end() - 1);
    Array o(type, shape, random), lse(KVC_F32, heads, random);
    Array o2(types[random.below(3)], shape, random), lse2(KVC_F32, heads, random);
    o.fill(random);
    o2.fill(random);
    fill_lse(lse, random);
    fill_lse(lse2, random);
    const int64_t dim = shape.back();
    for (int64_t row = 0; row < lse.count(); ++row) {  // a row that saw nothing may hold anything
      for (int64_t d = 0; d < dim; ++d) {
        if (std::isinf(lse.get(row))) o.set(row * dim + d, std::nan(""));
        if (std::isinf(lse2.get(row))) o2.set(row * dim + d, std::nan(""));
      }
    }
    const std::vector<double> a = o.doubles(), b = o2.doubles(), x = lse.doubles(),
                              y = lse2.doubles();
    ASSERT_EQ(kvc_merge_attention(o.tensor(), lse.tensor(), o2.tensor(), lse2.tensor()), KVC_OK)
        << support::last_message();
    EXPECT_TRUE(o.gaps_intact() && lse.gaps_intact());
    for (size_t row = 0; row < x.size(); ++row) {
      const double sum = log_add_exp(x[row], y[row]);
      if (std::isinf(sum)) {
        EXPECT_EQ(lse.get(static_cast<int64_t>(row)), sum);
      } else {
        EXPECT_NEAR(lse.get(static_cast<int64_t>(row)), sum, 2e-7 * std::max(1.0, std::fabs(sum)));
      }
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
        const size_t i = row * static_cast<size_t>(dim) + d;
        const double exact = (std::isinf(x[row]) ? 0 : a[i] * std::exp(x[row] - sum)) +
                             (std::isinf(y[row]) ? 0 : b[i] * std::exp(y[row] - sum));
        EXPECT_NEAR(o.get(static_cast<int64_t>(i)), exact, 0.51 * model::spacing(type, exact) + 1e-7);
      }
    }
  }
}

TEST(Partials, TakeSinksOnce) {
  Random random(7);
  Array o(KVC_F32, {3, 4, 5}, random), lse(KVC_F32, {3, 4}, random);
  o.fill(random);
  fill_lse(lse, random);
  const float sinks[] = {-3, 0, 12, -40};
  const std::vector<double> before = o.doubles(), sums = lse.doubles();
  ASSERT_EQ(kvc_apply_sinks(o.tensor(), lse.tensor(), sinks), KVC_OK) << support::last_message();
  EXPECT_EQ(lse.doubles(), sums);
  for (size_t i = 0; i < before.size(); ++i) {
    const double sum = sums[i / 5];
    const double share = 1 / (1 + std::exp(static_cast<double>(sinks[i / 5 % 4]) - sum));
    EXPECT_NEAR(o.get(static_cast<int64_t>(i)), std::isinf(sum) ? 0 : before[i] * share, 1e-6);
  }
}

TEST(Partials, RepeatHeadsOfEveryType) {
  Random random(11);
  for (const uint32_t type :
       {KVC_F32, KVC_F16, KVC_BF16, KVC_I32, KVC_BOOL, KVC_I8, KVC_U8, KVC_F8_E4M3, KVC_F8_E5M2}) {
    const auto bytes = static_cast<size_t>((type >> 8 & 0xff) / 8);
    const int64_t shape[] = {2, 3, 4}, wide[] = {2, 6, 4};
    std::vector<unsigned char> from(24 * bytes), to(48 * bytes);
    for (auto& byte : from) byte = static_cast<unsigned char>(random.below(256));
    kvc_tensor in{}, out{};
    ASSERT_EQ(kvc_tensor_dense(from.data(), type, 3, shape, &in), KVC_OK);
    ASSERT_EQ(kvc_tensor_dense(to.data(), type, 3, wide, &out), KVC_OK);
    ASSERT_EQ(kvc_repeat_kv_heads(&in, 2, &out), KVC_OK) << support::last_message();
    for (size_t vector = 0; vector < 12; ++vector) {
      const size_t row = 4 * bytes;
      EXPECT_TRUE(std::equal(to.begin() + static_cast<ptrdiff_t>(vector * row),
                             to.begin() + static_cast<ptrdiff_t>((vector + 1) * row),
                             from.begin() + static_cast<ptrdiff_t>(vector / 2 * row)));
    }
  }
}

TEST(Partials, DropoutMasksAreThoseOfTheVectors) {
  Random random(13);
  const nlohmann::json all = support::vectors("attention.json");
  ASSERT_EQ(all["dropout"].size(), 12u);
  for (const nlohmann::json& one : all["dropout"]) {
    const std::vector<int32_t> q = one["q_position"], k = one["k_position"];
    const std::vector<std::vector<std::string>> kept = one["kept"];
    Array mask(KVC_BOOL,
               {static_cast<int64_t>(kept.size()), static_cast<int64_t>(q.size()),
                static_cast<int64_t>(k.size())},
               random);
    const uint64_t seed = std::stoull(one["seed"].get<std::string>(), nullptr, 16);
    ASSERT_EQ(kvc_dropout_mask(seed, one["prob"].get<float>(), one["layer"], one["sequence"],
                               static_cast<int32_t>(q.size()), q.data(),
                               static_cast<int32_t>(k.size()), k.data(), mask.tensor()),
              KVC_OK)
        << support::last_message();
    EXPECT_TRUE(mask.gaps_intact());
    int64_t at = 0;
    for (const auto& head : kept)
      for (const auto& row : head)
        for (const char digit : row) ASSERT_EQ(mask.get(at++), digit - '0') << one.dump();
  }
}

/// Layer 0 drops half of its weights in calls with dropout.
void bind_dropout(kvc_device* device, kvc_cache* cache) {
  kvc_operator_desc half = KVC_OPERATOR_DESC_INIT;
  half.dropout_prob = 0.5f;
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "vanilla", &half, &op), KVC_OK);
  ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_TRAIN, op), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

/// In a transformer cache a key's position is its column, and the sequence is the row.
TEST(Partials, DropoutMasksAreThoseOfRows) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 8, 8);
  desc.kind = KVC_TRANSFORMER;
  desc.capacity = 8;
  desc.max_sequences = desc.max_q_heads = 2;
  support::Cache cache;
  ASSERT_EQ(kvc_cache_create(device, &desc, nullptr, &cache.handle), KVC_OK)
      << support::last_message();
  bind_dropout(device, cache);
  const int32_t valid[] = {7, 4}, keys[] = {0, 1, 2, 3, 4, 5, 6, 7};
  ASSERT_EQ(kvc_begin_rows(cache, 7, 0, valid, nullptr, nullptr, nullptr), KVC_OK);
  Random random(17);
  Array k(KVC_F32, {2, 7, 1, 8}), q(KVC_F32, {2, 7, 2, 8}), out(KVC_F32, {2, 7, 2, 8});
  Array weights(KVC_F32, {2, 2, 7, 8});
  k.fill(random);
  q.fill(random);
  ASSERT_EQ(kvc_put(cache, 0, k.tensor(), k.tensor()), KVC_OK);
  kvc_attention_extra extra = support::extra(nullptr, nullptr, weights.tensor());
  extra.flags = KVC_EXTRA_DROPOUT;
  extra.dropout_seed = 99;
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), &extra), KVC_OK)
      << support::last_message();
  for (int32_t row = 0; row < 2; ++row) {
    Array mask(KVC_BOOL, {2, valid[row], 8});
    ASSERT_EQ(kvc_dropout_mask(99, 0.5f, 0, row, valid[row], keys, 8, keys, mask.tensor()), KVC_OK);
    for (int32_t head = 0; head < 2; ++head)
      for (int32_t token = 0; token < valid[row]; ++token)
        for (int32_t j = 0; j < 8; ++j)
          EXPECT_EQ(weights.get(((row * 2 + head) * 7 + token) * 8 + j) != 0,
                    j <= token && mask.get((head * valid[row] + token) * 8 + j) != 0);
  }
}

/// A key of NaN makes every weight NaN that is kept, and none that is dropped.
TEST(Partials, DroppedKeysCountForNothing) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 8, 8);
  support::Cache cache;
  ASSERT_EQ(kvc_cache_create(device, &desc, nullptr, &cache.handle), KVC_OK)
      << support::last_message();
  bind_dropout(device, cache);
  Random random(18);
  Array k(KVC_F32, {1, 1, 8}), v(KVC_F32, {1, 1, 8}), q(KVC_F32, {1, 1, 8}), out(KVC_F32, {1, 1, 8});
  Array weights(KVC_F32, {1, 1, 1});
  q.fill(random);
  v.fill(random);
  for (int64_t i = 0; i < 8; ++i) k.set(i, std::nan(""));
  const int32_t zero = 0;
  ASSERT_EQ(kvc_begin(cache, 1, &zero, &zero, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_put(cache, 0, k.tensor(), v.tensor()), KVC_OK);
  int n_kept = 0;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Array mask(KVC_BOOL, {1, 1, 1});
    ASSERT_EQ(kvc_dropout_mask(seed, 0.5f, 0, 0, 1, &zero, 1, &zero, mask.tensor()), KVC_OK);
    kvc_attention_extra extra = support::extra(nullptr, nullptr, weights.tensor());
    extra.flags = KVC_EXTRA_DROPOUT;
    extra.dropout_seed = seed;
    ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), &extra), KVC_OK)
        << support::last_message();
    const bool is_kept = mask.get(0) != 0;
    n_kept += is_kept;
    EXPECT_TRUE(is_kept ? std::isnan(weights.get(0)) : weights.get(0) == 0);
    for (int64_t d = 0; d < 8; ++d) EXPECT_TRUE(is_kept ? std::isnan(out.get(d)) : out.get(d) == 0);
  }
  EXPECT_TRUE(n_kept > 0 && n_kept < 8);
}

TEST(Partials, ModesGoByTheLength) {
  Array q(KVC_F32, {2, 1, 3, 4});
  uint32_t mode = 0;
  EXPECT_EQ(kvc_mode_of(q.tensor(), 1, &mode), KVC_OK);
  EXPECT_EQ(mode, uint32_t{KVC_MODE_AUTOREGRESSIVE});
  EXPECT_EQ(kvc_mode_of(q.tensor(), 0, &mode), KVC_OK);
  EXPECT_EQ(mode, uint32_t{KVC_MODE_TRAIN});
}

/// Each refusal has its status and leaves what it would have written as it was.
TEST(Partials, RefuseWhatIsWrong) {
  Array o(KVC_F32, {2, 3, 4}), o2(KVC_F32, {2, 3, 4}), lse(KVC_F32, {2, 3}), lse2(KVC_F32, {2, 3});
  Array wide(KVC_F32, {2, 6, 4});
  for (Array* each : {&o, &o2, &lse, &lse2, &wide}) each->fill(1);
  const auto refuse = [&](kvc_status status, const char* word, auto call) {
    EXPECT_EQ(support::name(call()), support::name(status)) << word;
    EXPECT_NE(support::last_message().find(word), std::string::npos) << support::last_message();
    for (const Array* each : {&o, &lse, &wide})
      for (const double value : each->doubles()) ASSERT_EQ(value, 1) << word;
  };
  const auto merge = [&](const kvc_tensor* a, const kvc_tensor* b, const kvc_tensor* c,
                         const kvc_tensor* d) {
    kvc_tensor to = a ? *a : kvc_tensor{}, sum = b ? *b : kvc_tensor{};
    return kvc_merge_attention(a ? &to : nullptr, b ? &sum : nullptr, c, d);
  };
  const kvc_tensor good[] = {*o.tensor(), *lse.tensor(), *o2.tensor(), *lse2.tensor()};
  const char* names[] = {"o", "lse", "o2", "lse2"};
  for (size_t i = 0; i < 4; ++i) {
    const auto with = [&](kvc_status status, auto spoil) {
      kvc_tensor wrong = good[i];
      spoil(wrong);
      const kvc_tensor* given[] = {&good[0], &good[1], &good[2], &good[3]};
      given[i] = &wrong;
      refuse(status, names[i], [&] { return merge(given[0], given[1], given[2], given[3]); });
    };
    with(KVC_E_DTYPE, [](kvc_tensor& t) { t.dtype = KVC_I32; });
    with(KVC_E_DEVICE_MISMATCH, [](kvc_tensor& t) { t.device_type = KVC_CUDA; });
    with(KVC_E_INVALID_ARGUMENT, [](kvc_tensor& t) { t.flags = 1; });
    with(KVC_E_SHAPE, [](kvc_tensor& t) { t.strides[0] = -1; });
    if (i > 0) with(KVC_E_SHAPE, [](kvc_tensor& t) { ++t.shape[0]; });
    with(KVC_E_SHAPE, [](kvc_tensor& t) { t.ndim = 9; });
    with(KVC_E_SHAPE, [](kvc_tensor& t) { t.ndim = 1; });
    const kvc_tensor* none[] = {&good[0], &good[1], &good[2], &good[3]};
    none[i] = nullptr;
    refuse(KVC_E_INVALID_ARGUMENT, names[i],
           [&] { return merge(none[0], none[1], none[2], none[3]); });
  }
  refuse(KVC_E_INVALID_ARGUMENT, "overlaps",
         [&] { return merge(&good[0], &good[1], &good[0], &good[3]); });
  refuse(KVC_E_INVALID_ARGUMENT, "overlaps",
         [&] { return merge(&good[0], &good[1], &good[2], &good[1]); });

  const float sinks[] = {0, NAN, 0};
  refuse(KVC_E_INVALID_ARGUMENT, "sinks[1]",
         [&] { return kvc_apply_sinks(o.tensor(), lse.tensor(), sinks); });
  refuse(KVC_E_INVALID_ARGUMENT, "sinks",
         [&] { return kvc_apply_sinks(o.tensor(), lse.tensor(), nullptr); });

  refuse(KVC_E_INVALID_ARGUMENT, "n 0",
         [&] { return kvc_repeat_kv_heads(o.tensor(), 0, wide.tensor()); });
  refuse(KVC_E_SHAPE, "out", [&] { return kvc_repeat_kv_heads(o.tensor(), 3, wide.tensor()); });
  kvc_tensor other = *wide.tensor();
  other.dtype = KVC_I32;
  refuse(KVC_E_DTYPE, "out", [&] { return kvc_repeat_kv_heads(o.tensor(), 2, &other); });
  other.dtype = KVC_Q4_0;
  refuse(KVC_E_DTYPE, "in", [&] { return kvc_repeat_kv_heads(&other, 2, wide.tensor()); });
  refuse(KVC_E_INVALID_ARGUMENT, "overlaps",
         [&] { return kvc_repeat_kv_heads(o.tensor(), 1, o.tensor()); });

  Array mask(KVC_BOOL, {1, 2, 2});
  const int32_t at[] = {0, 1}, below[] = {0, -1};
  const auto dropout = [&](float probability, int32_t layer, int32_t sequence, const int32_t* q,
                           const int32_t* k) {
    return kvc_dropout_mask(1, probability, layer, sequence, 2, q, 2, k, mask.tensor());
  };
  refuse(KVC_E_INVALID_ARGUMENT, "probability", [&] { return dropout(1, 0, 0, at, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "probability", [&] { return dropout(NAN, 0, 0, at, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "probability", [&] { return dropout(-0.1f, 0, 0, at, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "layer", [&] { return dropout(0, 65536, 0, at, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "sequence", [&] { return dropout(0, 0, -1, at, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "q_position[1]", [&] { return dropout(0, 0, 0, below, at); });
  refuse(KVC_E_INVALID_ARGUMENT, "k_position[1]", [&] { return dropout(0, 0, 0, at, below); });
  refuse(KVC_E_INVALID_ARGUMENT, "q_position", [&] { return dropout(0, 0, 0, nullptr, at); });
  refuse(KVC_E_SHAPE, "into",
         [&] { return kvc_dropout_mask(1, 0, 0, 0, 2, at, 1, at, mask.tensor()); });
  Array many(KVC_BOOL, {65537, 1, 1});
  refuse(KVC_E_NOT_SUPPORTED, "65537 heads",
         [&] { return kvc_dropout_mask(1, 0, 0, 0, 1, at, 1, at, many.tensor()); });

  uint32_t mode = 0;
  refuse(KVC_E_SHAPE, "q has 3", [&] { return kvc_mode_of(o.tensor(), 1, &mode); });
  refuse(KVC_E_INVALID_ARGUMENT, "bthd", [&] { return kvc_mode_of(o.tensor(), 2, &mode); });
  refuse(KVC_E_INVALID_ARGUMENT, "mode", [&] { return kvc_mode_of(o.tensor(), 1, nullptr); });
}

TEST(Device, TellsWhatItIs) {
  const support::Device device(3);
  kvc_device_info info = KVC_DEVICE_INFO_INIT;
  ASSERT_EQ(kvc_device_query(device, &info), KVC_OK) << support::last_message();
  EXPECT_EQ(info.device_type, int32_t{KVC_CPU});
  EXPECT_EQ(info.device_id, 0);
  EXPECT_EQ(info.n_threads, 3);
  EXPECT_STREQ(info.name, "cpu");
  EXPECT_NE(std::string(info.instruction_set), "");
  EXPECT_NE(std::string(kvc_build_info()).find(info.instruction_set), std::string::npos);
  info.struct_size = 4;
  EXPECT_EQ(kvc_device_query(device, &info), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_query(device, nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_query(nullptr, &info), KVC_E_HANDLE);
}

}  // namespace
