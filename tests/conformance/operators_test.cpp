// Operators by name: the registry, settings, and layers that attend with them. What a layer or a call needs and its operator lacks is
// refused by name, whichever was bound first, and nothing has changed.
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "kvc/encoder.h"
#include "kvc/lightning.h"
#include "kvc/operators.h"
#include "support/array.hpp"
#include "support/bad_input.hpp"

namespace {

using support::Array, support::expect, support::last_message;

/// A handle that ends with its scope.
class Operator {
 public:
  Operator(kvc_device* device, const char* name,
           const kvc_operator_desc& desc = KVC_OPERATOR_DESC_INIT) {
    status = kvc_operator_create(device, name, &desc, &handle);
  }
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;
  ~Operator() { kvc_operator_destroy(handle); }
  operator kvc_operator*() const { return handle; }

  kvc_operator* handle = nullptr;
  kvc_status status = KVC_OK;
};

TEST(Registry, ListsNamesWithTheirAliases) {
  const support::Device device(1);
  std::vector<std::string> names;
  std::set<std::string> canonical;
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  for (int32_t i = 0; kvc_operator_at(device, i, &info) == KVC_OK; ++i) {
    names.emplace_back(info.name);
    canonical.insert(info.canonical);
    kvc_operator_info found = KVC_OPERATOR_INFO_INIT;
    ASSERT_EQ(kvc_operator_find(device, info.name, &found), KVC_OK);
    EXPECT_STREQ(found.canonical, info.canonical);
    EXPECT_EQ(found.features, info.features);
    EXPECT_NE(info.modes, 0u);
    EXPECT_EQ(info.devices, 1u << KVC_CPU);
  }
  EXPECT_EQ(names.size(), std::set<std::string>(names.begin(), names.end()).size());
  const std::vector<std::string> first = {"flash",   "flash_attn2", "sdpa",
                                          "splash",  "blockwise",   "paged_attention",
                                          "vanilla", "decode",      "autoregressive_decodeattn",
                                          "ring",    "lightning"};
  ASSERT_GE(names.size(), first.size());
  EXPECT_TRUE(std::equal(first.begin(), first.end(), names.begin()));
  for (const char* op : {"flash", "vanilla", "decode", "ring"}) EXPECT_EQ(canonical.count(op), 1u);
  expect(KVC_E_NOT_FOUND, "past the last", kvc_operator_at(device, 1000, &info));
  expect(KVC_E_INVALID_ARGUMENT, "i -1", kvc_operator_at(device, -1, &info));
  expect(KVC_E_NOT_FOUND, "splash", kvc_operator_find(device, "nothing", &info));  // lists the names
  expect(KVC_E_INVALID_ARGUMENT, "name", kvc_operator_find(device, nullptr, &info));
  expect(KVC_E_INVALID_ARGUMENT, "kvc_operator_info", kvc_operator_find(device, "flash", nullptr));
  expect(KVC_E_HANDLE, "device", kvc_operator_find(nullptr, "flash", &info));
}

TEST(Registry, TellsWhatAnOperatorSupports) {
  const support::Device device(1);
  kvc_operator_needs needs = KVC_OPERATOR_NEEDS_INIT;
  needs.mode = KVC_MODE_PREFILL;
  char chosen[32] = {};
  expect(KVC_OK, "", kvc_operator_supports(device, nullptr, &needs, chosen));
  EXPECT_STREQ(chosen, "flash");
  needs.softmax_dtype = KVC_F64;
  expect(KVC_OK, "", kvc_operator_supports(device, nullptr, &needs, chosen));
  EXPECT_STREQ(chosen, "vanilla");
  expect(KVC_E_NOT_SUPPORTED, "softmax_dtype f64",
         kvc_operator_supports(device, "flash", &needs, nullptr));
  needs.softmax_dtype = 0;
  needs.features = KVC_FEATURE_DROPOUT;
  needs.mode = KVC_MODE_TRAIN;
  expect(KVC_E_NOT_SUPPORTED, "dropout", kvc_operator_supports(device, "ring", &needs, nullptr));
  expect(KVC_OK, "", kvc_operator_supports(device, "vanilla", &needs, nullptr));
  needs.features = KVC_FEATURE_GROUPED | KVC_FEATURE_DIMS_DIFFER | KVC_FEATURE_SINKS;
  needs.mode = KVC_MODE_PREFILL;
  needs.dtype_k = KVC_Q4_0;
  needs.dtype_v = KVC_NF4;
  needs.n_q_heads = 8;
  needs.n_kv_heads = 2;
  needs.head_dim_k = 96;
  needs.head_dim_v = 64;
  needs.runtime_dtype = KVC_BF16;
  expect(KVC_OK, "", kvc_operator_supports(device, "splash", &needs, chosen));
  EXPECT_STREQ(chosen, "flash");
  expect(KVC_E_NOT_SUPPORTED, "prefill", kvc_operator_supports(device, "decode", &needs, chosen));
  needs.runtime_dtype = KVC_F64;
  expect(KVC_E_NOT_SUPPORTED, "runtime_dtype f64",
         kvc_operator_supports(device, nullptr, &needs, chosen));

  const auto spoilt = [&](kvc_status status, const char* word, auto spoil) {
    kvc_operator_needs wrong = KVC_OPERATOR_NEEDS_INIT;
    wrong.mode = KVC_MODE_PREFILL;
    spoil(wrong);
    expect(status, word, kvc_operator_supports(device, "flash", &wrong, nullptr));
  };
  spoilt(KVC_E_INVALID_ARGUMENT, "mode", [](auto& n) { n.mode = 3; });
  spoilt(KVC_E_INVALID_ARGUMENT, "mode", [](auto& n) { n.mode = 0; });
  spoilt(KVC_E_INVALID_ARGUMENT, "mode", [](auto& n) { n.mode = 16; });
  spoilt(KVC_E_INVALID_ARGUMENT, "features", [](auto& n) { n.features = 1u << 22; });
  spoilt(KVC_E_DTYPE, "dtype_k", [](auto& n) { n.dtype_k = KVC_I32; });
  spoilt(KVC_E_DTYPE, "dtype_v", [](auto& n) { n.dtype_v = KVC_BOOL; });
  spoilt(KVC_E_DTYPE, "softmax_dtype", [](auto& n) { n.softmax_dtype = KVC_I8; });
  spoilt(KVC_E_INVALID_ARGUMENT, "n_q_heads", [](auto& n) { n.n_q_heads = -1; });
  spoilt(KVC_E_INVALID_ARGUMENT, "struct_size", [](auto& n) { n.struct_size = 8; });
}

TEST(Settings, AreRoundedResolvedAndShown) {
  const support::Device device(3);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.block_q = 17;
  desc.block_k = 1;
  desc.runtime_dtype = KVC_BF16;
  desc.softmax_scale = 0.5f;
  const Operator flash(device, "sdpa", desc);
  ASSERT_EQ(flash.status, KVC_OK) << last_message();
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  kvc_operator_desc used = KVC_OPERATOR_DESC_INIT;
  ASSERT_EQ(kvc_operator_query(flash, &info, &used), KVC_OK);
  EXPECT_STREQ(info.name, "sdpa");
  EXPECT_STREQ(info.canonical, "flash");
  EXPECT_EQ(used.block_q % info.block_q_multiple, 0);
  EXPECT_GE(used.block_q, 17);
  EXPECT_EQ(used.block_k, info.block_k_multiple);
  EXPECT_EQ(used.runtime_dtype, uint32_t{KVC_BF16});
  EXPECT_EQ(used.softmax_dtype, uint32_t{KVC_F32});
  EXPECT_EQ(used.softmax_scale, 0.5f);
  const Operator ring(device, "ring");
  ASSERT_EQ(kvc_operator_query(ring, nullptr, &used), KVC_OK);
  EXPECT_EQ(used.stretches, 3);

  kvc_operator_desc base = KVC_OPERATOR_DESC_INIT, own = KVC_OPERATOR_DESC_INIT;
  base.block_k = 384;
  base.dropout_prob = 0.5f;
  base.softmax_dtype = KVC_F64;
  own.dropout_prob = 0.25f;
  ASSERT_EQ(kvc_operator_resolve(&base, &own), KVC_OK);
  EXPECT_EQ(own.block_k, 384);
  EXPECT_EQ(own.dropout_prob, 0.25f);
  EXPECT_EQ(own.softmax_dtype, uint32_t{KVC_F64});
  EXPECT_EQ(own.runtime_dtype, uint32_t{KVC_F32});

  const auto refuse = [&](kvc_status status, const char* word, const char* name, auto spoil) {
    kvc_operator_desc wrong = KVC_OPERATOR_DESC_INIT;
    spoil(wrong);
    kvc_operator* op = flash;
    expect(status, word, kvc_operator_create(device, name, &wrong, &op));
    EXPECT_EQ(op, nullptr);
  };
  constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT, lacks = KVC_E_NOT_SUPPORTED;
  refuse(KVC_E_NOT_FOUND, "vanilla", "unknown", [](auto&) {});
  refuse(invalid, "flags", "ring", [](auto& d) { d.flags = 2; });
  refuse(invalid, "dropout_prob", "vanilla", [](auto& d) { d.dropout_prob = 1; });
  refuse(invalid, "dropout_prob", "vanilla", [](auto& d) { d.dropout_prob = NAN; });
  refuse(invalid, "softmax_scale", "flash", [](auto& d) { d.softmax_scale = INFINITY; });
  refuse(invalid, "block_q", "flash", [](auto& d) { d.block_q = -1; });
  refuse(invalid, "stretches", "ring", [](auto& d) { d.stretches = -1; });
  refuse(KVC_E_DTYPE, "runtime_dtype", "flash", [](auto& d) { d.runtime_dtype = KVC_I8; });
  refuse(lacks, "runtime_dtype f64", "vanilla", [](auto& d) { d.runtime_dtype = KVC_F64; });
  refuse(lacks, "softmax_dtype f64", "ring", [](auto& d) { d.softmax_dtype = KVC_F64; });
  refuse(lacks, "dropout", "flash", [](auto& d) { d.dropout_prob = 0.1f; });
  refuse(lacks, "block_q", "vanilla", [](auto& d) { d.block_q = 16; });
  refuse(lacks, "block_k", "ring", [](auto& d) { d.block_k = 16; });
  refuse(lacks, "block_b", "flash", [](auto& d) { d.block_b = 1; });
  refuse(lacks, "stretches", "decode", [](auto& d) { d.stretches = 2; });
  refuse(lacks, "stretches", "flash", [](auto& d) { d.flags = KVC_OPERATOR_NO_SCAN; });
  refuse(lacks, "at most", "flash", [](auto& d) { d.block_q = 1 << 20; });
  kvc_operator* op = nullptr;
  expect(invalid, "name", kvc_operator_create(device, nullptr, nullptr, &op));
  expect(invalid, "out", kvc_operator_create(device, "flash", nullptr, nullptr));
  expect(KVC_E_HANDLE, "device", kvc_operator_create(nullptr, "flash", nullptr, &op));
  EXPECT_EQ(kvc_operator_create(device, "flash", nullptr, &op), KVC_OK);  // null: defaults
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
  expect(KVC_E_HANDLE, "op", kvc_operator_destroy(op));
  expect(KVC_E_HANDLE, "op", kvc_operator_query(op, &info, nullptr));
  EXPECT_EQ(kvc_operator_destroy(nullptr), KVC_OK);
  expect(KVC_E_HANDLE, "operator", kvc_device_close(reinterpret_cast<kvc_device*>(flash.handle)));
  expect(KVC_E_HANDLE, "op is the handle of a device",
         kvc_operator_destroy(reinterpret_cast<kvc_operator*>(device.handle)));
}

/// A cache of two layers with a pass of n tokens, and what attends in it.
class Rig {
 public:
  explicit Rig(kvc_device* device, kvc_causal_desc causal = support::causal_desc())
      : cache(device, desc(), &causal) {
    EXPECT_EQ(cache.status, KVC_OK) << last_message();
  }
  static kvc_cache_desc desc() {
    kvc_cache_desc desc = support::cache_desc(2, 1, 8, 8);
    desc.max_q_heads = 2;
    return desc;
  }
  kvc_status bind(kvc_operator* op, uint32_t modes = KVC_MODE_ALL, int32_t begin = 0, int32_t end = 2) {
    return kvc_bind_operator(cache, begin, end, modes, op);
  }
  kvc_status bind_constants(float scale, const float* slopes = nullptr) {
    kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
    constants.n_q_heads = 2;
    constants.scale = scale;
    return kvc_bind_attention(cache, 0, 2, &constants, slopes, nullptr);
  }
  void open(int32_t n) {
    std::vector<int32_t> position, sequence(static_cast<size_t>(n), 0);
    const int32_t next = support::sequence_info(cache, 0).next;
    for (int32_t i = 0; i < n; ++i) position.push_back(next + i);
    ASSERT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
    support::Random random(static_cast<uint64_t>(next));
    Array k(KVC_F32, {n, 1, 8}), v(KVC_F32, {n, 1, 8});
    k.fill(random);
    v.fill(random);
    for (int32_t layer = 0; layer < 2; ++layer)
      ASSERT_EQ(kvc_put(cache, layer, k.tensor(), v.tensor()), KVC_OK);
    n_tokens = n;
  }
  kvc_status attend(uint32_t flags = 0, int32_t layer = 0, uint64_t dropout_seed = 0) {
    Array q(KVC_F32, {n_tokens, 2, 8});
    support::Random random(99);
    q.fill(random);
    Array to(KVC_F32, {n_tokens, 2, 8});
    kvc_attention_extra extra = KVC_ATTENTION_EXTRA_INIT;
    extra.flags = flags;
    extra.dropout_seed = dropout_seed;
    const kvc_status status = kvc_attention(cache, layer, q.tensor(), to.tensor(), &extra);
    out = to.floats();
    return status;
  }

