// kvc_storage_query(), kvc_encode() and kvc_decode() called wrongly: every field, every tensor. Each call has its status and a message
// that says what fits, and writes nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>
#include <optional>

#include "support/array.hpp"
#include "support/bad_input.hpp"

namespace {

using support::Array;
using support::BadInput;
using support::expect_faults;
using support::expect_words;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr int32_t least = INT32_MIN, most = INT32_MAX;

TEST(BadCodecs, Query) {
  BadInput bad(nullptr);
  kvc_storage_info info = KVC_STORAGE_INFO_INIT;
  const kvc_storage_info untouched = info;
  const auto expect = [&](kvc_status status, const char* what, uint32_t dtype, int32_t dim,
                          int32_t block) {
    bad.expect(status, what, [&] { return kvc_storage_query(dtype, dim, block, &info); });
  };
  for (const uint32_t dtype : {1u, uint32_t{KVC_I8}, uint32_t{KVC_U8}, uint32_t{KVC_F64}, UINT32_MAX})
    expect(KVC_E_DTYPE, "dtype", dtype, 64, 0);
  for (const int32_t dim : {least, -1, 0, 65537, most})
    expect(invalid, "head_dim", KVC_INT8, dim, 0);
  for (const int32_t dim : {1, 31, 33, 48}) {
    expect(invalid, "head_dim of q8_0", KVC_Q8_0, dim, 0);
    expect(invalid, "head_dim of q4_0", KVC_Q4_0, dim, 0);
  }
  for (const int32_t dim : {1, 8, 24}) expect(invalid, "head_dim of nf4", KVC_NF4, dim, 0);
  for (const int32_t block : {least, -1, 1, 8, 48, 256, most})
    expect(invalid, "block", KVC_NF4, 256, block);
  for (const uint32_t dtype : {KVC_F32, KVC_F8_E4M3, KVC_Q8_0, KVC_Q4_0, KVC_INT8})
    expect(invalid, "a block of another type", dtype, 64, 32);
  expect(invalid, "a block beyond the head", KVC_NF4, 64, 128);
  EXPECT_EQ(info.bytes_per_row, untouched.bytes_per_row);
  bad.expect(invalid, "out null", [&] { return kvc_storage_query(KVC_F32, 1, 0, nullptr); });
  info.struct_size = 4;
  bad.expect(invalid, "struct_size", [&] { return kvc_storage_query(KVC_F32, 1, 0, &info); });
}

/// A codec and three tensors that fit it: 2 × 3 vectors.
struct Codec {
  explicit Codec(uint32_t dtype, int32_t dim, uint32_t code, int64_t n_codes, uint32_t scale,
                 int64_t n_scales)
      : values(KVC_F32, {2, 3, dim}), codes(code, {2, 3, n_codes}) {
    desc.dtype = dtype;
    if (n_scales > 0) scales.emplace(scale, std::vector<int64_t>{2, 3, n_scales});
    values.fill(1);
  }
  kvc_tensor* scale_tensor() { return scales ? scales->tensor() : nullptr; }
  kvc_status encode() { return kvc_encode(&desc, values.tensor(), codes.tensor(), scale_tensor()); }
  kvc_status decode() { return kvc_decode(&desc, codes.tensor(), scale_tensor(), values.tensor()); }

