// Caches of storage types called wrongly: descriptors, tensors of codes and scales, calls at the wrong time. Each has its status and a
// message that says what fits, and changes nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "kvc/recurrent.h"
#include "support/array.hpp"
#include "support/bad_input.hpp"

namespace {

using support::Array;
using support::BadInput;
using support::expect_faults;
using support::expect_words;
using support::Fault;
using support::faults;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr int32_t least = INT32_MIN, most = INT32_MAX;

// ---- Creating -------------------------------------------------------------------------------------

struct WrongCache {
  const char* what;
  std::function<void(kvc_cache_desc&)> set;
  std::vector<std::string> words;
  kvc_status expected = invalid;
  uint32_t kind = KVC_CAUSAL;
};

std::vector<WrongCache> wrong_caches() {
  const auto with = [](uint32_t k, int32_t dk, uint32_t v, int32_t dv, uint64_t flags = 0) {
    return [=](kvc_cache_desc& desc) {
      desc.dtype_k = k;
      desc.head_dim_k = dk;
      desc.dtype_v = v;
      desc.head_dim_v = dv;
      desc.flags |= flags;
    };
  };
  const auto blocks = [](uint32_t dtype, int32_t k, int32_t v) {
    return [=](kvc_cache_desc& desc) {
      desc.dtype_k = desc.dtype_v = dtype;
      desc.block_k = k;
      desc.block_v = v;
    };
  };
  const auto v_in_k = [](uint32_t dtype, int32_t dk, int32_t first, int32_t dv, uint64_t flags = 0) {
    return [=](kvc_cache_desc& desc) {
      desc.dtype_k = dtype;
      desc.dtype_v = 0;
      desc.head_dim_k = dk;
      desc.head_dim_v = dv;
      desc.v_first = first;
      desc.flags |= KVC_CACHE_V_IN_K | flags;
    };
  };
  std::vector<WrongCache> list = {
      {"q8_0 of 48", with(KVC_Q8_0, 48, KVC_F16, 64), {"dtype_k", "48", "32", "int8"}},
      {"q4_0 of 16", with(KVC_F16, 64, KVC_Q4_0, 16), {"dtype_v", "16", "32", "int8"}},
      {"nf4 of 40", with(KVC_NF4, 40, KVC_F16, 64), {"dtype_k", "40", "16", "int8"}},
      {"blocks of 7", blocks(KVC_NF4, 7, 0), {"block 7", "dtype_k", "16, 32, 64 or 128"}},
      {"blocks of 256", blocks(KVC_NF4, 0, 256), {"block 256", "dtype_v", "128"}},
      {"negative blocks", blocks(KVC_NF4, -16, 0), {"block -16", "dtype_k"}},
      {"blocks beyond the head", blocks(KVC_NF4, 128, 0), {"dtype_k", "128", "64"}},
      {"blocks of q8_0", blocks(KVC_Q8_0, 32, 0), {"block 32", "dtype_k", "q8_0", "nf4"}},
      {"blocks of int8", blocks(KVC_INT8, 0, 64), {"block 64", "dtype_v", "int8", "nf4"}},
      {"blocks of f16", blocks(KVC_F16, 16, 0), {"block 16", "dtype_k", "nf4"}},
      {"rotated f8",
       with(KVC_F8_E4M3, 64, KVC_F16, 64, KVC_CACHE_ROTATE_K),
       {"dtype_k", "f8_e4m3", "int8"}},
      {"rotated f16",
       with(KVC_INT8, 64, KVC_F16, 64, KVC_CACHE_ROTATE_V),
       {"dtype_v", "f16", "int8"}},
      {"rotated odd heads",
       with(KVC_INT8, 63, KVC_F16, 64, KVC_CACHE_ROTATE_K),
       {"dtype_k", "63", "odd"}},
      {"interleaved codes",
       with(KVC_INT8, 64, KVC_INT8, 64, KVC_CACHE_INTERLEAVED),
       {"int8", "f16"}},
      {"interleaved types that differ",
       with(KVC_F16, 64, KVC_BF16, 64, KVC_CACHE_INTERLEAVED),
       {"f16", "bf16"}},
      {"v_first alone",
       [](kvc_cache_desc& desc) { desc.v_first = 8; },
       {"v_first", "8", "KVC_CACHE_V_IN_K"}},
      {"dtype_v with V in K",
       [=](kvc_cache_desc& desc) { v_in_k(KVC_F16, 64, 0, 32)(desc), desc.dtype_v = KVC_F16; },
       {"dtype_v"}},
      {"block_v with V in K",
       [=](kvc_cache_desc& desc) { v_in_k(KVC_NF4, 64, 0, 64)(desc), desc.block_v = 16; },
       {"block_v"}},
      {"V beyond K", v_in_k(KVC_F16, 64, 40, 32), {"v_first", "40 to 71", "64"}},
      {"V before K", v_in_k(KVC_F16, 64, -1, 32), {"v_first", "-1"}},
      {"V at the largest", v_in_k(KVC_F16, 64, most, 32), {"v_first"}},
      {"V that begins in a block", v_in_k(KVC_Q8_0, 96, 16, 64), {"v_first", "16", "32"}},
      {"V that ends in a block", v_in_k(KVC_Q4_0, 96, 0, 48), {"0 to 47", "32"}},
      {"V that cuts nf4's block", v_in_k(KVC_NF4, 128, 32, 64), {"32", "64"}},
      {"V that cuts a rotation", v_in_k(KVC_INT8, 96, 16, 64, KVC_CACHE_ROTATE_K), {"16", "32"}},
      {"V in K interleaved",
       v_in_k(KVC_F16, 64, 0, 32, KVC_CACHE_INTERLEAVED),
       {"KVC_CACHE_V_IN_K", "INTERLEAVED"}},
      {"V in K rotated by itself",
       v_in_k(KVC_INT8, 64, 0, 64, KVC_CACHE_ROTATE_V),
       {"KVC_CACHE_V_IN_K", "ROTATE_V"}},
      {"an interleaved encoder",
       with(KVC_F16, 64, KVC_F16, 64, KVC_CACHE_INTERLEAVED),
       {},
       KVC_E_NOT_SUPPORTED,
       KVC_ENCODER},
      {"an encoder with V in K", v_in_k(KVC_F16, 64, 0, 32), {}, KVC_E_NOT_SUPPORTED, KVC_ENCODER},
      {"a recurrent cache with blocks",
       [](kvc_cache_desc& desc) { desc.block_k = 16; },
       {"block_k"},
       invalid,
       KVC_RECURRENT},
      {"a recurrent cache with v_first",
       [](kvc_cache_desc& desc) { desc.v_first = 1; },
       {"v_first"},
       invalid,
       KVC_RECURRENT},
  };
  for (const uint32_t dtype : {KVC_I8, KVC_U8, KVC_I32, KVC_BOOL, KVC_F64})
    list.push_back(
        {"a type that stores nothing", with(dtype, 64, KVC_F16, 64), {"dtype_k"}, KVC_E_DTYPE});
  return list;
}

TEST(BadStorage, Caches) {
  const support::Device device(1);
  BadInput bad(nullptr);
  for (const WrongCache& wrong : wrong_caches()) {
    kvc_cache_desc desc = support::cache_desc(1, 2, 64, 64);
    desc.kind = wrong.kind;
    kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
    recurrent.state_size = 4;
    if (wrong.kind == KVC_RECURRENT) {
      desc.n_kv_heads = desc.head_dim_k = desc.head_dim_v = 0;
      desc.dtype_k = desc.dtype_v = 0;
      desc.capacity = 0;
    }
    const void* kind = wrong.kind == KVC_RECURRENT ? &recurrent : nullptr;
    wrong.set(desc);
    kvc_cache* cache = nullptr;
    uint64_t bytes = 7;
    bad.expect(wrong.expected, wrong.what,
               [&] { return kvc_cache_create(device, &desc, kind, &cache); });
    expect_words(wrong.what, wrong.words);
    EXPECT_EQ(cache, nullptr);
    bad.expect(wrong.expected, wrong.what,
               [&] { return kvc_cache_memory_bytes(device, &desc, kind, &bytes); });
    EXPECT_EQ(bytes, 7u);
  }
  EXPECT_GE(bad.calls(), 70);
}

// ---- Caches that hold something ---------------------------------------------------------------------

/// K in q8_0, V in f8 with V of one dimension more than a vector register, and tensors of two tokens that fit.
struct Quantised {
  explicit Quantised(kvc_device* device, uint64_t flags = 0) : cache(make(device, flags)) {
    EXPECT_EQ(cache.status, KVC_OK) << support::last_message();
    const int32_t first[] = {0}, zero[] = {0};
    Array k1(KVC_F32, {1, heads, dk}), v1(KVC_F32, {1, heads, dv});
    EXPECT_EQ(kvc_begin(cache, 1, first, zero, nullptr, 0, nullptr), KVC_OK);
    for (int32_t layer = 0; layer < 2; ++layer)
      EXPECT_EQ(kvc_put(cache, layer, k1.tensor(), v1.tensor()), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_commit(cache), KVC_OK);
  }
  static support::Cache make(kvc_device* device, uint64_t flags) {
    kvc_cache_desc desc = support::cache_desc(2, heads, dk, dv);
    desc.dtype_k = KVC_Q8_0;
    desc.dtype_v = KVC_F8_E5M2;
    desc.flags = flags;
    return support::Cache(device, desc);
  }
  void open(bool put) {
    const int32_t position[] = {1, 2}, sequence[] = {0, 0};
    ASSERT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(put ? put_codes() : KVC_OK, KVC_OK) << support::last_message();
  }
  kvc_status put_codes(int32_t layer = 0) {
    return kvc_put_codes(cache, layer, k.tensor(), k_scales.tensor(), v.tensor(), nullptr);
  }

