// Operators of callers: a textbook attention by function table in caches, rows and without a cache; what its functions get, may do and
// may not do; statuses; and that the table is released once, in whichever order names, handles and devices end.
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvc/operators.h"
#include "kvc/rows.h"
#include "kvc/transformer.h"
#include "support/array.hpp"
#include "support/bad_input.hpp"

namespace {

using support::Array, support::expect, support::last_message, support::Random;

/// What the functions of a test do, and what they saw.
struct Table {
  kvc_status returned = KVC_OK;
  bool throws = false;
  kvc_cache* cache = nullptr;  // to be called from inside
  kvc_status inside = KVC_OK;
  kvc_status supported = KVC_OK;
  int32_t n_calls = 0, n_asked = 0, n_released = 0;
  uint32_t mode = 0, features = 0;
  const kvc_operator_call* last = nullptr;
  kvc_status late_mask = KVC_OK;
};

float element(const kvc_tensor& t, std::initializer_list<int64_t> index) {
  int64_t at = 0;
  int32_t d = 0;
  for (const int64_t i : index) at += i * t.strides[d++];
  return reinterpret_cast<const float*>(static_cast<const char*>(t.data) + t.byte_offset)[at];
}

/// Attention over f32, for lists of tokens and for batches of rows.
kvc_status textbook(void* user, const kvc_operator_call* call) {
  auto& table = *static_cast<Table*>(user);
  ++table.n_calls;
  table.mode = call->mode;
  table.features = call->features;
  table.last = call;
  if (table.throws) throw std::runtime_error("thrown by a caller's operator");
  if (table.cache != nullptr) table.inside = kvc_commit(table.cache);
  if (table.returned != KVC_OK) return table.returned;
  const bool rows = call->batch > 0;
  const int64_t columns = call->k->shape[rows ? 1 : 0], batch = rows ? call->batch : 1;
  const int64_t q_len = call->n_tokens / batch;
  std::vector<float> seen(static_cast<size_t>(call->n_tokens * columns));
  kvc_tensor mask{};
  const int64_t list_shape[] = {q_len, columns}, rows_shape[] = {batch, 1, q_len, columns};
  kvc_tensor_dense(seen.data(), KVC_F32, rows ? 4 : 2, rows ? rows_shape : list_shape, &mask);
  if (const kvc_status s = kvc_call_mask(call, &mask); s != KVC_OK) return s;
  for (int32_t token = 0; token < call->n_tokens; ++token) {
    if (call->sequence[token] == KVC_NONE) continue;
    const int64_t b = token / q_len, i = token % q_len;
    std::vector<int32_t> position(static_cast<size_t>(columns));
    if (const kvc_status s = kvc_call_positions(call, call->sequence[token],
                                                static_cast<int32_t>(columns), position.data());
        s != KVC_OK)
      return s;
    const auto of = [&](const kvc_tensor& t, int64_t head, int64_t d) {
      return rows ? element(t, {b, i, head, d}) : element(t, {i, head, d});
    };
    for (int32_t h = 0; h < call->n_q_heads; ++h) {
      const int64_t kv = h / (call->n_q_heads / call->n_kv_heads);
      std::vector<double> score;
      double largest = -HUGE_VAL;
      for (int64_t c = 0; c < columns; ++c) {
        double x = static_cast<double>(seen[static_cast<size_t>(token * columns + c)]);
        if (x == 0) {
          double dot = 0;
          for (int64_t d = 0; d < call->q->shape[call->q->ndim - 1]; ++d)
            dot += double{of(*call->q, h, d)} *
                   double{rows ? element(*call->k, {b, c, kv, d}) : element(*call->k, {c, kv, d})};
          x = dot * call->scale;
          if (call->slopes != nullptr)
            x -= double{call->slopes[h]} *
                 std::abs(call->position[token] - position[static_cast<size_t>(c)]);
          EXPECT_GE(position[static_cast<size_t>(c)], 0);
        }
        score.push_back(x);
        largest = std::max(largest, x);
      }
      double sum = 0;
      for (double& x : score) sum += x = std::exp(x - largest);
      for (int64_t d = 0; d < call->out->shape[call->out->ndim - 1]; ++d) {
        double value = 0;
        for (int64_t c = 0; c < columns; ++c)
          if (score[static_cast<size_t>(c)] != 0)
            value += score[static_cast<size_t>(c)] / sum *
                     double{rows ? element(*call->v, {b, c, kv, d}) : element(*call->v, {c, kv, d})};
        const kvc_tensor& out = *call->out;
        int64_t at = h * out.strides[out.ndim - 2] + d * out.strides[out.ndim - 1];
        at += rows ? b * out.strides[0] + i * out.strides[1] : i * out.strides[0];
        reinterpret_cast<float*>(static_cast<char*>(out.data) +
                                 out.byte_offset)[at] = static_cast<float>(value);
      }
    }
  }
  return KVC_OK;
}

kvc_status supports(void* user, const kvc_operator_needs*) {
  auto& table = *static_cast<Table*>(user);
  ++table.n_asked;
  return table.supported;
}

void release(void* user) { ++static_cast<Table*>(user)->n_released; }

kvc_operator_info info_of(uint32_t features) {
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.modes = KVC_MODE_ALL;
  info.features = features;
  info.storage = KVC_SET_F32;
  return info;
}

constexpr uint32_t some = KVC_FEATURE_MASK | KVC_FEATURE_WINDOW | KVC_FEATURE_ALIBI |
                          KVC_FEATURE_GROUPED | KVC_FEATURE_DIMS_DIFFER | KVC_FEATURE_NOT_CAUSAL |
                          KVC_FEATURE_TRANSFORMER | KVC_FEATURE_FORWARD;

kvc_operator_functions functions() {
  kvc_operator_functions table = KVC_OPERATOR_FUNCTIONS_INIT;
  table.supports = supports;
  table.forward_native = textbook;
  table.release = release;
  return table;
}

kvc_status add(kvc_device* device, const char* names, Table& table, uint32_t features = some,
               uint32_t flags = 0) {
  const kvc_operator_info info = info_of(features);
  const kvc_operator_functions of = functions();
  return kvc_operator_register(device, names, flags, &info, &of, &table);
}

kvc_operator* create(kvc_device* device, const char* name,
                     const kvc_operator_desc& desc = KVC_OPERATOR_DESC_INIT) {
  kvc_operator* op = nullptr;
  EXPECT_EQ(kvc_operator_create(device, name, &desc, &op), KVC_OK) << last_message();
  return op;
}

/// A causal cache with RoPE, sequences and a window, whose passes attend twice: by the caller's operator and by the built-in one.
class Rig {
 public:
  explicit Rig(kvc_device* device, uint32_t dtype = KVC_F32)
      : cache(device, desc(dtype), &causal()) {
    EXPECT_EQ(cache.status, KVC_OK) << last_message();
    kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
    EXPECT_EQ(kvc_bind_rope(cache, 0, 1, &rope, nullptr), KVC_OK);
    kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
    constants.n_q_heads = 4;
    const float slopes[] = {0.5f, 0.25f, 0.1f, 0};
    EXPECT_EQ(kvc_bind_attention(cache, 0, 1, &constants, slopes, nullptr), KVC_OK);
  }
  static kvc_cache_desc desc(uint32_t dtype) {
    kvc_cache_desc desc = support::cache_desc(1, 2, 8, 6);
    desc.dtype_k = dtype;
    desc.max_sequences = 2;
    desc.max_q_heads = 4;
    return desc;
  }
  static const kvc_causal_desc& causal() {
    static const kvc_causal_desc desc = [] {
      kvc_causal_desc causal = support::causal_desc();
      causal.reach = 12;
      causal.memory = KVC_NONE;
      return causal;
    }();
    return desc;
  }
  void open(std::vector<int32_t> sequence) {
    std::vector<int32_t> position;
    int32_t added[2] = {};
    for (const int32_t s : sequence)
      position.push_back(s == KVC_NONE ? 0 : support::sequence_info(cache, s).next + added[s]++);
    n = static_cast<int32_t>(sequence.size());
    ASSERT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK)
        << last_message();
    Array k(KVC_F32, {n, 2, 8}), v(KVC_F32, {n, 2, 6});
    k.fill(random);
    v.fill(random);
    ASSERT_EQ(kvc_put(cache, 0, k.tensor(), v.tensor()), KVC_OK);
  }
  kvc_status attend(std::vector<float>* into, const kvc_tensor* mask = nullptr) {
    Random same(77);
    Array q(KVC_F32, {n, 4, 8}), out(KVC_F32, {n, 4, 6});
    q.fill(same);
    out.fill(0.5);
    const kvc_attention_extra extra = support::extra(nullptr, mask);
    const kvc_status status = kvc_attention(cache, 0, q.tensor(), out.tensor(), &extra);
    *into = out.floats();
    return status;
  }
  void bind(kvc_operator* op) {
    ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_ALL, op), KVC_OK) << last_message();
  }

  Random random{3};
  support::Cache cache;
  int32_t n = 0;
};

