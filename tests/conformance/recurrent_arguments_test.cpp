// Recurrent caches: bad arguments of their calls, of their descriptor, and which calls they lack. Whatever is refused changes
// nothing; the order in which arguments are looked at is that of the manual.
#include <gtest/gtest.h>

#include <vector>

#include "support/bad_input.hpp"
#include "support/recurrent_rig.hpp"

namespace {

using support::BadInput;
using support::Put;
using Rig = support::RecurrentRig;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr kvc_status wrong_dims = KVC_E_INVALID_RECURRENT_SHAPE;
constexpr int32_t conv = KVC_PART_CONV, recurrent = KVC_PART_RECURRENT;

class RecurrentArguments : public testing::Test {
 protected:
  /// An open pass of two sequences, with three rows; the first holds a checkpoint at 2.
  void open() {
    rig_.recurrent.draft_states = 1;
    rig_.create();
    rig_.pass({{0, 1}, {0, 2}});
    ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK) << support::last_message();
    rig_.pass({{0, 3}, {1, 4}, {1, 5}});
  }
  kvc_tensor states(std::initializer_list<int64_t> shape) {
    return support::dense(numbers_, KVC_F32, shape);
  }

  support::Device device_{1};
  Rig rig_{device_};
  float numbers_[256] = {};
};

// ---- Layers, parts, lists -------------------------------------------------------------------------------------------------

TEST_F(RecurrentArguments, CallsOfAPassNeedOne) {
  rig_.create();
  BadInput bad(rig_.cache);
  int32_t n = 0;
  const auto expect = [&](const char* what, const std::function<kvc_status()>& call) {
    bad.expect(KVC_E_BAD_STATE, what, call);
  };
  expect("layout", [&] { return kvc_state_layout(rig_.cache, -1, nullptr, nullptr, nullptr); });
  expect("slots", [&] { return kvc_state_slots(rig_.cache, -1, nullptr, nullptr); });
  expect("get", [&] { return kvc_state_get(rig_.cache, -1, 9, nullptr); });
  expect("put", [&] { return kvc_state_put(rig_.cache, -1, 9, nullptr); });
  expect("conv", [&] { return kvc_state_conv(rig_.cache, -1, nullptr); });
  expect("view", [&] { return kvc_state_view(rig_.cache, -1, 9, -1, nullptr, nullptr); });
  expect("done", [&] { return kvc_state_done(rig_.cache, -1, 9); });
  EXPECT_EQ(kvc_checkpoint_list(rig_.cache, 0, 0, nullptr, &n), KVC_OK) << "works at any time";
}

TEST_F(RecurrentArguments, LayersAndParts) {
  open();
  BadInput bad(rig_.cache);
  kvc_tensor good = states({2, Rig::state_size}), one = states({Rig::state_size}), view{};
  const kvc_tensor x = states({3, Rig::channels});
  const auto each = [&](const std::string& what, int32_t layer, int32_t part) {
    bad.expect(invalid, what + ": get", [&] { return kvc_state_get(rig_.cache, layer, part, &good); });
    bad.expect(invalid, what + ": put", [&] { return kvc_state_put(rig_.cache, layer, part, &good); });
    bad.expect(invalid, what + ": view",
               [&] { return kvc_state_view(rig_.cache, layer, part, 0, nullptr, &view); });
    bad.expect(invalid, what + ": done", [&] { return kvc_state_done(rig_.cache, layer, part); });
    bad.expect(invalid, what + ": gather",
               [&] { return kvc_state_gather(rig_.cache, layer, part, 0, 2, &one); });
  };
  for (const int32_t layer : {INT32_MIN, -1, Rig::n_layers, INT32_MAX}) {
    each("layer " + std::to_string(layer), layer, recurrent);
    bad.expect(invalid, "conv", [&] { return kvc_state_conv(rig_.cache, layer, &x); });
  }
  for (const int32_t part : {INT32_MIN, -1, 0, 3, INT32_MAX})
    each("part " + std::to_string(part), 0, part);
  const int32_t layer = 0;
  bad.expect(invalid, "get, null", [&] { return kvc_state_get(rig_.cache, layer, conv, nullptr); });
  bad.expect(invalid, "put, null", [&] { return kvc_state_put(rig_.cache, layer, conv, nullptr); });
  bad.expect(invalid, "conv, null", [&] { return kvc_state_conv(rig_.cache, layer, nullptr); });
  bad.expect(invalid, "view, null",
             [&] { return kvc_state_view(rig_.cache, layer, conv, 0, nullptr, nullptr); });
  bad.expect(invalid, "gather, null",
             [&] { return kvc_state_gather(rig_.cache, layer, conv, 0, 2, nullptr); });
}

