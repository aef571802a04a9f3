#include <gtest/gtest.h>

#include <cmath>

#include "host_view.hpp"
#include "vectors_abi_children.hpp"

/// Encoder caches through the C ABI: what attention, the mask and the view of kvc_get() say that each token sees, and what
/// kvc_gather() and kvc_runs() say that a sequence holds.
namespace players {
namespace {

class EncoderChild final : public Child {
 public:
  EncoderChild(const ChildScript& script, kvc_cache* cache, const std::vector<Door>& doors)
      : heads_(script.cache.n_kv_heads),
        head_dim_(script.cache.head_dim_k),
        cache_(cache),
        doors_(doors) {}

  void put(const Pass& pass, const std::set<int32_t>& shared) override {
    n_tokens_ = pass.n();
    for (const Input& input : pass.inputs) {
      if (shared.count(input.sequence) != 0) continue;
      std::vector<float> values = row(input.length, static_cast<float>(input.number + 1));
      const kvc_tensor kv = support::dense(values.data(), KVC_F32, {input.length, heads_, head_dim_});
      for (size_t i = 0; i < doors_.size(); ++i) {
        const Door& door = doors_[i];
        const bool only = pass.inputs.size() == 1 && i == 1;
        EXPECT_EQ(only ? kvc_put(door.cache, door.layer, &kv, &kv)
                       : kvc_encoder_put(door.cache, door.layer, input.sequence, &kv, &kv),
                  KVC_OK)
            << support::last_message();
      }
    }
  }

  json seen() override {
    const Door& door = doors_.back();
    kvc_tensor k{}, v{};
    EXPECT_EQ(kvc_get(door.cache, door.layer, &k, &v), KVC_OK) << support::last_message();
    const int64_t history = k.shape[0];
    std::vector<uint8_t> mask(static_cast<size_t>(n_tokens_ * history));
    if (history > 0) {
      kvc_tensor into = support::dense(mask.data(), KVC_BOOL, {n_tokens_, history});
      EXPECT_EQ(kvc_mask(door.cache, door.layer, &into), KVC_OK) << support::last_message();
    }
    const int64_t q_heads = 2 * heads_;
    std::vector<float> q = row(n_tokens_ * 2, 0), out(q.size()),
                       lse(static_cast<size_t>(n_tokens_ * q_heads));
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {n_tokens_, q_heads, head_dim_});
    kvc_tensor results = support::dense(out.data(), KVC_F32, {n_tokens_, q_heads, head_dim_});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n_tokens_, q_heads});
    EXPECT_EQ(support::attention(door.cache, door.layer, &queries, &results, &sums), KVC_OK)
        << support::last_message();
    json result = json::array();
    for (int32_t t = 0; t < n_tokens_; ++t) {
      int32_t input = -1, length = 0;
      for (int64_t c = 0; c < history; ++c) {
        if (mask[static_cast<size_t>(t * history + c)] == 0) continue;
        const auto* value = static_cast<const float*>(support::on_host(v).data) + c * v.strides[0];
        const int32_t number = static_cast<int32_t>(value[0]) - 1;
        EXPECT_TRUE(length == 0 || number == input) << "two inputs in one row";
        input = number;
        ++length;
      }
      // All keys weigh the same for a query of zeros, and an input's values are its number + 1.
      EXPECT_EQ(out[static_cast<size_t>(t * q_heads * head_dim_)], static_cast<float>(input + 1));
      const float sum = lse[static_cast<size_t>(t * q_heads)];
      const double expected = length > 0 ? std::log(static_cast<double>(length)) : -HUGE_VAL;
      EXPECT_TRUE(sum == expected || std::fabs(sum - expected) < 1e-5) << sum << ", not " << expected;
      result.push_back({input, length});
    }
    return result;
  }

  json held(int32_t sequence) override {
    int32_t position = -7, length = -7;
    EXPECT_EQ(kvc_encoder_query(cache_, sequence, &position, &length), KVC_OK);
    const kvc_sequence_info info = support::sequence_info(cache_, sequence);
    EXPECT_EQ(info.count, length);
    kvc_run run{};
    int32_t n_runs = 0;
    EXPECT_EQ(kvc_runs(doors_[0].cache, doors_[0].layer, sequence, 1, &run, &n_runs), KVC_OK);
    EXPECT_EQ(n_runs, length > 0 ? 1 : 0);
    EXPECT_EQ(run.length, length);
    if (position == KVC_NONE) {
      EXPECT_EQ(length, 0);
      return nullptr;
    }
    EXPECT_EQ(info.first, position);
    std::vector<float> values = row(length, 0);
    for (const Door& door : doors_) {
      if (length == 0) break;
      kvc_tensor v = support::dense(values.data(), KVC_F32, {length, heads_, head_dim_});
      EXPECT_EQ(kvc_gather(door.cache, door.layer, sequence, nullptr, &v), KVC_OK)
          << support::last_message();
      for (const float value : values) EXPECT_EQ(value, values[0]) << "two inputs in one";
    }
    return json({position, length > 0 ? static_cast<int32_t>(values[0]) - 1 : -1, length});
  }

 private:
  /// [n, heads, head_dim]
  std::vector<float> row(int64_t n, float value) const {
    return std::vector<float>(static_cast<size_t>(n * heads_ * head_dim_), value);
  }

  const int64_t heads_, head_dim_;
  kvc_cache* const cache_;
  const std::vector<Door> doors_;
  int32_t n_tokens_ = 0;  // of the open pass
};

}  // namespace

std::unique_ptr<Child> make_abi_encoder(const ChildScript& script, kvc_cache* cache,
                                        const std::vector<Door>& doors) {
  return std::make_unique<EncoderChild>(script, cache, doors);
}

}  // namespace players
