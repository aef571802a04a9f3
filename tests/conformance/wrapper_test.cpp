// Wrappers beyond their vectors: what a call on a wrapper reaches, all or none; handles that are destroyed in any order; what a
// child refuses while it is wrapped; threads.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "kvc/encoder.h"
#include "kvc/recurrent.h"
#include "kvc/wrapper.h"
#include "support/abi.hpp"
#include "support/random.hpp"

namespace {

constexpr int32_t n_heads = 2, dim = 8, max_batch = 8;
constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT, bad_state = KVC_E_BAD_STATE,
                     not_supported = KVC_E_NOT_SUPPORTED;

struct Rows {
  Rows(int64_t n, support::Random& random) : values(static_cast<size_t>(n * n_heads * dim)) {
    for (float& value : values) value = random.value();
    tensor = support::dense(values.data(), KVC_F32, {n, n_heads, dim});
  }
  std::vector<float> values;
  kvc_tensor tensor{};
};

/// A full cache of two layers and a window of one, in the order window, full, full.
class Wrapper : public testing::Test {
 protected:
  void SetUp() override {
    kvc_cache_desc desc = describe(2);
    ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &full_.handle), KVC_OK);
    desc.n_layers = 1;
    desc.max_sequences = 4;  // one more than the wrapper has
    kvc_causal_desc window = support::causal_desc();
    window.reach = 4;
    window.memory = 6;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &window, &window_.handle), KVC_OK);
  }

  static kvc_cache_desc describe(int32_t n_layers) {
    kvc_cache_desc desc = support::cache_desc(n_layers, n_heads, dim, dim);
    desc.max_sequences = 3;
    desc.capacity = 32;
    desc.max_batch = max_batch;
    return desc;
  }

  void wrap() {
    kvc_cache* const children[] = {full_, window_};
    const int32_t child[] = {1, 0, 0}, layer[] = {0, 0, 1};
    ASSERT_EQ(kvc_cache_wrap(children, 2, child, layer, 3, &wrapper_.handle), KVC_OK)
        << support::last_message();
  }

  static kvc_status begin(kvc_cache* cache, int32_t sequence, int32_t first, int32_t n) {
    std::vector<int32_t> position(static_cast<size_t>(n)), of(static_cast<size_t>(n), sequence);
    for (int32_t i = 0; i < n; ++i) position[static_cast<size_t>(i)] = first + i;
    return kvc_begin(cache, n, position.data(), of.data(), nullptr, 0, nullptr);
  }
  void put(kvc_cache* cache, int32_t layer, int32_t n) {
    const Rows k(n, random_), v(n, random_);
    ASSERT_EQ(kvc_put(cache, layer, &k.tensor, &v.tensor), KVC_OK) << support::last_message();
  }
  void add(int32_t sequence, int32_t first, int32_t n) {
    ASSERT_EQ(begin(wrapper_, sequence, first, n), KVC_OK) << support::last_message();
    for (int32_t layer = 0; layer < 3; ++layer) put(wrapper_, layer, n);
    ASSERT_EQ(kvc_commit(wrapper_), KVC_OK);
  }
  int32_t next(int32_t sequence) const { return support::sequence_info(wrapper_, sequence).next; }

  /// The call returns the status and changes no child.
  void expect(kvc_status status, const std::function<kvc_status()>& call, const char* what) {
    const support::Digest before = support::digest(wrapper_);
    EXPECT_EQ(support::name(call()), support::name(status)) << what;
    EXPECT_EQ(support::digest(wrapper_), before) << what;
    EXPECT_EQ(kvc_check(wrapper_), KVC_OK) << what << ": " << support::last_message();
  }

  support::Device device_;
  support::Cache full_, window_, wrapper_;
  support::Random random_{20261129};
};