  static constexpr int32_t heads = 2, dk = 64, dv = 33;
  support::Cache cache;
  Array k{KVC_I8, {2, heads, dk}}, k_scales{KVC_F16, {2, heads, 2}}, v{KVC_F8_E5M2, {2, heads, dv}};
};

TEST(BadStorage, PutCodes) {
  const support::Device device(1);
  Quantised s(device);
  BadInput bad(s.cache);
  bad.expect(KVC_E_BAD_STATE, "no pass", [&] { return s.put_codes(); });
  s.open(true);
  const auto call = [&] { return s.put_codes(); };
  expect_faults(bad, "k", *s.k.tensor(), false, call);
  expect_faults(bad, "k_scales", *s.k_scales.tensor(), false, call);
  expect_faults(bad, "v", *s.v.tensor(), false, call);
  for (const int32_t layer : {least, -1, 2, most})
    bad.expect(invalid, "layer", [&] { return s.put_codes(layer); });
  const auto with = [&](const char* what, const kvc_tensor* k, const kvc_tensor* k_scales,
                        const kvc_tensor* v, const kvc_tensor* v_scales, const char* word) {
    bad.expect(invalid, what, [&] { return kvc_put_codes(s.cache, 0, k, k_scales, v, v_scales); });
    expect_words(what, {word});
  };
  with("no k", nullptr, s.k_scales.tensor(), s.v.tensor(), nullptr, "k");
  with("no scales of k", s.k.tensor(), nullptr, s.v.tensor(), nullptr, "k_scales");
  with("no v", s.k.tensor(), s.k_scales.tensor(), nullptr, nullptr, "v");
  with("scales of f8", s.k.tensor(), s.k_scales.tensor(), s.v.tensor(), s.k_scales.tensor(),
       "v_scales");
  std::cout << bad.calls() << " calls" << std::endl;
}

TEST(BadStorage, Reading) {
  const support::Device device(1);
  Quantised s(device);
  BadInput bad(s.cache);
  kvc_tensor view{}, other{};
  bad.expect(KVC_E_BAD_STATE, "get_codes without a pass",
             [&] { return kvc_get_codes(s.cache, 0, &view, nullptr, nullptr, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "get_copy without a pass",
             [&] { return kvc_get_copy(s.cache, 0, &view, nullptr); });
  s.open(false);
  bad.expect(KVC_E_BAD_STATE, "get_codes without a put",
             [&] { return kvc_get_codes(s.cache, 0, &view, nullptr, nullptr, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "get_copy without a put",
             [&] { return kvc_get_copy(s.cache, 0, &view, nullptr); });
  ASSERT_EQ(s.put_codes(), KVC_OK);
  for (const int32_t layer : {least, -1, 2, most}) {
    bad.expect(invalid, "get_codes of a layer",
               [&] { return kvc_get_codes(s.cache, layer, &view, nullptr, nullptr, nullptr); });
    bad.expect(invalid, "get_copy of a layer",
               [&] { return kvc_get_copy(s.cache, layer, &view, nullptr); });
  }
  // What has no numbers to lend says who lends codes; the side that is not wanted does not matter.
  bad.expect(KVC_E_NOT_SUPPORTED, "get of k", [&] { return kvc_get(s.cache, 0, &view, nullptr); });
  expect_words("get of k", {"dtype_k", "q8_0", "kvc_get_codes", "kvc_get_copy"});
  bad.expect(KVC_E_NOT_SUPPORTED, "get of v", [&] { return kvc_get(s.cache, 0, nullptr, &view); });
  expect_words("get of v", {"dtype_v", "f8_e5m2", "kvc_get_codes", "kvc_get_copy"});
  bad.expect(KVC_OK, "get of nothing", [&] { return kvc_get(s.cache, 0, nullptr, nullptr); });
  bad.expect(KVC_OK, "codes of nothing",
             [&] { return kvc_get_codes(s.cache, 0, nullptr, nullptr, nullptr, nullptr); });
  bad.expect(KVC_OK, "a copy of nothing", [&] { return kvc_get_copy(s.cache, 0, nullptr, nullptr); });

  ASSERT_EQ(kvc_get_copy(s.cache, 0, &view, &other), KVC_OK);
  EXPECT_EQ(view.data, nullptr);
  Array k(KVC_F32, {view.shape[0], s.heads, s.dk}), v(KVC_F32, {view.shape[0], s.heads, s.dv});
  k.fill(7);
  v.fill(7);
  const auto copy = [&] { return kvc_get_copy(s.cache, 0, k.tensor(), v.tensor()); };
  // One at a time: more columns than there are would reach into the other one, which is found first.
  for (Array* each : {&k, &v}) {
    const kvc_tensor good = *each->tensor();
    for (const Fault& fault : faults(good, Fault::written)) {
      kvc_tensor spoilt = good;
      fault.spoil(spoilt);
      // What cannot be in memory at all is found before its columns are counted.
      const bool endless = spoilt.ndim == good.ndim && spoilt.shape[0] == INT64_MAX;
      bad.expect(endless ? KVC_E_OVERFLOW : fault.expected, "get_copy " + fault.what, [&] {
        return kvc_get_copy(s.cache, 0, each == &k ? &spoilt : nullptr,
                            each == &v ? &spoilt : nullptr);
      });
    }
  }
  void* const data = v.tensor()->data;
  v.tensor()->data = k.tensor()->data;
  bad.expect(invalid, "v over k", copy);
  v.tensor()->data = data;
  for (int64_t i = 0; i < k.count(); ++i) ASSERT_EQ(k.get(i), 7) << "a refused call wrote";
  EXPECT_EQ(copy(), KVC_OK) << support::last_message();
}

TEST(BadStorage, Scales) {
  const support::Device device(1);
  Quantised s(device);
  BadInput bad(s.cache);
  const float one[] = {1, 1};
  const auto bind = [&](int32_t begin, int32_t end, const float* k, const float* v) {
    return [&s, begin, end, k, v] { return kvc_bind_scales(s.cache, begin, end, k, v); };
  };
  bad.expect(KVC_E_BAD_STATE, "it holds tokens", bind(0, 2, nullptr, one));
  s.open(false);
  bad.expect(KVC_E_BAD_STATE, "a pass is open", bind(0, 2, nullptr, one));
  ASSERT_EQ(kvc_abort(s.cache), KVC_OK);
  ASSERT_EQ(kvc_remove(s.cache, 0, 0, KVC_SEQ_END), KVC_OK);
  bad.expect(KVC_E_NOT_SUPPORTED, "scales of q8_0", bind(0, 2, one, one));
  expect_words("scales of q8_0", {"dtype_k", "q8_0", "KVC_F8_E4M3"});
  for (const auto& [begin, end] :
       std::vector<std::pair<int32_t, int32_t>>{{-1, 1}, {0, 3}, {2, 1}, {least, most}})
    bad.expect(invalid, "a range of layers", bind(begin, end, nullptr, one));
  for (const float wrong : {0.0f, -1.0f, 0x1p-101f, 0x1p101f, HUGE_VALF, std::nanf("")}) {
    const float scales[] = {1, wrong};
    bad.expect(invalid, "v_scales[1]", bind(0, 2, nullptr, scales));
    expect_words("v_scales[1]", {"v_scales[1]", "2^-100", "2^100"});
  }
  bad.expect(KVC_OK, "an empty range", bind(1, 1, nullptr, one));
  bad.expect(KVC_OK, "nothing", bind(0, 2, nullptr, nullptr));
  const float ends[] = {0x1p-100f, 0x1p100f};
  bad.expect(KVC_OK, "the ends of the range", bind(0, 2, nullptr, ends));
}

/// A sequence that was cut inside a gap holds no token, and is not empty.
TEST(BadStorage, ScalesAndRopeBehindAGap) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  desc.dtype_k = KVC_F8_E4M3;
  const support::Cache cache(device, desc);
  const int32_t position[] = {7}, sequence[] = {0};
  ASSERT_EQ(kvc_begin(cache, 1, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(kvc_remove(cache, 0, 5, KVC_SEQ_END), KVC_OK);
  kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
  ASSERT_EQ(kvc_sequence_query(cache, 0, &info), KVC_OK);
  ASSERT_EQ(info.next, 5);
  ASSERT_EQ(info.count, 0);
  BadInput bad(cache);
  const float one[] = {1};
  bad.expect(KVC_E_BAD_STATE, "scales", [&] { return kvc_bind_scales(cache, 0, 1, one, nullptr); });
  expect_words("scales", {"sequence 0", "5", "kvc_bind_scales", "kvc_remove"});
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  bad.expect(KVC_E_BAD_STATE, "RoPE", [&] { return kvc_bind_rope(cache, 0, 1, &rope, nullptr); });
  expect_words("RoPE", {"sequence 0", "5", "kvc_bind_rope", "kvc_remove"});
}

kvc_status turn_nothing(void*, int32_t, int32_t, const int32_t*, const int32_t*, kvc_tensor*) {
  return KVC_OK;
}

TEST(BadStorage, VInK) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 16, 8);
  desc.flags = KVC_CACHE_V_IN_K;
  desc.dtype_k = KVC_F8_E4M3;
  desc.dtype_v = 0;
  desc.v_first = 4;
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  BadInput bad(cache);
  kvc_rope_desc rope = {sizeof(kvc_rope_desc), KVC_ROPE_NEIGHBOURS, 0, 0, 0, 0};
  const auto bind = [&] { return kvc_bind_rope(cache, 0, 1, &rope, nullptr); };
  bad.expect(invalid, "RoPE over all", bind);
  rope.n_dims = 6;
  bad.expect(invalid, "RoPE into V", bind);
  expect_words("RoPE into V", {"0", "5", "4", "11", "KVC_CACHE_V_IN_K"});
  rope.first_dim = 10;
  bad.expect(invalid, "RoPE out of V", bind);
  const float one[] = {1};
  bad.expect(invalid, "scales of V", [&] { return kvc_bind_scales(cache, 0, 1, one, one); });
  expect_words("scales of V", {"v_scales", "null", "KVC_CACHE_V_IN_K"});
  bad.expect(KVC_E_NOT_SUPPORTED, "a shift function",
             [&] { return kvc_bind_shift(cache, turn_nothing, nullptr); });
  rope.first_dim = 12;
  rope.n_dims = 4;
  bad.expect(KVC_OK, "RoPE behind V", bind);
  rope.first_dim = 0;
  bad.expect(KVC_OK, "RoPE before V", bind);

  const int32_t zero[] = {0};
  ASSERT_EQ(kvc_begin(cache, 1, zero, zero, nullptr, 0, nullptr), KVC_OK);
  Array k(KVC_F32, {1, 1, 16}), v(KVC_F32, {1, 1, 8}), codes(KVC_F8_E4M3, {1, 1, 16}),
      part(KVC_F8_E4M3, {1, 1, 8});
  Array q(KVC_F32, {1, 1, 16}), out(KVC_F32, {1, 1, 8});
  bad.expect(invalid, "put of v", [&] { return kvc_put(cache, 0, k.tensor(), v.tensor()); });
  expect_words("put of v", {"v must be null", "KVC_CACHE_V_IN_K"});
  bad.expect(invalid, "put_attention of v", [&] {
    return kvc_put_attention(cache, 0, k.tensor(), v.tensor(), q.tensor(), out.tensor(), nullptr);
  });
  bad.expect(invalid, "put_codes of v", [&] {
    return kvc_put_codes(cache, 0, codes.tensor(), nullptr, part.tensor(), nullptr);
  });
  bad.expect(invalid, "no k", [&] { return kvc_put(cache, 0, nullptr, nullptr); });
  EXPECT_EQ(kvc_put(cache, 0, k.tensor(), nullptr), KVC_OK) << support::last_message();
}

TEST(BadStorage, ShiftFunctionsOfCodes) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 32, 32);
  desc.dtype_k = KVC_Q4_0;
  const support::Cache cache(device, desc);
  BadInput bad(cache);
  bad.expect(KVC_E_NOT_SUPPORTED, "a shift function",
             [&] { return kvc_bind_shift(cache, turn_nothing, nullptr); });
  expect_words("a shift function", {"dtype_k", "kvc_bind_rope"});
  bad.expect(KVC_OK, "none", [&] { return kvc_bind_shift(cache, nullptr, nullptr); });
}

/// A reserve pass looks at arguments, and views have their largest shapes.
TEST(BadStorage, ReservePasses) {
  const support::Device device(1);
  Quantised s(device);
  const support::Digest before = support::digest(s.cache);
  ASSERT_EQ(kvc_begin(s.cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  BadInput bad(s.cache);
  expect_faults(bad, "k", *s.k.tensor(), false, [&] { return s.put_codes(); });
  EXPECT_EQ(s.put_codes(), KVC_OK) << support::last_message();
  kvc_tensor k{}, scales{}, v{}, none{}, copy{};
  ASSERT_EQ(kvc_get_codes(s.cache, 0, &k, &scales, &v, &none), KVC_OK) << support::last_message();
  EXPECT_EQ(k.shape[0], 64);
  EXPECT_EQ(scales.shape[0], 64);
  EXPECT_EQ(none.data, nullptr);
  EXPECT_EQ(none.ndim, 0);
  ASSERT_EQ(kvc_get_copy(s.cache, 0, &copy, nullptr), KVC_OK);
  EXPECT_EQ(copy.shape[0], 64);
  EXPECT_EQ(kvc_commit(s.cache), KVC_OK);
  EXPECT_EQ(support::digest(s.cache), before);
}

}  // namespace
