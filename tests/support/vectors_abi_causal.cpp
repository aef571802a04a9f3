#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "vectors_abi_children.hpp"

/// Causal caches through the C ABI. Values are one-hot rows of V, so with a query of zeros attention returns 1 / n in the
/// dimension of each value that a token sees: the visible set, read from the result. The mask says it a second time, by cell.
namespace players {
namespace {

using Held = std::set<std::pair<int32_t, int32_t>>;  // (position, value)

class CausalChild final : public Child {
 public:
  CausalChild(const ChildScript& script, kvc_cache* cache, const std::vector<Door>& doors)
      : script_(script), cache_(cache), doors_(doors) {}

  void put(const Pass& pass, const std::set<int32_t>&) override {
    sequence_ = pass.sequence;
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> k(pass.value.size() * 4), v(pass.value.size() * dv, 0.0f);
    for (size_t i = 0; i < pass.value.size(); ++i) {
      std::fill_n(k.begin() + static_cast<ptrdiff_t>(i * 4), 4, static_cast<float>(pass.value[i] + 1));
      v[i * dv + static_cast<size_t>(pass.value[i])] = 1;
    }
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {pass.n(), 1, 4});
    const kvc_tensor values = support::dense(v.data(), KVC_F32,
                                             {pass.n(), 1, script_.cache.head_dim_v});
    for (const Door& door : doors_)
      EXPECT_EQ(kvc_put(door.cache, door.layer, &keys, &values), KVC_OK) << support::last_message();
  }

  json seen() override {
    json result = json::array();
    for (int32_t t = 0; t < static_cast<int32_t>(sequence_.size()); ++t)
      result.push_back(visible(t));
    return result;
  }

  json held(int32_t sequence) override { return tokens(sequence); }

 private:
  Held tokens(int32_t sequence) const {
    const std::vector<support::Place> places = support::places(cache_, sequence);
    const auto n = static_cast<int64_t>(places.size());
    EXPECT_EQ(n, support::sequence_info(cache_, sequence).count);
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> k(places.size() * 4), v(places.size() * dv);
    kvc_tensor keys = support::dense(k.data(), KVC_F32, {n, 1, 4});
    kvc_tensor values = support::dense(v.data(), KVC_F32, {n, 1, script_.cache.head_dim_v});
    const Door& door = doors_.back();
    EXPECT_EQ(kvc_gather(door.cache, door.layer, sequence, &keys, &values), KVC_OK)
        << support::last_message();
    Held result;
    for (size_t i = 0; i < places.size(); ++i) {
      const auto row = v.begin() + static_cast<ptrdiff_t>(i * dv);
      const auto end = row + static_cast<ptrdiff_t>(dv);
      const auto found = std::find(row, end, 1.0f);
      const auto value = found == end ? -1 : static_cast<int32_t>(found - row);
      result.insert({places[i].position, value});
      // The key was four times value + 1; a turn keeps its length. What was not put is zeros.
      const float* key = k.data() + i * 4;
      const double length = std::sqrt(key[0] * key[0] + key[1] * key[1] + key[2] * key[2] +
                                      key[3] * key[3]);
      EXPECT_NEAR(length, 2.0 * (value + 1), 1e-4 * (value + 1));
    }
    return result;
  }

  /// By the mask; where a value was put, the output says the same.
  Held visible(int32_t batch_index) const {
    const auto n = static_cast<int64_t>(sequence_.size());
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> q(sequence_.size() * 4, 0.0f), out(sequence_.size() * dv);
    std::vector<float> lse(sequence_.size());
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {n, 1, 4});
    kvc_tensor results = support::dense(out.data(), KVC_F32, {n, 1, script_.cache.head_dim_v});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n, 1});
    EXPECT_EQ(support::attention(doors_[0].cache, doors_[0].layer, &queries, &results, &sums), KVC_OK);
    const std::set<int32_t> shown = shown_cells(batch_index);
    const auto index = static_cast<size_t>(batch_index);
    const int32_t sequence = sequence_[index];
    std::map<int32_t, int32_t> value_at;
    for (const auto& [position, value] : tokens(sequence)) value_at[position] = value;
    Held result;
    for (const support::Place& place : support::places(cache_, sequence)) {
      const int32_t value = value_at[place.position];
      const bool is_shown = shown.count(place.cell) != 0;
      if (is_shown) result.insert({place.position, value});
      if (value >= 0) {
        EXPECT_EQ(out[index * dv + static_cast<size_t>(value)] > 0, is_shown)
            << "the mask shows something else than attention sees";
      }
    }
    EXPECT_EQ(result.size(), shown.size()) << "the mask shows a cell of another sequence";
    EXPECT_NEAR(lse[index], std::log(static_cast<double>(result.size())), 1e-5);
    return result;
  }

  std::set<int32_t> shown_cells(int32_t row) const {
    const Door& door = doors_[0];
    int32_t first = -1, history = -1;
    EXPECT_EQ(kvc_history(door.cache, door.layer, &first, &history), KVC_OK);
    std::vector<float> mask(sequence_.size() * static_cast<size_t>(history), 7.0f);
    kvc_tensor into = support::dense(mask.data(), KVC_F32,
                                     {static_cast<int64_t>(sequence_.size()), history});
    EXPECT_EQ(kvc_mask(door.cache, door.layer, &into), KVC_OK) << support::last_message();
    std::set<int32_t> shown;
    for (int32_t column = 0; column < history; ++column) {
      const float value = mask[static_cast<size_t>(row * history + column)];
      EXPECT_TRUE(value == 0 || value == -HUGE_VALF);
      if (value == 0) shown.insert(first + column);
    }
    return shown;
  }

  const ChildScript script_;
  kvc_cache* const cache_;
  const std::vector<Door> doors_;
  Numbers sequence_;  // of the open pass
};

}  // namespace

std::unique_ptr<Child> make_abi_causal(const ChildScript& script, kvc_cache* cache,
                                       const std::vector<Door>& doors) {
  return std::make_unique<CausalChild>(script, cache, doors);
}

}  // namespace players