void expect_near(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 1e-5) << "element " << i;
}

TEST(CallersOperator, AttendsAsTheBuiltInOne) {
  const support::Device device(2);
  Table table;
  ASSERT_EQ(add(device, "mine,my-alias", table), KVC_OK) << last_message();
  kvc_operator* op = create(device, "my-alias");
  Rig own(device), other(device);
  own.bind(op);
  EXPECT_GT(table.n_asked, 0);
  const std::vector<std::vector<int32_t>> batches = {
      {0, 0, 0, 1, 1, KVC_NONE}, {0, 1}, {1, 1, 1, 0}, {0, 0, 0, 0, 0, 0, 0, 0, 1}, {1}};
  for (size_t step = 0; step < batches.size(); ++step) {
    std::vector<float> a, b;
    for (Rig* rig : {&own, &other}) rig->open(batches[step]);
    ASSERT_EQ(own.attend(&a), KVC_OK) << last_message();
    ASSERT_EQ(other.attend(&b), KVC_OK);
    expect_near(a, b);
    EXPECT_EQ(table.mode, step == 1 || step == 4 ? uint32_t{KVC_MODE_AUTOREGRESSIVE}
                                                 : uint32_t{KVC_MODE_PREFILL});
    EXPECT_EQ(table.features & KVC_FEATURE_WINDOW, uint32_t{KVC_FEATURE_WINDOW});
    int32_t first = 0, columns = 0;
    ASSERT_EQ(kvc_history(own.cache, 0, &first, &columns), KVC_OK);
    Array mask(KVC_BOOL, {columns}), by_head(KVC_BOOL, {4, 1, columns});
    mask.fill(1);
    by_head.fill(1);
    if (columns > 2) mask.set(columns / 2, 0);
    ASSERT_EQ(own.attend(&a, mask.tensor()), KVC_OK) << last_message();
    ASSERT_EQ(other.attend(&b, mask.tensor()), KVC_OK);
    expect_near(a, b);
    expect(KVC_E_NOT_SUPPORTED, "",
           own.attend(&a, by_head.tensor()));  // the function returned what kvc_call_mask() did
    for (Rig* rig : {&own, &other}) ASSERT_EQ(kvc_commit(rig->cache), KVC_OK);
    if (step == 1) {  // two keys owe a rotation, which the operator does not know
      for (Rig* rig : {&own, &other})
        ASSERT_EQ(kvc_remove(rig->cache, 0, 1, 2), KVC_OK) << last_message();
    }
  }
  EXPECT_EQ(table.features & KVC_FEATURE_SHIFTED, 0u);
  ASSERT_EQ(kvc_operator_destroy(op), KVC_OK);
  EXPECT_EQ(table.n_released, 0);  // the device and a layer have it
}

