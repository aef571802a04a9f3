#include "recurrent_rig.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "host_view.hpp"

namespace support {
namespace {

/// Elements of one slot, where a view lends them.
float* slot_of(const kvc_tensor& view, int32_t slot) {
  const kvc_tensor host = on_host(view);
  return static_cast<float*>(host.data) + host.strides[0] * slot;
}

}  // namespace

void RecurrentRig::create() {
  ASSERT_EQ(kvc_cache_create(device_, &desc, &recurrent, &cache.handle), KVC_OK) << last_message();
}

// ---- The pass -----------------------------------------------------------------------------------------------------------

kvc_status RecurrentRig::begin(const std::vector<Token>& tokens) {
  std::vector<int32_t> position, sequence;
  std::map<int32_t, int32_t> next_of;
  for (const Token& token : tokens) {
    sequence.push_back(token.sequence);
    if (token.sequence == KVC_NONE) {
      position.push_back(-7);  // nobody looks
      continue;
    }
    next_of.try_emplace(token.sequence, next(token.sequence));
    position.push_back(next_of[token.sequence]++);
  }
  const kvc_status status = kvc_begin(cache, static_cast<int32_t>(tokens.size()), position.data(),
                                      sequence.data(), nullptr, 0, nullptr);
  if (status == KVC_OK) tokens_ = tokens;
  return status;
}

void RecurrentRig::pass(const std::vector<Token>& tokens, Put put) {
  ASSERT_EQ(begin(tokens), KVC_OK) << last_message();
  put_all(put);
}

void RecurrentRig::put_all(Put put) {
  for (int32_t layer = 0; layer < n_layers && put != Put::nothing; ++layer) {
    if (recurrent.state_size > 0) put_recurrent(layer, put);
    if (recurrent.conv_dim > 0) put_conv(layer);
  }
}

float RecurrentRig::after(int32_t layer, float h, int32_t value) {
  return std::fmod(31 * h + static_cast<float>(value + layer), 65521.0f);
}

void RecurrentRig::put_recurrent(int32_t layer, Put put) {
  const std::vector<kvc_state_sequence> sequences = layout();
  std::vector<int32_t> order(tokens_.size());
  int32_t n = 0;
  ASSERT_EQ(kvc_state_layout(cache, 0, nullptr, &n, order.data()), KVC_OK);
  std::vector<float> before(static_cast<size_t>(n) * state_size, -1.0f), rows;
  kvc_tensor into = dense(before.data(), KVC_F32, {n, state_size});
  ASSERT_EQ(kvc_state_get(cache, layer, KVC_PART_RECURRENT, &into), KVC_OK) << last_message();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const kvc_state_sequence& sequence = sequences[i];
    float h = before[i * state_size];
    for (int32_t t = 0; t < sequence.n_tokens; ++t) {
      const int32_t token = order[static_cast<size_t>(sequence.first_token + t)];
      EXPECT_EQ(tokens_[static_cast<size_t>(token)].sequence, sequence.sequence);
      h = after(layer, h, tokens_[static_cast<size_t>(token)].value);
      if (t < sequence.n_tokens - sequence.n_rows) continue;
      for (int32_t e = 0; e < state_size; ++e) rows.push_back(h + static_cast<float>(e));
    }
  }
  const auto n_rows = static_cast<int64_t>(rows.size()) / state_size;
  if (put == Put::by_copy) {
    const kvc_tensor from = dense(rows.data(), KVC_F32, {n_rows, state_size});
    ASSERT_EQ(kvc_state_put(cache, layer, KVC_PART_RECURRENT, &from), KVC_OK) << last_message();
    return;
  }
  kvc_tensor view{};
  ASSERT_EQ(kvc_state_view(cache, layer, KVC_PART_RECURRENT, 0, nullptr, &view), KVC_OK);
  const std::vector<int32_t> slot = slots();
  for (size_t i = 0; i < sequences.size(); ++i) {
    const float* read = slot_of(view, sequences[i].read_slot);
    EXPECT_TRUE(std::equal(read, read + state_size, &before[i * state_size]));
  }
  for (size_t row = 0; row < slot.size(); ++row)
    std::copy_n(&rows[row * state_size], state_size, slot_of(view, slot[row]));
  ASSERT_EQ(kvc_state_done(cache, layer, KVC_PART_RECURRENT), KVC_OK);
}

