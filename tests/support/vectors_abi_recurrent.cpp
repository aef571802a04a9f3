#include <gtest/gtest.h>

#include "host_view.hpp"
#include "vectors_abi_children.hpp"

/// Recurrent caches through the C ABI. The first layer is put by copy, the last one in place.
namespace players {
namespace {

class RecurrentChild final : public Child {
 public:
  RecurrentChild(const ChildScript& script, kvc_cache* cache, const std::vector<Door>& doors)
      : desc_(script.recurrent), cache_(cache), doors_(doors) {}

  void put(const Pass& pass, const std::set<int32_t>&) override {
    read_layout(pass);
    for (size_t i = 0; i < doors_.size(); ++i) {
      if (i + 1 < doors_.size()) {
        put_by_copy(doors_[i], pass);
      } else {
        put_in_place(doors_[i]);
      }
    }
  }

  /// What the first layer had before the pass, read again: puts have not changed it.
  json seen() override {
    const std::vector<Memory> before = states_before(doors_[0]);
    for (size_t i = 0; i < layer_.size(); ++i) {
      EXPECT_EQ(layer_[i].before.h, before[i].h);
      EXPECT_EQ(layer_[i].before.columns, before[i].columns);
    }
    return described(layer_);
  }

  json held(int32_t sequence) override {
    const kvc_sequence_info info = support::sequence_info(cache_, sequence);
    EXPECT_EQ(info.first, info.next);
    EXPECT_EQ(info.count, 0);
    int32_t n = -1;
    EXPECT_EQ(kvc_checkpoint_list(cache_, sequence, 0, nullptr, &n), KVC_OK);
    Numbers at(static_cast<size_t>(n));
    EXPECT_EQ(kvc_checkpoint_list(cache_, sequence, n, at.data(), &n), KVC_OK);
    json checkpoints = json::array();
    for (const int32_t each : at) checkpoints.push_back({each, gathered(sequence, each).h, 0});
    const Memory now = gathered(sequence, info.next);
    const bool approximate = info.flags & KVC_SEQUENCE_APPROXIMATE;
    return json({now.h, now.columns, int{approximate}, checkpoints});
  }

 private:
  bool has_conv() const { return desc_.conv_dim > 0; }
  int64_t columns() const { return int64_t{desc_.conv_channels} * desc_.conv_dim; }

  Memory memory(const float* recurrent, const float* conv) const {
    Memory result{static_cast<int64_t>(recurrent[0]), {}};
    for (int64_t i = 1; i < desc_.state_size; ++i) EXPECT_EQ(recurrent[i], recurrent[0]);
    for (int32_t i = 0; has_conv() && i < desc_.conv_dim; ++i) {
      result.columns.push_back(static_cast<int64_t>(conv[i]));
      EXPECT_EQ(conv[i], conv[columns() - desc_.conv_dim + i]) << "another channel";
    }
    return result;
  }

  void read_layout(const Pass& pass) {
    int32_t n = -1;
    EXPECT_EQ(kvc_state_layout(cache_, 0, nullptr, &n, nullptr), KVC_OK);
    sequences_.assign(static_cast<size_t>(n), {});
    Numbers order(pass.position.size());
    EXPECT_EQ(kvc_state_layout(cache_, n, sequences_.data(), &n, order.data()), KVC_OK);
    const std::vector<Memory> before = states_before(doors_[0]);
    layer_.clear();
    n_rows_ = 0;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const kvc_state_sequence& each = sequences_[i];
      Numbers values;
      for (int32_t token = 0; token < each.n_tokens; ++token) {
        const auto index = static_cast<size_t>(order[static_cast<size_t>(each.first_token + token)]);
        EXPECT_EQ(pass.sequence[index], each.sequence);
        values.push_back(pass.value[index]);
      }
      EXPECT_EQ(each.first_row, n_rows_);
      n_rows_ += each.n_rows;
      layer_.push_back(layer_rows(each.sequence, before[i], values, each.n_rows));
    }
  }

  std::vector<Memory> states_before(const Door& door) {
    const auto n = static_cast<int64_t>(sequences_.size());
    std::vector<float> h(static_cast<size_t>(n * desc_.state_size));
    std::vector<float> conv(static_cast<size_t>(n * columns()));
    kvc_tensor into = support::dense(h.data(), KVC_F32, {n, desc_.state_size});
    EXPECT_EQ(kvc_state_get(door.cache, door.layer, KVC_PART_RECURRENT, &into), KVC_OK)
        << support::last_message();
    if (has_conv()) {
      into = support::dense(conv.data(), KVC_F32, {n, desc_.conv_channels, desc_.conv_dim});
      EXPECT_EQ(kvc_state_get(door.cache, door.layer, KVC_PART_CONV, &into), KVC_OK)
          << support::last_message();
    }
    std::vector<Memory> result;
    for (int64_t i = 0; i < n; ++i)
      result.push_back(memory(h.data() + i * desc_.state_size, conv.data() + i * columns()));
    return result;
  }

