// The numbers of recurrent states: conversion, layouts of tensors, the columns of convolutions, states beyond 2 GB, what freed slots
// hold, and how much memory a cache takes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <limits>
#include <vector>

#include "support/array.hpp"
#include "support/host_view.hpp"
#include "support/random.hpp"
#include "support/recurrent_rig.hpp"

namespace {

using support::Array;
using support::Put;
using Rig = support::RecurrentRig;

constexpr uint32_t types[] = {KVC_F32, KVC_F16, KVC_BF16};
constexpr int32_t conv = KVC_PART_CONV, recurrent = KVC_PART_RECURRENT;

class RecurrentStates : public testing::Test {
 protected:
  support::Device device_{2};
  Rig rig_{device_};
  support::Random random_{7};
};

/// A number as an element type holds it.
double rounded(double value, uint32_t dtype) {
  Array one(dtype, {1});
  one.set(0, value);
  return one.get(0);
}

/// Ordinary numbers, and those that rounding finds hard.
void fill(Array& array, support::Random& random) {
  array.fill(random);
  const double hard[] = {1e30, -1e30, 65519.9, 65520,      1 + 0x1p-11, 1 + 0x3p-11,
                         1e-7, -0.0,  3e38,    1 + 0x1p-8, INFINITY};
  for (int64_t i = 0; i < array.count(); i += 3)
    array.set(i, hard[random.below(static_cast<int32_t>(std::size(hard)))]);
}

// Big enough that threads share it, small enough that no copy ends at a round number.
TEST_F(RecurrentStates, EveryTypeGoesThroughEveryStorageInAnyLayout) {
  const std::vector<int64_t> shape = {3, 7, 5, 941};
  for (const uint32_t stored : types) {
    Rig rig(device_);
    rig.recurrent.dtype_state = stored;
    rig.recurrent.state_size = 7 * 5 * 941;
    rig.recurrent.conv_dim = 0;
    rig.create();
    for (const uint32_t from_type : types) {
      for (const uint32_t into_type : types) {
        Array from(from_type, shape, random_), into(into_type, shape, random_);
        fill(from, random_);
        into.fill(-1);
        ASSERT_EQ(rig.begin({{0, 0}, {1, 0}, {2, 0}}), KVC_OK);
        for (int32_t layer = 0; layer < Rig::n_layers; ++layer)
          ASSERT_EQ(kvc_state_put(rig.cache, layer, recurrent, from.tensor()), KVC_OK);
        ASSERT_EQ(rig.begin({{0, 0}, {1, 0}, {2, 0}}), KVC_OK) << support::last_message();
        ASSERT_EQ(kvc_state_get(rig.cache, 1, recurrent, into.tensor()), KVC_OK);
        for (int64_t i = 0; i < from.count(); ++i) {
          const double wanted = rounded(rounded(from.get(i), stored), into_type);
          ASSERT_EQ(into.get(i), wanted) << "element " << i << ", stored as " << stored;
        }
        EXPECT_TRUE(into.gaps_intact());
        ASSERT_EQ(kvc_abort(rig.cache), KVC_OK);
      }
    }
  }
}

TEST_F(RecurrentStates, APutIntoTheSameTypeKeepsEveryBit) {
  rig_.recurrent.conv_dim = 0;
  rig_.create();
  std::vector<float> nans(Rig::state_size, std::numeric_limits<float>::signaling_NaN());
  kvc_tensor tensor = support::dense(nans.data(), KVC_F32, {1, Rig::state_size});
  ASSERT_EQ(rig_.begin({{0, 0}}), KVC_OK);
  ASSERT_EQ(kvc_state_put(rig_.cache, 0, recurrent, &tensor), KVC_OK);
  std::vector<float> back(nans.size());
  tensor = support::dense(back.data(), KVC_F32, {Rig::state_size});
  ASSERT_EQ(kvc_state_gather(rig_.cache, 0, recurrent, 0, 1, &tensor), KVC_OK);
  EXPECT_EQ(std::memcmp(back.data(), nans.data(), sizeof(float) * nans.size()), 0);
}

// Rows of any number of tokens, before and behind the width of the convolution, against columns that are put by hand.
TEST_F(RecurrentStates, TheConvolutionIsThePutOfItsLastColumns) {
  constexpr int32_t channels = 700;  // more than one block of them
  for (const uint32_t stored : types) {
    for (const int32_t width : {1, 3, 5}) {
      Rig made(device_), by_hand(device_);
      for (Rig* rig : {&made, &by_hand}) {
        rig->recurrent.state_size = 0;
        rig->recurrent.conv_channels = channels;
        rig->recurrent.conv_dim = width;
        rig->recurrent.dtype_conv = stored;
        rig->recurrent.draft_states = 2;
        rig->create();
      }
      for (int32_t step = 0; step < 8; ++step) {
        std::vector<Rig::Token> tokens;
        for (int32_t i = random_.between(1, 12); i > 0; --i)
          tokens.push_back({random_.between(-1, 2), 0});
        const auto n = static_cast<int64_t>(tokens.size());
        ASSERT_EQ(made.begin(tokens), KVC_OK) << support::last_message();
        ASSERT_EQ(by_hand.begin(tokens), KVC_OK);
        Array x(random_.pick({types[0], types[1], types[2]}), {n, channels}, random_);
        fill(x, random_);
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t c = 0; c < channels && tokens[static_cast<size_t>(i)].sequence < 0; ++c)
            x.set(i * channels + c, NAN);
        }
        const auto sequences = by_hand.layout();
        std::vector<int32_t> order(tokens.size());
        int32_t count = 0;
        ASSERT_EQ(kvc_state_layout(by_hand.cache, 0, nullptr, &count, order.data()), KVC_OK);
        for (int32_t layer = 0; layer < Rig::n_layers; ++layer) {
          Array before(KVC_F32, {count, channels, width});
          ASSERT_EQ(kvc_state_get(by_hand.cache, layer, conv, before.tensor()), KVC_OK);
          const auto n_rows = static_cast<int64_t>(by_hand.slots().size());
          Array rows(KVC_F32, {n_rows, channels, width});
          int64_t element = 0;
          for (int64_t s = 0; s < count; ++s) {
            const kvc_state_sequence& of = sequences[static_cast<size_t>(s)];
            for (int32_t seen = of.n_tokens - of.n_rows + 1; seen <= of.n_tokens; ++seen) {
              for (int64_t c = 0; c < channels; ++c) {
                for (int32_t column = seen; column < seen + width; ++column) {
                  const int32_t token = column - width;
                  const auto at = static_cast<size_t>(of.first_token + token);
                  rows.set(element++, token < 0 ? before.get((s * channels + c) * width + column)
                                                : x.get(order[at] * channels + c));
                }
              }
            }
          }
          ASSERT_EQ(kvc_state_put(by_hand.cache, layer, conv, rows.tensor()), KVC_OK);
          ASSERT_EQ(kvc_state_conv(made.cache, layer, x.tensor()), KVC_OK);
        }
        ASSERT_EQ(support::digest(made.cache), support::digest(by_hand.cache))
            << "stored as " << stored << ", width " << width << ", step " << step;
      }
    }
  }
}

