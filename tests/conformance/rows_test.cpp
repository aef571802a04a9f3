// Transformer caches: passes of rows against the text of their contract, rings across their edge, what moves rows, rows of other
// caches, and errors in their order.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/rows_rig.hpp"

namespace {

using support::RowsRig;
constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

class RowsTest : public testing::Test {
 protected:
  void ring(int32_t length, int32_t q_max, int32_t reach = 0) {
    rig_.desc.capacity = length;
    rig_.desc.max_batch = rig_.desc.max_sequences * q_max;
    rig_.transformer.flags = KVC_TRANSFORMER_RING;
    rig_.transformer.reach = reach;
    rig_.create();
  }
  void cut(int32_t row, int32_t next) {
    auto& r = rig_.rows[static_cast<size_t>(row)];
    r.held.erase(r.held.lower_bound(next), r.held.end());
    r.next = next;
  }

  support::Device device_;
  RowsRig rig_{device_};
};

TEST_F(RowsTest, PrefillDecodeAndFinishedRows) {
  rig_.create();
  rig_.run({.q_len = 8, .valid = {5, 8, 0}});
  rig_.run({.q_len = 1});
  rig_.run({.q_len = 1, .valid = {1, 0, 1}});
  rig_.run({.q_len = 7, .valid = {7, 3, 2}});
  rig_.run({.q_len = 2, .valid = {0, 0, 0}});
  rig_.run({.q_len = 3, .flags = KVC_ROWS_NOT_CAUSAL});
}

TEST_F(RowsTest, AWindowAndPaddingOnTheLeft) {
  rig_.transformer.reach = 3;
  rig_.create();
  const int32_t starts[] = {2, 0, 5};
  ASSERT_EQ(kvc_rows_set(rig_.cache, 0, 3, nullptr, starts), KVC_OK) << support::last_message();
  for (size_t i = 0; i < 3; ++i) rig_.rows[i].starts = starts[i];
  rig_.run({.q_len = 6});
  for (int32_t i = 0; i < 4; ++i) rig_.run({.q_len = 1});
  rig_.run({.q_len = 8, .valid = {8, 7, 1}});
}

TEST_F(RowsTest, TypesTogetherAndApart) {
  rig_.transformer.reach = 2;
  rig_.create();
  rig_.run({.q_len = 2, .valid = {2, 1, 0}});
  rig_.run({.q_len = 5, .types = {0, 1, 1, 1, 0, 7, 7, 7, 7, 7, 0, 0, 2, 2, 0}});
  rig_.run({.q_len = 5, .valid = {5, 5, 3}, .types = {1, 1, 2, 2, 1, 0, -3, 0, -3, 1, 1, 2, 1, 1, 1}});
  const int32_t starts[] = {0, 0, 40};
  ASSERT_EQ(kvc_rows_set(rig_.cache, 0, 3, nullptr, starts), KVC_OK) << support::last_message();
  rig_.rows[2].starts = 40;
  rig_.run({.q_len = 3, .types = {1, 0, 1, 1, 1, 0, 2, 2, 2}});
}

TEST_F(RowsTest, MasksOfRowsAndOfTokens) {
  rig_.create();
  support::Random random{3};
  const auto shown = [&](size_t lines, size_t n) {
    std::vector<std::vector<uint8_t>> mask(lines, std::vector<uint8_t>(n));
    for (auto& line : mask)
      for (uint8_t& column : line) column = random.below(4) > 0;
    return mask;
  };
  rig_.run({.q_len = 4, .mask = shown(3, 4)});
  rig_.run({.q_len = 4, .mask = shown(12, 20)});
  rig_.run({.q_len = 1, .mask = shown(3, 9)});
  rig_.run({.q_len = 3, .types = {1, 2, 1, 1, 1, 0, 0, 0, 0}, .mask = shown(9, 40)});
  // A mask that shows ranges needs no bits.
  rig_.run({.q_len = 2,
            .mask = {{0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                     std::vector<uint8_t>(14, 1),
                     std::vector<uint8_t>(14, 0)}});
  rig_.run({.q_len = 4, .valid = {2, 0, 3}, .mask = shown(3, 18), .flags = KVC_ROWS_NOT_CAUSAL});
}

TEST_F(RowsTest, PostpaddedReadsTheLengthsOffTheMask) {
  rig_.create();
  std::vector<uint8_t> shown = {1, 1, 0, 1, 1, 1, 0, 0, 0};
  kvc_tensor tensor = support::dense(shown.data(), KVC_BOOL, {3, 3});
  ASSERT_EQ(kvc_begin_rows(rig_.cache, 3, KVC_ROWS_POSTPADDED, nullptr, &tensor, nullptr, nullptr), KVC_OK)
      << support::last_message();
  int32_t index[3];
  ASSERT_EQ(kvc_rows_query(rig_.cache, 0, 3, index, nullptr), KVC_OK);
  EXPECT_EQ(std::vector<int32_t>(index, index + 3), (std::vector<int32_t>{2, 3, 0}));
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  shown[1] = 0, shown[2] = 1;
  EXPECT_EQ(kvc_begin_rows(rig_.cache, 3, KVC_ROWS_POSTPADDED, nullptr, &tensor, nullptr, nullptr),
            invalid);
  const int32_t valid[] = {1, 1, 1};
  EXPECT_EQ(kvc_begin_rows(rig_.cache, 3, KVC_ROWS_POSTPADDED, valid, &tensor, nullptr, nullptr),
            invalid);
  EXPECT_EQ(kvc_begin_rows(rig_.cache, 3, KVC_ROWS_POSTPADDED, nullptr, nullptr, nullptr, nullptr),
            invalid);
}

TEST_F(RowsTest, ARingAcrossItsEdge) {
  ring(7, 4);
  for (int32_t i = 0; i < 9; ++i) {
    rig_.run({.q_len = 1 + i % 4, .valid = {1, i % 4, 1 + i % 4}});
    ASSERT_EQ(rig_.begin({.q_len = 4}), KVC_OK) << support::last_message();
    rig_.put_all();
    rig_.expect_visible();
    rig_.expect_attention(false);
    ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
    rig_.note_aborted();
    rig_.expect_rows();
  }
  rig_.run({.q_len = 4, .types = {1, 2, 1, 2, 1, 1, 1, 1, 0, 3, 0, 3}});
  // 7 positions are held, and a token sees 6 before it: one may be taken back.
  const int32_t next = rig_.rows[0].next;
  int32_t best = -1;
  EXPECT_EQ(kvc_can_resume(rig_.cache, 0, next - 1, &best), KVC_OK);
  EXPECT_EQ(best, next - 1);
  EXPECT_EQ(kvc_can_resume(rig_.cache, 0, next - 2, &best), KVC_OK);
  EXPECT_EQ(best, 0);
}

TEST_F(RowsTest, ARingOfALimitedReachStepsBack) {
  ring(8, 3, 2);
  for (int32_t i = 0; i < 7; ++i) rig_.run({.q_len = 3});
  ASSERT_EQ(kvc_remove(rig_.cache, 1, 17, KVC_SEQ_END), KVC_OK) << support::last_message();
  cut(1, 17);
  rig_.expect_rows();
  rig_.run({.q_len = 3, .valid = {3, 3, 0}});
  EXPECT_EQ(kvc_remove(rig_.cache, 2, 14, KVC_SEQ_END), KVC_E_WINDOW_LOST);
  const int32_t index[] = {0, 14};
  EXPECT_EQ(kvc_rows_set(rig_.cache, 1, 2, index, nullptr), KVC_E_WINDOW_LOST);
  rig_.expect_rows();
}

TEST_F(RowsTest, ARingBeginsAnywhere) {
  ring(5, 2);
  const int32_t index[] = {100, 0, INT32_MAX - 4}, starts[] = {101, 0, 0};
  ASSERT_EQ(kvc_rows_set(rig_.cache, 0, 3, index, starts), KVC_OK) << support::last_message();
  for (size_t i = 0; i < 3; ++i) rig_.rows[i].next = index[i], rig_.rows[i].starts = starts[i];
  rig_.expect_rows();
  rig_.run({.q_len = 2});
  rig_.run({.q_len = 2, .valid = {2, 2, 1}});
  EXPECT_EQ(kvc_fits_rows(rig_.cache, 1, 0, nullptr, nullptr, nullptr), invalid);
  for (int32_t i = 0; i < 5; ++i) rig_.run({.q_len = 2, .valid = {2, 1, 0}});
}

TEST_F(RowsTest, CommitsOfPrefixes) {
  rig_.create();
  rig_.run({.q_len = 3});
  ASSERT_EQ(rig_.begin({.q_len = 6,
                        .valid = {6, 4, 5},
                        .types = {0, 1, 1, 0, 0, 0,  //
                                  0, 0, 0, 0, 0, 0,  //
                                  2, 0, 2, 0, 0, 0}}),
            KVC_OK);
  rig_.put_all();
  const auto commit = [&](int32_t row, int32_t keep) {
    return kvc_commit_prefix(rig_.cache, 1, &row, &keep);
  };
  EXPECT_EQ(commit(0, 2), invalid);
  EXPECT_EQ(commit(2, 1), invalid);
  EXPECT_EQ(commit(1, 5), invalid);
  const int32_t except = 6 + 1;
  ASSERT_EQ(kvc_set_causal(rig_.cache, 1, &except), KVC_OK);
  EXPECT_EQ(commit(1, 2), invalid);
  const int32_t row[] = {2, 0, 1}, keep[] = {3, 1, 1};
  ASSERT_EQ(kvc_commit_prefix(rig_.cache, 3, row, keep), KVC_OK) << support::last_message();
  cut(0, 4), cut(1, 4), cut(2, 6);
  rig_.expect_rows();
  rig_.run({.q_len = 2});
}

TEST_F(RowsTest, CopiesAndReorders) {
  ring(6, 4);
  const int32_t starts[] = {1, 0, 3};
  ASSERT_EQ(kvc_rows_set(rig_.cache, 0, 3, nullptr, starts), KVC_OK);
  for (size_t i = 0; i < 3; ++i) rig_.rows[i].starts = starts[i];
  rig_.run({.q_len = 4, .valid = {4, 1, 3}});
  rig_.run({.q_len = 4, .valid = {4, 1, 0}});
  const auto reorder = [&](std::vector<int32_t> dst, std::vector<int32_t> src) {
    const auto n = static_cast<int32_t>(dst.size());
    ASSERT_EQ(kvc_reorder(rig_.cache, n, dst.data(), src.data()), KVC_OK);
    const auto before = rig_.rows;
    for (size_t i = 0; i < dst.size(); ++i)
      rig_.rows[static_cast<size_t>(dst[i])] = before[static_cast<size_t>(src[i])];
    rig_.expect_rows();
  };
  reorder({0, 1, 2}, {1, 2, 0});  // a cycle
  rig_.run({.q_len = 2});
  reorder({2, 0}, {0, 2});
  reorder({0, 1, 2}, {1, 0, 1});
  rig_.run({.q_len = 1});
  int32_t got = -1;
  ASSERT_EQ(kvc_copy_prefix(rig_.cache, 0, 1, 100, &got), KVC_OK);
  EXPECT_EQ(got, rig_.rows[0].next);
  rig_.rows[1] = rig_.rows[0];
  rig_.expect_rows();
  ASSERT_EQ(kvc_copy_prefix(rig_.cache, 0, 2, 0, &got), KVC_OK);
  rig_.rows[2] = {};
  rig_.expect_rows();
  rig_.run({.q_len = 4});
}

TEST_F(RowsTest, InsertTakesRowsOfAnotherCache) {
  rig_.create();
  rig_.run({.q_len = 8, .valid = {8, 2, 5}});
  RowsRig other{device_};
  other.desc.max_sequences = 2;
  other.desc.capacity = 20;
  other.desc.max_batch = 2 * 6;
  other.create();
  other.run({.q_len = 6, .valid = {3, 6}});
  ASSERT_EQ(other.begin({.q_len = 1}), KVC_OK);
  other.put_all();
  EXPECT_EQ(kvc_insert(rig_.cache, other.cache, 1), KVC_E_BAD_STATE);
  ASSERT_EQ(kvc_commit(other.cache), KVC_OK);
  ASSERT_EQ(kvc_insert(rig_.cache, other.cache, 1), KVC_OK) << support::last_message();
  rig_.rows[1] = other.rows[0];
  rig_.rows[2] = other.rows[1];
  rig_.expect_rows();
  rig_.run({.q_len = 2});
  EXPECT_EQ(kvc_insert(rig_.cache, other.cache, 2), invalid);
  EXPECT_EQ(kvc_insert(rig_.cache, rig_.cache, 0), invalid);
  EXPECT_EQ(kvc_insert(rig_.cache, nullptr, 0), KVC_E_HANDLE);
  ASSERT_EQ(rig_.begin({.q_len = 1}), KVC_OK);
  EXPECT_EQ(kvc_insert(rig_.cache, other.cache, 0), KVC_E_BAD_STATE);
}

TEST_F(RowsTest, InsertBetweenRingsOfDifferentSpareColumns) {
  ring(6, 2);
  RowsRig other{device_};
  other.desc.max_sequences = 1;
  other.desc.capacity = 6;
  other.desc.max_batch = 5;
  other.transformer.flags = KVC_TRANSFORMER_RING;
  other.create();
  for (int32_t i = 0; i < 4; ++i) other.run({.q_len = 5});
  for (int32_t i = 0; i < 5; ++i) rig_.run({.q_len = 2});
  ASSERT_EQ(kvc_insert(rig_.cache, other.cache, 2), KVC_OK) << support::last_message();
  rig_.rows[2] = other.rows[0];
  rig_.expect_rows();
  for (int32_t i = 0; i < 4; ++i) rig_.run({.q_len = 2});
}

TEST_F(RowsTest, ARowThatIsFullChangesNone) {
  rig_.create();
  for (int32_t i = 0; i < 5; ++i) rig_.run({.q_len = 8, .valid = {8, 7, 1}});
  const auto before = support::digest(rig_.cache);
  EXPECT_EQ(rig_.begin({.q_len = 8, .valid = {0, 6, 8}}), KVC_E_CACHE_FULL);
  EXPECT_NE(support::last_message().find("row 1"), std::string::npos) << support::last_message();
  EXPECT_EQ(support::digest(rig_.cache), before);
  rig_.run({.q_len = 8, .valid = {0, 5, 8}});
}

TEST_F(RowsTest, ErrorsInTheirOrder) {
  rig_.create();
  rig_.run({.q_len = 4});
  const int32_t bad[] = {1, 9, 0};
  const auto begin = [&](int32_t q_len, const int32_t* valid, const kvc_tensor* mask) {
    const kvc_status fits = kvc_fits_rows(rig_.cache, q_len, 0, valid, mask, nullptr);
    const kvc_status status = kvc_begin_rows(rig_.cache, q_len, 0, valid, mask, nullptr, nullptr);
    EXPECT_EQ(support::name(fits), support::name(status));
    return status;
  };
  std::vector<int32_t> shown(3 * 50, 1);
  const auto mask = [&](int64_t n, uint32_t dtype = KVC_I32) {
    return support::dense(shown.data(), dtype, {3, n});
  };
  const kvc_tensor short_mask = mask(4), long_mask = mask(41), wrong_type = mask(8, KVC_F32);
  ASSERT_EQ(rig_.begin({.q_len = 2}), KVC_OK);
  EXPECT_EQ(begin(0, nullptr, nullptr), invalid);
  EXPECT_EQ(begin(9, nullptr, nullptr), invalid);
  EXPECT_EQ(begin(4, bad, nullptr), invalid);
  EXPECT_EQ(begin(1, nullptr, &wrong_type), KVC_E_DTYPE);
  EXPECT_EQ(begin(1, nullptr, &short_mask), KVC_E_SHAPE);
  EXPECT_EQ(begin(1, nullptr, &long_mask), KVC_E_SHAPE);
  EXPECT_EQ(begin(1, nullptr, nullptr), KVC_E_BAD_STATE);  // not fully put
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  const int32_t position = 0, sequence = 0;
  EXPECT_EQ(kvc_begin(rig_.cache, 1, &position, &sequence, nullptr, 0, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_fits(rig_.cache, 1, nullptr, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  EXPECT_EQ(kvc_bind_rope(rig_.cache, 0, 1, &rope, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 1, 2), KVC_E_NOT_SUPPORTED);
  const int32_t beyond[] = {5};
  EXPECT_EQ(kvc_rows_set(rig_.cache, 0, 1, beyond, nullptr), invalid);
  EXPECT_EQ(kvc_rows_set(rig_.cache, 3, 1, beyond, nullptr), invalid);
  EXPECT_EQ(kvc_rows_query(rig_.cache, 2, 2, nullptr, nullptr), invalid);
}

TEST_F(RowsTest, RowsThatAreNotPutHoldZerosAndAreFilled) {
  rig_.create();
  ASSERT_EQ(rig_.begin({.q_len = 6, .valid = {6, 2, 4}}), KVC_OK);
  const auto numbered = rig_.rows;
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  for (auto& row : rig_.rows)
    for (auto& [position, value] : row.held) value = 0;
  rig_.expect_rows();
  constexpr int64_t c = 6;
  for (int32_t layer = 0; layer < RowsRig::n_layers; ++layer) {
    std::vector<float> k(3 * c * RowsRig::n_kv_heads * RowsRig::dim_k, 99.0f);
    std::vector<float> v(3 * c * RowsRig::n_kv_heads * RowsRig::dim_v, 99.0f);
    for (int32_t row = 0; row < 3; ++row) {
      for (const auto& [p, value] : numbered[static_cast<size_t>(row)].held) {
        for (int32_t h = 0; h < RowsRig::n_kv_heads; ++h) {
          const auto line = static_cast<size_t>((row * c + p) * RowsRig::n_kv_heads + h);
          for (size_t d = 0; d < RowsRig::dim_k; ++d)
            k[line * RowsRig::dim_k + d] = rig_.key(layer, value, h, static_cast<int32_t>(d));
          for (size_t d = 0; d < RowsRig::dim_v; ++d)
            v[line * RowsRig::dim_v + d] = rig_.value(layer, value, h, static_cast<int32_t>(d));
        }
      }
    }
    const kvc_tensor k_in = support::dense(k.data(), KVC_F32,
                                           {3, c, RowsRig::n_kv_heads, RowsRig::dim_k});
    const kvc_tensor v_in = support::dense(v.data(), KVC_F32,
                                           {3, c, RowsRig::n_kv_heads, RowsRig::dim_v});
    ASSERT_EQ(kvc_rows_fill(rig_.cache, layer, 0, 3, &k_in, nullptr, nullptr, nullptr), KVC_OK)
        << support::last_message();
    ASSERT_EQ(kvc_rows_fill(rig_.cache, layer, 0, 3, nullptr, nullptr, &v_in, nullptr), KVC_OK)
        << support::last_message();
  }
  rig_.rows = numbered;
  rig_.expect_rows();
  rig_.run({.q_len = 3});
}

}  // namespace
