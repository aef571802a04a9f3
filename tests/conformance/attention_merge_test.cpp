// Two results over disjoint keys merge through their log-sum-exp into the one over all keys, and a sink is applied once, at
// the end: by the library's calls, and by the formulas of the header's users: L = logaddexp(l1, l2), o = o1 e^(l1 - L) +
// o2 e^(l2 - L), then o e^(L - logaddexp(L, sink)).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kvc/operators.h"
#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/random.hpp"

namespace {

using support::Array;

constexpr int32_t kv_heads = 2, q_heads = 6, dk = 32, dv = 24, max_batch = 40;
constexpr uint64_t seed = 20261128;

struct Case {
  uint32_t dtype;  // storage
  int32_t context, batch, reach;
  bool sinks, slopes, interleaved;
  float softcap;

  std::string describe() const {
    return "dtype " + std::to_string(dtype) + " context " + std::to_string(context) + " batch " +
           std::to_string(batch) + " reach " + std::to_string(reach) + (sinks ? " sinks" : "") +
           (slopes ? " slopes" : "") + (interleaved ? " interleaved" : "") + " softcap " +
           std::to_string(softcap) + ", seed " + std::to_string(seed);
  }
};

/// What attention answered for a batch.
struct Answer {
  std::vector<double> out, lse;  // [n, q_heads, dv], [n, q_heads]
};

/// Numbers that belong to a position, the same in every cache.
Array rows(int32_t kind, const std::vector<int32_t>& position, int64_t heads, int64_t dim) {
  Array array(KVC_F32, {static_cast<int64_t>(position.size()), heads, dim});
  for (size_t t = 0; t < position.size(); ++t) {
    const uint64_t number = static_cast<uint64_t>(position[t]) * 4 + static_cast<uint64_t>(kind);
    support::Random random(support::derived_seed(seed, number));
    for (int64_t i = 0; i < heads * dim; ++i)
      array.set(static_cast<int64_t>(t) * heads * dim + i, random.value());
  }
  return array;
}

/// A cache of two sequences, with or without the constants of a sink.
class Half {
 public:
  Half(kvc_device* device, const Case& chosen, bool sinks) : cache_(make(device, chosen)) {
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
    kvc_attention_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_q_heads = q_heads;
    desc.softcap = chosen.softcap;
    std::vector<float> slopes;
    for (int32_t h = 0; h < q_heads; ++h) slopes.push_back(0.01f * static_cast<float>(h + 1));
    EXPECT_EQ(kvc_bind_attention(cache_, 0, 1, &desc, chosen.slopes ? slopes.data() : nullptr,
                                 sinks ? sink_logits().data() : nullptr),
              KVC_OK);
  }

  static const std::vector<float>& sink_logits() {
    static const std::vector<float> logits = {-3, 0, 1.5f, 4, 12, -40};
    return logits;
  }

  /// Puts tokens of a sequence, pass by pass.
  void fill(int32_t sequence, const std::vector<int32_t>& position) {
    for (size_t start = 0; start < position.size(); start += max_batch) {
      const size_t stop = std::min(start + max_batch, position.size());
      put({position.begin() + static_cast<std::ptrdiff_t>(start),
           position.begin() + static_cast<std::ptrdiff_t>(stop)},
          sequence);
      ASSERT_EQ(kvc_commit(cache_), KVC_OK);
    }
  }

  /// A pass of these tokens. Where they are not to see each other, nor themselves, a mask hides their cells.
  Answer attend(const std::vector<int32_t>& position, int32_t sequence, bool sees_own,
                uint32_t flags = 0) {
    put(position, sequence);
    int32_t first = 0, columns = 0;
    EXPECT_EQ(kvc_history(cache_, 0, &first, &columns), KVC_OK);
    Array mask(KVC_BOOL, {columns});
    mask.fill(1);
    for (const support::Place& place : support::places(cache_, sequence))
      if (!sees_own && place.position >= position[0]) mask.set(place.cell - first, 0);
    kvc_attention_extra extra{};
    extra.struct_size = sizeof extra;
    extra.flags = flags;
    if (!sees_own) extra.mask = mask.tensor();
    const auto n = static_cast<int64_t>(position.size());
    const Array q = rows(2, position, q_heads, dk);
    Array out(KVC_F32, {n, q_heads, dv}), lse(KVC_F32, {n, q_heads});
    EXPECT_EQ(support::attention(cache_, 0, q.tensor(), out.tensor(), lse.tensor(), &extra), KVC_OK)
        << support::last_message();
    EXPECT_EQ(kvc_abort(cache_), KVC_OK);
    return {out.doubles(), lse.doubles()};
  }

 private:
  static support::Cache make(kvc_device* device, const Case& chosen) {
    kvc_cache_desc desc = support::cache_desc(1, kv_heads, dk, dv);
    desc.dtype_k = desc.dtype_v = chosen.dtype;
    desc.max_sequences = 2;
    desc.capacity = 1024;
    desc.max_batch = max_batch;
    desc.max_q_heads = q_heads;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = chosen.reach;
    causal.memory = KVC_NONE;
    return support::Cache(device, desc, &causal);
  }

  void put(const std::vector<int32_t>& position, int32_t sequence) {
    const std::vector<int32_t> sequences(position.size(), sequence);
    ASSERT_EQ(kvc_begin(cache_, static_cast<int32_t>(position.size()), position.data(),
                        sequences.data(), nullptr, 0, nullptr),
              KVC_OK)
        << support::last_message();
    const Array k = rows(0, position, kv_heads, dk), v = rows(1, position, kv_heads, dv);
    ASSERT_EQ(kvc_put(cache_, 0, k.tensor(), v.tensor()), KVC_OK);
  }