TEST_F(RecurrentArguments, APartThatTheCacheLacks) {
  rig_.recurrent.conv_dim = 0;
  rig_.create();
  Rig convolution(device_);
  convolution.recurrent.state_size = 0;
  convolution.create();
  for (const auto& [its_rig, its_part] : {std::pair{&rig_, conv}, std::pair{&convolution, recurrent}}) {
    const auto rig = its_rig;  // clang 14 captures no structured binding
    const auto part = its_part;
    rig->pass({{0, 1}});
    BadInput bad(rig->cache);
    kvc_tensor good = states({1, 4}), view{};
    bad.expect(invalid, "get", [&] { return kvc_state_get(rig->cache, 0, part, &good); });
    bad.expect(invalid, "put", [&] { return kvc_state_put(rig->cache, 0, part, &good); });
    bad.expect(invalid, "done", [&] { return kvc_state_done(rig->cache, 0, part); });
    bad.expect(invalid, "view",
               [&] { return kvc_state_view(rig->cache, 0, part, 0, nullptr, &view); });
    ASSERT_EQ(kvc_checkpoint_take(rig->cache, 0), KVC_OK) << "one part alone makes it fully put";
    rig->expect_state(0, 1, {1});
  }
  BadInput bad(rig_.cache);
  rig_.pass({{0, 2}});
  const kvc_tensor x = states({1, Rig::channels});
  bad.expect(invalid, "conv", [&] { return kvc_state_conv(rig_.cache, 0, &x); });
}

TEST_F(RecurrentArguments, Lists) {
  open();
  BadInput bad(rig_.cache);
  kvc_state_sequence sequences[2];
  int32_t numbers[8], n = 0;
  const kvc_cache* cache = rig_.cache;
  const auto list = [&](const std::string& what, int32_t capacity, bool null, bool counts) {
    int32_t* const count = counts ? &n : nullptr;
    bad.expect(invalid, what + ": layout", [&] {
      return kvc_state_layout(cache, capacity, null ? nullptr : sequences, count, nullptr);
    });
    bad.expect(invalid, what + ": slots",
               [&] { return kvc_state_slots(cache, capacity, null ? nullptr : numbers, count); });
    bad.expect(invalid, what + ": checkpoints", [&] {
      return kvc_checkpoint_list(cache, 0, capacity, null ? nullptr : numbers, count);
    });
  };
  for (const int32_t capacity : {INT32_MIN, -1}) list("capacity", capacity, false, true);
  list("no array", 1, true, true);
  list("no count", 1, false, false);

  // Fewer than there are: the count is that of all, and nothing is written behind the array.
  sequences[1].sequence = numbers[1] = -5;
  ASSERT_EQ(kvc_state_layout(cache, 1, sequences, &n, nullptr), KVC_OK);
  EXPECT_EQ(n, 2);
  EXPECT_EQ(sequences[1].sequence, -5);
  ASSERT_EQ(kvc_state_slots(cache, 1, numbers, &n), KVC_OK);
  EXPECT_EQ(n, 3);
  EXPECT_EQ(numbers[1], -5);
}

