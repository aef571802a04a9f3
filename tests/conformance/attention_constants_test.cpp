// Constants of the model at the ends of what kvc_bind_attention(), kvc_bind_scales() and kvc_bind_rope() accept: at every
// distance of two positions, from 0 to the largest, and for each kernel attention is what double makes of the formula. What lies
// beyond is refused and leaves nothing behind.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kvc/operators.h"
#include "support/abi.hpp"

namespace {

constexpr int32_t last = INT32_MAX - 2;  // the largest position
constexpr float f32_max = std::numeric_limits<float>::max();

struct Constants {
  std::string name;
  float scale = 0, softcap = 0;
  float slope = 0, sink = 0;
  bool has_slope = false, has_sink = false;
  float q = 1, k = 1, v = 1;       // sizes of the numbers in queries, keys and values
  float k_scale = 1, v_scale = 1;  // of f8
};

/// One query token at the largest position, which sees tokens at all kinds of distances.
class Rig {
 public:
  static constexpr int32_t dim = 8, most_heads = 64;

  explicit Rig(int32_t n_heads, uint32_t dtype = KVC_F32) : n_heads_(n_heads) {
    kvc_cache_desc desc = support::cache_desc(1, 1, dim, dim);
    desc.dtype_k = desc.dtype_v = dtype;
    desc.max_q_heads = most_heads;
    cache_.status = kvc_cache_create(device_, &desc, nullptr, &cache_.handle);
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
  }

  kvc_cache* cache() { return cache_; }

  /// Null: the library chooses.
  void use(const char* name) {
    kvc_operator* op = nullptr;
    if (name != nullptr) {
      ASSERT_EQ(kvc_operator_create(device_, name, nullptr, &op), KVC_OK) << support::last_message();
    }
    ASSERT_EQ(kvc_bind_operator(cache_, 0, 1, KVC_MODE_ALL, op), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_operator_destroy(op), KVC_OK);
  }

  kvc_status bind_scales(const Constants& c) {
    EXPECT_EQ(kvc_resume(cache_, 0, 0, nullptr), KVC_OK);
    return kvc_bind_scales(cache_, 0, 1, &c.k_scale, &c.v_scale);
  }

  kvc_status bind(const Constants& c) {
    kvc_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_q_heads = n_heads_;
    desc.scale = c.scale;
    desc.softcap = c.softcap;
    const std::vector<float> slopes(static_cast<size_t>(n_heads_), c.slope),
        sinks(static_cast<size_t>(n_heads_), c.sink);
    return kvc_bind_attention(cache_, 0, 1, &desc, c.has_slope ? slopes.data() : nullptr,
                              c.has_sink ? sinks.data() : nullptr);
  }

  /// Fills the cache and attends, weights and log-sum-exp included.
  void attend(const Constants& c) {
    constants_ = c;
    ASSERT_EQ(kvc_resume(cache_, 0, 0, nullptr), KVC_OK);
    k_.clear(), v_.clear();
    for (size_t t = 0; t < positions().size(); ++t) put(static_cast<int32_t>(t));
    std::vector<float> q(static_cast<size_t>(n_heads_) * dim);
    for (size_t i = 0; i < q.size(); ++i) q[i] = query(static_cast<int32_t>(i % dim));
    out_.assign(q.size(), NAN);
    lse_.assign(static_cast<size_t>(n_heads_), NAN);
    int32_t first = 0, n = 0;
    ASSERT_EQ(kvc_history(cache_, 0, &first, &n), KVC_OK);
    weights_.assign(static_cast<size_t>(n_heads_ * n), NAN);
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {1, n_heads_, dim});
    kvc_tensor out = support::dense(out_.data(), KVC_F32, {1, n_heads_, dim});
    kvc_tensor lse = support::dense(lse_.data(), KVC_F32, {1, n_heads_});
    kvc_tensor weights = support::dense(weights_.data(), KVC_F32, {n_heads_, 1, n});
    const kvc_attention_extra extra = support::extra(nullptr, nullptr, &weights);
    ASSERT_EQ(support::attention(cache_, 0, &queries, &out, &lse, &extra), KVC_OK)
        << support::last_message();
    ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  }