  support::Cache cache_;
};

double log_add_exp(double a, double b) {
  const double larger = std::max(a, b);
  return std::isinf(larger) ? larger : larger + std::log(std::exp(a - larger) + std::exp(b - larger));
}

Answer merge(const Answer& a, const Answer& b) {
  Answer result;
  for (size_t row = 0; row < a.lse.size(); ++row) {
    const double sum = log_add_exp(a.lse[row], b.lse[row]);
    result.lse.push_back(sum);
    const double weight_a = std::isinf(sum) ? 0 : std::exp(a.lse[row] - sum);
    const double weight_b = std::isinf(sum) ? 0 : std::exp(b.lse[row] - sum);
    for (size_t d = 0; d < dv; ++d)
      result.out.push_back(a.out[row * dv + d] * weight_a + b.out[row * dv + d] * weight_b);
  }
  return result;
}

/// By the library, in f32.
Answer merge_by_call(const Answer& a, const Answer& b, bool sinks) {
  const auto n = static_cast<int64_t>(a.lse.size()) / q_heads;
  const auto array = [](const std::vector<double>& values, const std::vector<int64_t>& shape) {
    Array filled(KVC_F32, shape);
    for (size_t i = 0; i < values.size(); ++i) filled.set(static_cast<int64_t>(i), values[i]);
    return filled;
  };
  Array o = array(a.out, {n, q_heads, dv}), lse = array(a.lse, {n, q_heads});
  const Array o2 = array(b.out, {n, q_heads, dv}), lse2 = array(b.lse, {n, q_heads});
  EXPECT_EQ(kvc_merge_attention(o.tensor(), lse.tensor(), o2.tensor(), lse2.tensor()), KVC_OK);
  if (sinks) {
    EXPECT_EQ(kvc_apply_sinks(o.tensor(), lse.tensor(), Half::sink_logits().data()), KVC_OK);
  }
  return {o.doubles(), lse.doubles()};
}

void apply_sinks(Answer& answer) {
  for (size_t row = 0; row < answer.lse.size(); ++row) {
    const double sink = static_cast<double>(Half::sink_logits()[row % q_heads]);
    const double share = std::exp(answer.lse[row] - log_add_exp(answer.lse[row], sink));
    for (size_t d = 0; d < dv; ++d) answer.out[row * dv + d] *= share;
  }
}

void expect_near(const Answer& got, const Answer& wanted) {
  ASSERT_EQ(got.lse.size(), wanted.lse.size());
  for (size_t row = 0; row < wanted.lse.size(); ++row) {
    if (std::isinf(wanted.lse[row])) {
      EXPECT_EQ(got.lse[row], wanted.lse[row]);
    } else {
      EXPECT_NEAR(got.lse[row], wanted.lse[row], 1e-5 * std::max(1.0, std::fabs(wanted.lse[row])));
    }
    for (size_t d = 0; d < dv; ++d)  // values lie within 2
      ASSERT_NEAR(got.out[row * dv + d], wanted.out[row * dv + d], 2e-5) << "row " << row;
  }
}

/// The keys before the batch go to the first half, the batch and, interleaved, every other key to the second.
void run(kvc_device* device, const Case& chosen) {
  SCOPED_TRACE(chosen.describe());
  std::vector<int32_t> all, first, second, batch;
  for (int32_t p = 0; p < chosen.context; ++p) {
    const bool to_second = chosen.interleaved ? p % 2 == 1 : p >= chosen.context / 2;
    all.push_back(p);
    (to_second ? second : first).push_back(p);
  }
  for (int32_t i = 0; i < chosen.batch; ++i) batch.push_back(chosen.context + i);

  Half whole(device, chosen, chosen.sinks);
  whole.fill(0, all);
  const Answer wanted = whole.attend(batch, 0, true);

  // Parts of a model with sinks leave them out.
  Half sunk(device, chosen, chosen.sinks), sunk_other(device, chosen, chosen.sinks);
  sunk.fill(0, first);
  sunk_other.fill(0, second);
  expect_near(merge_by_call(sunk.attend(batch, 0, false, KVC_EXTRA_NO_SINKS),
                            sunk_other.attend(batch, 0, true, KVC_EXTRA_NO_SINKS), chosen.sinks),
              wanted);

  Half one(device, chosen, false), other(device, chosen, false);
  one.fill(0, first);
  other.fill(0, second);
  Answer merged = merge(one.attend(batch, 0, false), other.attend(batch, 0, true));
  if (chosen.sinks) apply_sinks(merged);
  expect_near(merged, wanted);

  // Two sequences of one cache, in the other order.
  Half both(device, chosen, false);
  both.fill(1, first);
  both.fill(0, second);
  merged = merge(both.attend(batch, 0, true), both.attend(batch, 1, false));
  if (chosen.sinks) apply_sinks(merged);
  expect_near(merged, wanted);
}

TEST(Merge, OfTwoHalvesIsTheWhole) {
  const support::Device device(2);
  for (const uint32_t dtype : {KVC_F32, KVC_F16}) {
    for (const bool sinks : {false, true}) {
      run(device, {dtype, 300, 1, 0, sinks, false, false, 0});
      run(device, {dtype, 301, 1, 0, sinks, false, true, 0});
      run(device, {dtype, 200, 5, 0, sinks, true, true, 0});
      run(device, {dtype, 257, 33, 0, sinks, false, false, 3});
      run(device, {dtype, 2, 1, 0, sinks, false, false, 0});
      // Half of the batch sees nothing of the first half; then none of it does.
      run(device, {dtype, 300, 20, 160, sinks, false, false, 0});
      run(device, {dtype, 300, 20, 30, sinks, true, false, 0});
    }
  }
}

}  // namespace