TEST_F(RecurrentArguments, Sequences) {
  open();
  BadInput bad(rig_.cache);
  kvc_tensor one = states({Rig::state_size});
  int32_t n = 0;
  for (const int32_t sequence : {INT32_MIN, -1, 4, INT32_MAX}) {
    bad.expect(invalid, "gather",
               [&] { return kvc_state_gather(rig_.cache, 0, recurrent, sequence, 0, &one); });
    bad.expect(invalid, "take", [&] { return kvc_checkpoint_take(rig_.cache, sequence); });
    bad.expect(invalid, "list",
               [&] { return kvc_checkpoint_list(rig_.cache, sequence, 0, nullptr, &n); });
  }
  for (const int32_t at : {INT32_MIN, -1}) {
    bad.expect(invalid, "gather",
               [&] { return kvc_state_gather(rig_.cache, 0, recurrent, 0, at, &one); });
  }
  kvc_tensor empty{};  // only to be described
  for (const int32_t at : {1, 4, INT32_MAX}) {
    for (kvc_tensor* into : {&one, &empty}) {
      bad.expect(KVC_E_NOT_FOUND, "gather",
                 [&] { return kvc_state_gather(rig_.cache, 0, recurrent, 0, at, into); });
    }
  }
  one.dtype = KVC_I32;
  bad.expect(KVC_E_DTYPE, "arguments come first",
             [&] { return kvc_state_gather(rig_.cache, 0, recurrent, 0, 1, &one); });
}

TEST_F(RecurrentArguments, CheckpointsThatAreOff) {
  rig_.recurrent.checkpoints = KVC_NONE;
  rig_.recurrent.checkpoint_interval = 1;
  rig_.create();
  rig_.pass({{0, 1}}, Put::nothing);
  BadInput bad(rig_.cache);
  const auto take = [&](int32_t sequence) { return kvc_checkpoint_take(rig_.cache, sequence); };
  bad.expect(invalid, "a sequence that there is not", [&] { return take(9); });
  bad.expect(KVC_E_BAD_STATE, "not fully put", [&] { return take(0); });
  rig_.put_all(Put::by_copy);
  bad.expect(KVC_E_NOT_SUPPORTED, "off", [&] { return take(0); });
  EXPECT_TRUE(rig_.checkpoints(0).empty());
  EXPECT_EQ(kvc_commit(rig_.cache), KVC_OK) << "the pass was still open";
}

// ---- Tensors --------------------------------------------------------------------------------------------------------------

TEST_F(RecurrentArguments, ShapesOfStates) {
  open();
  BadInput bad(rig_.cache);
  struct Case {
    std::vector<int64_t> shape;  // of a put of three rows
    kvc_status status;
  };
  const int64_t huge = int64_t{1} << 62;
  for (const Case& c :
       {Case{{}, KVC_E_SHAPE}, Case{{2, 6}, KVC_E_SHAPE}, Case{{4, 6}, KVC_E_SHAPE},
        Case{{-3, 6}, KVC_E_SHAPE}, Case{{6, 3}, KVC_E_SHAPE}, Case{{2}, KVC_E_SHAPE},
        Case{{3}, wrong_dims}, Case{{3, 5}, wrong_dims}, Case{{3, 7}, wrong_dims},
        Case{{3, 0}, wrong_dims}, Case{{3, -6}, wrong_dims}, Case{{3, -2, -3}, wrong_dims},
        Case{{3, 2, 2}, wrong_dims}, Case{{3, 6, 0}, wrong_dims}, Case{{3, huge, 4}, wrong_dims},
        Case{{3, 6, huge, 4}, wrong_dims}, Case{{3, 1, 2, 1, 3, 1, 1, 1}, KVC_OK},
        Case{{3, 6}, KVC_OK}, Case{{3, 3, 2}, KVC_OK}}) {
    kvc_tensor from = states({3, 6});
    from.ndim = static_cast<int32_t>(c.shape.size());
    for (size_t d = 0; d < c.shape.size(); ++d) {
      from.shape[d] = c.shape[d];
      from.strides[d] = 1;
    }
    const auto put = [&] { return kvc_state_put(rig_.cache, 0, recurrent, &from); };
    std::string what = "put of [";
    for (const int64_t extent : c.shape) what += std::to_string(extent) + " ";
    if (c.status == KVC_OK) {
      EXPECT_EQ(put(), KVC_OK) << what << ": " << support::last_message();
      continue;
    }
    bad.expect(c.status, what, put);
    from.dtype = KVC_I32;
    bad.expect(c.status, what + "before its type", put);
  }
  kvc_tensor into = states({1, 3, 3});
  bad.expect(wrong_dims, "gather",
             [&] { return kvc_state_gather(rig_.cache, 0, recurrent, 0, 2, &into); });
  into.ndim = 0;
  bad.expect(KVC_E_SHAPE, "gather of a scalar",
             [&] { return kvc_state_gather(rig_.cache, 0, recurrent, 0, 2, &into); });
}

