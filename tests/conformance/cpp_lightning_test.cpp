// lightning.hpp: outputs and states against sums over all tokens, states that are read and written, families of slopes, rows, and
// lightning layers beside others in kvc::Hybrid.
#include <gtest/gtest.h>

#include <cmath>
#include <kvc/hybrid.hpp>
#include <vector>

#include "support/plain_attention.hpp"

namespace {

constexpr int32_t heads = 2, dim = 4, width = heads * dim;

kvc::CacheDesc geometry(int32_t n_layers = 1) {
  kvc::CacheDesc desc;
  desc.n_layers = n_layers, desc.n_kv_heads = heads, desc.head_dim_k = dim;
  desc.max_sequences = 2, desc.max_batch = 8;
  return desc;
}

/// What the token at position p of one sequence gets: sums over all tokens up to it.
std::vector<float> linear_attention(const std::vector<float>& q, const std::vector<float>& k,
                                    const std::vector<float>& v, const std::vector<float>& slopes,
                                    size_t p) {
  std::vector<float> out(width);
  for (size_t h = 0; h < heads; ++h)
    for (size_t d = 0; d < dim; ++d) {
      double sum = 0;
      for (size_t j = 0; j <= p; ++j) {
        double dot = 0;
        for (size_t i = 0; i < dim; ++i)
          dot += double{q[p * width + h * dim + i]} * double{k[j * width + h * dim + i]};
        sum += std::exp(-double{slopes[h]} * static_cast<double>(p - j)) * dot *
               double{v[j * width + h * dim + d]};
      }
      out[h * dim + d] = static_cast<float>(sum);
    }
  return out;
}

TEST(CppLightning, PromptThenTokensAgainstSums) {
  const kvc::Device device("cpu");
  kvc::Cache cache(device, geometry(), kvc::LightningDesc());
  EXPECT_EQ(kvc::Cache::memory_bytes(device, geometry(), kvc::LightningDesc()), cache.stats().bytes);
  const std::vector<float> slopes = kvc::slopes(kvc::Slopes::alibi, heads);
  EXPECT_EQ(slopes, (std::vector<float>{0.0625f, 0.00390625f}));
  {
    kvc::Pass pass(cache, {0}, {0});
    const std::vector<float> one(width);
    EXPECT_THROW(cache.put(0, {one, {1, heads, dim}}, {one, {1, heads, dim}}), kvc::BadState);
  }
  cache.bind_decay(0, 1, slopes.data());
  const size_t n = 9;
  const std::vector<float> q = support::sines(n * width, 1), k = support::sines(n * width, 2),
                           v = support::sines(n * width, 3);
  std::vector<float> out(q.size());
  for (size_t first = 0; first < n;) {
    const size_t m = first == 0 ? 6 : 1;
    std::vector<int32_t> position, sequence(m, 1);
    for (size_t i = 0; i < m; ++i) position.push_back(static_cast<int32_t>(first + i));
    const auto part = [&](const std::vector<float>& all) {
      return kvc::ConstTensor(&all[first * width], {static_cast<int64_t>(m), heads, dim});
    };
    kvc::Pass pass(cache, position, sequence);
    cache.put_attention(0, part(k), part(v), part(q),
                        {&out[first * width], {static_cast<int64_t>(m), heads, dim}});
    pass.commit();
    first += m;
  }
  for (size_t p = 0; p < n; ++p) {
    const std::vector<float> wanted = linear_attention(q, k, v, slopes, p);
    for (size_t i = 0; i < width; ++i) EXPECT_NEAR(out[p * width + i], wanted[i], 1e-5) << p;
  }
  EXPECT_EQ(cache.sequence(1).next, 9);
  EXPECT_THROW(cache.bind_decay(0, 1, slopes.data()), kvc::BadState);
}

TEST(CppLightning, StatesAreReadAndWritten) {
  const kvc::Device device("cpu");
  kvc::LightningDesc desc;
  desc.checkpoint_interval = KVC_NONE;
  kvc::Cache cache(device, geometry(2), desc);
  for (int32_t layer = 0; layer < 2; ++layer)
    cache.bind_decay(layer, layer + 1, kvc::slopes(kvc::Slopes::minimax, heads, layer, 2).data());
  const std::vector<float> row = support::sines(2 * width, 1);
  kvc::Rows rows;  // one token each
  kvc::Pass pass(cache, rows);
  for (int32_t layer = 0; layer < 2; ++layer)
    cache.put(layer, {row, {2, 1, heads, dim}}, {row, {2, 1, heads, dim}});
  pass.commit();
  const kvc_tensor shape = cache.lightning_shape(1, 0, 2);
  EXPECT_EQ(std::vector<int64_t>(shape.shape, shape.shape + shape.ndim),
            (std::vector<int64_t>{2, heads, dim, dim}));
  EXPECT_EQ(shape.dtype, uint32_t{KVC_F32});
  std::vector<float> state(2 * heads * dim * dim), again(state.size());
  cache.lightning_read(1, 0, 2, {state, {2, heads, dim, dim}});
  for (size_t s = 0; s < 2; ++s)
    for (size_t h = 0; h < heads; ++h)
      for (size_t i = 0; i < dim; ++i)
        for (size_t j = 0; j < dim; ++j) {
          const float* x = &row[s * width + h * dim];
          EXPECT_FLOAT_EQ(state[((s * heads + h) * dim + i) * dim + j], x[i] * x[j]);
        }
  cache.checkpoint_take(1);
  EXPECT_EQ(cache.checkpoint_list(1), std::vector<int32_t>{1});
  const std::vector<float> other = support::sines(heads * dim * dim, 5);
  cache.lightning_write(1, 1, 1, {other, {1, heads, dim, dim}});
  EXPECT_TRUE(cache.checkpoint_list(1).empty());
  cache.lightning_read(1, 0, 2, {again, {2, heads, dim, dim}});
  std::copy(other.begin(), other.end(), state.begin() + heads * dim * dim);
  EXPECT_EQ(again, state);
  EXPECT_THROW(cache.lightning_read(1, 0, 2, {again, {2, heads, dim * dim}}), kvc::ShapeError);
  EXPECT_THROW(cache.lightning_write(2, 0, 1, {other, {1, heads, dim, dim}}), kvc::InvalidArgument);
  cache.rows_set(0, {0, 40});
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{0, 40}));
  EXPECT_THROW(cache.lightning_write(1, 0, 1, {other, {1, heads, dim, dim}}), kvc::BadState);
}