  /// §8, in double, within the bound that it gives. All heads are alike.
  void expect_exact() const {
    const Constants& c = constants_;
    const double scale = c.scale != 0 ? static_cast<double>(c.scale) : 1 / std::sqrt(double{dim});
    std::vector<double> scores;
    double largest = 0, value = 0;
    for (size_t t = 0; t < positions().size(); ++t) {
      double x = 0, magnitude = 0;
      for (int32_t i = 0; i < dim; ++i) {
        const double product = static_cast<double>(query(i)) *
                               static_cast<double>(k_[t * dim + static_cast<size_t>(i)]);
        x += scale * product;
        magnitude += std::fabs(scale * product);
        value = std::fmax(value, std::fabs(v_[t * dim + static_cast<size_t>(i)]));
      }
      if (c.softcap != 0) x = double{c.softcap} * std::tanh(x / double{c.softcap});
      const double bias = double{c.slope} * (double{last} - positions()[t]);
      scores.push_back(x - bias);
      largest = std::fmax(largest, magnitude + std::fabs(bias));
    }
    ASSERT_LT(largest, std::ldexp(1.0, 126)) << "the test's numbers are out of range";
    double highest = -HUGE_VAL, sum = 0;
    for (const double x : scores) highest = std::fmax(highest, x);
    for (const double x : scores) sum += std::exp(x - highest);
    const double with_sink = sum + (c.has_sink ? std::exp(double{c.sink} - highest) : 0.0);
    const double bound = (std::ldexp(1.0, -20) + std::ldexp(largest, -22)) * value;
    for (int32_t head = 0; head < n_heads_; ++head) {
      for (int32_t i = 0; i < dim; ++i) {
        double want = 0;
        for (size_t t = 0; t < scores.size(); ++t)
          want += std::exp(scores[t] - highest) / with_sink *
                  double{v_[t * dim + static_cast<size_t>(i)]};
        const double found = out_[static_cast<size_t>(head * dim + i)];
        ASSERT_TRUE(std::isfinite(found)) << c.name << " head " << head << " dimension " << i;
        ASSERT_LE(std::fabs(found), value * 1.001) << c.name << ": no mean of values";
        ASSERT_LE(std::fabs(found - want), bound) << c.name << " head " << head;
      }
      const double want = highest + std::log(sum), found = lse_[static_cast<size_t>(head)];
      ASSERT_LE(std::fabs(found - want), std::ldexp(1 + largest, -20)) << c.name << " lse " << found;
    }
    for (const float weight : weights_) ASSERT_TRUE(weight >= 0 && weight <= 1.001f) << c.name;
  }

  const std::vector<float>& out() const { return out_; }

  static const std::vector<int32_t>& positions() {
    static const std::vector<int32_t> all = {0,         1,        1 << 16,  1 << 30,
                                             last - 40, last - 2, last - 1, last};
    return all;
  }

 private:
  float query(int32_t i) const { return i % 3 == 2 ? -constants_.q : constants_.q; }