void RecurrentRig::put_conv(int32_t layer) {
  std::vector<float> x;
  for (const Token& token : tokens_) {
    for (int32_t c = 0; c < channels; ++c)
      x.push_back(token.sequence == KVC_NONE ? NAN : static_cast<float>(token.value + c));
  }
  const kvc_tensor from = dense(x.data(), KVC_F32, {static_cast<int64_t>(tokens_.size()), channels});
  ASSERT_EQ(kvc_state_conv(cache, layer, &from), KVC_OK) << last_message();
}

// ---- Looking ------------------------------------------------------------------------------------------------------------

std::vector<kvc_state_sequence> RecurrentRig::layout() const {
  int32_t n = 0;
  EXPECT_EQ(kvc_state_layout(cache, 0, nullptr, &n, nullptr), KVC_OK) << last_message();
  std::vector<kvc_state_sequence> sequences(static_cast<size_t>(n));
  EXPECT_EQ(kvc_state_layout(cache, n, sequences.data(), &n, nullptr), KVC_OK);
  return sequences;
}

std::vector<int32_t> RecurrentRig::slots() const {
  int32_t n = 0;
  EXPECT_EQ(kvc_state_slots(cache, 0, nullptr, &n), KVC_OK) << last_message();
  std::vector<int32_t> slot(static_cast<size_t>(n));
  EXPECT_EQ(kvc_state_slots(cache, n, slot.data(), &n), KVC_OK);
  return slot;
}

std::vector<int32_t> RecurrentRig::checkpoints(int32_t sequence) const {
  int32_t n = 0;
  EXPECT_EQ(kvc_checkpoint_list(cache, sequence, 0, nullptr, &n), KVC_OK) << last_message();
  std::vector<int32_t> at(static_cast<size_t>(n));
  EXPECT_EQ(kvc_checkpoint_list(cache, sequence, n, at.data(), &n), KVC_OK);
  return at;
}

int32_t RecurrentRig::best(int32_t sequence, int32_t want) const {
  int32_t found = -1;
  EXPECT_EQ(kvc_can_resume(cache, sequence, want, &found), KVC_OK) << last_message();
  return found;
}

std::vector<float> RecurrentRig::gathered(int32_t layer, int32_t part, int32_t sequence, int32_t at,
                                          std::initializer_list<int64_t> dims) const {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  std::vector<float> values(static_cast<size_t>(count), -1.0f);
  kvc_tensor into = dense(values.data(), KVC_F32, dims);
  EXPECT_EQ(kvc_state_gather(cache, layer, part, sequence, at, &into), KVC_OK) << last_message();
  return values;
}

std::vector<float> RecurrentRig::state(int32_t layer, int32_t part, int32_t sequence,
                                       int32_t at) const {
  return part == KVC_PART_CONV ? gathered(layer, part, sequence, at, {channels, recurrent.conv_dim})
                               : gathered(layer, part, sequence, at, {state_size});
}

void RecurrentRig::expect_state(int32_t sequence, int32_t at,
                                const std::vector<int32_t>& values) const {
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    std::vector<float> wanted(state_size), columns;
    float h = 0;
    for (const int32_t value : values) h = after(layer, h, value);
    for (int32_t e = 0; e < state_size; ++e)
      wanted[static_cast<size_t>(e)] = values.empty() ? 0.0f : h + static_cast<float>(e);
    if (recurrent.state_size > 0) {
      EXPECT_EQ(state(layer, KVC_PART_RECURRENT, sequence, at), wanted)
          << "layer " << layer << ", sequence " << sequence << " at " << at;
    }
    const auto n = static_cast<int32_t>(values.size());
    for (int32_t c = 0; c < channels; ++c) {
      for (int32_t i = n - recurrent.conv_dim; i < n; ++i)
        columns.push_back(i < 0 ? 0.0f : static_cast<float>(values[static_cast<size_t>(i)] + c));
    }
    if (recurrent.conv_dim == 0) continue;
    EXPECT_EQ(state(layer, KVC_PART_CONV, sequence, at), columns)
        << "layer " << layer << ", sequence " << sequence << " at " << at;
  }
}

}  // namespace support