TEST_F(Wrapper, BadArgumentsOfWrap) {
  kvc_cache* children[] = {full_, window_, full_};
  int32_t child[] = {0, 1}, layer[] = {0, 0};
  kvc_cache* out = full_;
  const auto status = [&](int32_t n_children, int32_t n_layers) {
    out = full_;
    return kvc_cache_wrap(children, n_children, child, layer, n_layers, &out);
  };
  EXPECT_EQ(kvc_cache_wrap(children, 2, child, layer, 2, nullptr), invalid);
  EXPECT_EQ(kvc_cache_wrap(nullptr, 2, child, layer, 2, &out), invalid);
  EXPECT_EQ(out, nullptr);
  for (const int32_t n : {INT32_MIN, -1, 0, KVC_MAX_CHILDREN + 1}) EXPECT_EQ(status(n, 2), invalid);
  for (const int32_t n : {INT32_MIN, -1, 65537}) EXPECT_EQ(status(2, n), invalid);
  EXPECT_EQ(kvc_cache_wrap(children, 2, nullptr, layer, 2, &out), invalid);
  EXPECT_EQ(kvc_cache_wrap(children, 2, child, nullptr, 2, &out), invalid);
  EXPECT_EQ(status(3, 2), invalid) << "a child twice";
  EXPECT_NE(support::last_message().find("children[0] and children[2]"), std::string::npos);
  for (const int32_t wrong : {-1, 2}) {
    child[1] = wrong;
    EXPECT_EQ(status(2, 2), invalid);
    child[1] = 1;
    layer[0] = wrong;
    EXPECT_EQ(status(2, 2), invalid);
    layer[0] = 0;
  }
  children[1] = nullptr;
  EXPECT_EQ(status(2, 2), KVC_E_HANDLE);
  EXPECT_EQ(out, nullptr);
  EXPECT_NE(support::last_message().find("children[1]"), std::string::npos);
  EXPECT_EQ(begin(full_, 0, 0, 1), KVC_OK) << "a failed wrap leaves its children alone";
  EXPECT_EQ(kvc_commit(full_), KVC_OK);
}

TEST_F(Wrapper, OnlyIdleEmptyUnwrappedCachesAreWrapped) {
  kvc_cache* const children[] = {full_, window_};
  kvc_cache* out = nullptr;
  const auto status = [&] { return kvc_cache_wrap(children, 2, nullptr, nullptr, 0, &out); };
  ASSERT_EQ(begin(window_, 3, 0, 1), KVC_OK);
  EXPECT_EQ(status(), bad_state) << "a pass is open";
  ASSERT_EQ(kvc_commit(window_), KVC_OK);
  EXPECT_EQ(status(), bad_state) << "a sequence that the wrapper would not have holds something";
  ASSERT_EQ(kvc_remove(window_, 3, 0, KVC_SEQ_END), KVC_OK);
  ASSERT_EQ(status(), KVC_OK) << support::last_message();
  kvc_cache* second = nullptr;
  EXPECT_EQ(kvc_cache_wrap(children, 1, nullptr, nullptr, 0, &second), bad_state);
  kvc_cache* const wrappers[] = {out};
  EXPECT_EQ(kvc_cache_wrap(wrappers, 1, nullptr, nullptr, 0, &second), not_supported);
  EXPECT_EQ(kvc_cache_destroy(out), KVC_OK);
}

