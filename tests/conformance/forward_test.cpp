// Attention without a cache, by every operator: random shapes, layouts and options against the definition in double, within the bound
// or refused by name; the vectors; bad input.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "kvc/operators.h"
#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/vectors.hpp"
#include "tests/model/attention.hpp"
#include "tests/model/dropout.hpp"
#include "tests/model/formats.hpp"
#include "tests/model/storage.hpp"

namespace {

using nlohmann::json;
using support::Array, support::Random, support::last_message;

struct Shape {
  int32_t rows = 1, q_len = 1, kv_len = 1, kv_heads = 1, q_heads = 1, dk = 8, dv = 8;
};

kvc_operator_desc bounds_of(const Shape& s) {
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = s.rows;
  desc.max_q_len = s.q_len;
  desc.max_kv_len = s.kv_len;
  desc.n_kv_heads = s.kv_heads;
  desc.max_q_heads = s.q_heads;
  desc.head_dim_k = s.dk;
  desc.head_dim_v = s.dv;
  return desc;
}

/// A call and what it returns.
struct Problem {
  explicit Problem(const Shape& chosen) : s(chosen) {}

  int64_t q_row(int32_t r, int32_t i, int32_t h) const {
    return ((int64_t{r} * s.q_len + i) * s.q_heads + h);
  }
  int64_t kv_row(int32_t r, int32_t j, int32_t h) const {
    return (int64_t{r} * s.kv_len + j) * s.kv_heads + h;
  }
  int32_t position(int32_t i) const {
    const int32_t first = desc.query_offset == 0          ? s.kv_len - s.q_len
                          : desc.query_offset == KVC_NONE ? 0
                                                          : desc.query_offset;
    return first + i;
  }
  bool sees(int32_t r, int32_t h, int32_t i, int32_t j) const {
    const int32_t p = position(i);
    if ((desc.flags & KVC_FORWARD_CAUSAL) != 0 && j > p) return false;
    if (desc.reach > 0 && j < p - desc.reach) return false;
    if (desc.chunk > 0 && p >= 0 && j < p - p % desc.chunk) return false;
    if (mask && at(*mask, r, h, i, j) == 0) return false;
    return !bias || at(*bias, r, h, i, j) != -HUGE_VAL;
  }
  /// Of a tensor [rows, heads, q_len, kv_len] that may be broadcast.
  double at(const Array& array, int32_t r, int32_t h, int32_t i, int32_t j) const {
    const kvc_tensor& t = *array.tensor();
    const int64_t wanted[4] = {r, h, i, j};
    int64_t index = 0;
    for (int32_t d = 0; d < t.ndim; ++d) {
      const int32_t axis = 4 - t.ndim + d;
      const bool by_group = axis == 1 && t.shape[d] == s.kv_heads;
      const int64_t at = by_group ? h / (s.q_heads / s.kv_heads) : wanted[axis];
      index = index * t.shape[d] + (t.shape[d] == 1 ? 0 : at);
    }
    return array.get(index);
  }

  const Shape s;
  kvc_forward_desc desc = KVC_FORWARD_DESC_INIT;
  float scale = 0, probability = 0;
  uint32_t runtime_dtype = KVC_F32;
  std::optional<Array> q, k, v, bias, mask, out, lse, weights;
  std::vector<float> slopes, sinks;

  kvc_status run(kvc_operator* op) {
    kvc_attention_extra extra = KVC_ATTENTION_EXTRA_INIT;
    if (bias) extra.bias = bias->tensor();
    if (mask) extra.mask = mask->tensor();
    if (weights) extra.weights = weights->tensor();
    if (lse) extra.lse = lse->tensor();
    return kvc_operator_forward(op, &desc, q->tensor(), k->tensor(), v->tensor(),
                                slopes.empty() ? nullptr : slopes.data(),
                                sinks.empty() ? nullptr : sinks.data(), &extra, out->tensor());
  }

