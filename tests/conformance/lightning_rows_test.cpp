// Lightning caches as batches of rows: a pass of rows is the pass of the same tokens as a list, bit for bit; rows are labelled,
// and inserted into other caches.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kvc/rows.h"
#include "support/array.hpp"
#include "support/lightning_rig.hpp"

namespace {

using Rig = support::LightningRig;
using Tokens = std::vector<Rig::Token>;
using Places = std::vector<int32_t>;

/// Tensors of one layer: [batch, q_len, heads, dim] over the memory of [tokens, heads, dim], or laid out [batch, heads, q_len, dim].
class Tensors {
 public:
  Tensors(const Rig& rig, int64_t q_len, uint64_t salt)
      : batch_(rig.desc.max_sequences),
        q_len_(q_len),
        k_(support::wave(salt, batch_ * q_len * rig.desc.n_kv_heads * rig.desc.head_dim_k)),
        v_(support::wave(salt + 1, batch_ * q_len * rig.desc.n_kv_heads * rig.desc.head_dim_v)),
        q_(support::wave(salt + 2, batch_ * q_len * rig.n_q_heads * rig.desc.head_dim_k)),
        out(static_cast<size_t>(batch_ * q_len * rig.n_q_heads * rig.desc.head_dim_v)) {
    k = view(k_, rig.desc.n_kv_heads, rig.desc.head_dim_k);
    v = view(v_, rig.desc.n_kv_heads, rig.desc.head_dim_v);
    q = view(q_, rig.n_q_heads, rig.desc.head_dim_k);
    to = view(out, rig.n_q_heads, rig.desc.head_dim_v);
  }

  /// The same numbers with heads outside of tokens.
  void move_heads_out() {
    for (auto [data, tensor] : {std::pair{&k_, &k}, {&v_, &v}, {&q_, &q}}) {
      const int64_t heads = tensor->shape[2], dim = tensor->shape[3];
      std::vector<float> moved(data->size());
      for (int64_t b = 0; b < batch_; ++b)
        for (int64_t t = 0; t < q_len_; ++t)
          for (int64_t h = 0; h < heads; ++h)
            std::copy_n(data->begin() + ((b * q_len_ + t) * heads + h) * dim, dim,
                        moved.begin() + ((b * heads + h) * q_len_ + t) * dim);
      std::copy(moved.begin(), moved.end(), data->begin());
      tensor->strides[0] = heads * q_len_ * dim;
      tensor->strides[1] = dim;
      tensor->strides[2] = q_len_ * dim;
    }
  }

 private:
  kvc_tensor view(std::vector<float>& data, int64_t heads, int64_t dim) const {
    return support::dense(data.data(), KVC_F32, {batch_, q_len_, heads, dim});
  }
  int64_t batch_, q_len_;
  std::vector<float> k_, v_, q_;

 public:
  std::vector<float> out;
  kvc_tensor k, v, q, to;
};

class LightningRows : public testing::Test {
 protected:
  LightningRows() {
    for (Rig* rig : {&rows_, &list_}) rig->n_q_heads = 4;
  }
  static void create(Rig& rig) {
    rig.create();
    ASSERT_FALSE(HasFatalFailure());
  }
  /// The open pass, in all layers; both caches must agree.
  void run_and_compare(int64_t q_len, uint64_t salt, bool heads_outside = false) {
    for (int32_t layer = 0; layer < rows_.desc.n_layers; ++layer) {
      Tensors tensors(rows_, q_len, salt + 3 * static_cast<uint64_t>(layer));
      if (heads_outside) tensors.move_heads_out();
      ASSERT_EQ(kvc_put_attention(rows_.cache, layer, &tensors.k, &tensors.v, &tensors.q,
                                  &tensors.to, nullptr),
                KVC_OK)
          << support::last_message();
      ASSERT_EQ(list_.put_attention(layer), KVC_OK) << support::last_message();
      ASSERT_EQ(tensors.out, list_.out());
    }
    ASSERT_EQ(support::digest(rows_.cache), support::digest(list_.cache));
  }
  kvc_status begin_rows(int32_t q_len, uint32_t flags, const int32_t* valid,
                        const kvc_tensor* mask = nullptr, const int32_t* types = nullptr) {
    const kvc_status fits = kvc_fits_rows(rows_.cache, q_len, flags, valid, mask, types);
    const kvc_status begun = kvc_begin_rows(rows_.cache, q_len, flags, valid, mask, types, nullptr);
    EXPECT_EQ(fits, begun);
    return begun;
  }