/// What is wrong with a tensor of states, but for its shape.
TEST_F(RecurrentArguments, TensorsOfStates) {
  open();
  BadInput bad(rig_.cache);
  const auto each = [&](const kvc_tensor& good, support::Fault::Use use,
                        const std::function<kvc_status(kvc_tensor*)>& call) {
    for (const support::Fault& fault : support::faults(good, use)) {
      if (fault.what.rfind("ndim", 0) == 0 || fault.what.rfind("extent", 0) == 0) continue;
      kvc_tensor spoiled = good;
      fault.spoil(spoiled);
      bad.expect(fault.expected, fault.what, [&] { return call(&spoiled); });
    }
  };
  each(states({2, 2, 3}), support::Fault::written,
       [&](kvc_tensor* into) { return kvc_state_get(rig_.cache, 0, recurrent, into); });
  each(states({3, 2, 3}), support::Fault::read,
       [&](kvc_tensor* from) { return kvc_state_put(rig_.cache, 0, recurrent, from); });
  each(states({2, 3}), support::Fault::written,
       [&](kvc_tensor* into) { return kvc_state_gather(rig_.cache, 0, recurrent, 0, 2, into); });
  kvc_tensor null = states({3, 6});
  null.data = nullptr;
  bad.expect(invalid, "put of no data",
             [&] { return kvc_state_put(rig_.cache, 0, recurrent, &null); });
}

TEST_F(RecurrentArguments, InputsOfTheConvolution) {
  open();
  BadInput bad(rig_.cache);
  const kvc_tensor good = states({3, Rig::channels});
  for (const support::Fault& fault : support::faults(good, support::Fault::read)) {
    kvc_tensor spoiled = good;
    fault.spoil(spoiled);
    bad.expect(fault.expected, fault.what, [&] { return kvc_state_conv(rig_.cache, 0, &spoiled); });
  }
}

TEST_F(RecurrentArguments, DimsOfViews) {
  open();
  BadInput bad(rig_.cache);
  kvc_tensor view{};
  const auto call = [&](int32_t n, const int64_t* dims) {
    return kvc_state_view(rig_.cache, 0, recurrent, n, dims, &view);
  };
  const int64_t good[] = {3, 2, 1, 1, 1, 1, 1, 1}, short_by_one[] = {3, 1}, negative[] = {-3, -2};
  for (const int32_t n : {INT32_MIN, -1, 8, INT32_MAX})
    bad.expect(invalid, "n_dims", [&] { return call(n, good); });
  bad.expect(invalid, "no dims", [&] { return call(1, nullptr); });
  bad.expect(wrong_dims, "another product", [&] { return call(2, short_by_one); });
  bad.expect(wrong_dims, "one below 1", [&] { return call(2, negative); });
  ASSERT_EQ(call(7, good), KVC_OK) << support::last_message();
  EXPECT_EQ(view.ndim, 8);
  ASSERT_EQ(call(2, good), KVC_OK);
  EXPECT_EQ(view.ndim, 3);
  EXPECT_EQ(view.shape[1], 3);
  EXPECT_EQ(view.strides[1], 2);
  EXPECT_EQ(view.strides[2], 1);
  ASSERT_EQ(kvc_state_view(rig_.cache, 1, conv, 0, nullptr, &view), KVC_OK);
  EXPECT_EQ(view.ndim, 3);
  EXPECT_EQ(static_cast<uint64_t>(view.shape[0]), support::stats(rig_.cache).cells);
  EXPECT_EQ(view.shape[1], Rig::channels);
  EXPECT_EQ(view.shape[2], 3);
}