TEST_F(Wrapper, AChildRefusesWhatMovesItsSequencesAndDoesAllElse) {
  wrap();
  add(0, 0, 5);
  const int32_t zero = 0;
  EXPECT_EQ(begin(full_, 0, 5, 1), bad_state);
  EXPECT_EQ(kvc_begin(full_, -1, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), bad_state)
      << "before arguments";
  EXPECT_EQ(kvc_commit(full_), bad_state);
  EXPECT_EQ(kvc_commit_prefix(full_, 1, &zero, &zero), bad_state);
  EXPECT_EQ(kvc_abort(full_), bad_state);
  EXPECT_EQ(kvc_remove(full_, 0, -1, -1), bad_state);
  EXPECT_EQ(kvc_copy_prefix(full_, 0, 1, 9, nullptr), bad_state);
  EXPECT_EQ(kvc_reorder(full_, 1, &zero, &zero), bad_state);
  EXPECT_EQ(kvc_resume(full_, 0, 0, nullptr), bad_state);
  EXPECT_NE(support::last_message().find("wrapper"), std::string::npos);
  EXPECT_EQ(support::sequence_info(full_, 0).next, 5);

  ASSERT_EQ(begin(wrapper_, 0, 5, 1), KVC_OK);
  put(full_, 0, 1);
  put(full_, 1, 1);
  put(window_, 0, 1);
  const int32_t token = 0;
  EXPECT_EQ(kvc_set_causal(full_, 1, &token), KVC_OK);
  kvc_tensor k{}, v{};
  EXPECT_EQ(kvc_get(full_, 1, &k, &v), KVC_OK);
  EXPECT_EQ(kvc_commit(wrapper_), KVC_OK);
  EXPECT_EQ(next(0), 6);
}

TEST_F(Wrapper, LayersGoToTheirOwner) {
  wrap();
  kvc_cache* child = nullptr;
  int32_t layer = -1;
  EXPECT_EQ(kvc_cache_child(wrapper_, 0, &child, &layer), KVC_OK);
  EXPECT_TRUE(child == window_.handle && layer == 0);
  EXPECT_EQ(kvc_cache_child(wrapper_, 2, &child, &layer), KVC_OK);
  EXPECT_TRUE(child == full_.handle && layer == 1);
  EXPECT_EQ(kvc_cache_child(wrapper_, 3, &child, &layer), invalid);
  EXPECT_EQ(kvc_cache_child(full_, 0, &child, &layer), not_supported);

  EXPECT_EQ(kvc_get(wrapper_, 9, nullptr, nullptr), bad_state) << "no pass comes before no layer";
  for (int32_t i = 0; i < 3; ++i) add(0, 4 * i, 4);
  ASSERT_EQ(begin(wrapper_, 0, 12, 1), KVC_OK);
  EXPECT_EQ(kvc_get(wrapper_, 9, nullptr, nullptr), invalid);
  EXPECT_EQ(kvc_get(wrapper_, 2, nullptr, nullptr), bad_state) << "not put";
  EXPECT_NE(support::last_message().find("layer 2 of the wrapper, which is layer 1 of child 0"),
            std::string::npos);
  for (int32_t i = 0; i < 3; ++i) put(wrapper_, i, 1);
  int32_t first = 0, of_window = 0, of_full = 0;
  ASSERT_EQ(kvc_history(wrapper_, 0, &first, &of_window), KVC_OK);
  ASSERT_EQ(kvc_history(wrapper_, 2, &first, &of_full), KVC_OK);
  EXPECT_EQ(of_full, 13);
  EXPECT_LT(of_window, of_full);

  // The window's cache has a sequence 3, the wrapper has not.
  int32_t n = 0;
  EXPECT_EQ(kvc_runs(window_, 0, 3, 0, nullptr, &n), KVC_OK);
  EXPECT_EQ(kvc_runs(wrapper_, 0, 3, 0, nullptr, &n), invalid);
  EXPECT_EQ(kvc_gather(wrapper_, 0, 3, nullptr, nullptr), invalid);
}