TEST(CppLightning, SlopesOfEachFamily) {
  const std::vector<float> alibi = kvc::slopes(kvc::Slopes::alibi, 8, 1, 4);
  const std::vector<float> lightning2 = kvc::slopes(kvc::Slopes::lightning2, 8, 1, 4);
  const std::vector<float> minimax = kvc::slopes(kvc::Slopes::minimax, 8, 1, 4);
  const std::vector<float> linear = kvc::slopes(kvc::Slopes::linear, 8, 1, 4);
  for (size_t h = 0; h < 8; ++h) {
    const double power = std::exp2(-static_cast<double>(h + 1));
    EXPECT_FLOAT_EQ(alibi[h], static_cast<float>(power));
    EXPECT_FLOAT_EQ(lightning2[h], static_cast<float>(power * (1 - 1 / 3.0 + 1e-5)));
    EXPECT_FLOAT_EQ(minimax[h], static_cast<float>(power * (1 - 1 / (3 + 1e-5) + 1e-5)));
    EXPECT_FLOAT_EQ(linear[h], static_cast<float>(static_cast<double>(h) * (1 - 1 / 4.0)));
  }
  EXPECT_EQ(kvc::slopes(kvc::Slopes::alibi, 1 << 20).size(), size_t{1} << 20);
  EXPECT_THROW(kvc::slopes(kvc::Slopes::alibi, 0), kvc::InvalidArgument);
  EXPECT_THROW(kvc::slopes(kvc::Slopes::alibi, (1 << 20) + 1), kvc::InvalidArgument);
  EXPECT_THROW(kvc::slopes(kvc::Slopes::linear, 8, 4, 4), kvc::InvalidArgument);
}

TEST(CppLightning, LayersOfAModelThatAlsoAttends) {  // MiniMax-01: seven of eight layers are linear
  const kvc::Device device("cpu");
  kvc::CacheDesc linear = geometry(0), named = linear, full = linear;
  named.dtype_k = named.dtype_v = KVC_F32, named.head_dim_v = dim;
  full.capacity = 16;
  kvc::Hybrid model(device, {{linear, kvc::LightningDesc()}, {named, kvc::LightningDesc()}, {full}});
  ASSERT_EQ(model.children().size(), 2u);
  EXPECT_EQ(model.owner(1).handle, model.children()[0].handle());
  model.bind_decay(0, 2, kvc::slopes(kvc::Slopes::alibi, heads).data());
  const std::vector<float> row = support::sines(width, 1);
  std::vector<float> out(width);
  kvc::Pass pass(model, {0}, {0});
  for (int32_t layer = 0; layer < 3; ++layer)
    model.put_attention(layer, {row, {1, heads, dim}}, {row, {1, heads, dim}},
                        {row, {1, heads, dim}}, {out, {1, heads, dim}});
  pass.commit();
  EXPECT_EQ(out, row);  // softmax over one token
  EXPECT_THROW(model.children()[1].bind_decay(0, 1, out.data()), kvc::Error);
}

TEST(CppLightning, WhatASoftmaxWouldNeedIsNotSupported) {
  const kvc::Device device("cpu");
  kvc::Cache cache(device, geometry(), kvc::LightningDesc()), keys(device, [] {
    kvc::CacheDesc desc = geometry();
    desc.capacity = 8;
    return desc;
  }());
  const std::vector<float> slopes = kvc::slopes(kvc::Slopes::alibi, heads);
  EXPECT_THROW(keys.bind_decay(0, 1, slopes.data()), kvc::NotSupported);
  EXPECT_THROW((void)keys.lightning_shape(0, 0, 1), kvc::NotSupported);
  cache.bind_decay(0, 1, slopes.data());
  const std::vector<float> row = support::sines(width, 1);
  std::vector<float> out(width), lse(heads);
  kvc::Pass pass(cache, {0}, {0});
  kvc::AttentionExtra extra;
  extra.lse = kvc::Tensor(lse, {1, heads});
  EXPECT_THROW(cache.put_attention(0, {row, {1, heads, dim}}, {row, {1, heads, dim}},
                                   {row, {1, heads, dim}}, {out, {1, heads, dim}}, extra),
               kvc::NotSupported);
  EXPECT_THROW((void)cache.get(0), kvc::NotSupported);
  kvc::CacheDesc grows = geometry();
  grows.capacity = 8;
  EXPECT_THROW(kvc::Cache(device, grows, kvc::LightningDesc()), kvc::InvalidArgument);
}

}  // namespace