TEST(CallersOperator, AttendsInRowsAndWithoutACache) {
  const support::Device device(1);
  Table table;
  ASSERT_EQ(add(device, "mine", table), KVC_OK);
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = 2, desc.max_q_len = 3, desc.max_kv_len = 5, desc.n_kv_heads = 2,
  desc.max_q_heads = 4, desc.head_dim_k = 8;
  kvc_operator *own = create(device, "mine", desc), *flash = create(device, "flash", desc);
  Random random(9);
  Array q(KVC_F32, {2, 3, 4, 8}, random), k(KVC_F32, {2, 5, 2, 8}, random),
      v(KVC_F32, {2, 5, 2, 8}, random);
  Array a(KVC_F32, {2, 3, 4, 8}, random), b(KVC_F32, {2, 3, 4, 8}, random);
  for (Array* each : {&q, &k, &v}) each->fill(random);
  kvc_forward_desc forward = KVC_FORWARD_DESC_INIT;
  forward.flags = KVC_FORWARD_CAUSAL;
  forward.reach = 3;
  ASSERT_EQ(kvc_operator_forward(own, &forward, q.tensor(), k.tensor(), v.tensor(), nullptr,
                                 nullptr, nullptr, a.tensor()),
            KVC_OK)
      << last_message();
  ASSERT_EQ(kvc_operator_forward(flash, &forward, q.tensor(), k.tensor(), v.tensor(), nullptr,
                                 nullptr, nullptr, b.tensor()),
            KVC_OK);
  expect_near(a.floats(), b.floats());
  EXPECT_EQ(table.mode, uint32_t{KVC_MODE_TRAIN});

  kvc_cache_desc rows = support::cache_desc(1, 2, 8, 8);
  rows.kind = KVC_TRANSFORMER;
  rows.max_sequences = 2;
  rows.max_batch = 6;
  rows.max_q_heads = 4;
  kvc_cache* cache = nullptr;
  kvc_transformer_desc transformer = KVC_TRANSFORMER_DESC_INIT;
  ASSERT_EQ(kvc_cache_create(device, &rows, &transformer, &cache), KVC_OK) << last_message();
  const int32_t valid[] = {3, 2};
  ASSERT_EQ(kvc_begin_rows(cache, 3, 0, valid, nullptr, nullptr, nullptr), KVC_OK) << last_message();
  Array new_k(KVC_F32, {2, 3, 2, 8}, random), new_v(KVC_F32, {2, 3, 2, 8}, random);
  for (Array* each : {&new_k, &new_v}) each->fill(random);
  ASSERT_EQ(kvc_put(cache, 0, new_k.tensor(), new_v.tensor()), KVC_OK);
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), b.tensor(), nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(kvc_resume(cache, 0, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_resume(cache, 1, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_bind_operator(cache, 0, 1, KVC_MODE_ALL, own), KVC_OK) << last_message();
  ASSERT_EQ(kvc_begin_rows(cache, 3, 0, valid, nullptr, nullptr, nullptr), KVC_OK);
  ASSERT_EQ(kvc_put(cache, 0, new_k.tensor(), new_v.tensor()), KVC_OK);
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), a.tensor(), nullptr), KVC_OK) << last_message();
  expect_near(a.floats(), b.floats());
  EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  for (kvc_operator* op : {own, flash}) EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

