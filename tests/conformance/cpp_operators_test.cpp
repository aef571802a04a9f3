// operators.hpp and partials.hpp: operators by name, with settings, in layers and without a cache, against the definition; dropout;
// results that are merged; errors by their type.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <kvc/kvc.hpp>
#include <memory>
#include <string>
#include <vector>

#include "support/plain_attention.hpp"

namespace {

using support::PlainSizes, support::plain_attention, support::sines;

constexpr int32_t kv_heads = 2, q_heads = 4, dim = 8, n = 6;
constexpr size_t kv_width = kv_heads * dim, q_width = q_heads * dim;
const double scale = 1 / std::sqrt(double{dim});

kvc::CacheDesc geometry() {
  kvc::CacheDesc desc;
  desc.n_layers = 2, desc.n_kv_heads = kv_heads, desc.head_dim_k = dim;
  desc.max_sequences = 1, desc.capacity = 16, desc.max_batch = n, desc.max_q_heads = q_heads;
  return desc;
}

kvc::OperatorDesc bounds() {
  kvc::OperatorDesc desc;
  desc.max_rows = 2, desc.max_q_len = n, desc.max_kv_len = n;
  desc.n_kv_heads = kv_heads, desc.max_q_heads = q_heads, desc.head_dim_k = dim;
  return desc;
}

void expect_near(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 1e-5) << i;
}

class CppOperators : public testing::Test {
 protected:
  CppOperators() : cache_(device_, geometry()) {}

  /// Puts n tokens into a pass that stays open.
  void open() {
    cache_.begin({0, 1, 2, 3, 4, 5}, std::vector<int32_t>(n, 0));
    for (int32_t layer = 0; layer < 2; ++layer)
      cache_.put(layer, {k_, {n, kv_heads, dim}}, {v_, {n, kv_heads, dim}});
  }
  std::vector<float> attend(int32_t layer = 0, const kvc::AttentionExtra& extra = {}) {
    std::vector<float> out(q_.size());
    cache_.attention(layer, {q_, {n, q_heads, dim}}, {out, {n, q_heads, dim}}, extra);
    return out;
  }
  std::vector<float> wanted(double sink = -HUGE_VAL) const {
    return plain_attention(
        sizes_, q_.data(), k_.data(), v_.data(), [](size_t i, size_t j) { return j <= i; }, scale,
        sink);
  }

  const PlainSizes sizes_ = {n, n, q_heads, kv_heads, dim};
  const std::vector<float> q_ = sines(n * q_width, 1), k_ = sines(n * kv_width, 2),
                           v_ = sines(n * kv_width, 3);
  const kvc::Device device_{"cpu"};
  kvc::Cache cache_;
};

TEST_F(CppOperators, NamesAndWhatTheyHave) {
  const std::vector<kvc::OperatorInfo> all = kvc::operators(device_);
  ASSERT_GT(all.size(), 5u);
  EXPECT_STREQ(all[0].name, "flash");
  for (const kvc::OperatorInfo& info : all)
    EXPECT_STREQ(kvc::operator_find(device_, info.name).canonical, info.canonical);
  EXPECT_STREQ(kvc::operator_find(device_, "sdpa").canonical, "flash");
  EXPECT_THROW(kvc::operator_find(device_, "nothing"), kvc::NotFound);
  kvc::OperatorNeeds needs;
  needs.mode = KVC_MODE_TRAIN, needs.features = KVC_FEATURE_DROPOUT;
  EXPECT_EQ(kvc::operator_supports(device_, nullptr, needs), "vanilla");
  EXPECT_EQ(kvc::operator_supports(device_, "vanilla", needs), "vanilla");
  EXPECT_THROW(kvc::operator_supports(device_, "splash", needs), kvc::NotSupported);
  needs.dtype_k = KVC_I32;
  EXPECT_THROW(kvc::operator_supports(device_, nullptr, needs), kvc::DtypeError);
}

TEST_F(CppOperators, SettingsAreResolvedAndQueried) {
  kvc::OperatorDesc base, desc;
  base.block_k = 48, base.softmax_scale = 0.5f;
  desc.softmax_scale = 0.25f;
  const kvc::OperatorDesc resolved = kvc::operator_resolve(base, desc);
  EXPECT_EQ(resolved.block_k, 48);
  EXPECT_EQ(resolved.softmax_scale, 0.25f);
  EXPECT_EQ(resolved.runtime_dtype, uint32_t{KVC_F32});
  kvc::Operator op(device_, "flash_attn2", desc);
  EXPECT_STREQ(op.info().name, "flash_attn2");
  EXPECT_STREQ(op.info().canonical, "flash");
  EXPECT_EQ(op.desc().softmax_scale, 0.25f);
  kvc::Operator moved = std::move(op);
  EXPECT_THROW((void)op.desc(), kvc::InvalidHandle);  // NOLINT(bugprone-use-after-move): that is the test
  moved.close();
  moved.close();
  EXPECT_EQ(moved.handle(), nullptr);
  moved = kvc::Operator(device_, "ring");
  EXPECT_STREQ(moved.info().canonical, "ring");
  EXPECT_THROW(kvc::Operator(device_, "nothing"), kvc::NotFound);
  desc.dropout_prob = 0.5f;
  EXPECT_THROW(kvc::Operator(device_, "flash", desc), kvc::NotSupported);
  desc.dropout_prob = 1;
  EXPECT_THROW(kvc::Operator(device_, "vanilla", desc), kvc::InvalidArgument);
}