  void put_by_copy(const Door& door, const Pass& pass) {
    std::vector<float> h, x;
    for (const LayerRows& each : layer_)
      for (const Memory& row : each.rows)
        h.insert(h.end(), static_cast<size_t>(desc_.state_size), static_cast<float>(row.h));
    const kvc_tensor from = support::dense(h.data(), KVC_F32, {n_rows_, desc_.state_size});
    EXPECT_EQ(kvc_state_put(door.cache, door.layer, KVC_PART_RECURRENT, &from), KVC_OK)
        << support::last_message();
    if (!has_conv()) return;
    for (const int32_t value : pass.value)
      x.insert(x.end(), static_cast<size_t>(desc_.conv_channels), static_cast<float>(value + 1));
    const kvc_tensor inputs = support::dense(x.data(), KVC_F32, {pass.n(), desc_.conv_channels});
    EXPECT_EQ(kvc_state_conv(door.cache, door.layer, &inputs), KVC_OK) << support::last_message();
  }

  void put_in_place(const Door& door) {
    int32_t n = -1;
    Numbers slots(static_cast<size_t>(n_rows_));
    EXPECT_EQ(kvc_state_slots(cache_, n_rows_, slots.data(), &n), KVC_OK);
    EXPECT_EQ(n, n_rows_);
    for (const int32_t part : {KVC_PART_RECURRENT, KVC_PART_CONV}) {
      if (part == KVC_PART_CONV && !has_conv()) continue;
      kvc_tensor view{};
      EXPECT_EQ(kvc_state_view(door.cache, door.layer, part, 0, nullptr, &view), KVC_OK)
          << support::last_message();
      view = support::on_host(view);
      const auto slot = [&](int32_t number) {
        return reinterpret_cast<float*>(static_cast<char*>(view.data) + view.byte_offset) +
               number * view.strides[0];
      };
      int32_t row = 0;
      for (size_t i = 0; i < sequences_.size(); ++i) {
        const float* before = slot(sequences_[i].read_slot);
        EXPECT_EQ(before[0], part == KVC_PART_CONV ? static_cast<float>(layer_[i].before.columns[0])
                                                   : static_cast<float>(layer_[i].before.h));
        for (const Memory& memory : layer_[i].rows) {
          float* to = slot(slots[static_cast<size_t>(row++)]);
          for (int64_t e = 0; e < (part == KVC_PART_CONV ? columns() : desc_.state_size); ++e)
            to[e] = part == KVC_PART_CONV
                        ? static_cast<float>(memory.columns[static_cast<size_t>(e % desc_.conv_dim)])
                        : static_cast<float>(memory.h);
        }
      }
      EXPECT_EQ(kvc_state_done(door.cache, door.layer, part), KVC_OK) << support::last_message();
    }
  }

  /// The same in every layer.
  Memory gathered(int32_t sequence, int32_t at) const {
    Memory first;
    for (const Door& door : doors_) {
      std::vector<float> h(static_cast<size_t>(desc_.state_size)),
          conv(static_cast<size_t>(columns()));
      kvc_tensor into = support::dense(h.data(), KVC_F32, {desc_.state_size});
      EXPECT_EQ(kvc_state_gather(door.cache, door.layer, KVC_PART_RECURRENT, sequence, at, &into), KVC_OK)
          << support::last_message();
      if (has_conv()) {
        into = support::dense(conv.data(), KVC_F32, {desc_.conv_channels, desc_.conv_dim});
        EXPECT_EQ(kvc_state_gather(door.cache, door.layer, KVC_PART_CONV, sequence, at, &into), KVC_OK)
            << support::last_message();
      }
      const Memory of_layer = memory(h.data(), conv.data());
      if (&door == &doors_[0]) first = of_layer;
      EXPECT_EQ(of_layer.h, first.h);
      EXPECT_EQ(of_layer.columns, first.columns);
    }
    return first;
  }

  const kvc_recurrent_desc desc_;
  kvc_cache* const cache_;
  const std::vector<Door> doors_;
  std::vector<kvc_state_sequence> sequences_;  // of the open pass
  std::vector<LayerRows> layer_;
  int32_t n_rows_ = 0;
};

}  // namespace

std::unique_ptr<Child> make_abi_recurrent(const ChildScript& script, kvc_cache* cache,
                                          const std::vector<Door>& doors) {
  return std::make_unique<RecurrentChild>(script, cache, doors);
}

}  // namespace players
