// The kinds of caches in kvc.hpp, and hybrid.hpp: a pass of each, what each call returns, and one cache from a description of
// layers.
#include <gtest/gtest.h>

#include <kvc/hybrid.hpp>
#include <vector>

#include "support/host_view.hpp"

namespace {

constexpr int32_t heads = 2, dim = 4, width = heads * dim;

kvc::CacheDesc keys(int32_t n_layers = 0) {
  kvc::CacheDesc desc;
  desc.n_layers = n_layers, desc.n_kv_heads = heads, desc.head_dim_k = dim;
  desc.max_sequences = 3, desc.capacity = 16, desc.max_batch = 8;
  return desc;
}

kvc::CacheDesc states(int32_t n_layers = 0) {
  kvc::CacheDesc desc;
  desc.n_layers = n_layers, desc.max_sequences = 3, desc.max_batch = 8;
  return desc;
}

kvc::RecurrentDesc recurrent() {
  kvc::RecurrentDesc desc;
  desc.state_size = 6, desc.conv_channels = 2, desc.conv_dim = 3, desc.draft_states = 1;
  desc.checkpoint_interval = KVC_NONE;
  return desc;
}

TEST(CppKinds, AnEncoderCache) {
  const kvc::Device device("cpu");
  kvc::EncoderDesc inputs;
  inputs.inputs = 4;
  kvc::Cache cache(device, keys(1), inputs);
  EXPECT_EQ(kvc::Cache::memory_bytes(device, keys(1), inputs), cache.stats().bytes);
  std::vector<float> k(5 * width, 1.0f), v(5 * width, 2.0f), q(2 * width, 1.0f), out(q.size());
  {
    const std::vector<uint32_t> flags(2, KVC_TOKEN_ENCODER_INPUT);
    kvc::Pass pass(cache, {0, 0}, {0, 1}, flags);
    cache.encoder_share(1, 0);
    cache.encoder_put(0, 0, {k, {5, heads, dim}}, {v, {5, heads, dim}});
    cache.attention(0, {q, {2, heads, dim}}, {out, {2, heads, dim}});
    pass.commit();
  }
  EXPECT_EQ(out, std::vector<float>(out.size(), 2.0f));
  EXPECT_EQ(cache.encoder_query(1).length, 5);
  EXPECT_EQ(cache.encoder_query(1).position, 0);
  EXPECT_EQ(cache.encoder_query(2).position, KVC_NONE);
  {
    const std::vector<uint32_t> flags(1, KVC_TOKEN_ENCODER_INPUT);
    kvc::Pass pass(cache, {1}, {0}, flags);
    EXPECT_THROW(cache.encoder_share(0, 2), kvc::NotFound);
  }
}

TEST(CppKinds, ARecurrentCache) {
  const kvc::Device device("cpu");
  kvc::Cache cache(device, states(2), recurrent());
  EXPECT_EQ(kvc::Cache::memory_bytes(device, states(2), recurrent()), cache.stats().bytes);
  {
    kvc::Pass pass(cache, {0, 0, 1, 9}, {1, 0, 1, kvc::padding});
    const kvc::StateLayout layout = cache.state_layout();
    ASSERT_EQ(layout.sequences.size(), 2u);
    EXPECT_EQ(layout.sequences[0].sequence, 1);
    EXPECT_EQ(layout.order, (std::vector<int32_t>{0, 2, 1, 3}));
    EXPECT_EQ(cache.state_shape(0, kvc::Part::conv).shape[1], 2);
    std::vector<float> before(2 * 6, 7.0f), after(3 * 6, 3.0f), x(4 * 2, 5.0f);
    for (int32_t layer = 0; layer < 2; ++layer) {
      cache.state_get(layer, kvc::Part::recurrent, {before, {2, 2, 3}});
      EXPECT_EQ(before, std::vector<float>(before.size(), 0.0f));
      EXPECT_THROW(cache.state_get(layer, kvc::Part::recurrent, {before, {2, 5}}),
                   kvc::StateShapeError);
      cache.state_conv(layer, {x, {4, 2}});
      if (layer == 0) {
        cache.state_put(layer, kvc::Part::recurrent, {after, {3, 6}});
        continue;
      }
      const kvc_tensor slots = support::on_host(cache.state_view(layer, kvc::Part::recurrent, {3, 2}));
      EXPECT_EQ(slots.ndim, 3);
      std::vector<int64_t> no_dims(1);
      no_dims.clear();  // its data() is no null pointer
      EXPECT_EQ(cache.state_view(layer, kvc::Part::recurrent, no_dims).ndim, 2);
      for (const int32_t slot : cache.state_slots()) {
        float* row = static_cast<float*>(slots.data) + slot * slots.strides[0];
        std::fill_n(row, 6, 3.0f);
      }
      cache.state_done(layer, kvc::Part::recurrent);
    }
    pass.commit_prefix({1}, {1});
  }
  cache.checkpoint_take(1);
  EXPECT_EQ(cache.checkpoint_list(1), std::vector<int32_t>{1});
  std::vector<float> state(6), inputs(6);
  for (int32_t layer = 0; layer < 2; ++layer) {
    cache.state_gather(layer, kvc::Part::recurrent, 1, 1, {state, {6}});
    cache.state_gather(layer, kvc::Part::conv, 1, 1, {inputs, {2, 3}});
    EXPECT_EQ(state, std::vector<float>(6, 3.0f));
    EXPECT_EQ(inputs, (std::vector<float>{0, 0, 5, 0, 0, 5}));
  }
  EXPECT_THROW(cache.state_gather(0, kvc::Part::conv, 1, 2, {inputs, {6}}), kvc::NotFound);
}

TEST(CppKinds, SeveralCachesInOne) {
  const kvc::Device device("cpu");
  kvc::CausalDesc window;
  window.reach = 4;
  kvc::Cache full(device, keys(1)), windows(device, keys(2), window);
  EXPECT_THROW(kvc::Cache::wrap({}, {}), kvc::InvalidArgument);
  EXPECT_THROW(kvc::Cache::wrap({&full}, {{1, 0}}), kvc::InvalidArgument);
  kvc::Cache model = kvc::Cache::wrap({&windows, &full}, {{0, 0}, {1, 0}, {0, 1}});
  EXPECT_EQ(model.owner(2).handle, windows.handle());
  EXPECT_EQ(model.owner(2).layer, 1);
  EXPECT_THROW(full.begin({0}, {0}), kvc::BadState);
  full.close();
  EXPECT_THROW(model.owner(1), kvc::InvalidHandle);
  const std::vector<float> row(width, 1.0f);
  kvc::Pass pass(model, {0}, {0});
  for (int32_t layer = 0; layer < 3; ++layer)
    model.put(layer, {row, {1, heads, dim}}, {row, {1, heads, dim}});
  pass.commit();
  EXPECT_EQ(model.sequence(0).next, 1);
}

TEST(CppKinds, OneCacheFromADescriptionOfLayers) {
  const kvc::Device device("cpu");
  kvc::CausalDesc window;
  window.reach = 4;
  const kvc::Layer full{keys()}, sliding{keys(), window}, cross{keys(), kvc::EncoderDesc()},
      delta{states(), recurrent()};
  const std::vector<kvc::Layer> layers = {sliding, full, delta, sliding, cross, full, delta};
  EXPECT_TRUE(full == kvc::Layer{keys()} && full != sliding && full != cross);
  kvc::Hybrid model(device, layers);
  EXPECT_EQ(kvc::Hybrid::memory_bytes(device, layers), model.stats().bytes);
  ASSERT_EQ(model.children().size(), 4u);
  const int32_t child[] = {0, 1, 2, 0, 3, 1, 2}, its_layer[] = {0, 0, 0, 1, 0, 1, 1};
  for (int32_t i = 0; i < 7; ++i) {
    EXPECT_EQ(model.owner(i).handle, model.children()[static_cast<size_t>(child[i])].handle()) << i;
    EXPECT_EQ(model.owner(i).layer, its_layer[i]) << i;
  }
  kvc::Hybrid moved = std::move(model);
  kvc::Pass pass(moved, {0}, {0});
  EXPECT_EQ(moved.children()[2].state_slots().size(), 1u);
}

TEST(CppKinds, ADefaultEqualsWhatItStandsFor) {
  const kvc::Device device("cpu");
  kvc::CacheDesc named = keys(), latent = keys(), other = keys();
  named.dtype_k = named.dtype_v = KVC_F32, named.head_dim_v = dim;
  latent.flags = KVC_CACHE_V_IN_K;
  other.dtype_k = KVC_F16;
  kvc::RecurrentDesc states_named = recurrent();
  states_named.dtype_state = states_named.dtype_conv = KVC_F32;
  kvc::CausalDesc f32_masks;
  f32_masks.mask_dtype = KVC_F32;
  kvc::EncoderDesc f32_masks_of_inputs;
  f32_masks_of_inputs.mask_dtype = KVC_F32;
  const kvc::Hybrid model(device, {{keys()},
                                   {named, f32_masks},
                                   {latent},
                                   {other},
                                   {states(), recurrent()},
                                   {states(), states_named},
                                   {keys(), kvc::EncoderDesc()},
                                   {keys(), f32_masks_of_inputs}});
  const int32_t child[] = {0, 0, 1, 2, 3, 3, 4, 4};
  ASSERT_EQ(model.children().size(), 5u);
  for (int32_t i = 0; i < 8; ++i)
    EXPECT_EQ(model.owner(i).handle, model.children()[static_cast<size_t>(child[i])].handle()) << i;
}

TEST(CppKinds, NoDescriptorOfAKindIsACausalCache) {
  const kvc::Device device("cpu");
  const kvc::Cache cache(device, keys(1), {});
  EXPECT_EQ(kvc::Cache::memory_bytes(device, keys(1), {}), cache.stats().bytes);
  EXPECT_THROW(kvc::Cache(device, states(1), kvc::RecurrentDesc()), kvc::InvalidArgument);
}

TEST(CppKinds, ADescriptionThatMakesNoCacheNamesTheLayer) {
  const kvc::Device device("cpu");
  const auto refused = [&](const std::vector<kvc::Layer>& layers) -> std::string {
    try {
      kvc::Hybrid(device, layers);
    } catch (const kvc::InvalidArgument& error) {
      EXPECT_THROW(kvc::Hybrid::memory_bytes(device, layers), kvc::InvalidArgument);
      return error.message();
    }
    return "taken";
  };
  const kvc::Layer full{keys()}, no_heads{states()};
  EXPECT_EQ(refused({}), "there are no layers: give one for each of the model");
  EXPECT_EQ(refused({full, no_heads, full, no_heads}).rfind("layer 1: n_kv_heads", 0), 0u);
  EXPECT_EQ(refused({full, {keys(3)}}), "layer 1 has n_layers 3, not 0: layers are counted");
  std::vector<kvc::Layer> windows;
  for (int32_t reach = 1; reach <= KVC_MAX_CHILDREN + 1; ++reach) {
    kvc::CausalDesc causal;
    causal.reach = reach;
    windows.push_back({keys(), causal});
  }
  EXPECT_EQ(refused(windows),
            "the layers need 17 caches, one for each that differs from those before it; at most 16 "
            "move as one");
  windows.pop_back();
  EXPECT_EQ(kvc::Hybrid(device, windows).children().size(), 16u);
}

TEST(CppKinds, ClosingAHybridClosesTheCachesInside) {
  kvc::Hybrid model(kvc::Device("cpu"), {{keys()}, {states(), recurrent()}});
  model.close();
  EXPECT_THROW((void)model.stats(), kvc::InvalidHandle);
  for (const kvc::Cache& child : model.children())
    EXPECT_THROW((void)child.stats(), kvc::InvalidHandle);
  model.close();
}

}  // namespace