// ---- Size ---------------------------------------------------------------------------------------------------------------

// Only the ends are touched, so it takes address space and hardly any memory.
TEST_F(RecurrentStates, StatesBeyond2GB) {
  constexpr int64_t size = (int64_t{1} << 29) + 1000;  // f32
  rig_.desc.n_layers = 1;
  rig_.desc.max_sequences = 1;
  rig_.desc.max_batch = 1;
  rig_.recurrent.conv_dim = 0;
  rig_.recurrent.state_size = size;
  rig_.recurrent.checkpoints = 1;
  const kvc_status created = kvc_cache_create(device_, &rig_.desc, &rig_.recurrent,
                                              &rig_.cache.handle);
  if (created == KVC_E_OUT_OF_MEMORY)
    GTEST_SKIP() << "this machine has no address space for it: " << support::last_message();
  ASSERT_EQ(created, KVC_OK) << support::last_message();
  const auto ends = [&](const kvc_tensor& view, int32_t slot) {
    const kvc_tensor host = support::on_host(view);
    float* first = static_cast<float*>(host.data) + host.strides[0] * slot;
    return std::pair<float*, float*>{first, first + size - 1};
  };
  for (int32_t step = 0; step < 3; ++step) {
    ASSERT_EQ(rig_.begin({{0, 0}}), KVC_OK);
    kvc_tensor view{};
    ASSERT_EQ(kvc_state_view(rig_.cache, 0, recurrent, 0, nullptr, &view), KVC_OK);
    EXPECT_EQ(view.shape[1], size);
    const auto [read_first, read_last] = ends(view, rig_.layout()[0].read_slot);
    EXPECT_EQ(*read_first, static_cast<float>(step));
    EXPECT_EQ(*read_last, static_cast<float>(-step));
    const auto [first, last] = ends(view, rig_.slots()[0]);
    *first = static_cast<float>(step + 1);
    *last = static_cast<float>(-step - 1);
    ASSERT_EQ(kvc_state_done(rig_.cache, 0, recurrent), KVC_OK);
    ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
    if (step == 0) {
      ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK);
    }
  }
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 2, nullptr), KVC_OK);
  ASSERT_EQ(rig_.begin({{0, 0}}), KVC_OK);
  kvc_tensor view{};
  ASSERT_EQ(kvc_state_view(rig_.cache, 0, recurrent, 0, nullptr, &view), KVC_OK);
  EXPECT_EQ(*ends(view, rig_.layout()[0].read_slot).second, -1.0f) << "the checkpoint";
}

