// Storage types in kvc.hpp: what encode() writes is what a cache of the type stores and get_codes() lends, decode() reads what
// get_copy() copies, put_codes() restores it, and a missing V is {}.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <kvc/kvc.hpp>
#include <optional>
#include <vector>

#include "support/host_view.hpp"

namespace {

constexpr int32_t heads = 2, dim = 64, n_tokens = 5, n_layers = 2, last = n_layers - 1;
constexpr size_t n_rows = n_tokens * heads;
const float bound[heads] = {0.5f, 0.03125f};  // scales of f8

struct Type {
  uint32_t dtype;
  int32_t block;
  bool rotate;
  const char* name;
};
const Type types[] = {
    {KVC_F32, 0, false, "f32"},          {KVC_F16, 0, false, "f16"},
    {KVC_BF16, 0, false, "bf16"},        {KVC_F8_E4M3, 0, false, "f8_e4m3"},
    {KVC_F8_E5M2, 0, false, "f8_e5m2"},  {KVC_Q8_0, 0, false, "q8_0"},
    {KVC_Q8_0, 0, true, "q8_0_rotated"}, {KVC_Q4_0, 0, false, "q4_0"},
    {KVC_Q4_0, 0, true, "q4_0_rotated"}, {KVC_INT8, 0, false, "int8"},
    {KVC_INT8, 0, true, "int8_rotated"}, {KVC_NF4, 0, false, "nf4"},
    {KVC_NF4, 16, true, "nf4_rotated"},
};

bool is_f8(uint32_t dtype) { return dtype == KVC_F8_E4M3 || dtype == KVC_F8_E5M2; }

kvc::CacheDesc geometry() {
  kvc::CacheDesc desc;
  desc.n_layers = n_layers, desc.n_kv_heads = heads, desc.head_dim_k = dim;
  desc.max_sequences = 2, desc.capacity = 16, desc.max_batch = 8;
  return desc;
}

kvc::CacheDesc geometry(const Type& type) {
  kvc::CacheDesc desc = geometry();
  desc.dtype_k = desc.dtype_v = type.dtype;
  desc.block_k = desc.block_v = type.block;
  if (type.rotate) desc.flags = KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V;
  return desc;
}

std::vector<float> numbers(size_t n, float phase) {
  std::vector<float> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = std::sin(phase + 0.7f * static_cast<float>(i));
  return all;
}

// Vectors of all tokens and heads as codes and scales, encoded one by one.
struct Encoded {
  kvc_storage_info row;
  std::vector<char> codes, scales;
  std::vector<float> decoded;

  Encoded(const Type& type, const std::vector<float>& values)
      : row(kvc::storage_query(type.dtype, dim, type.block)), decoded(values.size()) {
    codes.resize(n_rows * code_bytes());
    scales.resize(n_rows * scale_bytes());
    kvc::CodecDesc codec;
    codec.dtype = type.dtype, codec.block = type.block;
    codec.flags = type.rotate ? KVC_CODEC_ROTATE : 0;
    for (size_t i = 0; i < n_rows; ++i) {
      if (is_f8(type.dtype)) codec.scale = bound[i % heads];
      const kvc::Tensor of_codes(&codes[i * code_bytes()], row.code_dtype, {row.codes_per_row});
      kvc::Tensor of_scales;
      if (row.scale_dtype != 0)
        of_scales = {&scales[i * scale_bytes()], row.scale_dtype, {row.scales_per_row}};
      kvc::encode(codec, {&values[i * dim], {dim}}, of_codes, of_scales);
      kvc::decode(codec, of_codes, of_scales, {&decoded[i * dim], {dim}});
    }
  }
  size_t code_bytes() const { return static_cast<size_t>(row.bytes_per_row) - scale_bytes(); }
  size_t scale_bytes() const {
    return static_cast<size_t>(row.scales_per_row) * (row.scale_dtype == KVC_F16 ? 2 : 4);
  }
  kvc::ConstTensor all_codes() const {
    return {codes.data(), row.code_dtype, {n_tokens, heads, row.codes_per_row}};
  }
  kvc::ConstTensor all_scales() const {
    if (row.scale_dtype == 0) return {};
    return {scales.data(), row.scale_dtype, {n_tokens, heads, row.scales_per_row}};
  }
};

// The bytes of the rows that a view shows of n_tokens cells, from a column on.
std::vector<char> bytes_of(const kvc_tensor& lent, int32_t column, size_t row_bytes) {
  const kvc_tensor view = support::on_host(lent);
  const size_t element = (view.dtype >> 8 & 0xff) / 8;
  const char* data = static_cast<const char*>(view.data) + view.byte_offset;
  std::vector<char> all;
  for (int64_t token = column; token < column + n_tokens; ++token)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = token * view.strides[0] + head * view.strides[1];
      const char* row = data + static_cast<size_t>(at) * element;
      all.insert(all.end(), row, row + row_bytes);
    }
  return all;
}