TEST_F(RecurrentArguments, WithoutDataATensorIsDescribed) {
  rig_.recurrent.dtype_conv = KVC_F16;
  rig_.recurrent.dtype_state = KVC_BF16;
  rig_.create();
  rig_.pass({{0, 1}, {1, 2}});
  kvc_tensor into{};
  const auto described = [&] {
    std::vector<int64_t> all = {into.ndim, into.dtype, into.device_type};
    for (int32_t d = 0; d < into.ndim; ++d) all.push_back(into.shape[d]);
    for (int32_t d = 0; d < into.ndim; ++d) all.push_back(into.strides[d]);
    return all;
  };
  using Described = std::vector<int64_t>;
  ASSERT_EQ(kvc_state_get(rig_.cache, 0, recurrent, &into), KVC_OK) << support::last_message();
  EXPECT_EQ(described(), (Described{2, KVC_BF16, KVC_CPU, 2, 6, 6, 1}));
  into = {};
  ASSERT_EQ(kvc_state_get(rig_.cache, 0, conv, &into), KVC_OK);
  EXPECT_EQ(described(), (Described{3, KVC_F16, KVC_CPU, 2, 3, 3, 9, 3, 1}));
  into = {};
  ASSERT_EQ(kvc_state_gather(rig_.cache, 0, conv, 0, 1, &into), KVC_OK);
  EXPECT_EQ(described(), (Described{2, KVC_F16, KVC_CPU, 3, 3, 3, 1}));
}

// ---- Kinds ----------------------------------------------------------------------------------------------------------------

TEST_F(RecurrentArguments, CallsThatTheKindLacksComeBeforeTheirArguments) {
  open();
  BadInput bad(rig_.cache);
  kvc_cache* cache = rig_.cache;
  const auto lacks = [&](const char* what, const std::function<kvc_status()>& call) {
    bad.expect(KVC_E_NOT_SUPPORTED, what, call);
  };
  lacks("put", [&] { return kvc_put(cache, -1, nullptr, nullptr); });
  lacks("attention", [&] { return kvc_attention(cache, -1, nullptr, nullptr, nullptr); });
  lacks("get", [&] { return kvc_get(cache, -1, nullptr, nullptr); });
  lacks("mask", [&] { return kvc_mask(cache, -1, nullptr); });
  lacks("history", [&] { return kvc_history(cache, -1, nullptr, nullptr); });
  lacks("gather", [&] { return kvc_gather(cache, -1, -1, nullptr, nullptr); });
  lacks("runs", [&] { return kvc_runs(cache, -1, -1, -1, nullptr, nullptr); });
  lacks("set_causal", [&] { return kvc_set_causal(cache, -1, nullptr); });
  lacks("bind_attention", [&] { return kvc_bind_attention(cache, 9, -1, nullptr, nullptr, nullptr); });
  lacks("bind_rope", [&] { return kvc_bind_rope(cache, 9, -1, nullptr, nullptr); });
  lacks("bind_shift", [&] { return kvc_bind_shift(cache, nullptr, nullptr); });

  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  const support::Cache causal(device_, desc);
  BadInput other(causal);
  const auto causal_lacks = [&](const char* what, const std::function<kvc_status()>& call) {
    other.expect(KVC_E_NOT_SUPPORTED, what, call);
  };
  causal_lacks("layout", [&] { return kvc_state_layout(causal, -1, nullptr, nullptr, nullptr); });
  causal_lacks("get", [&] { return kvc_state_get(causal, -1, 9, nullptr); });
  causal_lacks("put", [&] { return kvc_state_put(causal, -1, 9, nullptr); });
  causal_lacks("conv", [&] { return kvc_state_conv(causal, -1, nullptr); });
  causal_lacks("view", [&] { return kvc_state_view(causal, -1, 9, -1, nullptr, nullptr); });
  causal_lacks("slots", [&] { return kvc_state_slots(causal, -1, nullptr, nullptr); });
  causal_lacks("done", [&] { return kvc_state_done(causal, -1, 9); });
  causal_lacks("state_gather", [&] { return kvc_state_gather(causal, -1, 9, -1, -1, nullptr); });
  causal_lacks("take", [&] { return kvc_checkpoint_take(causal, -1); });
  causal_lacks("list", [&] { return kvc_checkpoint_list(causal, -1, -1, nullptr, nullptr); });
}

