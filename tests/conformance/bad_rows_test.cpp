// Transformer caches and what is wrong: descriptors, arguments, tensors, calls at the wrong moment, rows of caches that do not fit.
// Every call is refused with its status and a message that keeps to the rules, and changes nothing.
#include <gtest/gtest.h>

#include <functional>

#include "support/bad_input.hpp"
#include "support/message_rules.hpp"
#include "support/rows_rig.hpp"

namespace {

using support::BadInput;
using support::RowsRig;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr int32_t extremes[] = {INT32_MIN, -1, INT32_MAX};

class BadRows : public testing::Test {
 protected:
  void create() { rig_.create(); }
  kvc_status begin(int32_t q_len, uint32_t flags = 0, const int32_t* valid = nullptr,
                   const kvc_tensor* mask = nullptr) const {
    const kvc_status fits = kvc_fits_rows(rig_.cache, q_len, flags, valid, mask, nullptr);
    const kvc_status status = kvc_begin_rows(rig_.cache, q_len, flags, valid, mask, nullptr, nullptr);
    EXPECT_EQ(support::name(fits), support::name(status));
    return status;
  }
  /// Three rows of four tokens, and an open pass of two more whose first layer is put.
  void open() {
    create();
    rig_.run({.q_len = 4});
    ASSERT_EQ(rig_.begin({.q_len = 2}), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_put(rig_.cache, 0, &k_, &v_), KVC_OK) << support::last_message();
  }