class CppStorage : public testing::TestWithParam<Type> {};
INSTANTIATE_TEST_SUITE_P(Types, CppStorage, testing::ValuesIn(types),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(CppStorage, EncodeWritesWhatACacheStoresAndDecodeReadsWhatItCopies) {
  const Type& type = GetParam();
  const kvc::Device device("cpu");
  kvc::Cache cache(device, geometry(type)), restored(device, geometry(type));
  const std::vector<float> k = numbers(n_rows * dim, 1), v = numbers(n_rows * dim, 2);
  const std::vector<float> q = numbers(2 * n_rows * dim, 3);
  std::vector<float> out(q.size()), out_of_restored(q.size());
  if (is_f8(type.dtype)) {
    cache.bind_scales(0, n_layers, bound, bound);
    restored.bind_scales(0, n_layers, bound, bound);
  }
  const std::vector<int32_t> position = {0, 1, 2, 3, 4}, sequence(n_tokens, 1);
  const Encoded codes_k(type, k), codes_v(type, v);

  kvc::Pass pass(cache, position, sequence);
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    cache.put(layer, {k, {n_tokens, heads, dim}}, {v, {n_tokens, heads, dim}});
    cache.attention(layer, {q, {n_tokens, 2 * heads, dim}}, {out, {n_tokens, 2 * heads, dim}});
  }
  const kvc::CodeViews views = cache.get_codes(last);
  const std::vector<kvc_run> runs = cache.runs(last, 1);
  ASSERT_EQ(runs.size(), 1u);
  const int32_t column = runs[0].cell - cache.history(last).first_cell;
  EXPECT_EQ(views.k.dtype, codes_k.row.code_dtype);
  EXPECT_EQ(bytes_of(views.k, column, codes_k.code_bytes()), codes_k.codes);
  EXPECT_EQ(bytes_of(views.v, column, codes_v.code_bytes()), codes_v.codes);
  ASSERT_EQ(views.k_scales.has_value(), codes_k.row.scale_dtype != 0);
  ASSERT_EQ(views.v_scales.has_value(), codes_k.row.scale_dtype != 0);
  if (views.k_scales) {
    EXPECT_EQ(bytes_of(*views.k_scales, column, codes_k.scale_bytes()), codes_k.scales);
    EXPECT_EQ(bytes_of(*views.v_scales, column, codes_v.scale_bytes()), codes_v.scales);
  }

  const kvc::KeyValueViews shapes = cache.copy_shapes(last);
  ASSERT_EQ(shapes.k.ndim, 3);
  EXPECT_EQ(shapes.k.dtype, KVC_F32);
  const int64_t history = shapes.k.shape[0];
  std::vector<float> copied_k(static_cast<size_t>(history * heads * dim));
  std::vector<float> copied_v = copied_k, v_alone = copied_k;
  cache.get_copy(last, {copied_k, {history, heads, dim}}, {copied_v, {history, heads, dim}});
  cache.get_copy(last, {}, {v_alone, {history, heads, dim}});
  EXPECT_EQ(copied_v, v_alone);
  for (size_t i = 0; i < n_rows * dim; ++i) {
    const size_t at = static_cast<size_t>(column) * heads * dim + i;
    ASSERT_EQ(copied_k[at], codes_k.decoded[i]) << i;
    ASSERT_EQ(copied_v[at], codes_v.decoded[i]) << i;
  }
  pass.commit();

  kvc::Pass again(restored, position, sequence);
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    restored.put_codes(layer, codes_k.all_codes(), codes_k.all_scales(), codes_v.all_codes(),
                       codes_v.all_scales());
    restored.attention(layer, {q, {n_tokens, 2 * heads, dim}},
                       {out_of_restored, {n_tokens, 2 * heads, dim}});
  }
  again.commit();
  EXPECT_EQ(cache.digest(), restored.digest());
  EXPECT_EQ(out, out_of_restored);
}