  support::Cache cache;
  int32_t n_tokens = 0;
  std::vector<float> out;
};

TEST(Binding, ChecksItsArguments) {
  const support::Device device(1);
  const Operator flash(device, "flash"), decode(device, "decode");
  Rig rig(device);
  const support::Digest before = support::digest(rig.cache);
  expect(KVC_E_INVALID_ARGUMENT, "layer_begin", rig.bind(flash, KVC_MODE_ALL, 0, 3));
  expect(KVC_E_INVALID_ARGUMENT, "layer_begin", rig.bind(flash, KVC_MODE_ALL, 1, 0));
  expect(KVC_E_INVALID_ARGUMENT, "modes", rig.bind(flash, 0));
  expect(KVC_E_INVALID_ARGUMENT, "modes", rig.bind(flash, 16));
  expect(KVC_E_NOT_SUPPORTED, "prefill", rig.bind(decode, KVC_MODE_PREFILL | KVC_MODE_AUTOREGRESSIVE));
  expect(KVC_OK, "", rig.bind(decode, KVC_MODE_AUTOREGRESSIVE | KVC_MODE_INSERT));
  expect(KVC_E_HANDLE, "op", rig.bind(reinterpret_cast<kvc_operator*>(uintptr_t{12345})));
  expect(KVC_E_HANDLE, "cache", kvc_bind_operator(nullptr, 0, 1, KVC_MODE_ALL, flash));
  rig.open(2);
  expect(KVC_E_BAD_STATE, "pass is open", rig.bind(flash));
  expect(KVC_E_BAD_STATE, "pass is open", rig.bind(nullptr));
  expect(KVC_E_INVALID_ARGUMENT, "layer_begin", rig.bind(flash, KVC_MODE_ALL, 0, 3));
  EXPECT_EQ(kvc_abort(rig.cache), KVC_OK);
  expect(KVC_OK, "", rig.bind(nullptr));
  EXPECT_EQ(support::digest(rig.cache), before);
}

/// A device that is opened twice is one device: only its settings are those of the opening.
TEST(Binding, TakesOperatorsOfAnotherOpeningOfTheDevice) {
  const support::Device device(1);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.stretches = 3;
  const Operator own(device, "ring", desc);
  Rig with_own(device), with_other(device);
  {
    const support::Device other(3);
    const Operator ring(other, "ring");
    expect(KVC_OK, "", with_other.bind(ring));
  }
  expect(KVC_OK, "", with_own.bind(own));
  with_own.open(4);
  with_other.open(4);
  ASSERT_EQ(with_own.attend(), KVC_OK);
  ASSERT_EQ(with_other.attend(), KVC_OK) << last_message();
  EXPECT_EQ(with_other.out, with_own.out);
}

TEST(Binding, KeepsTheScaleOfALayer) {
  const support::Device device(1);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.softmax_scale = 0.5f;
  const Operator scaled(device, "flash", desc);
  Rig rig(device), plain(device);
  expect(KVC_OK, "", rig.bind(scaled));  // layers without a scale of their own
  rig.open(3);
  ASSERT_EQ(rig.attend(), KVC_OK);
  const std::vector<float> by_operator = rig.out;
  EXPECT_EQ(kvc_abort(rig.cache), KVC_OK);
  expect(KVC_E_INVALID_ARGUMENT, "softmax_scale", rig.bind_constants(0.25f));
  expect(KVC_E_INVALID_ARGUMENT, "softmax_scale", rig.bind_constants(0));
  expect(KVC_OK, "", rig.bind_constants(0.5f));
  expect(KVC_OK, "", plain.bind_constants(0.25f));
  expect(KVC_E_INVALID_ARGUMENT, "softmax_scale", plain.bind(scaled));
  expect(KVC_OK, "", plain.bind_constants(0.5f));
  expect(KVC_OK, "", plain.bind(scaled));
  plain.open(3);
  ASSERT_EQ(plain.attend(), KVC_OK);
  EXPECT_EQ(plain.out, by_operator);
}

TEST(Binding, ChoosesByMode) {
  const support::Device device(1);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.dropout_prob = 0.5f;
  const Operator dropping(device, "vanilla", desc), decode(device, "decode");
  {
    Rig rig(device);
    rig.open(3);
    expect(KVC_E_NOT_SUPPORTED, "KVC_EXTRA_DROPOUT needs an operator",
           rig.attend(KVC_EXTRA_DROPOUT, 0, 7));
    EXPECT_EQ(kvc_abort(rig.cache), KVC_OK);
    ASSERT_EQ(rig.bind(dropping, KVC_MODE_PREFILL | KVC_MODE_AUTOREGRESSIVE), KVC_OK);
    rig.open(3);
    expect(KVC_E_NOT_SUPPORTED, "KVC_MODE_TRAIN", rig.attend(KVC_EXTRA_DROPOUT, 0, 7));
  }
  Rig rig(device);
  ASSERT_EQ(rig.bind(dropping, KVC_MODE_TRAIN, 0, 1), KVC_OK);
  ASSERT_EQ(rig.bind(decode, KVC_MODE_AUTOREGRESSIVE), KVC_OK);
  rig.open(3);
  ASSERT_EQ(rig.attend(), KVC_OK);
  const std::vector<float> whole = rig.out;
  ASSERT_EQ(rig.attend(KVC_EXTRA_DROPOUT, 0, 7), KVC_OK) << last_message();
  const std::vector<float> dropped = rig.out;
  EXPECT_NE(dropped, whole);
  ASSERT_EQ(rig.attend(KVC_EXTRA_DROPOUT, 0, 7), KVC_OK);
  EXPECT_EQ(rig.out, dropped);
  ASSERT_EQ(rig.attend(KVC_EXTRA_DROPOUT, 0, 8), KVC_OK);
  EXPECT_NE(rig.out, dropped);
  expect(KVC_E_NOT_SUPPORTED, "layer 1", rig.attend(KVC_EXTRA_DROPOUT, 1, 7));
  ASSERT_EQ(kvc_commit(rig.cache), KVC_OK);
  rig.open(1);
  EXPECT_EQ(rig.attend(), KVC_OK) << last_message();
}

/// Same bits with any operator that computes with the same tiles.
TEST(Binding, AnOperatorByNameHasTheBitsOfTheChosenOne) {
  const support::Device device(2);
  const Operator flash(device, "paged_attention");
  Rig chosen(device), named(device);
  ASSERT_EQ(named.bind(flash), KVC_OK);
  for (const int32_t n : {5, 1, 9}) {
    for (Rig* rig : {&chosen, &named}) {
      rig->open(n);
      ASSERT_EQ(rig->attend(), KVC_OK);
      ASSERT_EQ(kvc_commit(rig->cache), KVC_OK);
    }
    EXPECT_EQ(chosen.out, named.out);
  }
}

/// Handles end in any order; what is bound stays.
TEST(Binding, OutlivesHandles) {
  auto device = std::make_unique<support::Device>(2);
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(*device, "ring", nullptr, &op), KVC_OK);
  Rig rig(*device);
  ASSERT_EQ(rig.bind(op), KVC_OK);
  device.reset();
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  EXPECT_EQ(kvc_operator_query(op, nullptr, &desc), KVC_OK);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
  rig.open(4);
  EXPECT_EQ(rig.attend(), KVC_OK) << last_message();
}