  support::Device device_;
  RowsRig rig_{device_};
  float data_[3 * 40 * RowsRig::n_q_heads * RowsRig::dim_k] = {},
                                            other_[sizeof data_ / sizeof *data_] = {};
  int32_t shown_[3 * 8 * 41] = {};
  kvc_tensor k_ = support::dense(data_, KVC_F32, {3, 2, RowsRig::n_kv_heads, RowsRig::dim_k});
  kvc_tensor v_ = support::dense(data_, KVC_F32, {3, 2, RowsRig::n_kv_heads, RowsRig::dim_v});
  kvc_tensor q_ = support::dense(data_, KVC_F32, {3, 2, RowsRig::n_q_heads, RowsRig::dim_k});
  kvc_tensor out_ = support::dense(other_, KVC_F32, {3, 2, RowsRig::n_q_heads, RowsRig::dim_v});
};

// ---- Descriptors -------------------------------------------------------------------------------------------------------------

TEST_F(BadRows, Descriptors) {
  struct Case {
    const char* what;
    kvc_status expected;
    std::function<void(kvc_cache_desc&, kvc_transformer_desc&)> spoil;
  };
  const std::vector<Case> cases = {
      {"cells", invalid, [](auto& d, auto&) { d.cells = 120; }},
      {"max_batch below the rows", invalid, [](auto& d, auto&) { d.max_batch = 2; }},
      {"capacity 0", invalid, [](auto& d, auto&) { d.capacity = 0; }},
      {"reach", invalid, [](auto&, auto& t) { t.reach = -1; }},
      {"reach", invalid, [](auto&, auto& t) { t.reach = INT32_MIN; }},
      {"value_heads", invalid, [](auto&, auto& t) { t.value_heads = -1; }},
      {"value_heads", invalid, [](auto&, auto& t) { t.value_heads = INT32_MAX; }},
      {"mask_dtype", KVC_E_DTYPE, [](auto&, auto& t) { t.mask_dtype = KVC_BF16; }},
      {"flags", invalid, [](auto&, auto& t) { t.flags = 4; }},
      {"flags", invalid, [](auto&, auto& t) { t.flags = UINT32_MAX; }},
      {"kind", invalid, [](auto&, auto& t) { t.kind = KVC_CAUSAL; }},
      {"kind of the cache", invalid, [](auto& d, auto&) { d.kind = KVC_LIGHTNING; }},
      {"struct_size", invalid, [](auto&, auto& t) { t.struct_size = 20; }},
      {"struct_size", invalid, [](auto&, auto& t) { t.struct_size = 0; }},
      {"heads of V beside one row", invalid,
       [](auto& d, auto& t) {
         d.flags = KVC_CACHE_INTERLEAVED;
         t.value_heads = 3;
       }},
      {"heads of V within K", invalid,
       [](auto& d, auto& t) {
         d.flags = KVC_CACHE_V_IN_K;
         d.dtype_v = 0;
         t.value_heads = 3;
       }},
      {"cells beyond 2^30", KVC_E_OVERFLOW, [](auto& d, auto&) { d.capacity = 1 << 29; }}};
  BadInput bad(nullptr);
  for (const Case& each : cases) {
    kvc_cache_desc desc = rig_.desc;
    kvc_transformer_desc transformer = rig_.transformer;
    each.spoil(desc, transformer);
    bad.expect(each.expected, each.what, [&] {
      uint64_t bytes = 0;
      kvc_cache* cache = nullptr;
      const kvc_status told = kvc_cache_memory_bytes(device_, &desc, &transformer, &bytes);
      const kvc_status status = kvc_cache_create(device_, &desc, &transformer, &cache);
      EXPECT_EQ(support::name(told), support::name(status)) << each.what;
      EXPECT_EQ(cache, nullptr) << each.what;
      return status;
    });
  }
  const kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
  bad.expect(invalid, "a descriptor of another kind", [&] {
    kvc_cache* cache = nullptr;
    return kvc_cache_create(device_, &rig_.desc, &causal, &cache);
  });
}

// ---- Arguments ---------------------------------------------------------------------------------------------------------------

TEST_F(BadRows, ArgumentsOfPasses) {
  create();
  rig_.run({.q_len = 4});
  BadInput bad(rig_.cache);
  for (const int32_t q_len : {INT32_MIN, -1, 0, 9, INT32_MAX})
    for (const uint32_t flags : {0u, uint32_t{KVC_ROWS_RESERVE}, uint32_t{KVC_ROWS_NOT_CAUSAL}})
      bad.expect(invalid, "q_len " + std::to_string(q_len), [&] { return begin(q_len, flags); });
  for (const uint32_t flags : {16u, 1u << 31, UINT32_MAX})
    bad.expect(invalid, "flags " + std::to_string(flags), [&] { return begin(1, flags); });
  bad.expect(KVC_E_NOT_SUPPORTED, "a graph", [&] { return begin(1, KVC_ROWS_REPLAY); });
  for (const int32_t n : {INT32_MIN, -1, 3, INT32_MAX})
    for (size_t row = 0; row < 3; ++row) {
      int32_t valid[] = {2, 0, 1};
      valid[row] = n;
      bad.expect(invalid, "valid " + std::to_string(n), [&] { return begin(2, 0, valid); });
    }
  const kvc_tensor mask = support::dense(shown_, KVC_I32, {3, 8});
  const int32_t valid[] = {1, 1, 1};
  bad.expect(invalid, "lengths twice", [&] { return begin(2, KVC_ROWS_POSTPADDED, valid, &mask); });
  bad.expect(invalid, "no mask to read", [&] { return begin(2, KVC_ROWS_POSTPADDED); });
  int stream = 0;
  bad.expect(invalid, "a stream on the CPU",
             [&] { return kvc_begin_rows(rig_.cache, 1, 0, nullptr, nullptr, nullptr, &stream); });
  const int32_t none[] = {0, 0, 0};
  EXPECT_EQ(begin(8, 0, none), KVC_OK) << support::last_message();
}

TEST_F(BadRows, ArgumentsOfRows) {
  create();
  rig_.run({.q_len = 4});
  BadInput bad(rig_.cache);
  int32_t numbers[3] = {};
  const auto expect_range = [&](const std::string& what, const auto& call) {
    for (const int32_t begin : extremes)
      bad.expect(invalid, what + " row_begin", [&] { return call(begin, 1); });
    for (const int32_t n : {INT32_MIN, -1, 4, INT32_MAX})
      bad.expect(invalid, what + " n", [&] { return call(0, n); });
    bad.expect(invalid, what + " behind the last", [&] { return call(2, 2); });
  };
  expect_range("rows_query", [&](int32_t begin, int32_t n) {
    return kvc_rows_query(rig_.cache, begin, n, numbers, numbers);
  });
  expect_range("rows_set", [&](int32_t begin, int32_t n) {
    return kvc_rows_set(rig_.cache, begin, n, numbers, numbers);
  });
  expect_range("rows_fill", [&](int32_t begin, int32_t n) {
    return kvc_rows_fill(rig_.cache, 0, begin, n, nullptr, nullptr, nullptr, nullptr);
  });
  for (const int32_t layer : {INT32_MIN, -1, 2, INT32_MAX}) {
    bad.expect(invalid, "rows_fill layer", [&] {
      return kvc_rows_fill(rig_.cache, layer, 0, 1, nullptr, nullptr, nullptr, nullptr);
    });
    bad.expect(invalid, "rows_view layer",
               [&] { return kvc_rows_view(rig_.cache, layer, nullptr, nullptr, nullptr, nullptr); });
  }
  for (size_t row = 0; row < 3; ++row)
    for (const int32_t index : {INT32_MIN, -1, 5, INT32_MAX}) {
      int32_t all[] = {4, 4, 4};
      all[row] = index;
      bad.expect(invalid, "index", [&] { return kvc_rows_set(rig_.cache, 0, 3, all, nullptr); });
      all[row] = index == 5 ? 41 : index;
      bad.expect(invalid, "starts", [&] { return kvc_rows_set(rig_.cache, 0, 3, nullptr, all); });
    }
}

// ---- Tensors -----------------------------------------------------------------------------------------------------------------

TEST_F(BadRows, AttentionMasks) {
  create();
  rig_.run({.q_len = 4});
  BadInput bad(rig_.cache);
  const kvc_tensor of_rows = support::dense(shown_, KVC_I32, {3, 8});
  const kvc_tensor of_tokens = support::dense(shown_, KVC_BOOL, {3, 1, 2, 8});
  const auto expect = [&](kvc_status status, const std::string& what, const kvc_tensor& good,
                          const std::function<void(kvc_tensor&)>& spoil) {
    kvc_tensor mask = good;
    spoil(mask);
    bad.expect(status, what, [&] { return begin(2, 0, nullptr, &mask); });
  };
  for (const kvc_tensor& good : {of_rows, of_tokens}) {
    for (const int32_t ndim : {INT32_MIN, -1, 0, 1, 3, 5, 8, 9, INT32_MAX})
      expect(KVC_E_SHAPE, "ndim", good, [&](auto& t) { t.ndim = ndim; });
    for (int32_t d = 0; d < good.ndim; ++d) {
      for (const int64_t extent : {INT64_MIN, int64_t{-1}, int64_t{0}, int64_t{5}, int64_t{41}})
        expect(KVC_E_SHAPE, "extent", good, [&](auto& t) { t.shape[d] = extent; });
      expect(d + 1 < good.ndim ? KVC_E_SHAPE : KVC_E_OVERFLOW, "extent", good,
             [&](auto& t) { t.shape[d] = INT64_MAX; });
      expect(KVC_E_SHAPE, "stride", good, [&](auto& t) { t.strides[d] = -1; });
      if (good.shape[d] > 1)  // else it is not used
        expect(KVC_E_OVERFLOW, "stride", good, [&](auto& t) { t.strides[d] = INT64_MAX; });
    }
    for (const uint32_t dtype :
         {0u, uint32_t{KVC_F32}, uint32_t{KVC_F16}, uint32_t{KVC_I8}, UINT32_MAX})
      expect(KVC_E_DTYPE, "dtype", good, [&](auto& t) { t.dtype = dtype; });
    expect(KVC_E_DEVICE_MISMATCH, "device", good, [](auto& t) { t.device_type = KVC_CUDA; });
    expect(invalid, "flags", good, [](auto& t) { t.flags = 2; });
    expect(invalid, "reserved", good, [](auto& t) { t.reserved = 1; });
    expect(invalid, "no data", good, [](auto& t) { t.data = nullptr; });
  }
  expect(invalid, "not aligned", of_rows, [](auto& t) { t.byte_offset = 2; });
  bad.expect(KVC_E_SHAPE, "lengths off a mask of tokens",
             [&] { return begin(2, KVC_ROWS_POSTPADDED, nullptr, &of_tokens); });
  shown_[5] = 1;  // row 0 shows column 5 and hides 4
  bad.expect(invalid, "a hole", [&] { return begin(2, KVC_ROWS_POSTPADDED, nullptr, &of_rows); });
}

TEST_F(BadRows, TensorsOfAPass) {
  open();
  BadInput bad(rig_.cache);
  const auto put = [&] { return kvc_put(rig_.cache, 1, &k_, &v_); };
  const auto attention = [&] { return kvc_attention(rig_.cache, 0, &q_, &out_, nullptr); };
  support::expect_faults(bad, "put k", k_, false, put);
  support::expect_faults(bad, "put v", v_, false, put);
  support::expect_faults(bad, "q", q_, false, attention);
  support::expect_faults(bad, "out", out_, true, attention);
  kvc_tensor lse = support::dense(data_, KVC_F32, {3, 2, RowsRig::n_q_heads});
  kvc_attention_extra extra = support::extra(nullptr);
  extra.lse = &lse;
  support::expect_faults(bad, "lse", lse, true,
                         [&] { return kvc_attention(rig_.cache, 0, &q_, &out_, &extra); });
  std::vector<uint8_t> room(3 * 2 * 40);
  kvc_tensor mask = support::dense(room.data(), KVC_BOOL, {3, 1, 2, 40});
  for (const int32_t d : {0, 1, 2, 3})
    for (const int64_t extent : {int64_t{-1}, mask.shape[d] + 1, INT64_MAX}) {
      kvc_tensor spoilt = mask;
      spoilt.shape[d] = extent;
      bad.expect(KVC_E_SHAPE, "mask", [&] { return kvc_mask(rig_.cache, 0, &spoilt); });
    }
  // A list of as many tokens is no batch of rows.
  const kvc_tensor list = support::dense(data_, KVC_F32, {6, RowsRig::n_kv_heads, RowsRig::dim_k});
  bad.expect(KVC_E_SHAPE, "a list", [&] { return kvc_put(rig_.cache, 1, &list, &v_); });
}

TEST_F(BadRows, TensorsOfAFilling) {
  create();
  rig_.run({.q_len = 4});
  BadInput bad(rig_.cache);
  kvc_tensor k = support::dense(data_, KVC_F32, {3, 40, RowsRig::n_kv_heads, RowsRig::dim_k});
  kvc_tensor v = support::dense(data_, KVC_F32, {3, 40, RowsRig::n_kv_heads, RowsRig::dim_v});
  const auto fill = [&](const kvc_tensor* k_scales = nullptr, const kvc_tensor* v_scales = nullptr) {
    return kvc_rows_fill(rig_.cache, 0, 0, 3, &k, k_scales, &v, v_scales);
  };
  const auto expect = [&](kvc_status status, kvc_tensor& tensor, const auto& spoil) {
    const kvc_tensor good = tensor;
    spoil(tensor);
    bad.expect(status, "a filling", [&] { return fill(); });
    tensor = good;
  };
  for (kvc_tensor* tensor : {&k, &v}) {
    for (const int32_t d : {0, 1, 2, 3})
      for (const int64_t extent : {int64_t{-1}, tensor->shape[d] + 1, INT64_MAX})
        expect(KVC_E_SHAPE, *tensor, [&](auto& t) { t.shape[d] = extent; });
    expect(KVC_E_SHAPE, *tensor, [](auto& t) { t.ndim = 3; });
    for (const uint32_t dtype : {0u, uint32_t{KVC_BOOL}, uint32_t{KVC_I8}, uint32_t{KVC_U8}})
      expect(KVC_E_DTYPE, *tensor, [&](auto& t) { t.dtype = dtype; });
    expect(invalid, *tensor, [](auto& t) { t.data = nullptr; });
  }
  v.shape[1] = 39;
  bad.expect(KVC_E_SHAPE, "fewer columns of v", [&] { return fill(); });
  v.shape[1] = 40;
  bad.expect(invalid, "scales of numbers", [&] { return fill(&k); });
  bad.expect(invalid, "scales of numbers", [&] { return fill(nullptr, &v); });
}

// ---- Moments -----------------------------------------------------------------------------------------------------------------

TEST_F(BadRows, Moments) {
  create();
  BadInput bad(rig_.cache);
  const auto idle = [&](const std::string& what, const std::function<kvc_status()>& call) {
    bad.expect(KVC_E_BAD_STATE, what + " without a pass", call);
  };
  int32_t first = 0, n = 0;
  kvc_tensor mask{};
  idle("put", [&] { return kvc_put(rig_.cache, 0, &k_, &v_); });
  idle("attention", [&] { return kvc_attention(rig_.cache, 0, &q_, &out_, nullptr); });
  idle("mask", [&] { return kvc_mask(rig_.cache, 0, &mask); });
  idle("history", [&] { return kvc_history(rig_.cache, 0, &first, &n); });
  idle("set_causal", [&] { return kvc_set_causal(rig_.cache, 0, nullptr); });
  idle("commit", [&] { return kvc_commit(rig_.cache); });
  idle("abort", [&] { return kvc_abort(rig_.cache); });
  EXPECT_EQ(kvc_put(rig_.cache, 0, &k_, &v_), KVC_E_BAD_STATE);
  EXPECT_EQ(support::last_message(), "no pass is open: call kvc_begin_rows first");

  ASSERT_EQ(rig_.begin({.q_len = 2}), KVC_OK);
  ASSERT_EQ(kvc_put(rig_.cache, 0, &k_, &v_), KVC_OK);
  const auto unput = [&](const std::string& what, const std::function<kvc_status()>& call) {
    bad.expect(KVC_E_BAD_STATE, what + " while a layer is not put", call);
  };
  RowsRig other(device_);
  other.create();
  int32_t got = 0;
  const int32_t zero[] = {0, 0, 0};
  unput("begin", [&] { return begin(1); });
  unput("rows_set", [&] { return kvc_rows_set(rig_.cache, 0, 3, zero, zero); });
  unput("insert", [&] { return kvc_insert(rig_.cache, other.cache, 0); });
  unput("resume", [&] { return kvc_resume(rig_.cache, 0, 0, &got); });
  unput("copy_prefix", [&] { return kvc_copy_prefix(rig_.cache, 0, 1, 1, &got); });
  unput("remove", [&] { return kvc_remove(rig_.cache, 0, 0, KVC_SEQ_END); });
  unput("attention of that layer", [&] { return kvc_attention(rig_.cache, 1, &q_, &out_, nullptr); });
  ASSERT_EQ(kvc_put(rig_.cache, 1, &k_, &v_), KVC_OK);
  bad.expect(KVC_E_BAD_STATE, "rows_fill in a pass",
             [&] { return kvc_rows_fill(rig_.cache, 0, 0, 3, nullptr, nullptr, nullptr, nullptr); });
  // What is wrong with the rows comes before the pass, and room behind it.
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  ASSERT_EQ(other.begin({.q_len = 1}), KVC_OK);
  bad.expect(invalid, "a slot that does not exist",
             [&] { return kvc_insert(rig_.cache, other.cache, 1); });
  bad.expect(KVC_E_BAD_STATE, "rows of an open pass",
             [&] { return kvc_insert(rig_.cache, other.cache, 0); });
}

// ---- Other caches ------------------------------------------------------------------------------------------------------------

TEST_F(BadRows, RowsOfCachesThatDoNotFit) {
  create();
  rig_.run({.q_len = 4});
  BadInput bad(rig_.cache);
  const auto expect = [&](kvc_status status, const std::string& what, int32_t slot,
                          const std::function<void(RowsRig&)>& change) {
    RowsRig other(device_);
    other.desc.max_sequences = 2;
    change(other);
    other.create();
    bad.expect(status, what, [&] { return kvc_insert(rig_.cache, other.cache, slot); });
  };
  for (const int32_t slot : {INT32_MIN, -1, 2, 3, INT32_MAX})
    expect(invalid, "slot", slot, [](RowsRig&) {});
  expect(invalid, "layers", 0, [](RowsRig& r) { r.desc.n_layers = 3; });
  expect(invalid, "heads", 0, [](RowsRig& r) { r.desc.n_kv_heads = 1; });
  expect(invalid, "heads of V", 0, [](RowsRig& r) { r.transformer.value_heads = 1; });
  expect(invalid, "head_dim_k", 0, [](RowsRig& r) { r.desc.head_dim_k = 32; });
  expect(invalid, "head_dim_v", 0, [](RowsRig& r) { r.desc.head_dim_v = 8; });
  expect(invalid, "dtype_k", 0, [](RowsRig& r) { r.desc.dtype_k = KVC_BF16; });
  expect(invalid, "dtype_v", 0, [](RowsRig& r) { r.desc.dtype_v = KVC_INT8; });
  expect(invalid, "a ring", 0, [](RowsRig& r) { r.transformer.flags = KVC_TRANSFORMER_RING; });
  bad.expect(invalid, "itself", [&] { return kvc_insert(rig_.cache, rig_.cache, 0); });
  const support::Cache causal(device_, support::cache_desc(2, 2, 24, 16));
  ASSERT_EQ(causal.status, KVC_OK);
  bad.expect(invalid, "another kind", [&] { return kvc_insert(rig_.cache, causal, 0); });
  bad.expect(KVC_E_HANDLE, "no cache", [&] { return kvc_insert(rig_.cache, nullptr, 0); });
  const int32_t far[] = {40, 0};
  RowsRig long_rows(device_);
  long_rows.desc.max_sequences = 2;
  long_rows.desc.capacity = 50;
  long_rows.create();
  const int32_t further[] = {0, 41};
  ASSERT_EQ(kvc_rows_set(long_rows.cache, 0, 2, nullptr, further), KVC_OK);
  bad.expect(KVC_E_CACHE_FULL, "starts beyond capacity",
             [&] { return kvc_insert(rig_.cache, long_rows.cache, 0); });
  ASSERT_EQ(kvc_rows_set(long_rows.cache, 0, 2, nullptr, far), KVC_OK);
  EXPECT_EQ(kvc_insert(rig_.cache, long_rows.cache, 1), KVC_OK) << support::last_message();
}

TEST_F(BadRows, CachesWithoutRows) {
  const support::Cache causal(device_, support::cache_desc(2, 2, 24, 16));
  BadInput bad(causal);
  const auto lacks = [&](const std::string& what, const std::function<kvc_status()>& call) {
    bad.expect(KVC_E_NOT_SUPPORTED, what, call);
  };
  lacks("begin_rows",
        [&] { return kvc_begin_rows(causal, -1, 99, nullptr, nullptr, nullptr, nullptr); });
  lacks("fits_rows", [&] { return kvc_fits_rows(causal, -1, 99, nullptr, nullptr, nullptr); });
  lacks("rows_query", [&] { return kvc_rows_query(causal, -1, -1, nullptr, nullptr); });
  lacks("rows_set", [&] { return kvc_rows_set(causal, -1, -1, nullptr, nullptr); });
  lacks("insert", [&] { return kvc_insert(causal, nullptr, -1); });
  lacks("rows_view", [&] { return kvc_rows_view(causal, -1, nullptr, nullptr, nullptr, nullptr); });
  lacks("rows_fill",
        [&] { return kvc_rows_fill(causal, -1, -1, -1, nullptr, nullptr, nullptr, nullptr); });
}

}  // namespace