TEST_F(RecurrentArguments, TokenFlags) {
  rig_.create();
  BadInput bad(rig_.cache);
  const int32_t position = 0, sequence = 0;
  for (const uint32_t flags : {uint32_t{KVC_TOKEN_SEES_LATER}, uint32_t{KVC_TOKEN_ENCODER_INPUT},
                               uint32_t{KVC_TOKEN_MASKED}, KVC_TOKEN_TYPE(1), uint32_t{1} << 31}) {
    bad.expect(invalid, "flags",
               [&] { return kvc_begin(rig_.cache, 1, &position, &sequence, &flags, 0, nullptr); });
    bad.expect(invalid, "flags",
               [&] { return kvc_fits(rig_.cache, 1, &position, &sequence, &flags); });
  }
}

// ---- Descriptors ------------------------------------------------------------------------------------------------------------

class RecurrentDescriptors : public RecurrentArguments {
 protected:
  using Desc = kvc_cache_desc;
  using Kind = kvc_recurrent_desc;

  void expect(kvc_status status, const std::string& what,
              const std::function<void(Desc&, Kind&)>& spoil) {
    Desc desc = rig_.desc;
    Kind kind = rig_.recurrent;
    spoil(desc, kind);
    uint64_t bytes = 0;
    kvc_cache* cache = nullptr;
    bad_.expect(status, what + ": bytes",
                [&] { return kvc_cache_memory_bytes(device_, &desc, &kind, &bytes); });
    bad_.expect(status, what + ": create",
                [&] { return kvc_cache_create(device_, &desc, &kind, &cache); });
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }

  BadInput bad_{nullptr};
};

TEST_F(RecurrentDescriptors, FieldsOfKeysAndValuesMustBe0) {
  expect(invalid, "n_kv_heads", [](Desc& d, Kind&) { d.n_kv_heads = 1; });
  expect(invalid, "head_dim_k", [](Desc& d, Kind&) { d.head_dim_k = 1; });
  expect(invalid, "head_dim_v", [](Desc& d, Kind&) { d.head_dim_v = 1; });
  expect(invalid, "dtype_k", [](Desc& d, Kind&) { d.dtype_k = KVC_F32; });
  expect(invalid, "dtype_v", [](Desc& d, Kind&) { d.dtype_v = KVC_Q8_0; });
  expect(invalid, "capacity", [](Desc& d, Kind&) { d.capacity = 1; });
  expect(invalid, "cells", [](Desc& d, Kind&) { d.cells = -1; });
  expect(invalid, "max_q_heads", [](Desc& d, Kind&) { d.max_q_heads = 1; });
  expect(invalid, "block_k", [](Desc& d, Kind&) { d.block_k = 64; });
  expect(invalid, "block_v", [](Desc& d, Kind&) { d.block_v = 16; });
  expect(invalid, "v_first", [](Desc& d, Kind&) { d.v_first = 1; });
  for (const uint64_t flag :
       {KVC_CACHE_ROTATE_K, KVC_CACHE_ROTATE_V, KVC_CACHE_INTERLEAVED, KVC_CACHE_V_IN_K})
    expect(invalid, "a flag", [flag](Desc& d, Kind&) { d.flags = flag; });
}