TEST_F(Wrapper, OneRefusalStopsAll) {
  wrap();
  for (int32_t i = 0; i < 4; ++i) add(0, 4 * i, 4);
  // The window has lost what 4 would need; the full cache could continue there.
  expect(
      KVC_E_WINDOW_LOST, [&] { return kvc_remove(wrapper_, 0, 4, KVC_SEQ_END); }, "remove");
  EXPECT_NE(support::last_message().find("child 1"), std::string::npos);
  expect(
      KVC_E_WINDOW_LOST, [&] { return kvc_can_remove(wrapper_, 0, 4, KVC_SEQ_END); }, "can_remove");
  // The full cache holds 16 of 32 positions; neither knows how its keys rotate.
  expect(
      not_supported, [&] { return kvc_remove(wrapper_, 0, 14, 15); }, "middle");
  // Two passes of 8 fill the full cache; the window could go on.
  add(0, 16, 8);
  add(0, 24, 8);
  expect(
      KVC_E_CACHE_FULL, [&] { return begin(wrapper_, 0, 32, 1); }, "begin");
  EXPECT_NE(support::last_message().find("child 0"), std::string::npos);
  // INVALID_ARGUMENT of the last child would come before CACHE_FULL of the first.
  expect(
      invalid, [&] { return begin(wrapper_, 0, 31, 1); }, "begin behind next");
  int32_t best = -1;
  EXPECT_EQ(kvc_can_resume(wrapper_, 0, 20, &best), KVC_OK);
  EXPECT_EQ(best, 0);
  EXPECT_EQ(kvc_can_resume(wrapper_, 0, 31, &best), KVC_OK);
  EXPECT_EQ(best, 31);
}

TEST_F(Wrapper, APassThatOneChildLacksIsNotEndedOnTheSide) {
  wrap();
  ASSERT_EQ(begin(wrapper_, 0, 0, 2), KVC_OK);
  put(wrapper_, 1, 2);
  put(wrapper_, 2, 2);
  expect(
      bad_state, [&] { return begin(wrapper_, 0, 2, 1); }, "begin");
  expect(
      bad_state, [&] { return kvc_resume(wrapper_, 0, 0, nullptr); }, "resume");
  expect(
      invalid, [&] { return kvc_resume(wrapper_, 3, 0, nullptr); }, "a sequence that one has");
  put(wrapper_, 0, 2);
  EXPECT_EQ(begin(wrapper_, 0, 2, 1), KVC_OK);
  EXPECT_EQ(kvc_abort(wrapper_), KVC_OK);
  EXPECT_EQ(next(0), 2);
}

TEST_F(Wrapper, ConstantsAreBoundInAllOwnersOrNone) {
  wrap();
  kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
  desc.n_q_heads = 2 * n_heads;
  EXPECT_EQ(kvc_bind_attention(wrapper_, 0, 4, &desc, nullptr, nullptr), invalid);
  EXPECT_EQ(kvc_bind_attention(wrapper_, 0, 3, &desc, nullptr, nullptr), KVC_OK);
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  ASSERT_EQ(kvc_bind_rope(wrapper_, 1, 3, &rope, nullptr), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_bind_shift(wrapper_, nullptr, nullptr), not_supported);
  add(0, 0, 4);
  EXPECT_EQ(kvc_bind_rope(wrapper_, 0, 3, &rope, nullptr), bad_state);
  // The full cache can rotate its keys, the window cannot.
  expect(
      not_supported, [&] { return kvc_remove(wrapper_, 0, 1, 2); }, "middle");
  EXPECT_NE(support::last_message().find("child 1"), std::string::npos);
}