  void put(int32_t t) {
    const int32_t position = positions()[static_cast<size_t>(t)], sequence = 0;
    float k[dim], v[dim];
    for (int32_t i = 0; i < dim; ++i) {
      k[i] = constants_.k * static_cast<float>((t + i) % 4 - 2) / 2;
      v[i] = constants_.v * static_cast<float>((t * 5 + i) % 7 - 3);
      k_.push_back(k[i]), v_.push_back(v[i]);
    }
    const kvc_tensor key = support::dense(k, KVC_F32, {1, 1, dim}),
                     value = support::dense(v, KVC_F32, {1, 1, dim});
    ASSERT_EQ(kvc_begin(cache_, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    ASSERT_EQ(kvc_put(cache_, 0, &key, &value), KVC_OK);
  }

  int32_t n_heads_;
  support::Device device_{1};
  support::Cache cache_;
  Constants constants_;
  std::vector<float> k_, v_, out_, lse_, weights_;
};

float power(int exponent) { return std::ldexp(1.0f, exponent); }

/// The ends of each constant, with numbers for which a score is of ordinary size, or as large as is in range.
std::vector<Constants> accepted() {
  std::vector<Constants> all;
  const auto add = [&](const std::string& name, auto set) {
    for (const float sign : {1.0f, -1.0f}) {
      Constants c;
      c.name = name + (sign < 0 ? ", negative" : "");
      set(c, sign);
      all.push_back(c);
    }
  };
  add("largest scale",
      [](Constants& c, float sign) { c.scale = sign * power(100), c.q = c.k = power(-50); });
  add("largest scale, largest score",
      [](Constants& c, float sign) { c.scale = sign * power(100), c.q = power(20), c.k = 1; });
  add("smallest scale",
      [](Constants& c, float sign) { c.scale = sign * power(-100), c.q = c.k = power(51); });
  add("largest query",
      [](Constants& c, float sign) { c.scale = sign, c.q = power(125), c.k = power(-126); });
  for (const int exponent : {-100, -30, -1, 0, 16, 17, 60, 100}) {
    const std::string cap = "softcap 2^" + std::to_string(exponent);
    add(cap, [&](Constants& c, float sign) { c.softcap = power(exponent), c.k = sign * 3; });
    add(cap + " of terms that cancel", [&](Constants& c, float sign) {
      c.softcap = power(exponent), c.q = power(60), c.k = sign * power(61);
    });
    add(cap + " and the largest scale", [&](Constants& c, float sign) {
      c.softcap = power(exponent), c.scale = power(100), c.q = power(-50), c.k = sign * power(-49);
    });
    add(cap + " and the smallest scale", [&](Constants& c, float sign) {
      c.softcap = power(exponent), c.scale = power(-100), c.q = power(50), c.k = sign * power(51);
    });
  }
  for (const float slope : {power(95), power(40), 1.0f, power(-31), power(-126), 1e-45f}) {
    add("slope " + std::to_string(slope),
        [&](Constants& c, float sign) { c.has_slope = true, c.slope = sign * slope; });
    add("slope and softcap", [&](Constants& c, float sign) {
      c.has_slope = true, c.slope = sign * slope, c.softcap = power(-100);
    });
  }
  for (const float sink : {f32_max, power(100), 1e-45f}) {
    add("sink " + std::to_string(sink),
        [&](Constants& c, float sign) { c.has_sink = true, c.sink = sign * sink; });
    add("sink and slope", [&](Constants& c, float sign) {
      c.has_sink = c.has_slope = true, c.sink = sign * sink, c.slope = power(95);
    });
  }
  return all;
}

/// By the number of rows a device picks a kernel: one row, some, many.
class AcceptedConstants : public testing::TestWithParam<int32_t> {};

TEST_P(AcceptedConstants, AreExactAtEveryDistance) {
  Rig rig(GetParam());
  for (const Constants& c : accepted()) {
    ASSERT_EQ(rig.bind(c), KVC_OK) << c.name << ": " << support::last_message();
    rig.attend(c);
    if (HasFatalFailure()) return;
    rig.expect_exact();
    if (HasFatalFailure()) return;
  }
}
INSTANTIATE_TEST_SUITE_P(Rows, AcceptedConstants, testing::Values(1, 3, 8, 20, 64));

/// Of f8, the scale of K meets the query together with the scale of scores.
TEST_P(AcceptedConstants, AreExactWithScalesOfF8) {
  struct Ends {
    int scale, k_scale, q, k;  // exponents; k / k_scale fits f8
  };
  const Ends all[] = {{0, 100, -100, 100},   {0, -100, 100, -100},  {100, 100, -100, 100},
                      {100, 100, -100, 86},  {100, -100, 100, -90}, {100, -100, 0, -100},
                      {-100, 100, 0, 100},   {-100, 100, 20, 100},  {-100, -100, 100, -88},
                      {-100, 100, -90, 110}, {100, 0, -120, 10},    {-100, -100, 125, -86}};
  for (const uint32_t dtype : {KVC_F8_E4M3, KVC_F8_E5M2}) {
    Rig rig(GetParam(), dtype);
    for (const char* op : std::vector<const char*>{nullptr, "vanilla"}) {
      rig.use(op);
      for (const Ends& ends : all) {
        if (dtype == KVC_F8_E4M3 && std::abs(ends.k - ends.k_scale) > 5) continue;
        for (const int cap : {0, -100, 4, 100}) {
          Constants c;
          c.name = "scale 2^" + std::to_string(ends.scale) + ", k_scale 2^" +
                   std::to_string(ends.k_scale) + ", softcap 2^" + std::to_string(cap);
          c.scale = power(ends.scale), c.k_scale = power(ends.k_scale);
          c.q = power(ends.q), c.k = power(ends.k);
          c.v = c.v_scale = power(ends.k_scale);
          if (cap != 0) c.softcap = power(cap);
          ASSERT_EQ(rig.bind_scales(c), KVC_OK) << c.name << ": " << support::last_message();
          ASSERT_EQ(rig.bind(c), KVC_OK) << c.name << ": " << support::last_message();
          rig.attend(c);
          if (HasFatalFailure()) return;
          rig.expect_exact();
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

/// Each is refused, before and in a pass, and what was bound before stays bound.
TEST(RefusedConstants, LeaveNoTrace) {
  const float beyond = std::nextafter(power(100), HUGE_VALF),
              below = std::nextafter(power(-100), 0.0f);
  std::vector<Constants> refused;
  const auto add = [&](const std::string& name, auto set) {
    Constants c;
    c.name = name;
    set(c);
    refused.push_back(c);
  };
  for (const float wrong : {beyond, below, 1e-45f, f32_max, HUGE_VALF, NAN}) {
    add("scale", [&](Constants& c) { c.scale = wrong; });
    add("scale", [&](Constants& c) { c.scale = -wrong; });
    add("softcap", [&](Constants& c) { c.softcap = wrong; });
  }
  for (const float wrong : {std::nextafter(power(95), HUGE_VALF), 2.4e38f, f32_max, HUGE_VALF, NAN}) {
    add("alibi_slopes", [&](Constants& c) { c.has_slope = true, c.slope = wrong; });
    add("alibi_slopes", [&](Constants& c) { c.has_slope = true, c.slope = -wrong; });
  }
  for (const float wrong : {HUGE_VALF, -HUGE_VALF, NAN})
    add("sinks", [&](Constants& c) { c.has_sink = true, c.sink = wrong; });

  Rig rig(4);
  Constants bound;
  bound.has_slope = bound.has_sink = true;
  bound.slope = 0.25f, bound.sink = 0.5f, bound.softcap = 7;
  ASSERT_EQ(rig.bind(bound), KVC_OK);
  rig.attend(bound);
  rig.expect_exact();
  const std::vector<float> before = rig.out();
  const support::Digest digest = support::digest(rig.cache());
  for (const Constants& c : refused) {
    EXPECT_EQ(support::name(rig.bind(c)), "INVALID_ARGUMENT") << c.name;
    EXPECT_NE(support::last_message().find(c.name), std::string::npos) << support::last_message();
    EXPECT_EQ(support::digest(rig.cache()), digest);
  }
  rig.attend(bound);
  EXPECT_EQ(std::memcmp(before.data(), rig.out().data(), before.size() * sizeof(float)), 0);
  const int32_t sequence = 0, position = 5;
  ASSERT_EQ(kvc_resume(rig.cache(), 0, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_begin(rig.cache(), 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
  for (const Constants& c : refused)
    EXPECT_EQ(support::name(rig.bind(c)), "INVALID_ARGUMENT") << c.name << " in a pass";
}

// ---- RoPE ----------------------------------------------------------------------------------------------------------------

struct RopeCase {
  std::string name;
  float base, scale, factor;
  bool accepted;
};

/// Removes positions between a key and its query and compares with double: keys that moved by `distance` keep their length.
void expect_rotated(const RopeCase& c) {
  constexpr int32_t dim = 4;
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, dim, dim);
  const support::Cache cache(device, desc);
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  rope.base = c.base;
  rope.scale = c.scale;
  const float factors[] = {c.factor, c.factor};
  const kvc_status status = kvc_bind_rope(cache, 0, 1, &rope, factors);
  if (!c.accepted) {
    EXPECT_EQ(support::name(status), "INVALID_ARGUMENT") << c.name;
    // Nothing is bound: positions that would move are refused, as in a cache without RoPE.
    const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
    ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
    EXPECT_EQ(support::name(kvc_remove(cache, 0, 0, 1)), "NOT_SUPPORTED") << c.name;
    return;
  }
  ASSERT_EQ(support::name(status), "OK") << c.name << ": " << support::last_message();
  const int32_t position[] = {1, last - 1}, sequence[] = {0, 0};
  float k[] = {1, 2, 3, 4, 5, 6, 7, 8}, gathered[8] = {};
  const kvc_tensor keys = support::dense(k, KVC_F32, {2, 1, dim});
  ASSERT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_put(cache, 0, &keys, &keys), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  const int32_t distance = last - 3;
  ASSERT_EQ(kvc_remove(cache, 0, 2, 2 + distance), KVC_OK) << support::last_message();
  kvc_tensor into = support::dense(gathered, KVC_F32, {2, 1, dim});
  ASSERT_EQ(kvc_gather(cache, 0, 0, &into, nullptr), KVC_OK) << support::last_message();
  for (int32_t pair = 0; pair < dim / 2; ++pair) {
    const double frequency = double{c.scale} * std::pow(double{c.base}, -2.0 * pair / dim) /
                             double{c.factor};
    const double angle = -distance * frequency;
    const double a = k[4 + 2 * pair], b = k[4 + 2 * pair + 1];
    EXPECT_NEAR(gathered[4 + 2 * pair], a * std::cos(angle) - b * std::sin(angle), 1e-5) << c.name;
    EXPECT_NEAR(gathered[4 + 2 * pair + 1], a * std::sin(angle) + b * std::cos(angle), 1e-5)
        << c.name;
  }
}

TEST(RopeConstants, TurnByFiniteAnglesOrAreRefused) {
  const float most = power(95), more = power(96);
  for (const RopeCase& c :
       {RopeCase{"largest frequency by scale", 10000, most, 1, true},
        RopeCase{"largest frequency by factor", 10000, 1, power(-95), true},
        RopeCase{"largest scale and factor", 10000, f32_max, f32_max, true},
        RopeCase{"smallest scale, largest base", f32_max, 1e-45f, f32_max, true},
        RopeCase{"smallest scale and factor", 10000, 1e-45f, 1e-45f, true},
        RopeCase{"base below 1", power(-126), 1, 1, true},
        RopeCase{"scale too large", 10000, more, 1, false},
        RopeCase{"factor too small", 10000, 1, power(-96), false},
        RopeCase{"smallest factor", 10000, 1, 1e-45f, false},
        RopeCase{"largest scale", 10000, f32_max, 1, false},
        RopeCase{"base too small for the scale", power(-126), power(50), 1, false},  // pair 1: 2^113
        RopeCase{"all at their ends", 1e-45f, f32_max, 1e-45f, false}})
    expect_rotated(c);
}

}  // namespace