TEST_F(RecurrentDescriptors, Bounds) {
  for (const int32_t n : {INT32_MIN, -1, 0, 65537})
    expect(invalid, "n_layers", [n](Desc& d, Kind&) { d.n_layers = n; });
  for (const int32_t n : {INT32_MIN, -1, 0, (1 << 30) + 1}) {
    expect(invalid, "max_sequences", [n](Desc& d, Kind&) { d.max_sequences = n; });
    expect(invalid, "max_batch", [n](Desc& d, Kind&) { d.max_batch = n; });
  }
  for (const int64_t n : {INT64_MIN, int64_t{-1}, (int64_t{1} << 40) + 1, INT64_MAX})
    expect(invalid, "state_size", [n](Desc&, Kind& k) { k.state_size = n; });
  for (const int32_t n : {INT32_MIN, -1, (1 << 24) + 1})
    expect(invalid, "conv_channels", [n](Desc&, Kind& k) { k.conv_channels = n; });
  for (const int32_t n : {INT32_MIN, -1, 65537}) {
    expect(invalid, "conv_dim", [n](Desc&, Kind& k) { k.conv_dim = n; });
    expect(invalid, "draft_states", [n](Desc&, Kind& k) { k.draft_states = n; });
  }
  for (const int32_t n : {INT32_MIN, -2}) {
    expect(invalid, "checkpoints", [n](Desc&, Kind& k) { k.checkpoints = n; });
    expect(invalid, "interval", [n](Desc&, Kind& k) { k.checkpoint_interval = n; });
    expect(invalid, "min_pos", [n](Desc&, Kind& k) { k.checkpoint_min_pos = n; });
  }
  expect(invalid, "reserved", [](Desc&, Kind& k) { k.reserved = 1; });
  for (const uint32_t flags : {4u, 1u << 31})
    expect(invalid, "flags", [flags](Desc&, Kind& k) { k.flags = flags; });
  for (const uint32_t dtype : {1u, uint32_t{KVC_I32}, uint32_t{KVC_Q8_0}, uint32_t{KVC_F8_E4M3}}) {
    expect(KVC_E_DTYPE, "dtype_state", [dtype](Desc&, Kind& k) { k.dtype_state = dtype; });
    expect(KVC_E_DTYPE, "dtype_conv", [dtype](Desc&, Kind& k) { k.dtype_conv = dtype; });
  }
}

TEST_F(RecurrentDescriptors, AStateHasAPart) {
  for (const auto& [channels, dim] : {std::pair{0, 0}, std::pair{3, 0}, std::pair{0, 3}}) {
    expect(invalid, "no part", [c = channels, d = dim](Desc&, Kind& k) {
      k.state_size = 0;
      k.conv_channels = c;
      k.conv_dim = d;
    });
  }
}

TEST_F(RecurrentDescriptors, TooLarge) {
  expect(KVC_E_OVERFLOW, "slots", [](Desc& d, Kind& k) {
    d.max_sequences = 1 << 20;
    k.checkpoints = 1 << 10;
  });
  expect(KVC_E_OVERFLOW, "bytes", [](Desc& d, Kind& k) {
    d.n_layers = 65536;
    d.max_sequences = 1 << 10;
    k.state_size = int64_t{1} << 40;
    k.conv_channels = 1 << 24;
    k.conv_dim = 65536;
  });
}

TEST_F(RecurrentDescriptors, TheKindsOwnDescriptorIsNeeded) {
  uint64_t bytes = 0;
  bad_.expect(invalid, "null",
              [&] { return kvc_cache_memory_bytes(device_, &rig_.desc, nullptr, &bytes); });
  const kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
  bad_.expect(invalid, "a causal one",
              [&] { return kvc_cache_memory_bytes(device_, &rig_.desc, &causal, &bytes); });
  for (const uint32_t size : {0u, 7u, 8u, 55u, 4097u}) {
    expect(invalid, "struct_size", [size](Desc&, Kind& k) { k.struct_size = size; });
  }
}

}  // namespace