  support::Device device_{2};
  Rig rows_{device_}, list_{device_};
};

TEST_F(LightningRows, APassOfRowsIsThePassOfItsTokens) {
  create(rows_), create(list_);
  const int32_t valid[] = {2, 0, 3, 1};
  ASSERT_EQ(begin_rows(3, 0, valid), KVC_OK) << support::last_message();
  const Rig::Token none = {KVC_NONE};
  ASSERT_EQ(list_.begin({{0}, {0}, none, none, none, none, {2}, {2}, {2}, {3}, none, none}, 5),
            KVC_OK);
  run_and_compare(3, 5);

  uint8_t shown[] = {1, 1, 0, 1, 0, 0, 1, 1};  // tokens that it hides let time pass
  kvc_tensor mask = support::dense(shown, KVC_BOOL, {4, 2});
  ASSERT_EQ(begin_rows(2, 0, nullptr, &mask), KVC_OK) << support::last_message();
  ASSERT_EQ(list_.begin({{0}, {0}, {1, -1, true}, {1}, {2, -1, true}, {2, -1, true}, {3}, {3}}, 9),
            KVC_OK);
  run_and_compare(2, 9, true);

  int32_t padded[] = {1, 1, 1, 0, 0, 0, 1, 0};  // … and as padding they do not
  mask = support::dense(padded, KVC_I32, {4, 2});
  ASSERT_EQ(begin_rows(2, KVC_ROWS_POSTPADDED, nullptr, &mask), KVC_OK) << support::last_message();
  ASSERT_EQ(list_.begin({{0}, {0}, {1}, none, none, none, {3}, none}, 2), KVC_OK);
  run_and_compare(2, 2);
  ASSERT_EQ(kvc_commit(rows_.cache), KVC_OK);
  int32_t index[4] = {}, starts[4] = {9, 9, 9, 9};
  ASSERT_EQ(kvc_rows_query(rows_.cache, 0, 4, index, starts), KVC_OK);
  EXPECT_EQ(std::vector<int32_t>(index, index + 4), (Places{6, 3, 5, 4}));
  EXPECT_EQ(std::vector<int32_t>(starts, starts + 4), (Places{0, 0, 0, 0}));
  EXPECT_EQ(kvc_check(rows_.cache), KVC_OK);
}

TEST_F(LightningRows, AReservePassHasTheShapesOfRows) {
  create(rows_);
  ASSERT_EQ(begin_rows(3, KVC_ROWS_RESERVE, nullptr), KVC_OK);
  Tensors tensors(rows_, 3, 1), other(rows_, 2, 1);
  EXPECT_EQ(kvc_put(rows_.cache, 0, &tensors.k, &tensors.v), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_put(rows_.cache, 0, &other.k, &other.v), KVC_E_SHAPE);
  ASSERT_EQ(kvc_abort(rows_.cache), KVC_OK);
}

TEST_F(LightningRows, WhatBeginRowsRefuses) {
  create(rows_);
  uint8_t shown[4 * 4] = {};
  shown[1] = 1;
  kvc_tensor wide = support::dense(shown, KVC_BOOL, {4, 3}),
             fits = support::dense(shown, KVC_BOOL, {4, 2});
  kvc_tensor per_token = support::dense(shown, KVC_BOOL, {4, 1, 2, 2});
  const int32_t types[8] = {};
  EXPECT_EQ(begin_rows(2, 0, nullptr, &wide), KVC_E_SHAPE);
  EXPECT_EQ(begin_rows(2, 0, nullptr, &per_token), KVC_E_SHAPE);
  EXPECT_EQ(begin_rows(2, KVC_ROWS_POSTPADDED, nullptr, &fits), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(begin_rows(5, 0, nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(begin_rows(2, 0, nullptr, nullptr, types), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(begin_rows(2, KVC_ROWS_NOT_CAUSAL, nullptr), KVC_E_NOT_SUPPORTED);
  const int32_t last = INT32_MAX - 2, row = 2;
  ASSERT_EQ(kvc_rows_set(rows_.cache, row, 1, &last, nullptr), KVC_OK);
  EXPECT_EQ(begin_rows(2, 0, nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(begin_rows(1, 0, nullptr), KVC_OK);
}

TEST_F(LightningRows, AnIndexIsALabelOfTime) {
  create(rows_);
  rows_.pass({{0}, {0}, {1}}, 3);
  ASSERT_EQ(kvc_checkpoint_take(rows_.cache, 0), KVC_OK);
  const std::vector<float> state = rows_.state(1, 0);
  const int32_t index[] = {7, 0}, ones[] = {1, 0}, zeros[] = {0, 0}, negative[] = {4, -1};
  EXPECT_EQ(kvc_rows_set(rows_.cache, 0, 2, index, ones), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_rows_set(rows_.cache, 0, 2, negative, nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_rows_set(rows_.cache, 3, 2, index, nullptr), KVC_E_INVALID_ARGUMENT);
  ASSERT_EQ(kvc_rows_set(rows_.cache, 0, 2, index, zeros), KVC_OK) << support::last_message();
  EXPECT_EQ(rows_.next(0), 7);
  EXPECT_EQ(rows_.next(1), 0);
  EXPECT_EQ(rows_.checkpoints(0), Places());
  EXPECT_EQ(rows_.state(1, 0), state);
  for (const float x : rows_.state(0, 1)) EXPECT_EQ(x, 0);
  ASSERT_EQ(rows_.begin({{0}}, 1), KVC_OK);
  EXPECT_EQ(kvc_rows_set(rows_.cache, 0, 1, zeros, nullptr), KVC_E_BAD_STATE);
  EXPECT_EQ(kvc_check(rows_.cache), KVC_OK) << support::last_message();
}

TEST_F(LightningRows, RowsOfAnotherCacheTakeThePlaceOfRows) {
  Rig small(device_);
  small.desc.max_sequences = 2;
  small.n_q_heads = 4;
  small.lightning.flags = KVC_LIGHTNING_APPROXIMATE;
  rows_.lightning.checkpoints = 1;
  create(rows_), create(small);
  small.pass({{0}, {0}}, 3);
  ASSERT_EQ(kvc_checkpoint_take(small.cache, 0), KVC_OK);
  small.pass({{0}, {0}, {1}}, 4);
  ASSERT_EQ(kvc_checkpoint_take(small.cache, 0), KVC_OK);
  ASSERT_EQ(kvc_remove(small.cache, 0, 0, 1), KVC_OK);
  rows_.pass({{0}, {1}, {2}, {2}, {3}}, 8);
  const std::vector<float> first = rows_.state(0, 0), last = rows_.state(0, 3);
  EXPECT_EQ(kvc_insert(rows_.cache, small.cache, 3), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_insert(rows_.cache, rows_.cache, 0), KVC_E_INVALID_ARGUMENT);
  ASSERT_EQ(kvc_insert(rows_.cache, small.cache, 1), KVC_OK) << support::last_message();
  for (const int32_t layer : {0, 1}) {
    EXPECT_EQ(rows_.state(layer, 1), small.state(layer, 0));
    EXPECT_EQ(rows_.state(layer, 2), small.state(layer, 1));
  }
  EXPECT_EQ(rows_.state(0, 0), first);
  EXPECT_EQ(rows_.state(0, 3), last);
  EXPECT_EQ(rows_.next(1), 3);
  EXPECT_EQ(rows_.checkpoints(1), (Places{3}));  // the lowest stays behind
  EXPECT_EQ(support::sequence_info(rows_.cache, 1).flags, uint32_t{KVC_SEQUENCE_APPROXIMATE});
  EXPECT_EQ(kvc_check(rows_.cache), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_insert(rows_.cache, small.cache, 1), KVC_OK);  // once more, where they are
  EXPECT_EQ(kvc_check(rows_.cache), KVC_OK) << support::last_message();

  small.pass({{1}}, 2);
  EXPECT_EQ(kvc_insert(rows_.cache, small.cache, 1), KVC_E_BAD_STATE);
  Rig other(device_);
  other.n_q_heads = 4;
  other.slopes = {1, 1, 1, 1};
  create(other);
  EXPECT_EQ(kvc_insert(rows_.cache, other.cache, 0), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(support::last_message().find("layer 0 decays otherwise"), 0u) << support::last_message();
}

}  // namespace