/// Two recurrent caches with checkpoints at the ends of passes of `interval` positions or more, and a causal one.
class Hybrid : public testing::Test {
 protected:
  void create(kvc_cache** cache, int32_t checkpoints, int32_t interval) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = KVC_RECURRENT;
    desc.n_layers = 1;
    desc.max_sequences = 2;
    desc.max_batch = max_batch;
    kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
    recurrent.state_size = 3;
    recurrent.checkpoints = checkpoints;
    recurrent.checkpoint_interval = interval;
    recurrent.checkpoint_min_pos = KVC_NONE;
    ASSERT_EQ(kvc_cache_create(device_, &desc, &recurrent, cache), KVC_OK) << support::last_message();
  }

  void wrap(std::vector<kvc_cache*> children) {
    std::vector<int32_t> child, layer(children.size(), 0);
    for (size_t i = 0; i < children.size(); ++i) child.push_back(static_cast<int32_t>(i));
    const auto n = static_cast<int32_t>(children.size());
    ASSERT_EQ(kvc_cache_wrap(children.data(), n, child.data(), layer.data(), n, &wrapper_.handle), KVC_OK)
        << support::last_message();
  }

  void add(int32_t first, int32_t n, const std::vector<int32_t>& recurrent_layers) {
    std::vector<int32_t> position(static_cast<size_t>(n)), sequence(static_cast<size_t>(n), 0);
    for (int32_t i = 0; i < n; ++i) position[static_cast<size_t>(i)] = first + i;
    ASSERT_EQ(kvc_begin(wrapper_, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    float state[3] = {1, 2, 3};
    kvc_tensor from = support::dense(state, KVC_F32, {1, 3});
    from.strides[0] = INT64_MAX;  // of a single row it means nothing
    for (const int32_t layer : recurrent_layers) {
      ASSERT_EQ(kvc_state_put(wrapper_, layer, KVC_PART_RECURRENT, &from), KVC_OK)
          << support::last_message();
    }
    ASSERT_EQ(kvc_commit(wrapper_), KVC_OK);
  }

  support::Device device_;
  support::Cache few_, many_, causal_, wrapper_;
};

TEST_F(Hybrid, ContinuesWhereEveryChildCan) {
  create(&few_.handle, 8, 6);
  create(&many_.handle, 8, 4);
  wrap({few_, many_});
  for (int32_t at = 0; at < 24; at += 2) add(at, 2, {0, 1});
  // One has checkpoints at 2, 8, 14, 20, the other at 2, 6, 10, 14, 18, 22.
  const auto best = [&](int32_t want) {
    int32_t found = -1;
    EXPECT_EQ(kvc_can_resume(wrapper_, 0, want, &found), KVC_OK);
    return found;
  };
  EXPECT_EQ(best(24), 24);
  EXPECT_EQ(best(23), 14) << "20 is the least of their answers, and no place for the second child";
  EXPECT_EQ(best(13), 2);
  EXPECT_EQ(best(1), 0);
  int32_t got = -1;
  ASSERT_EQ(kvc_copy_prefix(wrapper_, 0, 1, 19, &got), KVC_OK);
  EXPECT_EQ(got, 14);
  EXPECT_EQ(kvc_remove(wrapper_, 0, 20, KVC_SEQ_END), KVC_E_WINDOW_LOST);
  ASSERT_EQ(kvc_resume(wrapper_, 0, 23, &got), KVC_OK);
  EXPECT_EQ(got, 14);
  EXPECT_EQ(kvc_check(wrapper_), KVC_OK) << support::last_message();
}

TEST_F(Hybrid, CheckpointsAreTakenInAllChildrenOrNone) {
  create(&few_.handle, 8, KVC_NONE);
  create(&many_.handle, KVC_NONE, KVC_NONE);
  wrap({few_, many_});
  add(0, 2, {0, 1});
  EXPECT_EQ(kvc_checkpoint_take(few_, 0), bad_state) << "a child's checkpoints are the wrapper's";
  EXPECT_EQ(kvc_checkpoint_take(wrapper_, 0), not_supported) << "the second child keeps none";
  EXPECT_NE(support::last_message().find("child 1"), std::string::npos);
  int32_t n = -1;
  EXPECT_EQ(kvc_checkpoint_list(few_, 0, 0, nullptr, &n), KVC_OK);
  EXPECT_EQ(n, 0);
}

TEST_F(Hybrid, CallsOnTheOnlyRecurrentChild) {
  create(&few_.handle, 8, KVC_NONE);
  create(&many_.handle, 8, KVC_NONE);
  kvc_cache_desc desc = support::cache_desc(1, n_heads, dim, dim);
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &causal_.handle), KVC_OK);
  int32_t n = -1, at = -1;
  wrap({few_, many_});
  EXPECT_EQ(kvc_checkpoint_list(wrapper_, 0, 0, nullptr, &n), not_supported) << "there are two";
  EXPECT_EQ(kvc_state_slots(wrapper_, 0, nullptr, &n), not_supported);
  EXPECT_EQ(kvc_encoder_query(wrapper_, 0, nullptr, nullptr), not_supported) << "there is none";
  ASSERT_EQ(kvc_cache_destroy(std::exchange(wrapper_.handle, nullptr)), KVC_OK);

  wrap({few_, causal_});
  add(0, 2, {0});
  EXPECT_EQ(kvc_checkpoint_take(wrapper_, 0), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_checkpoint_list(wrapper_, 0, 1, &at, &n), KVC_OK);
  EXPECT_TRUE(n == 1 && at == 2);
  EXPECT_EQ(kvc_state_put(wrapper_, 1, KVC_PART_RECURRENT, nullptr), bad_state) << "no pass";
  const int32_t position = 2, sequence = 0;
  ASSERT_EQ(kvc_begin(wrapper_, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
  EXPECT_EQ(kvc_state_put(wrapper_, 1, KVC_PART_RECURRENT, nullptr), not_supported);
  EXPECT_EQ(kvc_state_slots(wrapper_, 0, nullptr, &n), KVC_OK);
  EXPECT_EQ(n, 1);
  EXPECT_EQ(kvc_set_causal(wrapper_, 0, nullptr), KVC_OK);
  EXPECT_EQ(support::sequence_info(wrapper_, 0).count, 3) << "of the causal child";
}

TEST_F(Wrapper, NoLayersAreBoundBetweenPassesAlone) {
  wrap();
  kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
  desc.n_q_heads = INT32_MAX;  // no owner says how many there may be, so nothing behind `slopes` is read
  const float slopes[1] = {};
  const kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  EXPECT_EQ(kvc_bind_attention(wrapper_, 1, 1, &desc, slopes, slopes), KVC_OK);
  EXPECT_EQ(kvc_bind_rope(wrapper_, 1, 1, &rope, slopes), KVC_OK);
  ASSERT_EQ(begin(wrapper_, 0, 0, 1), KVC_OK);
  expect(
      bad_state, [&] { return kvc_bind_attention(wrapper_, 1, 1, &desc, slopes, slopes); }, "bind");
  expect(
      bad_state, [&] { return kvc_bind_rope(wrapper_, 1, 1, &rope, slopes); }, "bind_rope");
}

int shifts = 0;
kvc_status count_shift(void* refuses, int32_t, int32_t, const int32_t*, const int32_t*, kvc_tensor*) {
  ++shifts;
  return refuses != nullptr ? KVC_E_NOT_FOUND : KVC_OK;
}

TEST_F(Wrapper, ShiftFunctionsReplaceNothingUnlessAllSucceed) {
  wrap();
  int refuses = 1;
  ASSERT_EQ(kvc_bind_shift(full_, count_shift, nullptr), KVC_OK);
  ASSERT_EQ(kvc_bind_shift(window_, count_shift, &refuses), KVC_OK);
  add(0, 0, 5);
  shifts = 0;
  expect(
      KVC_E_NOT_FOUND, [&] { return kvc_remove(wrapper_, 0, 1, 2); }, "the second child's function");
  EXPECT_EQ(shifts, 3) << "two layers of the first child, one of the second";
  const kvc_stats before = support::stats(wrapper_);
  EXPECT_EQ(before.cells_used, 10u) << "no copy stays";
  ASSERT_EQ(kvc_bind_shift(window_, count_shift, nullptr), KVC_OK);
  EXPECT_EQ(kvc_remove(wrapper_, 0, 1, 2), KVC_OK) << support::last_message();
  EXPECT_EQ(next(0), 4);
}

TEST_F(Wrapper, FlagsMustBeKnownToSomeChild) {
  support::Cache encoder;
  kvc_cache_desc desc = describe(1);
  desc.kind = KVC_ENCODER;
  ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &encoder.handle), KVC_OK);
  kvc_cache* const children[] = {full_, encoder};
  const int32_t child[] = {0, 1, 0}, layer[] = {0, 0, 1};
  ASSERT_EQ(kvc_cache_wrap(children, 2, child, layer, 3, &wrapper_.handle), KVC_OK);
  const int32_t position[] = {0, 1}, sequence[] = {0, 0};
  uint32_t flags[] = {KVC_TOKEN_ENCODER_INPUT, KVC_TOKEN_SEES_LATER};
  EXPECT_EQ(kvc_fits(wrapper_, 2, position, sequence, flags), KVC_OK) << support::last_message();
  flags[1] = KVC_TOKEN_MASKED;
  EXPECT_EQ(kvc_fits(wrapper_, 2, position, sequence, flags), invalid);
  EXPECT_NE(support::last_message().find("KVC_TOKEN_ENCODER_INPUT"), std::string::npos);
  flags[1] = 0;
  ASSERT_EQ(kvc_begin(wrapper_, 2, position, sequence, flags, 0, nullptr), KVC_OK);
  put(wrapper_, 0, 2);
  put(wrapper_, 2, 2);
  const Rows k(5, random_), v(5, random_);
  EXPECT_EQ(kvc_encoder_put(wrapper_, 0, 0, &k.tensor, &v.tensor), not_supported);
  EXPECT_EQ(kvc_encoder_put(wrapper_, 1, 0, &k.tensor, &v.tensor), KVC_OK);
  EXPECT_EQ(kvc_commit(wrapper_), KVC_OK);
  int32_t at = -1, length = -1;
  EXPECT_EQ(kvc_encoder_query(wrapper_, 0, &at, &length), KVC_OK);
  EXPECT_TRUE(at == 0 && length == 5);
  EXPECT_EQ(kvc_encoder_query(wrapper_, 3, &at, &length), invalid);
  const float slopes[n_heads] = {};
  kvc_attention_desc attention = KVC_ATTENTION_DESC_INIT;
  attention.n_q_heads = n_heads;
  EXPECT_EQ(kvc_bind_attention(wrapper_, 0, 3, &attention, slopes, nullptr), not_supported);
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  EXPECT_EQ(kvc_bind_rope(wrapper_, 0, 3, &rope, nullptr), not_supported);
}