  kvc_codec_desc desc = KVC_CODEC_DESC_INIT;
  Array values, codes;
  std::optional<Array> scales;
};

void expect_both(BadInput& bad, kvc_status status, const std::string& what, Codec& codec) {
  bad.expect(status, "encode: " + what, [&] { return codec.encode(); });
  bad.expect(status, "decode: " + what, [&] { return codec.decode(); });
}

TEST(BadCodecs, Descriptors) {
  BadInput bad(nullptr);
  const auto expect = [&](kvc_status status, const char* what,
                          const std::function<void(kvc_codec_desc&)>& set,
                          const std::vector<std::string>& words = {}) {
    Codec codec(KVC_NF4, 64, KVC_U8, 32, KVC_F32, 1);
    set(codec.desc);
    expect_both(bad, status, what, codec);
    expect_words(what, words);
  };
  for (const uint32_t size : {0u, 4u, 19u, UINT32_MAX})
    expect(invalid, "struct_size", [&](auto& d) { d.struct_size = size; });
  for (const uint32_t dtype : {1u, uint32_t{KVC_U8}, UINT32_MAX})
    expect(KVC_E_DTYPE, "dtype", [&](auto& d) { d.dtype = dtype; }, {"dtype"});
  for (const uint32_t flags : {2u, 3u, 1u << 31})
    expect(invalid, "flags", [&](auto& d) { d.flags = flags; }, {"kvc_codec_desc.flags"});
  for (const int32_t block : {-1, 1, 48, 128, most})
    expect(invalid, "block", [&](auto& d) { d.block = block; }, {"dtype"});
  expect(invalid, "a scale of nf4", [](auto& d) { d.scale = 1; }, {"scale", "nf4", "f8_e4m3"});
  Codec f8(KVC_F8_E4M3, 7, KVC_F8_E4M3, 7, 0, 0);
  for (const float scale : {-1.0f, 0x1p-101f, 0x1p101f, HUGE_VALF, std::nanf("")}) {
    f8.desc.scale = scale;
    expect_both(bad, invalid, "scale " + std::to_string(scale), f8);
    expect_words("scale", {"scale", "2^-100", "2^100"});
  }
  f8.desc.scale = 0x1p-100f;
  expect_both(bad, KVC_OK, "the least scale", f8);
  f8.desc.flags = KVC_CODEC_ROTATE;
  expect_both(bad, invalid, "a rotated f8", f8);
  Codec odd(KVC_INT8, 7, KVC_I8, 7, KVC_F32, 1);
  odd.desc.flags = KVC_CODEC_ROTATE;
  expect_both(bad, invalid, "a rotated vector of 7", odd);
  bad.expect(invalid, "encode: no descriptor",
             [&] { return kvc_encode(nullptr, f8.values.tensor(), f8.codes.tensor(), nullptr); });
}

TEST(BadCodecs, Tensors) {
  BadInput bad(nullptr);
  Codec codec(KVC_Q8_0, 64, KVC_I8, 64, KVC_F16, 2);
  const auto encode = [&] { return codec.encode(); };
  const auto decode = [&] { return codec.decode(); };
  expect_faults(bad, "encode codes", *codec.codes.tensor(), true, encode);
  expect_faults(bad, "encode scales", *codec.scales->tensor(), true, encode);
  expect_faults(bad, "decode codes", *codec.codes.tensor(), false, decode);
  expect_faults(bad, "decode scales", *codec.scales->tensor(), false, decode);
  const auto each = [&](kvc_status status, const std::string& what,
                        const std::function<void(kvc_tensor&)>& spoil) {
    const kvc_tensor good = *codec.values.tensor();
    spoil(*codec.values.tensor());
    expect_both(bad, status, what, codec);
    *codec.values.tensor() = good;
  };
  for (const int32_t ndim : {least, -1, 0, 9, most})
    each(KVC_E_SHAPE, "values of ndim " + std::to_string(ndim), [&](auto& t) { t.ndim = ndim; });
  for (const int64_t dim : {INT64_MIN, int64_t{-1}, int64_t{0}, int64_t{65537}})
    each(KVC_E_SHAPE, "values of " + std::to_string(dim), [&](auto& t) { t.shape[2] = dim; });
  each(invalid, "values of 48", [](auto& t) { t.shape[2] = 48; });
  each(KVC_E_SHAPE, "values of more vectors", [](auto& t) { t.shape[0] = 3; });
  for (const uint32_t dtype :
       {0u, uint32_t{KVC_I8}, uint32_t{KVC_F64}, uint32_t{KVC_Q8_0}, UINT32_MAX})
    each(KVC_E_DTYPE, "values of another type", [&](auto& t) { t.dtype = dtype; });
  each(KVC_E_DEVICE_MISMATCH, "values elsewhere", [](auto& t) { t.device_type = KVC_CUDA; });
  each(KVC_E_OVERFLOW, "values beyond the address range",
       [](auto& t) { t.byte_offset = UINT64_MAX - 7; });
  each(invalid, "values over the codes", [&](auto& t) { t.data = codec.codes.tensor()->data; });
  each(invalid, "values over the scales", [&](auto& t) { t.data = codec.scales->tensor()->data; });
  const kvc_tensor codes = *codec.codes.tensor();
  codec.codes.tensor()->data = codec.scales->tensor()->data;
  expect_both(bad, invalid, "codes over the scales", codec);
  *codec.codes.tensor() = codes;
  bad.expect(invalid, "no values", [&] {
    return kvc_encode(&codec.desc, nullptr, codec.codes.tensor(), codec.scale_tensor());
  });
  bad.expect(invalid, "no codes", [&] {
    return kvc_encode(&codec.desc, codec.values.tensor(), nullptr, codec.scale_tensor());
  });
  bad.expect(invalid, "no scales", [&] {
    return kvc_encode(&codec.desc, codec.values.tensor(), codec.codes.tensor(), nullptr);
  });
  bad.expect(invalid, "no values to decode into", [&] {
    return kvc_decode(&codec.desc, codec.codes.tensor(), codec.scale_tensor(), nullptr);
  });
  Codec f8(KVC_F8_E4M3, 64, KVC_F8_E4M3, 64, 0, 0);
  bad.expect(invalid, "scales of f8", [&] {
    return kvc_encode(&f8.desc, f8.values.tensor(), f8.codes.tensor(), codec.scale_tensor());
  });
  expect_words("scales of f8", {"scales", "null", "f8_e4m3"});
  for (int64_t i = 0; i < codec.values.count(); ++i)
    ASSERT_EQ(codec.values.get(i), 1) << "a refused call wrote";
  std::cout << bad.calls() << " calls" << std::endl;
}

}  // namespace
