// 1000 context shifts by one. A key is met by attention as if it had been rotated in double for its final
// position: within 2 roundings of the storage type, the first of which it met when it was stored.
//
// What attention takes a key to be is read from its answers: queries are unit vectors, values one-hot, so
// the output holds the softmax weights, and log(weight) + lse is one component of one key.
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "model/oracle.hpp"
#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t dim = 16, n_shifts = 1000, n_left = 60, n_first = 4;
constexpr int32_t n_tokens = n_left + n_shifts;
constexpr uint64_t seed = 20261121;

struct Case {
  const char* name;
  uint32_t dtype;
  uint32_t pairs;
  bool shared;
  bool rotated = false;
};

class ShiftedCache {
 public:
  explicit ShiftedCache(const Case& chosen)
      : case_(chosen), device_(1), cache_(make()), random_(seed) {
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    rope.pairs = case_.pairs;
    EXPECT_EQ(kvc_bind_rope(cache_, 0, 1, &rope, nullptr), KVC_OK);
    kvc_attention_desc attention{};
    attention.struct_size = sizeof attention;
    attention.n_q_heads = dim;
    attention.scale = 1;
    EXPECT_EQ(kvc_bind_attention(cache_, 0, 1, &attention, nullptr, nullptr), KVC_OK);
    rope_.n_dims = dim;
    rope_.halves = case_.pairs == KVC_ROPE_HALVES;
    for (int32_t i = 0; i < dim / 2; ++i)
      rope_.frequency.push_back(std::pow(10000.0, -2.0 * i / dim));
    for (int32_t p = 0; p < n_tokens; ++p) put_token(p);
    // The shared copy keeps its positions, so the cells have owners that stand apart.
    if (case_.shared) {
      EXPECT_EQ(kvc_copy_prefix(cache_, 0, 1, INT32_MAX, nullptr), KVC_OK);
    }
    for (int32_t i = 0; i < n_shifts; ++i)
      EXPECT_EQ(kvc_remove(cache_, 0, n_first, n_first + 1), KVC_OK) << support::last_message();
  }

  /// The key that must stand at a position now: the raw one turned for it, in double.
  std::vector<double> exact(int32_t position) const {
    const int32_t original = position < n_first ? position : position + n_shifts;
    std::vector<double> key = raw_[static_cast<size_t>(original)];
    model::turn(rope_, position, key.data());
    return key;
  }

  /// The key that a token was stored as, turned by what it owes, in double.
  std::vector<double> exact_of_stored(int32_t position) const {
    const int32_t original = position < n_first ? position : position + n_shifts;
    std::vector<double> key = stored_[static_cast<size_t>(original)];
    model::turn(rope_, position - original, key.data());
    return key;
  }

  /// The largest error against that.
  double worst_of_stored(const std::vector<std::vector<double>>& keys) const {
    double result = 0;
    for (int32_t j = 0; j < n_left; ++j) {
      const std::vector<double> wanted = exact_of_stored(j);
      for (size_t i = 0; i < wanted.size(); ++i) {
        const double error = std::fabs(keys[static_cast<size_t>(j)][i] - wanted[i]);
        if (!(error <= result)) result = error;  // NaN stays
      }
    }
    return result;
  }