TEST_F(Wrapper, StatsAreSums) {
  wrap();
  add(0, 0, 4);
  ASSERT_EQ(kvc_copy_prefix(wrapper_, 0, 1, 4, nullptr), KVC_OK);
  const kvc_stats all = support::stats(wrapper_), full = support::stats(full_),
                  window = support::stats(window_);
  EXPECT_EQ(all.cells, full.cells + window.cells);
  EXPECT_EQ(all.cells_used, 8u);
  EXPECT_EQ(all.cells_shared, 8u);
  EXPECT_EQ(all.bytes, full.bytes + window.bytes);
  EXPECT_EQ(all.passes, 1u);
  ASSERT_EQ(kvc_begin(wrapper_, 4, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  EXPECT_EQ(support::stats(wrapper_).state, uint32_t{KVC_STATE_RESERVE});
  EXPECT_EQ(support::stats(full_).state, uint32_t{KVC_STATE_RESERVE});
  ASSERT_EQ(kvc_commit(wrapper_), KVC_OK);
  EXPECT_EQ(support::stats(wrapper_).passes, 1u);
  EXPECT_EQ(support::sequence_info(wrapper_, 0).count, 4);
}

TEST_F(Wrapper, HandlesAreDestroyedInAnyOrder) {
  wrap();
  add(0, 0, 3);
  kvc_cache* const window = std::exchange(window_.handle, nullptr);
  ASSERT_EQ(kvc_cache_destroy(window), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(window), KVC_E_HANDLE);
  kvc_cache* child = nullptr;
  EXPECT_EQ(kvc_cache_child(wrapper_, 0, &child, nullptr), KVC_E_HANDLE);
  EXPECT_EQ(kvc_cache_child(wrapper_, 0, nullptr, nullptr), KVC_OK);
  add(0, 3, 3);  // the wrapper works on, the child's layer included
  std::vector<support::Cache> others(8);
  const kvc_cache_desc desc = describe(1);
  for (support::Cache& other : others)
    ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &other.handle), KVC_OK);
  add(0, 6, 1);  // new handles took nothing of it
  ASSERT_EQ(begin(wrapper_, 0, 7, 1), KVC_OK);
  ASSERT_EQ(kvc_cache_destroy(std::exchange(wrapper_.handle, nullptr)), KVC_OK);
  // As it was: with its pass open, and its own again.
  EXPECT_EQ(support::stats(full_).state, uint32_t{KVC_STATE_PASS});
  EXPECT_EQ(kvc_abort(full_), KVC_OK);
  EXPECT_EQ(support::sequence_info(full_, 0).next, 7);
  EXPECT_EQ(begin(full_, 0, 7, 1), KVC_OK);
}