TEST_F(CppOperators, LayersAttendWithWhatIsBound) {
  {
    const kvc::Operator vanilla(device_, "vanilla"), decode(device_, "decode");
    cache_.bind_operator(0, 1, KVC_MODE_ALL, &vanilla);
    try {
      cache_.bind_operator(1, 2, KVC_MODE_PREFILL, &decode);
      ADD_FAILURE() << "decode took a prefill";
    } catch (const kvc::NotSupported& error) {
      EXPECT_NE(error.message().find("prefill"), std::string::npos) << error.message();
    }
    cache_.bind_operator(1, 2, KVC_MODE_AUTOREGRESSIVE, &decode);
    EXPECT_THROW(cache_.bind_operator(0, 1, 0, &decode), kvc::InvalidArgument);
  }  // layers keep what they need
  for (const bool bound : {true, false}) {
    open();
    expect_near(attend(0), wanted());
    expect_near(attend(1), wanted());
    EXPECT_THROW(cache_.bind_operator(0, 2, KVC_MODE_ALL, nullptr), kvc::BadState);
    kvc::AttentionExtra extra;
    extra.flags = KVC_EXTRA_DROPOUT;
    if (!bound) {
      EXPECT_THROW(attend(0, extra), kvc::NotSupported);
    }
    cache_.abort();
    cache_.bind_operator(0, 2, KVC_MODE_ALL, nullptr);
  }
  const kvc::Operator lightning(device_, "lightning");
  EXPECT_THROW(cache_.bind_operator(0, 1, KVC_MODE_ALL, &lightning), kvc::NotSupported);
}

TEST_F(CppOperators, DropoutDropsWhatTheMaskSays) {
  kvc::OperatorDesc desc;
  desc.dropout_prob = 0.4f;
  const kvc::Operator vanilla(device_, "vanilla", desc);
  cache_.bind_operator(0, 2, KVC_MODE_ALL, &vanilla);
  open();
  kvc::AttentionExtra extra;
  extra.flags = KVC_EXTRA_DROPOUT, extra.dropout_seed = 77;
  const std::vector<int32_t> positions = {0, 1, 2, 3, 4, 5};
  for (int32_t layer = 0; layer < 2; ++layer) {
    bool kept[q_heads * n * n];
    kvc::dropout_mask(77, 0.4f, layer, 0, positions, positions, {kept, {q_heads, n, n}});
    EXPECT_NE(std::count(kept, kept + q_heads * n * n, false), 0);
    const double factor = 1 / (1 - double{0.4f});
    expect_near(
        attend(layer, extra),
        plain_attention(
            sizes_, q_.data(), k_.data(), v_.data(), [](size_t i, size_t j) { return j <= i; },
            scale, -HUGE_VAL,
            [&](size_t h, size_t i, size_t j) { return kept[(h * n + i) * n + j] ? factor : 0; }));
  }
  extra.flags = 0;
  EXPECT_THROW(attend(0, extra), kvc::InvalidArgument);  // a seed without dropout
  extra.flags = 1 << 30;
  EXPECT_THROW(attend(0, extra), kvc::InvalidArgument);
  bool one = false;
  EXPECT_THROW(kvc::dropout_mask(1, 1, 0, 0, {0}, {0}, {&one, {1, 1, 1}}), kvc::InvalidArgument);
  EXPECT_THROW(kvc::dropout_mask(1, 0, 0, 0, {0, 1}, {0}, {&one, {1, 1, 1}}), kvc::ShapeError);
}

