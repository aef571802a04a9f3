#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "vectors_players.hpp"

/// Plays a vector through the C ABI. Values are one-hot rows of V, so with a query of zeros
/// attention answers 1 / n in the dimension of each value that a token sees: the visible set, read
/// from the result. The mask says it a second time, by cell.
namespace players {
namespace {

class AbiPlayer final : public Player {
 public:
  explicit AbiPlayer(const Script& script)
      : script_(script), device_(1), cache_(device_, script.cache, &script.causal) {
    EXPECT_EQ(support::name(cache_.status), "OK") << support::last_message();
    if (!script.rope) return;
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    EXPECT_EQ(kvc_bind_rope(cache_, 0, script.cache.n_layers, &rope, nullptr), KVC_OK);
  }
  ~AbiPlayer() override { EXPECT_EQ(kvc_check(cache_), KVC_OK) << support::last_message(); }

  kvc_status begin(const Numbers& position, const Numbers& sequence, const Numbers& value) override {
    const auto n = static_cast<int32_t>(position.size());
    const kvc_status status = kvc_begin(cache_, n, position.data(), sequence.data(), nullptr, 0,
                                        nullptr);
    if (status != KVC_OK) return status;
    sequence_ = sequence;
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> k(value.size() * 4), v(value.size() * dv, 0.0f);
    for (size_t i = 0; i < value.size(); ++i) {
      std::fill_n(k.begin() + static_cast<ptrdiff_t>(i * 4), 4, static_cast<float>(value[i] + 1));
      v[i * dv + static_cast<size_t>(value[i])] = 1;
    }
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {n, 1, 4});
    const kvc_tensor values = support::dense(v.data(), KVC_F32, {n, 1, script_.cache.head_dim_v});
    for (int32_t layer = 0; layer < script_.cache.n_layers; ++layer)
      EXPECT_EQ(kvc_put(cache_, layer, &keys, &values), KVC_OK) << support::last_message();
    return status;
  }
  kvc_status fits(const Numbers& position, const Numbers& sequence) override {
    return kvc_fits(cache_, static_cast<int32_t>(position.size()), position.data(), sequence.data(),
                    nullptr);
  }
  kvc_status set_causal(const Numbers& except) override {
    return kvc_set_causal(cache_, static_cast<int32_t>(except.size()), except.data());
  }
  kvc_status commit() override { return kvc_commit(cache_); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) override {
    return kvc_commit_prefix(cache_, static_cast<int32_t>(sequence.size()), sequence.data(),
                             keep.data());
  }
  kvc_status abort() override { return kvc_abort(cache_); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) override {
    return kvc_can_resume(cache_, sequence, want, best);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) override {
    return kvc_resume(cache_, sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) override {
    return kvc_copy_prefix(cache_, src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) override {
    return kvc_reorder(cache_, static_cast<int32_t>(dst.size()), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) override {
    return kvc_remove(cache_, sequence, begin, end);
  }

  Held held(int32_t sequence) override {
    const std::vector<support::Place> places = support::places(cache_, sequence);
    const auto n = static_cast<int64_t>(places.size());
    EXPECT_EQ(n, support::sequence_info(cache_, sequence).count);
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> k(places.size() * 4), v(places.size() * dv);
    kvc_tensor keys = support::dense(k.data(), KVC_F32, {n, 1, 4});
    kvc_tensor values = support::dense(v.data(), KVC_F32, {n, 1, script_.cache.head_dim_v});
    EXPECT_EQ(kvc_gather(cache_, script_.cache.n_layers - 1, sequence, &keys, &values), KVC_OK)
        << support::last_message();
    Held result;
    for (size_t i = 0; i < places.size(); ++i) {
      const auto row = v.begin() + static_cast<ptrdiff_t>(i * dv);
      const auto value = static_cast<int32_t>(
          std::find(row, row + static_cast<ptrdiff_t>(dv), 1.0f) - row);
      result.insert({places[i].position, value});
      // The key was four times value + 1; a turn keeps its length.
      const float* key = k.data() + i * 4;
      const double length = std::sqrt(key[0] * key[0] + key[1] * key[1] + key[2] * key[2] +
                                      key[3] * key[3]);
      EXPECT_NEAR(length, 2.0 * (value + 1), 1e-4 * (value + 1));
    }
    return result;
  }
  int32_t next(int32_t sequence) override { return support::sequence_info(cache_, sequence).next; }

  Held visible(int32_t batch_index) override {
    const auto n = static_cast<int64_t>(sequence_.size());
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    std::vector<float> q(sequence_.size() * 4, 0.0f), out(sequence_.size() * dv);
    std::vector<float> lse(sequence_.size());
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {n, 1, 4});
    kvc_tensor results = support::dense(out.data(), KVC_F32, {n, 1, script_.cache.head_dim_v});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n, 1});
    EXPECT_EQ(support::attention(cache_, 0, &queries, &results, &sums), KVC_OK);
    Held result;
    const int32_t sequence = sequence_[static_cast<size_t>(batch_index)];
    for (const auto& [position, value] : held(sequence)) {
      const float weight = out[static_cast<size_t>(batch_index) * dv + static_cast<size_t>(value)];
      if (weight > 0) result.insert({position, value});
    }
    EXPECT_NEAR(lse[static_cast<size_t>(batch_index)], std::log(static_cast<double>(result.size())),
                1e-5);
    expect_mask(batch_index, cells_of(sequence, result), first_cell(out));
    return result;
  }

 private:
  using Cells = std::set<int32_t>;

  Cells cells_of(int32_t sequence, const Held& tokens) const {
    Cells cells;
    for (const support::Place& place : support::places(cache_, sequence))
      for (const auto& token : tokens)
        if (token.first == place.position) cells.insert(place.cell);
    return cells;
  }

  /// The lowest cell that any token of the batch sees: where the columns of the mask begin.
  int32_t first_cell(const std::vector<float>& out) {
    const auto dv = static_cast<size_t>(script_.cache.head_dim_v);
    int32_t first = INT32_MAX;
    for (size_t i = 0; i < sequence_.size(); ++i) {
      Held seen;
      for (const auto& token : held(sequence_[i]))
        if (out[i * dv + static_cast<size_t>(token.second)] > 0) seen.insert(token);
      for (const int32_t cell : cells_of(sequence_[i], seen)) first = std::min(first, cell);
    }
    return first;
  }

  void expect_mask(int32_t row, const Cells& cells, int32_t first) {
    kvc_tensor size{};
    EXPECT_EQ(kvc_mask(cache_, 0, &size), KVC_OK) << support::last_message();
    const int64_t history = size.shape[1];
    std::vector<float> mask(static_cast<size_t>(size.shape[0] * history), 7.0f);
    kvc_tensor into = support::dense(mask.data(), KVC_F32, {size.shape[0], history});
    EXPECT_EQ(kvc_mask(cache_, 0, &into), KVC_OK) << support::last_message();
    Cells shown;
    for (int64_t column = 0; column < history; ++column) {
      const float value = mask[static_cast<size_t>(row * history + column)];
      EXPECT_TRUE(value == 0 || value == -HUGE_VALF);
      if (value == 0) shown.insert(first + static_cast<int32_t>(column));
    }
    EXPECT_EQ(shown, cells);
  }

  Script script_;
  support::Device device_;
  support::Cache cache_;
  Numbers sequence_;  // of the open pass
};

}  // namespace

std::unique_ptr<Player> make_abi_player(const Script& script) {
  return std::make_unique<AbiPlayer>(script);
}

}  // namespace players