/// In an encoder cache a key's position is its place in the input, and a query's that of its token: two sequences that share an input
/// drop different weights of it.
TEST(Binding, DropsInEncoderCaches) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 8, 8);
  desc.kind = KVC_ENCODER;
  desc.max_sequences = 2;
  desc.max_q_heads = 3;
  kvc_cache* cache = nullptr;
  kvc_encoder_desc kind = KVC_ENCODER_DESC_INIT;
  ASSERT_EQ(kvc_cache_create(device, &desc, &kind, &cache), KVC_OK) << last_message();
  kvc_operator_desc half = KVC_OPERATOR_DESC_INIT;
  half.dropout_prob = 0.5f;
  const Operator vanilla(device, "vanilla", half);
  ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_TRAIN, vanilla), KVC_OK) << last_message();
  const int32_t position[] = {5, 9, 10}, sequence[] = {0, 1, 1}, length = 20;
  const uint32_t flags[] = {KVC_TOKEN_ENCODER_INPUT, KVC_TOKEN_ENCODER_INPUT, 0};
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, flags, 0, nullptr), KVC_OK) << last_message();
  support::Random random(4);
  Array k(KVC_F32, {length, 1, 8}), q(KVC_F32, {3, 3, 8}), out(KVC_F32, {3, 3, 8});
  k.fill(random);
  q.fill(random);
  ASSERT_EQ(kvc_encoder_share(cache, 1, 0), KVC_OK) << last_message();
  ASSERT_EQ(kvc_encoder_put(cache, 0, 0, k.tensor(), k.tensor()), KVC_OK) << last_message();
  int32_t first = 0, columns = 0;
  ASSERT_EQ(kvc_history(cache, 0, &first, &columns), KVC_OK);
  ASSERT_EQ(columns, length);
  Array weights(KVC_F32, {3, 3, columns});
  kvc_attention_extra extra = support::extra(nullptr, nullptr, weights.tensor());
  extra.flags = KVC_EXTRA_DROPOUT;
  extra.dropout_seed = 99;
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), &extra), KVC_OK) << last_message();
  std::vector<int32_t> keys;
  for (int32_t j = 0; j < length; ++j) keys.push_back(j);
  for (int32_t token = 0; token < 3; ++token) {
    Array mask(KVC_BOOL, {3, 1, length});
    ASSERT_EQ(kvc_dropout_mask(99, 0.5f, 0, sequence[token], 1, position + token, length,
                               keys.data(), mask.tensor()),
              KVC_OK);
    for (int32_t head = 0; head < 3; ++head)
      for (int32_t j = 0; j < length; ++j)
        EXPECT_EQ(weights.get((head * 3 + token) * length + j) != 0, mask.get(head * length + j) != 0);
  }
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