  /// Component by component what attention takes the keys to be. [n_left][dim]
  std::vector<std::vector<double>> as_attended() {
    const int32_t position = n_left, sequence = 0;
    EXPECT_EQ(kvc_begin(cache_, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
    std::vector<float> k(dim, 0), v(n_left + 1, 0), q(dim * dim, 0);
    v[n_left] = 1;
    for (size_t i = 0; i < dim; ++i) q[i * dim + i] = 1;
    std::vector<float> out(dim * (n_left + 1)), lse(dim);
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {1, 1, dim});
    const kvc_tensor values = support::dense(v.data(), KVC_F32, {1, 1, n_left + 1});
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {1, dim, dim});
    kvc_tensor weights = support::dense(out.data(), KVC_F32, {1, dim, n_left + 1});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {1, dim});
    EXPECT_EQ(support::put_attention(cache_, 0, &keys, &values, &queries, &weights, &sums), KVC_OK)
        << support::last_message();
    std::vector<std::vector<double>> result(n_left, std::vector<double>(dim));
    for (size_t j = 0; j < n_left; ++j)
      for (size_t i = 0; i < dim; ++i)
        result[j][i] = std::log(static_cast<double>(out[i * (n_left + 1) + j])) + lse[i];
    EXPECT_EQ(kvc_abort(cache_), KVC_OK);
    return result;
  }

  /// The same through kvc_gather().
  std::vector<std::vector<double>> as_gathered() {
    std::vector<float> k(n_left * dim);
    kvc_tensor keys = support::dense(k.data(), KVC_F32, {n_left, 1, dim});
    EXPECT_EQ(kvc_gather(cache_, 0, 0, &keys, nullptr), KVC_OK) << support::last_message();
    std::vector<std::vector<double>> result;
    for (size_t j = 0; j < n_left; ++j)
      result.emplace_back(k.begin() + static_cast<ptrdiff_t>(j * dim),
                          k.begin() + static_cast<ptrdiff_t>((j + 1) * dim));
    return result;
  }

  /// The largest error in roundings (half the distance of neighbours) of the storage type, taken at
  /// the length of the pair that turns together, beyond `slack`, which the reading itself costs.
  double worst(const std::vector<std::vector<double>>& keys, double slack) const {
    double result = 0;
    for (int32_t j = 0; j < n_left; ++j) {
      const std::vector<double> wanted = exact(j);
      for (int32_t i = 0; i < dim; ++i) {
        const int32_t partner = rope_.halves ? (i + dim / 2) % dim : i ^ 1;
        const double length = std::hypot(wanted[static_cast<size_t>(i)],
                                         wanted[static_cast<size_t>(partner)]);
        const double rounding = model::spacing(case_.dtype, length) / 2;
        const double error = std::fabs(keys[static_cast<size_t>(j)][static_cast<size_t>(i)] -
                                       wanted[static_cast<size_t>(i)]);
        if (!(error < 1)) return HUGE_VAL;
        result = std::max(result, (error - slack) / rounding);
      }
    }
    return result;
  }

  kvc_cache* handle() const { return cache_; }

 private:
  support::Cache make() const {
    kvc_cache_desc desc = support::cache_desc(1, 1, dim, n_left + 1);
    desc.dtype_k = case_.dtype;
    if (case_.rotated) desc.flags = KVC_CACHE_ROTATE_K;
    desc.max_sequences = 2;
    desc.capacity = n_tokens + 1;
    desc.max_batch = 1;
    desc.max_q_heads = dim;
    return support::Cache(device_, desc);
  }

  void put_token(int32_t p) {
    std::vector<double> raw(dim);
    for (double& element : raw) element = random_.value();
    raw_.push_back(raw);
    model::turn(rope_, p, raw.data());
    std::vector<float> k(raw.begin(), raw.end()), v(n_left + 1, 0);
    model::StoredRows stored(model::Storage(case_.dtype, dim, 0, case_.rotated), 1);
    stored.put(0, k.data(), 1);
    stored_.push_back(stored.values(0));
    if (p < n_first) v[static_cast<size_t>(p)] = 1;
    if (p >= n_first + n_shifts) v[static_cast<size_t>(p - n_shifts)] = 1;
    const int32_t sequence = 0;
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {1, 1, dim});
    const kvc_tensor values = support::dense(v.data(), KVC_F32, {1, 1, n_left + 1});
    ASSERT_EQ(kvc_begin(cache_, 1, &p, &sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_put(cache_, 0, &keys, &values), KVC_OK);
    ASSERT_EQ(kvc_commit(cache_), KVC_OK);
  }

  Case case_;
  support::Device device_;
  support::Cache cache_;
  support::Random random_;
  model::Rope rope_;
  std::vector<std::vector<double>> raw_;     // per original position, not rotated
  std::vector<std::vector<double>> stored_;  // as the cache stores them, for that position
};

constexpr double reading_error = 4e-6;  // f32 weights and sums, through a logarithm

TEST(Shifts, AThousandCostNoMoreThanOne) {
  const Case cases[] = {{"f16 neighbours", KVC_F16, KVC_ROPE_NEIGHBOURS, false},
                        {"f16 halves", KVC_F16, KVC_ROPE_HALVES, false},
                        {"f16 shared", KVC_F16, KVC_ROPE_NEIGHBOURS, true},
                        {"bf16", KVC_BF16, KVC_ROPE_NEIGHBOURS, false}};
  for (const Case& each : cases) {
    ShiftedCache cache(each);
    ASSERT_FALSE(HasFailure());
    const support::Digest before = support::digest(cache.handle());
    const double attended = cache.worst(cache.as_attended(), reading_error);
    const double gathered = cache.worst(cache.as_gathered(), 1e-6);
    std::cout << each.name << ": " << attended << " roundings in attention, " << gathered
              << " in gather, seed " << seed << std::endl;
    EXPECT_LE(attended, 2) << each.name;
    EXPECT_LE(gathered, 2) << each.name;
    EXPECT_GT(attended, 0.1) << each.name << ": a comparison with stored keys cannot be exact";
    EXPECT_EQ(support::digest(cache.handle()), before) << "reading changed the state";
    EXPECT_EQ(kvc_check(cache.handle()), KVC_OK) << support::last_message();
    if (each.shared) {
      EXPECT_EQ(support::stats(cache.handle()).cells_shared, static_cast<uint64_t>(n_left));
    }
  }
}

/// Whatever was lost when a key was stored, a thousand shifts lose nothing more.
TEST(Shifts, NoCodeChanges) {
  const Case cases[] = {{"int8", KVC_INT8, KVC_ROPE_NEIGHBOURS, false},
                        {"int8 rotated", KVC_INT8, KVC_ROPE_HALVES, false, true},
                        {"nf4 rotated, shared", KVC_NF4, KVC_ROPE_NEIGHBOURS, true, true},
                        {"e4m3", KVC_F8_E4M3, KVC_ROPE_HALVES, false},
                        {"e5m2, shared", KVC_F8_E5M2, KVC_ROPE_NEIGHBOURS, true}};
  for (const Case& each : cases) {
    ShiftedCache cache(each);
    ASSERT_FALSE(HasFailure());
    EXPECT_LE(cache.worst_of_stored(cache.as_attended()), 1e-5) << each.name;
    EXPECT_LE(cache.worst_of_stored(cache.as_gathered()), 4e-6) << each.name;
  }
}

TEST(Shifts, RunsTellTheOffset) {
  const ShiftedCache cache({"f16", KVC_F16, KVC_ROPE_NEIGHBOURS, false});
  for (const support::Place& place : support::places(cache.handle(), 0))
    EXPECT_EQ(place.offset, place.position < n_first ? 0 : -n_shifts);
}

}  // namespace