// Every element is written, and their numbers do not fit into 32 bits. For make test-long.
TEST_F(RecurrentStates, DISABLED_LongCopiesBeyond2Billion) {
  constexpr int64_t size = (int64_t{1} << 31) + 1000;
  rig_.desc.n_layers = 1;
  rig_.desc.max_sequences = 1;
  rig_.desc.max_batch = 1;
  rig_.recurrent.conv_dim = 0;
  rig_.recurrent.state_size = size;
  rig_.recurrent.dtype_state = KVC_BF16;
  rig_.recurrent.checkpoints = KVC_NONE;
  ASSERT_EQ(kvc_cache_create(device_, &rig_.desc, &rig_.recurrent, &rig_.cache.handle), KVC_OK)
      << support::last_message();
  float value = 3;
  kvc_tensor from = support::dense(&value, KVC_F32, {1, size});
  from.strides[1] = 0;  // the same number for all
  ASSERT_EQ(rig_.begin({{0, 0}}), KVC_OK);
  ASSERT_EQ(kvc_state_put(rig_.cache, 0, recurrent, &from), KVC_OK) << support::last_message();
  std::vector<uint16_t> back(static_cast<size_t>(size));
  kvc_tensor into = support::dense(back.data(), KVC_BF16, {2, size / 2});
  ASSERT_EQ(kvc_state_gather(rig_.cache, 0, recurrent, 0, 1, &into), KVC_OK);
  const uint16_t three = 0x4040;
  EXPECT_EQ(std::count(back.begin(), back.end(), three), size);
}

/// What a cache takes for one more of something, in bytes.
class Growth {
 public:
  Growth(kvc_device* device, const Rig& rig) : device_(device), rig_(rig) {}

  template <class Change>
  double of(const Change& change) const {
    kvc_cache_desc desc = rig_.desc;
    kvc_recurrent_desc kind = rig_.recurrent;
    const double before = bytes(desc, kind);
    const double n = change(desc, kind);
    return (bytes(desc, kind) - before) / n;
  }

 private:
  double bytes(const kvc_cache_desc& desc, const kvc_recurrent_desc& kind) const {
    uint64_t result = 0;
    EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, &kind, &result), KVC_OK)
        << support::last_message();
    return static_cast<double>(result);
  }

  kvc_device* device_;
  const Rig& rig_;
};

TEST_F(RecurrentStates, MemoryIsTheSlotsAndAtMost32BytesForEach) {
  rig_.desc.max_sequences = 1000;
  rig_.recurrent.state_size = 1000;
  rig_.recurrent.dtype_state = KVC_BF16;
  rig_.recurrent.conv_channels = 100;
  const double slot = 2 * (1000 * 2 + 48 + 100 * 3 * 4 + 16);  // parts begin at multiples of 64 bytes
  const Growth growth(device_, rig_);
  const double checkpoint = growth.of([](auto&, auto& kind) {
    kind.checkpoints = 24 + 1000;
    return 1000.0 * 1000;
  });
  std::cout << checkpoint - slot << " bytes of bookkeeping for a slot of " << slot << std::endl;
  EXPECT_GE(checkpoint, slot);
  EXPECT_LE(checkpoint, slot + 32);
  const double sequence = growth.of([](auto& desc, auto&) {
    desc.max_sequences = 11000;
    return 10000.0;
  });
  EXPECT_GE(sequence, 25 * slot);
  EXPECT_LE(sequence, 25 * (slot + 32) + 192);
  const double row = growth.of([](auto& desc, auto& kind) {
    kind.draft_states = 65536;
    desc.max_batch = 10016;
    return 10000.0;
  });
  EXPECT_GE(row, slot);
  EXPECT_LE(row, slot + 32 + 64) << "a token more in a pass besides";
}

TEST_F(RecurrentStates, FreedSlotsBecomeZerosWhenAsked) {
  rig_.desc.flags = KVC_CACHE_ZERO_ON_FREE;
  rig_.create();
  const auto row_is_clear = [&] {
    kvc_tensor view{};
    EXPECT_EQ(kvc_state_view(rig_.cache, 1, recurrent, 0, nullptr, &view), KVC_OK);
    view = support::on_host(view);
    const float* row = static_cast<float*>(view.data) + view.strides[0] * rig_.slots()[0];
    return std::all_of(row, row + Rig::state_size, [](float x) { return x == 0; });
  };
  rig_.pass({{0, 5}});
  EXPECT_FALSE(row_is_clear());
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  ASSERT_EQ(rig_.begin({{1, 5}}), KVC_OK);
  EXPECT_TRUE(row_is_clear()) << "after abort";
  rig_.put_all(Put::by_copy);
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 1), KVC_OK);
  rig_.pass({{1, 6}});
  ASSERT_EQ(kvc_resume(rig_.cache, 1, 1, nullptr), KVC_OK);
  ASSERT_EQ(kvc_resume(rig_.cache, 1, 0, nullptr), KVC_OK);
  for (int32_t i = 0; i < 3; ++i) {
    ASSERT_EQ(rig_.begin({{i, 5}}), KVC_OK);
    EXPECT_TRUE(row_is_clear()) << "after resume";
    ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  }
}

}  // namespace