/// Caches of states have an operator of their own, whose name is all that there is to bind.
TEST(Binding, KnowsLightningCaches) {
  const support::Device device(1);
  const Operator lightning(device, "lightning"), flash(device, "flash");
  ASSERT_EQ(lightning.status, KVC_OK) << last_message();
  Rig rig(device);
  expect(KVC_E_NOT_SUPPORTED, "lightning caches", rig.bind(lightning));
  kvc_operator_needs needs = KVC_OPERATOR_NEEDS_INIT;
  needs.mode = KVC_MODE_PREFILL;
  expect(KVC_E_NOT_SUPPORTED, "lightning caches",
         kvc_operator_supports(device, "lightning", &needs, nullptr));
  needs.features = KVC_FEATURE_LIGHTNING;
  char chosen[32] = {};
  expect(KVC_OK, "", kvc_operator_supports(device, nullptr, &needs, chosen));
  EXPECT_STREQ(chosen, "lightning");
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.softmax_scale = 1;
  EXPECT_EQ(Operator(device, "lightning", desc).status, KVC_E_NOT_SUPPORTED);

  kvc_cache_desc states = support::cache_desc(2, 1, 8, 8);
  states.kind = KVC_LIGHTNING;
  states.capacity = 0;
  kvc_lightning_desc kind = KVC_LIGHTNING_DESC_INIT;
  kvc_cache* cache = nullptr;
  ASSERT_EQ(kvc_cache_create(device, &states, &kind, &cache), KVC_OK) << last_message();
  expect(KVC_OK, "", kvc_bind_operator(cache, 0, 2, KVC_MODE_ALL, lightning));
  expect(KVC_E_NOT_SUPPORTED, "flash has no lightning",
         kvc_bind_operator(cache, 0, 2, KVC_MODE_ALL, flash));
  expect(KVC_OK, "", kvc_bind_operator(cache, 0, 2, KVC_MODE_ALL, nullptr));
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
}

}  // namespace