TEST_P(CppStorage, ViewsOfOneCacheArePutIntoAnother) {
  const kvc::Device device("cpu");
  kvc::Cache from(device, geometry(GetParam())), to(device, geometry(GetParam()));
  if (is_f8(GetParam().dtype)) {
    from.bind_scales(0, n_layers, bound, bound);
    to.bind_scales(0, n_layers, bound, bound);
  }
  const auto on_host = [](const std::optional<kvc_tensor>& view) -> std::optional<kvc_tensor> {
    if (!view) return view;
    return support::on_host(*view);
  };
  const std::vector<float> k = numbers(3 * heads * dim, 1), v = numbers(3 * heads * dim, 2);
  kvc::Pass pass(from, {0, 1, 2}, {0, 0, 0}), same(to, {0, 1, 2}, {0, 0, 0});
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    from.put(layer, {k, {3, heads, dim}}, {v, {3, heads, dim}});
    const kvc::CodeViews lent = from.get_codes(layer);
    ASSERT_EQ(lent.k.shape[0], 3);
    to.put_codes(layer, support::on_host(lent.k), on_host(lent.k_scales), support::on_host(lent.v),
                 on_host(lent.v_scales));
  }
  pass.commit();
  same.commit();
  EXPECT_EQ(from.digest(), to.digest());
}

TEST(CppStorageCalls, ValuesThatArePartOfKeysAreNotPut) {
  const kvc::Device device("cpu");
  kvc::CacheDesc desc = geometry();
  desc.head_dim_k = 96, desc.head_dim_v = 64;
  desc.flags = KVC_CACHE_V_IN_K;
  const std::vector<float> k = numbers(heads * 96, 1), q = numbers(heads * 96, 2);
  std::vector<float> out(heads * 64), v(heads * 64);
  for (const uint32_t dtype : {KVC_F32, KVC_Q8_0}) {
    desc.dtype_k = dtype;
    kvc::Cache cache(device, desc);
    kvc::Pass pass(cache, {0}, {0});
    EXPECT_THROW(cache.put(0, {k, {1, heads, 96}}, {v, {1, heads, 64}}), kvc::InvalidArgument);
    cache.put(0, {k, {1, heads, 96}}, {});
    cache.put_attention(1, {k, {1, heads, 96}}, {}, {q, {1, heads, 96}}, {out, {1, heads, 64}});
    cache.get_copy(1, {}, {v, {1, heads, 64}});
    for (size_t i = 0; i < out.size(); ++i) {
      if (dtype == KVC_F32) {
        EXPECT_EQ(v[i], k[i / 64 * 96 + i % 64]) << i;
      }
      EXPECT_NEAR(out[i], v[i], 1e-6f) << i;  // one token sees itself alone
    }
    const kvc::CodeViews views = cache.get_codes(1);
    EXPECT_EQ(views.v.shape[2], 64);
    EXPECT_EQ(static_cast<char*>(views.v.data) + views.v.byte_offset,
              static_cast<char*>(views.k.data) + views.k.byte_offset);
    pass.commit();
  }
}

TEST(CppStorageCalls, InterleavedStorageChangesStridesAlone) {
  const kvc::Device device("cpu");
  kvc::CacheDesc desc = geometry();
  desc.dtype_k = desc.dtype_v = KVC_F16;
  std::vector<std::vector<float>> results;
  for (const uint64_t flags : {uint64_t{0}, uint64_t{KVC_CACHE_INTERLEAVED}}) {
    desc.flags = flags;
    kvc::Cache cache(device, desc);
    const std::vector<float> k = numbers(2 * heads * dim, 1), v = numbers(2 * heads * dim, 2);
    std::vector<float> out(2 * heads * dim);
    kvc::Pass pass(cache, {0, 1}, {0, 0});
    cache.put_attention(0, {k, {2, heads, dim}}, {v, {2, heads, dim}}, {k, {2, heads, dim}},
                        {out, {2, heads, dim}});
    const kvc::KeyValueViews views = cache.get(0);
    EXPECT_EQ(views.k.strides[0], flags == 0 ? dim : 2 * dim);
    results.push_back(out);
  }
  EXPECT_EQ(results[0], results[1]);
}