TEST(CallersOperator, ItsStatusIsTheCalls) {
  const support::Device device(1);
  Table table;
  ASSERT_EQ(add(device, "mine", table), KVC_OK);
  kvc_operator* op = create(device, "mine");
  std::vector<float> out;
  {
    Rig rig(device);
    rig.bind(op);
    rig.open({0, 0});
    const support::Digest before = support::digest(rig.cache);
    for (const kvc_status refused : {KVC_E_SHAPE, KVC_E_NOT_SUPPORTED, KVC_E_OUT_OF_MEMORY}) {
      table.returned = refused;
      expect(refused, "mine (kvc_operator_register)", rig.attend(&out));
      EXPECT_EQ(support::digest(rig.cache), before);
    }
    table.returned = 12345;
    expect(KVC_E_INVALID_ARGUMENT, "no status of kvc", rig.attend(&out));
    table.returned = KVC_OK;
    table.cache = rig.cache;
    EXPECT_EQ(rig.attend(&out), KVC_OK);
    expect(KVC_E_BUSY, "", table.inside);
    table.cache = nullptr;
    // The call is over.
    Array mask(KVC_F32, {2, 2});
    expect(KVC_E_INVALID_ARGUMENT, "call is none", kvc_call_mask(table.last, mask.tensor()));
    int32_t position[2];
    expect(KVC_E_INVALID_ARGUMENT, "call is none", kvc_call_positions(table.last, 0, 2, position));
    expect(KVC_E_INVALID_ARGUMENT, "call is none", kvc_call_mask(nullptr, mask.tensor()));
    EXPECT_EQ(kvc_commit(rig.cache), KVC_OK);
    table.supported = KVC_E_NOT_SUPPORTED;
    expect(KVC_E_NOT_SUPPORTED, "mine", kvc_bind_operator(rig.cache, 0, 1, KVC_MODE_ALL, op));
    kvc_operator_needs needs = KVC_OPERATOR_NEEDS_INIT;
    needs.mode = KVC_MODE_PREFILL;
    expect(KVC_E_NOT_SUPPORTED, "mine", kvc_operator_supports(device, "mine", &needs, nullptr));
    table.supported = KVC_OK;
    EXPECT_EQ(kvc_operator_supports(device, "mine", &needs, nullptr), KVC_OK);
    EXPECT_EQ(kvc_check(rig.cache), KVC_OK);
  }
  for (const kvc_status fatal : {KVC_E_DEVICE, KVC_E_INTERNAL}) {
    Rig rig(device);
    rig.bind(op);
    rig.open({0});
    table.returned = fatal;
    expect(fatal, "mine", rig.attend(&out));
    expect(fatal, "poisoned", kvc_abort(rig.cache));
    table.returned = KVC_OK;
  }
  Rig rig(device);
  rig.bind(op);
  rig.open({0});
  table.throws = true;
  expect(KVC_E_INTERNAL, "exception", rig.attend(&out));
  expect(KVC_E_INTERNAL, "poisoned", kvc_abort(rig.cache));
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

TEST(CallersOperator, LacksWhatItDoesNotName) {
  const support::Device device(1);
  Table table;
  ASSERT_EQ(add(device, "poor", table, KVC_FEATURE_GROUPED | KVC_FEATURE_DIMS_DIFFER), KVC_OK);
  kvc_operator* op = create(device, "poor");
  Rig rig(device), quantised(device, KVC_INT8);
  expect(KVC_E_NOT_SUPPORTED, "limited reach", kvc_bind_operator(rig.cache, 0, 1, KVC_MODE_ALL, op));
  expect(KVC_E_NOT_SUPPORTED, "does not read int8",
         kvc_bind_operator(quantised.cache, 0, 1, KVC_MODE_ALL, op));
  kvc_cache_desc desc = Rig::desc(KVC_F32);
  const support::Cache plain(device, desc);
  ASSERT_EQ(kvc_bind_operator(plain, 0, 1, KVC_MODE_ALL, op), KVC_OK) << last_message();
  kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
  constants.n_q_heads = 4;
  const float slopes[] = {1, 1, 1, 1};
  expect(KVC_E_NOT_SUPPORTED, "ALiBi", kvc_bind_attention(plain, 0, 1, &constants, slopes, nullptr));
  expect(KVC_E_NOT_SUPPORTED, "sinks", kvc_bind_attention(plain, 0, 1, &constants, nullptr, slopes));
  constants.softcap = 1;
  expect(KVC_E_NOT_SUPPORTED, "softcap",
         kvc_bind_attention(plain, 0, 1, &constants, nullptr, nullptr));
  EXPECT_EQ(table.n_calls, 0);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

TEST(CallersOperator, IsReleasedOnceInAnyOrder) {
  for (int32_t order = 0; order < 6; ++order) {
    Table table;
    auto device = std::make_unique<support::Device>(1);
    ASSERT_EQ(add(*device, "mine,other", table), KVC_OK);
    kvc_operator* op = create(*device, "other");
    auto rig = std::make_unique<Rig>(*device);
    rig->bind(op);
    const auto end = [&](int32_t what) {
      EXPECT_EQ(table.n_released, 0);
      if (what == 0) {
        EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
      }
      if (what == 1 && device) {
        if (order % 2 == 0) {
          EXPECT_EQ(kvc_operator_unregister(*device, "mine"), KVC_OK) << last_message();
        }
        device.reset();
      }
      if (what == 2) rig.reset();
    };
    const int32_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (const int32_t what : orders[order]) end(what);
    EXPECT_EQ(table.n_released, 1) << order;
  }
  // Another one in its place; layers keep theirs.
  const support::Device device(1);
  Table first, second;
  ASSERT_EQ(add(device, "mine", first), KVC_OK);
  Rig rig(device);
  kvc_operator* op = create(device, "mine");
  rig.bind(op);
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
  expect(KVC_E_INVALID_ARGUMENT, "mine is taken", add(device, "other,mine", second));
  expect(KVC_E_NOT_FOUND, "other", kvc_operator_unregister(device, "other"));  // all names or none
  EXPECT_EQ(second.n_released, 0);
  ASSERT_EQ(add(device, "mine", second, some, KVC_OPERATOR_REPLACE), KVC_OK);
  EXPECT_EQ(first.n_released, 0);
  rig.open({0, 0});
  std::vector<float> out;
  EXPECT_EQ(rig.attend(&out), KVC_OK);
  EXPECT_EQ(first.n_calls, 1);
  ASSERT_EQ(kvc_commit(rig.cache), KVC_OK);
  ASSERT_EQ(kvc_bind_operator(rig.cache, 0, 1, KVC_MODE_ALL, nullptr), KVC_OK);
  EXPECT_EQ(first.n_released, 1);
  ASSERT_EQ(kvc_operator_unregister(device, "mine"), KVC_OK);
  EXPECT_EQ(second.n_released, 1);
}

TEST(CallersOperator, GivesABuiltInOperatorsNameBack) {
  const support::Device device(1);
  const auto canonical = [&](const char* name) {
    kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
    EXPECT_EQ(kvc_operator_find(device, name, &info), KVC_OK) << last_message();
    return std::string(info.canonical);
  };
  const std::string flash = canonical("sdpa");
  Table table;
  ASSERT_EQ(add(device, "sdpa,mine", table, some, KVC_OPERATOR_REPLACE), KVC_OK) << last_message();
  EXPECT_EQ(canonical("sdpa"), "sdpa");
  EXPECT_EQ(canonical(flash.c_str()), flash);
  ASSERT_EQ(kvc_operator_unregister(device, "mine"), KVC_OK);
  EXPECT_EQ(table.n_released, 1);
  EXPECT_EQ(canonical("sdpa"), flash);
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  expect(KVC_E_NOT_FOUND, "mine", kvc_operator_find(device, "mine", &info));
  expect(KVC_E_NOT_SUPPORTED, "built in", kvc_operator_unregister(device, "sdpa"));
}

TEST(CallersOperator, ChecksWhatIsRegistered) {
  const support::Device device(1);
  Table table;
  constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
  for (const char* names : {"", ",", "mine,", "Mine", "my op", "näme", "a,,b",
                            "12345678901234567890123456789012", "mine,mine"})
    expect(invalid, "name", add(device, names, table));
  expect(invalid, "taken", add(device, "flash", table));
  expect(invalid, "names", add(device, nullptr, table));
  expect(invalid, "flags", add(device, "mine", table, some, 2));
  expect(invalid, "features", add(device, "mine", table, 1u << 22));
  const auto spoilt = [&](kvc_status status, const char* word, auto spoil) {
    kvc_operator_info info = info_of(some);
    kvc_operator_functions of = functions();
    spoil(info, of);
    expect(status, word, kvc_operator_register(device, "mine", 0, &info, &of, &table));
  };
  spoilt(invalid, "modes", [](auto& i, auto&) { i.modes = 0; });
  spoilt(invalid, "modes", [](auto& i, auto&) { i.modes = 17; });
  spoilt(invalid, "devices", [](auto& i, auto&) { i.devices = 1u << KVC_CUDA; });
  spoilt(invalid, "storage", [](auto& i, auto&) { i.storage = KVC_SET_F64; });
  spoilt(invalid, "runtime_dtypes", [](auto& i, auto&) { i.runtime_dtypes = KVC_SET_INT8; });
  spoilt(invalid, "softmax_dtypes", [](auto& i, auto&) { i.softmax_dtypes = 1u << 20; });
  spoilt(invalid, "head_dim_min", [](auto& i, auto&) { i.head_dim_min = -1; });
  spoilt(invalid, "struct_size", [](auto& i, auto&) { i.struct_size = 4; });
  spoilt(invalid, "forward_native", [](auto&, auto& f) { f.forward_native = nullptr; });
  spoilt(invalid, "reserved", [](auto&, auto& f) { f.reserved = 1; });
  expect(KVC_E_NOT_FOUND, "mine", kvc_operator_unregister(device, "mine"));
  expect(KVC_E_NOT_SUPPORTED, "built in", kvc_operator_unregister(device, "sdpa"));
  expect(invalid, "name", kvc_operator_unregister(device, nullptr));
  expect(KVC_E_HANDLE, "device", kvc_operator_unregister(nullptr, "mine"));
  EXPECT_EQ(table.n_released, 0);
}

}  // namespace