TEST_F(Wrapper, ManyLivesOfWrappersAndChildren) {
  const kvc_cache_desc desc = describe(1);
  for (int i = 0; i < 2000; ++i) {
    kvc_cache* children[2] = {};
    kvc_cache* wrapper = nullptr;
    for (kvc_cache*& child : children)
      ASSERT_EQ(kvc_cache_create(device_, &desc, nullptr, &child), KVC_OK);
    ASSERT_EQ(kvc_cache_wrap(children, 2, nullptr, nullptr, 0, &wrapper), KVC_OK);
    std::array<kvc_cache*, 3> all = {children[0], children[1], wrapper};
    std::swap(all[0], all[static_cast<size_t>(i) % 3]);
    std::swap(all[1], all[1 + static_cast<size_t>(i / 3) % 2]);
    for (kvc_cache* handle : all) ASSERT_EQ(kvc_cache_destroy(handle), KVC_OK);
    for (kvc_cache* handle : all) ASSERT_EQ(kvc_cache_destroy(handle), KVC_E_HANDLE);
  }
}

TEST_F(Wrapper, TwoThreadsPutTwoChildrenAndTheWrapperIsBusyMeanwhile) {
  wrap();
  std::atomic<int> busy{0}, done{0};
  for (int32_t round = 0; round < 20; ++round) {
    ASSERT_EQ(begin(wrapper_, 0, round, 1), KVC_OK);
    const auto work = [&](kvc_cache* child, int32_t n_layers, uint64_t seed) {
      support::Random random(seed);
      const Rows k(1, random), v(1, random);
      for (int i = 0; i < 200; ++i) {
        for (int32_t layer = 0; layer < n_layers; ++layer) {
          const kvc_status status = kvc_put(child, layer, &k.tensor, &v.tensor);
          if (status == KVC_E_BUSY) {
            ++busy;
            --layer;
          } else if (status != KVC_OK) {
            ADD_FAILURE() << support::last_message();
            return;
          }
        }
      }
      ++done;
    };
    std::thread a(work, full_.handle, 2, 1), b(work, window_.handle, 1, 2);
    while (done < 2 * (round + 1) && !HasFailure()) {
      kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
      const kvc_status status = kvc_sequence_query(wrapper_, 0, &info);
      EXPECT_TRUE(status == KVC_OK || status == KVC_E_BUSY) << support::last_message();
      EXPECT_EQ(support::stats(wrapper_).state, uint32_t{KVC_STATE_PASS});
    }
    a.join();
    b.join();
    ASSERT_EQ(kvc_commit(wrapper_), KVC_OK) << support::last_message();
  }
  EXPECT_EQ(kvc_check(wrapper_), KVC_OK);
}

}  // namespace
