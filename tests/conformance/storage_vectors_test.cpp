// Replays the vectors of storage types: bytes through kvc_encode() and kvc_decode(), attention over them through a cache, and all of
// it on the oracle's model, which proves the model.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <map>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/vectors.hpp"
#include "tests/model/formats.hpp"
#include "tests/model/storage.hpp"

namespace {

using nlohmann::json;
using support::Array, support::wave;
using Bytes = std::vector<uint8_t>;

const json& vectors() {
  static const json all = support::vectors("storage.json");
  return all;
}

uint32_t type_of(const std::string& name) {
  static const std::map<std::string, uint32_t> types = {
      {"f32", KVC_F32},         {"f16", KVC_F16},         {"bf16", KVC_BF16},
      {"f8_e4m3", KVC_F8_E4M3}, {"f8_e5m2", KVC_F8_E5M2}, {"q8_0", KVC_Q8_0},
      {"q4_0", KVC_Q4_0},       {"int8", KVC_INT8},       {"nf4", KVC_NF4}};
  return types.at(name);
}

float float_of(const std::string& hex) {
  return std::bit_cast<float>(static_cast<uint32_t>(std::stoul(hex, nullptr, 16)));
}

Bytes bytes_of(const std::string& hex) {
  Bytes bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

/// One entry of the vectors' codecs.
struct Entry {
  explicit Entry(const json& fields)
      : storage(type_of(fields["type"]), std::stoi(text(fields, "dim")),
                fields.contains("block") ? std::stoi(text(fields, "block")) : 0,
                fields.contains("rotate") && text(fields, "rotate") == "1"),
        scale(fields.contains("scale") ? float_of(fields["scale"]) : 1),
        codes(bytes_of(fields["codes"])) {
    const std::string in = fields["in"];
    for (size_t i = 0; i < in.size(); i += 8) values.push_back(float_of(in.substr(i, 8)));
    if (fields.contains("scales")) scales = bytes_of(fields["scales"]);
    if (!fields.contains("out")) return;
    std::stringstream out(fields["out"].get<std::string>());
    for (std::string word; std::getline(out, word, ',');)
      read.push_back(word == "n" ? std::nan("") : double{float_of(word)});
  }
  static std::string text(const json& fields, const char* name) {
    return fields[name].is_string() ? fields[name].get<std::string>() : fields[name].dump();
  }
  int64_t rows() const { return static_cast<int64_t>(values.size()) / storage.dim; }
  kvc_codec_desc desc() const {
    kvc_codec_desc desc = KVC_CODEC_DESC_INIT;
    desc.dtype = storage.dtype;
    desc.flags = storage.rotation > 0 ? KVC_CODEC_ROTATE : 0;
    desc.block = storage.dtype == KVC_NF4 ? storage.block : 0;
    desc.scale = storage.is_f8() ? scale : 0;
    return desc;
  }

  model::Storage storage;
  float scale;
  std::vector<float> values;
  Bytes codes, scales;
  std::vector<double> read;  // empty: of a rotated row
};

bool is_plain_nan(const model::Storage& storage, const Bytes& a, const Bytes& b, size_t element) {
  const auto index = static_cast<int64_t>(element);
  return storage.is_plain() && std::isnan(model::load(a.data(), storage.dtype, index)) &&
         std::isnan(model::load(b.data(), storage.dtype, index));
}

/// Byte for byte; of f32, f16 and bf16 one NaN is as good as another.
void expect_bytes(const model::Storage& storage, const Bytes& got, const Bytes& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  const size_t element = model::element_bytes(storage.code_dtype());
  for (size_t i = 0; i < got.size(); ++i) {
    const bool agree = got[i] == wanted[i] || is_plain_nan(storage, got, wanted, i / element);
    ASSERT_TRUE(agree) << "byte " << i << " is " << int{got[i]} << ", not " << int{wanted[i]};
  }
}

/// What the codes mean: as in the vectors, or, of a rotated row, decoded and rotated back in double.
std::vector<double> meant(const Entry& entry) {
  if (!entry.read.empty()) return entry.read;
  model::StoredRows rows(entry.storage, static_cast<size_t>(entry.rows()));
  std::vector<double> result;
  for (size_t row = 0; row < static_cast<size_t>(entry.rows()); ++row) {
    rows.put_codes(row, entry.codes.data() + row * entry.storage.code_bytes(),
                   entry.scales.data() + row * entry.storage.scale_bytes(), entry.scale);
    const std::vector<double> values = rows.values(row);
    result.insert(result.end(), values.begin(), values.end());
  }
  return result;
}

Bytes elements(Array& array) {
  Bytes bytes;
  const size_t size = model::element_bytes(array.tensor()->dtype);
  for (int64_t i = 0; i < array.count(); ++i) {
    const unsigned char* at = array.element(i);
    bytes.insert(bytes.end(), at, at + size);
  }
  return bytes;
}

TEST(StorageVectors, TheModelEncodesAndDecodesThem) {
  size_t n = 0;
  for (const json& fields : vectors()["codecs"]) {
    SCOPED_TRACE(fields.dump().substr(0, 200));
    const Entry entry(fields);
    model::StoredRows rows(entry.storage, static_cast<size_t>(entry.rows()));
    Bytes codes, scales;
    for (size_t row = 0; row < static_cast<size_t>(entry.rows()); ++row) {
      rows.put(row, entry.values.data() + row * static_cast<size_t>(entry.storage.dim), entry.scale);
      codes.insert(codes.end(), rows.codes(row), rows.codes(row) + entry.storage.code_bytes());
      scales.insert(scales.end(), rows.scales(row), rows.scales(row) + entry.storage.scale_bytes());
      for (size_t i = 0; i < static_cast<size_t>(entry.storage.dim) && !entry.read.empty(); ++i) {
        const double got = rows.numbers(row)[i],
                     wanted = entry.read[row * static_cast<size_t>(entry.storage.dim) + i];
        ASSERT_TRUE(got == wanted || (std::isnan(got) && std::isnan(wanted))) << got << ' ' << wanted;
      }
    }
    expect_bytes(entry.storage, codes, entry.codes);
    ASSERT_EQ(scales, entry.scales);
    if (HasFailure()) return;
    ++n;
  }
  EXPECT_GT(n, 300u);
}

TEST(StorageVectors, EncodeAndDecodeInAnyLayout) {
  support::Random random(9);
  for (const json& fields : vectors()["codecs"]) {
    SCOPED_TRACE(fields.dump().substr(0, 200));
    const Entry entry(fields);
    const kvc_codec_desc desc = entry.desc();
    const model::Storage& storage = entry.storage;
    Array values(KVC_F32, {entry.rows(), storage.dim}, random);
    Array codes(storage.code_dtype(), {entry.rows(), storage.codes_per_row()}, random);
    Array scales(storage.block > 0 ? storage.scale_dtype() : uint32_t{KVC_F32},
                 {entry.rows(), std::max<int64_t>(1, storage.scales_per_row())}, random);
    kvc_tensor* const scale_tensor = storage.block > 0 ? scales.tensor() : nullptr;
    for (int64_t i = 0; i < values.count(); ++i)
      values.set(i, entry.values[static_cast<size_t>(i)]);
    ASSERT_EQ(kvc_encode(&desc, values.tensor(), codes.tensor(), scale_tensor), KVC_OK)
        << support::last_message();
    expect_bytes(storage, elements(codes), entry.codes);
    ASSERT_EQ(scale_tensor ? elements(scales) : Bytes(), entry.scales);
    ASSERT_TRUE(codes.gaps_intact() && scales.gaps_intact());

    Array read(KVC_F32, {entry.rows(), storage.dim}, random);
    codes.set_elements(entry.codes);
    ASSERT_EQ(kvc_decode(&desc, codes.tensor(), scale_tensor, read.tensor()), KVC_OK);
    ASSERT_TRUE(read.gaps_intact());
    const std::vector<double> wanted = meant(entry);
    double largest = 0;
    for (const double value : wanted) largest = std::fmax(largest, std::fabs(value));
    for (int64_t i = 0; i < read.count(); ++i) {
      const double exact = wanted[static_cast<size_t>(i)], got = read.get(i);
      const bool same = got == exact || (std::isnan(got) && std::isnan(exact));
      const double slack = storage.rotation > 0 ? 4e-6 * largest : 0;
      ASSERT_TRUE(same || std::fabs(got - exact) <= slack) << i << ": " << got << " not " << exact;
    }
    if (HasFailure()) return;
  }
}

/// int8 stores what the rotation makes to half a step of its largest magnitude.
TEST(StorageVectors, RotationIsHadamardsWithRudinShapirosSigns) {
  for (const json& fields : vectors()["rotation"]) {
    const int32_t dim = fields["dim"];
    SCOPED_TRACE(dim);
    const model::Storage storage(KVC_INT8, dim, 0, true);
    ASSERT_EQ(storage.rotation, fields["block"].get<int32_t>());
    const std::vector<float> in = wave(fields["salt"], dim);
    const std::vector<double> out = fields["out"];
    std::vector<double> exact(in.begin(), in.end());
    model::rotate(storage, exact.data());
    double largest = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(exact[i], out[i], 1e-6);
      largest = std::fmax(largest, std::fabs(out[i]));
    }
    model::rotate_back(storage, exact.data());
    for (size_t i = 0; i < in.size(); ++i) ASSERT_NEAR(exact[i], in[i], 1e-12);

    kvc_codec_desc desc = KVC_CODEC_DESC_INIT;
    desc.dtype = KVC_INT8;
    desc.flags = KVC_CODEC_ROTATE;
    Array values(KVC_F32, {dim}), codes(KVC_I8, {dim}), scales(KVC_F32, {1}), read(KVC_F32, {dim});
    for (int64_t i = 0; i < dim; ++i) values.set(i, in[static_cast<size_t>(i)]);
    ASSERT_EQ(kvc_encode(&desc, values.tensor(), codes.tensor(), scales.tensor()), KVC_OK);
    desc.flags = 0;
    ASSERT_EQ(kvc_decode(&desc, codes.tensor(), scales.tensor(), read.tensor()), KVC_OK);
    for (int64_t i = 0; i < dim; ++i)
      ASSERT_NEAR(read.get(i), out[static_cast<size_t>(i)], largest * (0.5 / 127 + 1e-6));
  }
}

/// The last two of six tokens attend, alone and beside the keys that they come with.
TEST(StorageVectors, AttentionOverWhatIsStored) {
  const support::Device device;
  for (const json& fields : vectors()["storage_attention"]) {
    SCOPED_TRACE(fields.dump().substr(0, 150));
    const int32_t dim = fields["dim"], n = fields["tokens"], n_queries = fields["queries"];
    const int32_t q_heads = fields["q_heads"], kv_heads = fields["kv_heads"];
    kvc_cache_desc desc = support::cache_desc(1, kv_heads, dim, dim);
    desc.dtype_k = desc.dtype_v = type_of(fields["type"]);
    if (fields["rotate"].get<int32_t>() != 0) desc.flags = KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V;
    const support::Cache cache(device, desc);
    ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
    const uint64_t salt = fields["salt"];
    const std::vector<float> keys = wave(salt + 1, int64_t{n} * kv_heads * dim);
    const std::vector<float> values = wave(salt + 2, int64_t{n} * kv_heads * dim);
    const std::vector<float> queries = wave(salt, int64_t{n_queries} * q_heads * dim);
    Array q(KVC_F32, {n_queries, q_heads, dim}), out(KVC_F32, {n_queries, q_heads, dim}),
        lse(KVC_F32, {n_queries, q_heads});
    for (int64_t i = 0; i < q.count(); ++i) q.set(i, queries[static_cast<size_t>(i)]);
    const std::vector<int32_t> sequence(static_cast<size_t>(n), 0);
    for (int32_t first = 0; first < n; first = first == 0 ? n - n_queries : n) {
      const int32_t count = first == 0 ? n - n_queries : n_queries;
      std::vector<int32_t> position;
      for (int32_t i = 0; i < count; ++i) position.push_back(first + i);
      Array k(KVC_F32, {count, kv_heads, dim}), v(KVC_F32, {count, kv_heads, dim});
      for (int64_t i = 0; i < k.count(); ++i) {
        const auto at = static_cast<size_t>(first * kv_heads * dim + i);
        k.set(i, 2 * keys[at]);
        v.set(i, values[at]);
      }
      ASSERT_EQ(kvc_begin(cache, count, position.data(), sequence.data(), nullptr, 0, nullptr),
                KVC_OK);
      ASSERT_EQ(kvc_put(cache, 0, k.tensor(), v.tensor()), KVC_OK);
      ASSERT_EQ(first == 0 ? kvc_commit(cache) : KVC_OK, KVC_OK);
    }
    ASSERT_EQ(support::attention(cache, 0, q.tensor(), out.tensor(), lse.tensor()), KVC_OK)
        << support::last_message();
    const int32_t every = fields["every"];
    for (int32_t t = 0; t < n_queries; ++t)
      for (int32_t h = 0; h < q_heads; ++h) {
        ASSERT_NEAR(lse.get(t * q_heads + h),
                    fields["lse"][static_cast<size_t>(t)][static_cast<size_t>(h)].get<double>(),
                    1e-5);
        const json& wanted = fields["out"][static_cast<size_t>(t)][static_cast<size_t>(h)];
        for (size_t i = 0; i < wanted.size(); ++i)
          ASSERT_NEAR(out.get((t * q_heads + h) * dim + static_cast<int64_t>(i) * every),
                      wanted[i].get<double>(), 1e-5);
      }
  }
}

}  // namespace