TEST_F(CppOperators, WithoutACache) {
  kvc::Operator flash(device_, "flash", bounds()), unbounded(device_, "flash");
  const auto twice = [](const std::vector<float>& one) {
    std::vector<float> both = one;
    both.insert(both.end(), one.begin(), one.end());
    return both;
  };
  const std::vector<float> q = twice(q_), k = twice(k_), v = twice(v_);
  std::vector<float> out(q.size()), lse(2 * n * q_heads, 9);
  kvc::ForwardDesc causal;
  causal.flags = KVC_FORWARD_CAUSAL;
  kvc::AttentionExtra extra;
  extra.lse = kvc::Tensor(lse, {2, n, q_heads});
  const std::vector<float> sinks(q_heads, 0.5f);
  const auto forward = [&](kvc::Operator& op, const kvc::ForwardDesc& desc) {
    op.forward(desc, {q, {2, n, q_heads, dim}}, {k, {2, n, kv_heads, dim}},
               {v, {2, n, kv_heads, dim}}, {out, {2, n, q_heads, dim}}, extra, nullptr, sinks.data());
  };
  forward(flash, causal);
  expect_near(out, twice(wanted(0.5)));
  EXPECT_LT(lse[0], 9);
  flash.forward(causal, {q, {1, n, q_heads, dim}}, {k, {1, n, kv_heads, dim}},
                {v, {1, n, kv_heads, dim}}, {out, {1, n, q_heads, dim}});
  expect_near({out.begin(), out.begin() + n * q_width}, wanted());
  EXPECT_THROW(forward(unbounded, causal), kvc::NotSupported);
  EXPECT_THROW(flash.forward(causal, {q, {3, 4, q_heads, dim}}, {k, {3, 4, kv_heads, dim}},
                             {v, {3, 4, kv_heads, dim}}, {out, {3, 4, q_heads, dim}}),
               kvc::ShapeError);
  causal.reach = -1;
  EXPECT_THROW(forward(flash, causal), kvc::InvalidArgument);
}

TEST_F(CppOperators, PartsOfTheKeysAreMerged) {
  const std::vector<float> sinks = {0.5f, 0.5f, 0.5f, 0.5f};
  kvc::AttentionDesc constants;
  constants.n_q_heads = q_heads;
  cache_.bind_attention(0, 1, constants, nullptr, sinks.data());
  open();
  const kvc::History columns = cache_.history(0);
  ASSERT_EQ(columns.n_cells, n);
  std::vector<float> parts[2], lse[2];
  for (size_t part = 0; part < 2; ++part) {
    bool shown[n];
    for (int32_t c = 0; c < n; ++c) shown[c] = (c < 4) == (part == 0);
    lse[part].resize(n * q_heads);
    kvc::AttentionExtra extra;
    extra.flags = KVC_EXTRA_NO_SINKS;
    extra.mask = kvc::ConstTensor(shown, {n});
    extra.lse = kvc::Tensor(lse[part], {n, q_heads});
    parts[part] = attend(0, extra);
  }
  kvc::merge_attention({parts[0], {n, q_heads, dim}}, {lse[0], {n, q_heads}},
                       {parts[1], {n, q_heads, dim}}, {lse[1], {n, q_heads}});
  expect_near(parts[0], wanted());
  kvc::apply_sinks({parts[0], {n, q_heads, dim}}, {lse[0], {n, q_heads}}, sinks.data());
  expect_near(parts[0], wanted(0.5));
  EXPECT_THROW(kvc::merge_attention({parts[0], {n, q_heads, dim}}, {lse[0], {n, q_heads}}, {},
                                    {lse[1], {n, q_heads}}),
               kvc::InvalidArgument);
  EXPECT_THROW(kvc::apply_sinks({parts[0], {n, q_heads, dim}}, {lse[0], {n, 1}}, sinks.data()),
               kvc::ShapeError);
}

TEST_F(CppOperators, HeadsAreRepeatedAndModesTold) {
  std::vector<float> repeated(2 * k_.size());
  kvc::repeat_kv_heads({k_, {n, kv_heads, dim}}, 2, {repeated, {n, q_heads, dim}});
  for (size_t token = 0; token < n; ++token)
    for (size_t h = 0; h < q_heads; ++h)
      for (size_t d = 0; d < dim; ++d)
        EXPECT_EQ(repeated[(token * q_heads + h) * dim + d], k_[(token * kv_heads + h / 2) * dim + d]);
  EXPECT_THROW(kvc::repeat_kv_heads({k_, {n, kv_heads, dim}}, 3, {repeated, {n, q_heads, dim}}),
               kvc::ShapeError);
  EXPECT_EQ(kvc::mode_of({q_, {1, 1, 4, dim}}), uint32_t{KVC_MODE_AUTOREGRESSIVE});
  EXPECT_EQ(kvc::mode_of({q_, {1, 4, 1, dim}}), uint32_t{KVC_MODE_TRAIN});
  EXPECT_EQ(kvc::mode_of({q_, {1, 4, 1, dim}}, false), uint32_t{KVC_MODE_AUTOREGRESSIVE});
  EXPECT_THROW((void)kvc::mode_of({q_, {4, 1, dim}}), kvc::ShapeError);
}

}  // namespace