  void compare(const std::string& name) const {
    for (int32_t r = 0; r < s.rows; ++r)
      for (int32_t i = 0; i < s.q_len; ++i)
        for (int32_t h = 0; h < s.q_heads; ++h) {
          compare_row(r, i, h,
                      name + ", row " + std::to_string(r) + " query " + std::to_string(i) +
                          " head " + std::to_string(h));
          if (::testing::Test::HasFailure()) return;
        }
  }

  void compare_row(int32_t r, int32_t i, int32_t h, const std::string& name) const {
    model::Constants constants{s.q_heads, 0, desc.softcap, {}, {}};
    constants.slopes.assign(slopes.begin(), slopes.end());
    if ((desc.flags & KVC_FORWARD_NO_SINKS) == 0)
      constants.sinks.assign(sinks.begin(), sinks.end());
    const double factor = scale != 0 ? static_cast<double>(scale)
                                     : 1 / std::sqrt(static_cast<double>(s.dk));
    const bool drops = (desc.flags & KVC_FORWARD_DROPOUT) != 0;
    const int32_t kv_head = h / (s.q_heads / s.kv_heads);
    std::vector<std::vector<double>> values;
    std::vector<int32_t> keys;
    std::vector<model::Seen> seen;
    double magnitude = 0, largest = 0;
    for (int32_t j = 0; j < s.kv_len; ++j) {
      if (!sees(r, h, i, j)) continue;
      std::vector<double> value;
      double dot = 0, sum = 0;
      for (int32_t d = 0; d < s.dk; ++d) {
        const double product = q->get(q_row(r, i, h) * s.dk + d) *
                               k->get(kv_row(r, j, kv_head) * s.dk + d);
        dot += product;
        sum += std::fabs(product);
      }
      for (int32_t d = 0; d < s.dv; ++d) {
        value.push_back(v->get(kv_row(r, j, kv_head) * s.dv + d));
        largest = std::max(largest, std::fabs(value.back()));
      }
      const double added = bias ? at(*bias, r, h, i, j) : 0;
      const double distance = std::abs(position(i) - j);
      sum = factor * sum + std::fabs(added) +
            (slopes.empty() ? 0 : std::fabs(double{slopes[static_cast<size_t>(h)]}) * distance);
      magnitude = std::max(magnitude, sum);
      values.push_back(value);
      keys.push_back(j);
      seen.push_back({dot, distance, nullptr, added});
      if (drops)
        seen.back().counts = model::dropout_factor(
            {desc.dropout_seed, desc.layer, h, r, position(i), j}, probability);
    }
    for (size_t n = 0; n < seen.size(); ++n) seen[n].value = values[n].data();
    std::vector<double> wanted(static_cast<size_t>(s.dv)), weight(seen.size());
    const double sum = model::attend_row(constants, h, factor, seen, s.dv, wanted.data(),
                                         weight.data());
    if (drops) largest /= 1 - static_cast<double>(probability);
    for (int32_t d = 0; d < s.dv; ++d) {
      const double exact = wanted[static_cast<size_t>(d)];
      const uint32_t type = out->tensor()->dtype;
      const double bound = model::attention_error(magnitude, largest, runtime_dtype) +
                           0.5 * model::spacing(type, exact);
      ASSERT_NEAR(out->get(q_row(r, i, h) * s.dv + d), exact, bound + 1e-30)
          << name << " dimension " << d;
    }
    if (lse && std::isinf(sum)) {
      ASSERT_EQ(lse->get(q_row(r, i, h)), sum) << name;
    } else if (lse) {
      ASSERT_NEAR(lse->get(q_row(r, i, h)), sum, model::log_sum_exp_error(magnitude, runtime_dtype))
          << name;
    }
    for (int32_t j = 0, n = 0; weights && j < s.kv_len; ++j) {
      const bool is_seen = n < static_cast<int32_t>(keys.size()) && keys[static_cast<size_t>(n)] == j;
      const double exact = is_seen ? weight[static_cast<size_t>(n++)] : 0;
      const int64_t index = ((int64_t{r} * s.q_heads + h) * s.q_len + i) * s.kv_len + j;
      ASSERT_NEAR(weights->get(index), exact, 1e-5 * std::max(1.0, exact)) << name << " key " << j;
    }
  }
};

Array random_array(uint32_t type, const std::vector<int64_t>& shape, Random& random) {
  Array array(type, shape, random);
  array.fill(random);
  return array;
}

Problem random_problem(Random& random, bool decodes) {
  Shape s;
  s.rows = 1 + random.below(3);
  s.q_len = decodes ? 1 : 1 + random.below(random.chance(0.2) ? 70 : 9);
  s.kv_len = 1 + random.below(random.chance(0.3) ? 300 : 20);
  s.kv_heads = 1 + random.below(2);
  s.q_heads = s.kv_heads * (1 + random.below(3));
  s.dk = 1 + random.below(40);
  s.dv = random.chance(0.5) ? s.dk : 1 + random.below(40);
  Problem p(s);
  const uint32_t types[] = {KVC_F32, KVC_F16, KVC_BF16};
  p.q = random_array(types[random.below(3)], {s.rows, s.q_len, s.q_heads, s.dk}, random);
  p.k = random_array(types[random.below(3)], {s.rows, s.kv_len, s.kv_heads, s.dk}, random);
  p.v = random_array(types[random.below(3)], {s.rows, s.kv_len, s.kv_heads, s.dv}, random);
  p.out.emplace(types[random.below(3)], std::vector<int64_t>{s.rows, s.q_len, s.q_heads, s.dv},
                random);
  if (random.chance(0.5))
    p.lse.emplace(KVC_F32, std::vector<int64_t>{s.rows, s.q_len, s.q_heads}, random);
  if (random.chance(0.3))
    p.weights.emplace(KVC_F32, std::vector<int64_t>{s.rows, s.q_heads, s.q_len, s.kv_len}, random);
  if (random.chance(0.7)) p.desc.flags |= KVC_FORWARD_CAUSAL;
  if (random.chance(0.3)) p.desc.reach = 1 + random.below(20);
  if (random.chance(0.2)) p.desc.chunk = 1 + random.below(20);
  if (random.chance(0.3))
    p.desc.query_offset = random.chance(0.5) ? KVC_NONE : 1 + random.below(30);
  if (random.chance(0.2)) p.desc.softcap = 1.5f;
  if (random.chance(0.2)) p.scale = 0.25f;
  for (int32_t h = 0; h < s.q_heads && random.chance(0.9); ++h)
    p.slopes.push_back(random.value() * 0.1f);
  if (static_cast<int32_t>(p.slopes.size()) < s.q_heads || random.chance(0.6)) p.slopes.clear();
  if (random.chance(0.3))
    for (int32_t h = 0; h < s.q_heads; ++h) p.sinks.push_back(random.value() * 3);
  if (!p.sinks.empty() && random.chance(0.3)) p.desc.flags |= KVC_FORWARD_NO_SINKS;
  const auto columns = [&] {
    const int32_t heads = random.chance(0.5) ? s.kv_heads : s.q_heads;
    std::vector<int64_t> shape = {random.chance(0.5) ? 1 : s.rows, random.chance(0.5) ? 1 : heads,
                                  random.chance(0.3) ? 1 : s.q_len, s.kv_len};
    if (random.chance(0.3)) shape.erase(shape.begin());
    return shape;
  };
  if (random.chance(0.3)) {
    p.bias = random_array(types[random.below(3)], columns(), random);
    for (int64_t n = 0; n < p.bias->count(); ++n)
      if (random.chance(0.1)) p.bias->set(n, -HUGE_VAL);
  }
  if (random.chance(0.3)) {
    p.mask.emplace(KVC_BOOL, columns(), random);
    for (int64_t n = 0; n < p.mask->count(); ++n) p.mask->set(n, random.chance(0.7));
  }
  return p;
}

void run_random(const char* name, bool decodes, void (*change)(kvc_operator_desc&), int32_t rounds,
                float probability = 0) {
  const support::Device device(2);
  Random random(support::derived_seed(20261130, static_cast<uint64_t>(rounds)));
  for (int32_t round = 0; round < rounds; ++round) {
    Problem p = random_problem(random, decodes);
    kvc_operator_desc desc = bounds_of(p.s);
    desc.max_kv_len += random.below(5);  // less than the bounds is fine
    desc.max_rows += random.below(2);
    desc.softmax_scale = p.scale;
    desc.dropout_prob = probability;
    change(desc);
    p.runtime_dtype = desc.runtime_dtype;
    if (probability > 0) {
      p.probability = probability;
      p.desc.flags |= KVC_FORWARD_DROPOUT;
      p.desc.dropout_seed = static_cast<uint64_t>(random.below(1 << 30)) << 20;
      p.desc.layer = random.below(100);
    }
    kvc_operator* op = nullptr;
    ASSERT_EQ(kvc_operator_create(device, name, &desc, &op), KVC_OK) << last_message();
    for (int32_t again = 0; again < 2; ++again) {
      ASSERT_EQ(p.run(op), KVC_OK) << last_message();
      EXPECT_TRUE(p.out->gaps_intact());
      p.compare(std::string(name) + " round " + std::to_string(round));
    }
    ASSERT_EQ(kvc_operator_destroy(op), KVC_OK);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(Forward, ByFlash) {
  run_random(
      "flash", false, [](auto&) {}, 60);
}
TEST(Forward, ByFlashInBf16) {
  run_random(
      "flash", false, [](auto& d) { d.runtime_dtype = KVC_BF16; }, 60);
}
TEST(Forward, ByRingInF16) {
  run_random(
      "ring", false, [](auto& d) { d.stretches = 4, d.runtime_dtype = KVC_F16; }, 40);
}
TEST(Forward, BySmallBlocks) {
  run_random(
      "flash", false, [](auto& d) { d.block_q = 16, d.block_k = 384; }, 30);
}
TEST(Forward, ByVanilla) {
  run_random(
      "vanilla", false, [](auto&) {}, 40);
}
TEST(Forward, ByVanillaInDouble) {
  run_random(
      "vanilla", false, [](auto& d) { d.softmax_dtype = KVC_F64; }, 30);
}
TEST(Forward, ByDecode) {
  run_random(
      "decode", true, [](auto&) {}, 40);
}
TEST(Forward, ByRing) {
  run_random(
      "ring", false, [](auto& d) { d.stretches = 4; }, 40);
}
TEST(Forward, ByRingSideBySide) {
  run_random(
      "ring", false, [](auto& d) { d.stretches = 3, d.flags = KVC_OPERATOR_NO_SCAN; }, 30);
}
TEST(Forward, WithDropout) {
  run_random(
      "vanilla", false, [](auto&) {}, 40, 0.25f);
}

// ---- Vectors ------------------------------------------------------------------------------------------------------------

void fill_wave(Array& array, int64_t first, int64_t n, uint64_t salt, double factor) {
  for (const float value : support::wave(salt, n)) array.set(first++, factor * double{value});
}

double number(const json& value) { return value.is_string() ? -HUGE_VAL : value.get<double>(); }

/// One entry of the vectors: its keys lie at their positions, in the row that is its sequence; a mask shows what is visible.
void replay(kvc_device* device, const json& one, const char* name) {
  const std::vector<std::string> visible = one["visible"];
  const auto n_q = static_cast<int32_t>(visible.size()),
             n_k = static_cast<int32_t>(visible[0].size());
  std::vector<int32_t> j(static_cast<size_t>(n_k));
  for (int32_t i = 0; i < n_k; ++i) j[static_cast<size_t>(i)] = i;
  if (one.contains("j")) j = one["j"].get<std::vector<int32_t>>();
  const int32_t row = one.contains("dropout") ? one["dropout"]["sequence"].get<int32_t>() : 0;
  Shape s;
  s.rows = row + 1;
  s.q_len = n_q;
  s.kv_len = j.back() + 1;
  s.kv_heads = one["kv_heads"];
  s.q_heads = one["q_heads"];
  s.dk = one["head_dim_k"];
  s.dv = one["head_dim_v"];
  Problem p(s);
  p.q.emplace(KVC_F32, std::vector<int64_t>{s.rows, n_q, s.q_heads, s.dk});
  p.k.emplace(KVC_F32, std::vector<int64_t>{s.rows, s.kv_len, s.kv_heads, s.dk});
  p.v.emplace(KVC_F32, std::vector<int64_t>{s.rows, s.kv_len, s.kv_heads, s.dv});
  p.out.emplace(KVC_F32, std::vector<int64_t>{s.rows, n_q, s.q_heads, s.dv});
  p.lse.emplace(KVC_F32, std::vector<int64_t>{s.rows, n_q, s.q_heads});
  p.mask.emplace(KVC_BOOL, std::vector<int64_t>{n_q, s.kv_len});
  const uint64_t salt = one["salt"];
  for (auto* each : {&p.q, &p.k, &p.v}) (*each)->fill(0);
  p.mask->fill(0);
  fill_wave(*p.q, p.q_row(row, 0, 0) * s.dk, int64_t{n_q} * s.q_heads * s.dk, salt, 2);
  Array keys(KVC_F32, {n_k, s.kv_heads * s.dk}), values(KVC_F32, {n_k, s.kv_heads * s.dv});
  fill_wave(keys, 0, keys.count(), salt + 1, 1);
  fill_wave(values, 0, values.count(), salt + 2, 1);
  Array added(KVC_F32, {s.q_heads, n_q, n_k});
  fill_wave(added, 0, added.count(), salt + 3, 1);
  if (one.contains("bias")) {
    p.bias.emplace(KVC_F32, std::vector<int64_t>{s.q_heads, n_q, s.kv_len});
    p.bias->fill(0);
  }
  for (int32_t i = 0; i < n_k; ++i) {
    const int32_t at = j[static_cast<size_t>(i)];
    for (int32_t d = 0; d < s.kv_heads * s.dk; ++d)
      p.k->set(p.kv_row(row, at, 0) * s.dk + d, keys.get(int64_t{i} * s.kv_heads * s.dk + d));
    for (int32_t d = 0; d < s.kv_heads * s.dv; ++d)
      p.v->set(p.kv_row(row, at, 0) * s.dv + d, values.get(int64_t{i} * s.kv_heads * s.dv + d));
    for (int32_t t = 0; t < n_q; ++t) {
      p.mask->set(int64_t{t} * s.kv_len + at,
                  visible[static_cast<size_t>(t)][static_cast<size_t>(i)] == '1');
      for (int32_t h = 0; p.bias && h < s.q_heads; ++h)
        p.bias->set((int64_t{h} * n_q + t) * s.kv_len + at,
                    added.get((int64_t{h} * n_q + t) * n_k + i));
    }
  }
  if (one.contains("weights"))
    p.weights.emplace(KVC_F32, std::vector<int64_t>{s.rows, s.q_heads, n_q, s.kv_len});
  if (one.contains("p")) {
    const int32_t first = one["p"][0];
    p.desc.query_offset = first == 0 ? KVC_NONE : first;
  }
  if (one.contains("softcap")) p.desc.softcap = one["softcap"];
  if (one.contains("slopes")) p.slopes = one["slopes"].get<std::vector<float>>();
  if (one.contains("sinks")) p.sinks = one["sinks"].get<std::vector<float>>();
  kvc_operator_desc desc = bounds_of(s);
  if (one.contains("scale")) desc.softmax_scale = one["scale"];
  if (one.contains("dropout")) {
    desc.dropout_prob = one["dropout"]["prob"];
    p.desc.flags |= KVC_FORWARD_DROPOUT;
    p.desc.dropout_seed = std::stoull(one["dropout"]["seed"].get<std::string>(), nullptr, 16);
    p.desc.layer = one["dropout"]["layer"];
  }
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, name, &desc, &op), KVC_OK) << last_message();
  ASSERT_EQ(p.run(op), KVC_OK) << last_message();
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
  for (int32_t i = 0; i < n_q; ++i) {
    for (int32_t h = 0; h < s.q_heads; ++h) {
      const auto t = static_cast<size_t>(i), head = static_cast<size_t>(h);
      const double sum = number(one["lse"][t][head]);
      if (std::isinf(sum)) {
        ASSERT_EQ(p.lse->get(p.q_row(row, i, h)), sum);
      } else {
        ASSERT_NEAR(p.lse->get(p.q_row(row, i, h)), sum, 1e-5);
      }
      for (int32_t d = 0; d < s.dv; ++d)
        ASSERT_NEAR(p.out->get(p.q_row(row, i, h) * s.dv + d),
                    number(one["out"][t][head][static_cast<size_t>(d)]), 2e-5);
    }
  }
}

TEST(Forward, ReplaysTheVectors) {
  const support::Device device(1);
  size_t n = 0;
  const json all = support::vectors("attention.json");
  for (const json& one : all["attention"]) {
    SCOPED_TRACE(one.dump().substr(0, 300));
    replay(device, one, "vanilla");
    if (!one.contains("dropout")) {
      replay(device, one, "flash");
      replay(device, one, "ring");
    }
    if (::testing::Test::HasFailure()) return;
    ++n;
  }
  EXPECT_EQ(n, 42u);
}

// ---- Bad input ----------------------------------------------------------------------------------------------------------

TEST(Forward, RefusesWhatIsWrong) {
  const support::Device device(1);
  Random random(5);
  Shape s;
  s.rows = 2, s.q_len = 3, s.kv_len = 4, s.kv_heads = 2, s.q_heads = 4;
  Problem p(s);
  p.q = random_array(KVC_F32, {2, 3, 4, 8}, random);
  p.k = random_array(KVC_F32, {2, 4, 2, 8}, random);
  p.v = random_array(KVC_F32, {2, 4, 2, 8}, random);
  p.out.emplace(KVC_F32, std::vector<int64_t>{2, 3, 4, 8});
  p.lse.emplace(KVC_F32, std::vector<int64_t>{2, 3, 4});
  kvc_operator_desc desc = bounds_of(s);
  kvc_operator *flash = nullptr, *bound_alone = nullptr, *decode = nullptr;
  ASSERT_EQ(kvc_operator_create(device, "flash", &desc, &flash), KVC_OK) << last_message();
  ASSERT_EQ(kvc_operator_create(device, "decode", &desc, &decode), KVC_OK) << last_message();
  ASSERT_EQ(kvc_operator_create(device, "flash", nullptr, &bound_alone), KVC_OK);
  p.out->fill(7);
  p.lse->fill(7);
  const auto refuse = [&](kvc_status status, const char* word, kvc_operator* op) {
    EXPECT_EQ(support::name(p.run(op)), support::name(status)) << word << ": " << last_message();
    EXPECT_NE(last_message().find(word), std::string::npos) << last_message();
    for (const double value : p.out->doubles()) ASSERT_EQ(value, 7) << word;
    for (const double value : p.lse->doubles()) ASSERT_EQ(value, 7) << word;
  };
  refuse(KVC_E_NOT_SUPPORTED, "created without bounds", bound_alone);
  refuse(KVC_E_NOT_SUPPORTED, "training", decode);
  const kvc_forward_desc good = p.desc;
  const auto spoilt = [&](kvc_status status, const char* word, auto spoil) {
    spoil(p.desc);
    refuse(status, word, flash);
    p.desc = good;
  };
  spoilt(KVC_E_INVALID_ARGUMENT, "flags", [](auto& d) { d.flags = 8; });
  spoilt(KVC_E_INVALID_ARGUMENT, "dropout_seed", [](auto& d) { d.dropout_seed = 1; });
  spoilt(KVC_E_NOT_SUPPORTED, "dropout", [](auto& d) { d.flags = KVC_FORWARD_DROPOUT; });
  spoilt(KVC_E_INVALID_ARGUMENT, "reach", [](auto& d) { d.reach = -1; });
  spoilt(KVC_E_INVALID_ARGUMENT, "chunk", [](auto& d) { d.chunk = -1; });
  spoilt(KVC_E_INVALID_ARGUMENT, "query_offset", [](auto& d) { d.query_offset = -2; });
  spoilt(KVC_E_INVALID_ARGUMENT, "layer", [](auto& d) { d.layer = 65536; });
  spoilt(KVC_E_INVALID_ARGUMENT, "softcap", [](auto& d) { d.softcap = -1; });
  spoilt(KVC_E_INVALID_ARGUMENT, "reserved", [](auto& d) { d.reserved = 1; });
  spoilt(KVC_E_INVALID_ARGUMENT, "struct_size", [](auto& d) { d.struct_size = 8; });
  p.sinks = {0, 0, NAN, 0};
  refuse(KVC_E_INVALID_ARGUMENT, "sinks[2]", flash);
  p.sinks.clear();
  const auto with = [&](std::optional<Array>& tensor, kvc_status status, const char* word, auto spoil) {
    const kvc_tensor kept = *tensor->tensor();
    spoil(*tensor->tensor());
    const kvc_status got = p.run(flash);
    *tensor->tensor() = kept;
    EXPECT_EQ(support::name(got), support::name(status)) << word << ": " << last_message();
    EXPECT_NE(last_message().find(word), std::string::npos) << last_message();
  };
  with(p.q, KVC_E_SHAPE, "max_rows", [](auto& t) { t.shape[0] = 3; });
  with(p.q, KVC_E_SHAPE, "max_q_len", [](auto& t) { t.shape[1] = 4; });
  with(p.q, KVC_E_SHAPE, "max_q_heads", [](auto& t) { t.shape[2] = 6; });
  with(p.q, KVC_E_SHAPE, "n_kv_heads", [](auto& t) { t.shape[2] = 3; });
  with(p.q, KVC_E_SHAPE, "q has 3", [](auto& t) { t.ndim = 3; });
  with(p.q, KVC_E_DTYPE, "q is", [](auto& t) { t.dtype = KVC_I32; });
  with(p.k, KVC_E_SHAPE, "max_kv_len", [](auto& t) { t.shape[1] = 5; });
  with(p.k, KVC_E_SHAPE, "k has shape", [](auto& t) { t.shape[0] = 1; });
  with(p.v, KVC_E_SHAPE, "v has shape", [](auto& t) { t.shape[3] = 7; });
  with(p.v, KVC_E_DEVICE_MISMATCH, "v is on", [](auto& t) { t.device_type = KVC_CUDA; });
  with(p.out, KVC_E_SHAPE, "out", [](auto& t) { t.shape[1] = 2; });
  with(p.lse, KVC_E_SHAPE, "lse", [](auto& t) { t.shape[1] = 2; });
  with(p.out, KVC_E_INVALID_ARGUMENT, "overlaps", [&](auto& t) { t = *p.q->tensor(); });

  const auto bad_bounds = [&](kvc_status status, const char* word, auto spoil) {
    kvc_operator_desc wrong = desc;
    spoil(wrong);
    kvc_operator* op = flash;
    EXPECT_EQ(support::name(kvc_operator_create(device, "flash", &wrong, &op)), support::name(status))
        << word;
    EXPECT_NE(last_message().find(word), std::string::npos) << last_message();
    EXPECT_EQ(op, nullptr);
  };
  bad_bounds(KVC_E_INVALID_ARGUMENT, "max_rows", [](auto& d) { d.max_rows = 0; });
  bad_bounds(KVC_E_INVALID_ARGUMENT, "head_dim_k", [](auto& d) { d.head_dim_k = -1; });
  bad_bounds(KVC_E_INVALID_ARGUMENT, "max_q_heads", [](auto& d) { d.max_q_heads = 1; });
  bad_bounds(KVC_E_OVERFLOW, "max_kv_len",
             [](auto& d) { d.max_rows = 1 << 20, d.max_kv_len = 1 << 20; });
  for (kvc_operator* op : {flash, decode, bound_alone}) EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);
}

}  // namespace