TEST(CppStorageCalls, TheSideThatStoresNumbersIsLentAlone) {
  const kvc::Device device("cpu");
  kvc::CacheDesc desc = geometry();
  const std::vector<float> k = numbers(heads * dim, 1), v = numbers(heads * dim, 2);
  for (const bool keys_are_numbers : {true, false}) {
    desc.dtype_k = keys_are_numbers ? KVC_F32 : KVC_NF4;
    desc.dtype_v = keys_are_numbers ? KVC_Q8_0 : KVC_F32;
    kvc::Cache cache(device, desc);
    kvc::Pass pass(cache, {0}, {0});
    cache.put(0, {k, {1, heads, dim}}, {v, {1, heads, dim}});
    const auto first_of = [](const kvc_tensor& lent) {
      const kvc_tensor view = support::on_host(lent);
      return *reinterpret_cast<const float*>(static_cast<const char*>(view.data) + view.byte_offset);
    };
    if (keys_are_numbers) {
      EXPECT_EQ(first_of(cache.get_keys(0)), k[0]);
      EXPECT_THROW((void)cache.get_values(0), kvc::NotSupported);
    } else {
      EXPECT_EQ(first_of(cache.get_values(0)), v[0]);
      EXPECT_THROW((void)cache.get_keys(0), kvc::NotSupported);
    }
  }
}

TEST(CppStorageCalls, WhatDoesNotFitIsThrownByItsType) {
  const kvc::Device device("cpu");
  EXPECT_THROW(kvc::storage_query(KVC_I8, 64), kvc::DtypeError);
  EXPECT_THROW(kvc::storage_query(KVC_Q8_0, 33), kvc::InvalidArgument);
  EXPECT_EQ(kvc::storage_query(KVC_NF4, 64).block, 64);
  EXPECT_EQ(kvc::storage_query(KVC_NF4, 64, 16).scales_per_row, 4);
  std::vector<float> x(dim);
  std::vector<int8_t> codes(dim);
  std::vector<uint16_t> scales(dim / 32);
  kvc::CodecDesc codec;
  codec.dtype = KVC_Q8_0;
  EXPECT_THROW(kvc::encode(codec, {x, {dim}}, {codes, KVC_I8, {dim}}), kvc::InvalidArgument);
  EXPECT_THROW(kvc::decode(codec, {codes, KVC_I8, {dim}}, {}, {x, {dim}}), kvc::InvalidArgument);
  EXPECT_THROW(kvc::encode(codec, {x, {dim}}, {codes, KVC_I8, {dim + 1}}, {}), kvc::InvalidArgument)
      << "the vector is too short";
  EXPECT_THROW(kvc::encode(codec, {x, {dim}}, {codes, KVC_U8, {dim}}, {scales, KVC_F16, {dim / 32}}),
               kvc::DtypeError);

  kvc::Cache cache(device, geometry(types[5]));  // q8_0
  EXPECT_THROW(cache.bind_scales(0, 1, bound, bound), kvc::NotSupported);
  EXPECT_THROW(cache.get_codes(0), kvc::BadState);
  const std::vector<float> k(heads * dim, 1.0f);
  kvc::Pass pass(cache, {0}, {0});
  EXPECT_THROW(cache.put(0, {k, {1, heads, dim}}, {}), kvc::InvalidArgument);
  cache.put(0, {k, {1, heads, dim}}, {k, {1, heads, dim}});
  EXPECT_THROW(cache.get(0), kvc::NotSupported);
  EXPECT_THROW(cache.put_codes(0, {k, {1, heads, dim}}, {}, {}, {}), kvc::DtypeError);
}

TEST(CppStorageCalls, BracesAloneAreNoTensor) {
  EXPECT_EQ(kvc::Tensor().get(), nullptr);
  EXPECT_EQ(kvc::ConstTensor(kvc::Tensor()).get(), nullptr);
  EXPECT_EQ(kvc::ConstTensor(std::optional<kvc_tensor>()).get(), nullptr);
  EXPECT_NE(kvc::Tensor(kvc_tensor{}).get(), nullptr) << "a struct of zeros is a wrong tensor";
  const kvc::Device device("cpu");
  kvc::Cache cache(device, geometry());
  std::vector<float> k(heads * dim, 1.0f), v(heads * dim, 2.0f), out(heads * dim);
  kvc::Pass pass(cache, {0}, {0});
  for (int32_t layer = 0; layer < n_layers; ++layer)
    cache.put(layer, {k, {1, heads, dim}}, {v, {1, heads, dim}});
  EXPECT_THROW(cache.attention(0, {}, {out, {1, heads, dim}}), kvc::InvalidArgument);
  cache.gather(0, 0, {}, {out, {1, heads, dim}});
  EXPECT_EQ(out, v);
}

}  // namespace
