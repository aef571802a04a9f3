// Lightning caches through the C ABI: what the vectors do not have. Outputs and states are compared with those of other passes over
// the same tokens; that they are right is lightning_vectors_test's and unit_lightning_kernels_test's.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kvc/rows.h"
#include "support/bad_input.hpp"
#include "support/lightning_rig.hpp"

namespace {

using Rig = support::LightningRig;
using Tokens = std::vector<Rig::Token>;
using Places = std::vector<int32_t>;

class Lightning : public testing::Test {
 protected:
  void create(Rig& rig) {
    rig.create();
    ASSERT_FALSE(HasFatalFailure());
  }
  static void commit(Rig& rig) {
    ASSERT_EQ(kvc_commit(rig.cache), KVC_OK) << support::last_message();
  }

  support::Device device_{2};
  Rig rig_{device_};
};

TEST_F(Lightning, PutAndAttentionApartGiveTheBitsOfBothAtOnce) {
  Rig other(device_);
  create(rig_), create(other);
  for (const Tokens& tokens :
       {Tokens{{0}, {0}, {1}, {KVC_NONE}}, Tokens{{1}}, Tokens{{0, 9}, {0, 10, true}, {2}}}) {
    ASSERT_EQ(rig_.begin(tokens, 5), KVC_OK);
    ASSERT_EQ(other.begin(tokens, 5), KVC_OK);
    for (int32_t layer = 0; layer < rig_.desc.n_layers; ++layer) {
      ASSERT_EQ(rig_.put_attention(layer), KVC_OK);
      const std::vector<float> out = rig_.out();
      ASSERT_EQ(other.put(layer), KVC_OK);
      ASSERT_EQ(other.attention(layer), KVC_OK) << support::last_message();
      EXPECT_EQ(out, other.out());
      ASSERT_EQ(other.attention(layer), KVC_OK);
      EXPECT_EQ(out, other.out());
    }
    EXPECT_EQ(support::digest(rig_.cache), support::digest(other.cache));
  }
}

TEST_F(Lightning, AttentionIsOfTheLayerThatWasPutLast) {
  create(rig_);
  ASSERT_EQ(rig_.begin({{0}}, 1), KVC_OK);
  EXPECT_EQ(rig_.attention(0), KVC_E_BAD_STATE);
  ASSERT_EQ(rig_.put(0), KVC_OK);
  ASSERT_EQ(rig_.put(1), KVC_OK);
  EXPECT_EQ(rig_.attention(0), KVC_E_BAD_STATE);
  EXPECT_EQ(rig_.attention(1), KVC_OK);
  ASSERT_EQ(rig_.put(0), KVC_OK);  // replaces what was put
  EXPECT_EQ(rig_.attention(0), KVC_OK);
  EXPECT_EQ(rig_.attention(1), KVC_E_BAD_STATE);
}

TEST_F(Lightning, AFusedCacheGivesTheSameBitsAndHasNoAttentionAlone) {
  Rig fused(device_);
  fused.lightning.flags = KVC_LIGHTNING_FUSED;
  fused.lightning.draft_states = rig_.lightning.draft_states = 2;
  create(rig_), create(fused);
  const int32_t sequence = 0, keep = 2;
  for (const Tokens& tokens : {Tokens{{0}, {0}, {0}}, Tokens(16)}) {
    for (Rig* rig : {&rig_, &fused}) rig->pass(tokens, 5);
    EXPECT_EQ(rig_.out(), fused.out());
    EXPECT_EQ(fused.attention(1), KVC_E_NOT_SUPPORTED);
    EXPECT_NE(support::last_message().find("KVC_LIGHTNING_FUSED"), std::string::npos);
    for (Rig* rig : {&rig_, &fused}) {
      if (tokens.size() == 3) {  // drafts are kept in any case
        ASSERT_EQ(kvc_commit_prefix(rig->cache, 1, &sequence, &keep), KVC_OK);
      } else {
        ASSERT_EQ(rig->put(1), KVC_OK);
        commit(*rig);
      }
    }
    EXPECT_EQ(support::digest(rig_.cache), support::digest(fused.cache));
  }
}

// Whatever of K and V the outputs overwrite, in whatever order kernels read and write.
TEST_F(Lightning, OutputsOfPutAttentionMayLieWhereKAndVDo) {
  constexpr int64_t n = 150;
  rig_.desc.head_dim_k = rig_.desc.head_dim_v = 16;  // which kernels may read in place
  rig_.desc.max_batch = n;
  rig_.n_q_heads = 2 * rig_.desc.n_kv_heads;
  rig_.lightning.flags = KVC_LIGHTNING_FUSED;
  create(rig_);
  const int64_t kv = rig_.desc.n_kv_heads, heads = rig_.n_q_heads;
  Tokens tokens(n);
  tokens[3] = {KVC_NONE, 0};
  ASSERT_EQ(rig_.begin(tokens, 1), KVC_OK) << support::last_message();
  const auto row = static_cast<size_t>(kv * 16);
  std::vector<float> q(n * row * 2), given(n * row * 2);
  for (size_t i = 0; i < q.size(); ++i) {
    q[i] = static_cast<float>(i * 37 % 101) / 101;
    given[i] = static_cast<float>(i * 53 % 103) / 103;
  }
  const kvc_tensor of_q = support::dense(q.data(), KVC_F32, {n, heads, 16});
  std::vector<float> memory(n * row * 4);
  const auto run = [&](size_t out_at) {
    std::copy(given.begin(), given.end(), memory.begin());
    const kvc_tensor k = support::dense(memory.data(), KVC_F32, {n, kv, 16}),
                     v = support::dense(memory.data() + n * row, KVC_F32, {n, kv, 16});
    kvc_tensor out = support::dense(memory.data() + out_at, KVC_F32, {n, heads, 16});
    EXPECT_EQ(kvc_put_attention(rig_.cache, 0, &k, &v, &of_q, &out, nullptr), KVC_OK)
        << support::last_message();
    const auto first = memory.begin() + static_cast<ptrdiff_t>(out_at);
    return std::vector<float>(first, first + static_cast<ptrdiff_t>(n * row * 2));
  };
  const std::vector<float> wanted = run(n * row * 2);
  for (const size_t out_at : {size_t{0}, row, 50 * row, n * row, n * row * 2 - 1})
    EXPECT_EQ(run(out_at), wanted) << "outputs " << out_at << " floats behind K";
}

TEST_F(Lightning, APaddingTokenChangesNothingAndGetsZeros) {
  create(rig_);
  rig_.pass({{0}, {1}, {0}}, 3);
  commit(rig_);
  const support::Digest before = support::digest(rig_.cache);
  ASSERT_EQ(rig_.begin({{KVC_NONE}, {KVC_NONE}}, 4), KVC_OK);  // fully put from the start
  ASSERT_EQ(rig_.attention(0), KVC_OK) << support::last_message();
  for (const float x : rig_.out()) EXPECT_EQ(x, 0);
  commit(rig_);
  EXPECT_EQ(support::digest(rig_.cache), before);
}

TEST_F(Lightning, AMaskedTokenIsAGapWithAnOutput) {
  Rig gap(device_);
  create(rig_), create(gap);
  rig_.pass({{0}, {0, -1, true}, {0, -1, true}}, 3);
  const std::vector<float> masked = rig_.state(1, 0);
  gap.pass({{0}}, 3);
  commit(gap);
  gap.pass({{0, 2, true}}, 9);
  const std::vector<float> other = gap.state(1, 0);
  ASSERT_EQ(masked.size(), other.size());
  for (size_t i = 0; i < masked.size(); ++i) EXPECT_NEAR(masked[i], other[i], 1e-6);
}

TEST_F(Lightning, ALayerThatWasNotPutDecays) {
  create(rig_);
  rig_.pass({{0}, {0}, {1}}, 3);
  commit(rig_);
  const std::vector<float> before = rig_.state(1, 0), other = rig_.state(1, 1);
  ASSERT_EQ(rig_.begin({{0, 5}}, 8), KVC_OK);
  ASSERT_EQ(rig_.put(0), KVC_OK);
  const std::vector<float> expected = rig_.state(1, 0);                   // as if committed
  EXPECT_EQ(kvc_remove(rig_.cache, 1, 0, KVC_SEQ_END), KVC_E_BAD_STATE);  // not fully put
  commit(rig_);
  const std::vector<float> after = rig_.state(1, 0);
  EXPECT_EQ(after, expected);
  const double slope = static_cast<double>(rig_.slopes[2]);
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(after[i], std::exp(-4 * slope) * before[i], 1e-6);
  EXPECT_EQ(rig_.state(1, 1), other);
}

/// Cutting a draft leaves what a pass of the kept tokens alone makes, in layers that were put and in one that was not.
TEST_F(Lightning, ADraftThatIsCutIsThePassOfItsKeptTokens) {
  for (int32_t keep = 0; keep <= 4; ++keep) {
    Rig drafted(device_), alone(device_);
    for (Rig* rig : {&drafted, &alone}) {
      rig->lightning.draft_states = 3;
      create(*rig);
      rig->pass({{0}, {1}, {0}}, 3);
      commit(*rig);
    }
    ASSERT_EQ(drafted.begin({{0}, {0, 4}, {0, -1, true}, {0}}, 7), KVC_OK);
    ASSERT_EQ(drafted.put(0), KVC_OK);
    const int32_t sequence = 0;
    ASSERT_EQ(kvc_commit_prefix(drafted.cache, 1, &sequence, &keep), KVC_OK)
        << support::last_message();
    if (keep > 0) {
      Tokens tokens = {{0}, {0, 4}, {0, -1, true}, {0}};
      tokens.resize(static_cast<size_t>(keep));
      ASSERT_EQ(alone.begin(tokens, 7), KVC_OK);
      ASSERT_EQ(alone.put(0), KVC_OK);
      commit(alone);
    }
    EXPECT_EQ(support::digest(drafted.cache), support::digest(alone.cache)) << keep;
    EXPECT_EQ(kvc_check(drafted.cache), KVC_OK);
  }
}

TEST_F(Lightning, ALongPassCannotBeCut) {
  rig_.lightning.draft_states = 1;
  create(rig_);
  rig_.pass({{0}, {0}, {0}, {1}, {1}}, 3);
  const int32_t both[] = {1, 0}, keep[] = {1, 2}, all[] = {1, 3}, none[] = {1, 0};
  EXPECT_EQ(kvc_commit_prefix(rig_.cache, 2, both, keep), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_commit_prefix(rig_.cache, 2, both, all), KVC_OK);
  EXPECT_EQ(rig_.next(0), 3);
  EXPECT_EQ(rig_.next(1), 1);
  rig_.pass({{0}, {0}, {0}, {1}, {1}}, 4);
  EXPECT_EQ(kvc_commit_prefix(rig_.cache, 2, both, none), KVC_OK);
  EXPECT_EQ(rig_.next(0), 3);
}

TEST_F(Lightning, CheckpointsStepBackToTheSameBits) {
  create(rig_);
  rig_.pass({{0}, {0}}, 3);
  ASSERT_EQ(kvc_checkpoint_take(rig_.cache, 0), KVC_OK) << support::last_message();
  EXPECT_EQ(rig_.checkpoints(0), (Places{2}));
  const support::Digest digest = support::digest(rig_.cache);
  rig_.pass({{0}, {0}}, 4);
  int32_t got = 0;
  ASSERT_EQ(kvc_copy_prefix(rig_.cache, 0, 3, 3, &got), KVC_OK);
  EXPECT_EQ(got, 2);
  EXPECT_EQ(rig_.checkpoints(3), (Places{2}));
  ASSERT_EQ(kvc_resume(rig_.cache, 3, 0, &got), KVC_OK);
  ASSERT_EQ(kvc_resume(rig_.cache, 0, 3, &got), KVC_OK);
  EXPECT_EQ(got, 2);
  EXPECT_EQ(support::digest(rig_.cache), digest);
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 0, 1), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_remove(rig_.cache, 0, 1, KVC_SEQ_END), KVC_E_WINDOW_LOST);
  EXPECT_EQ(kvc_check(rig_.cache), KVC_OK);
}

TEST_F(Lightning, StatesAreReadAndWritten) {
  Rig other(device_);
  create(rig_), create(other);
  rig_.pass({{0}, {0}, {2}}, 3);
  for (const int32_t sequence : {0, 2})
    ASSERT_EQ(kvc_checkpoint_take(rig_.cache, sequence), KVC_OK);
  const auto transfer = [&](kvc_status expected) {
    for (int32_t layer = 0; layer < 2; ++layer) {
      for (const int32_t sequence : {0, 2}) {
        std::vector<float> state = rig_.state(layer, sequence);
        const kvc_tensor from = support::dense(state.data(), KVC_F32, {1, 2, 5, 20});
        EXPECT_EQ(kvc_lightning_write(other.cache, layer, sequence, 1, &from), expected)
            << support::last_message();
      }
    }
  };
  transfer(KVC_E_BAD_STATE);  // they are empty
  other.pass({{0}, {0}, {2}}, 8);
  transfer(KVC_E_BAD_STATE);  // a pass is open
  ASSERT_EQ(kvc_checkpoint_take(other.cache, 0), KVC_OK);
  ASSERT_EQ(kvc_copy_prefix(other.cache, 0, 1, 9, nullptr), KVC_OK);  // shares what is replaced
  const std::vector<float> shared = other.state(0, 1);
  transfer(KVC_OK);
  EXPECT_EQ(other.state(0, 1), shared);
  EXPECT_EQ(other.state(1, 2), rig_.state(1, 2));
  EXPECT_EQ(other.checkpoints(0), Places());
  EXPECT_EQ(other.checkpoints(1), (Places{2}));
  ASSERT_EQ(kvc_resume(other.cache, 1, 0, nullptr), KVC_OK);
  for (const int32_t sequence : {0, 2}) {
    ASSERT_EQ(kvc_checkpoint_take(other.cache, sequence), KVC_OK);
  }
  EXPECT_EQ(support::digest(other.cache), support::digest(rig_.cache));
  EXPECT_EQ(kvc_check(other.cache), KVC_OK);

  kvc_tensor described{};
  ASSERT_EQ(kvc_lightning_read(rig_.cache, 0, 1, 3, &described), KVC_OK);
  const int64_t shape[] = {3, 2, 5, 20};
  EXPECT_TRUE(std::equal(shape, shape + 4, described.shape));
  EXPECT_EQ(described.dtype, uint32_t{KVC_F32});
}

TEST_F(Lightning, DecayIsBoundWhileTheCacheIsEmpty) {
  ASSERT_EQ(kvc_cache_create(device_, &rig_.desc, nullptr, &rig_.cache.handle), KVC_OK)
      << support::last_message();
  rig_.n_q_heads = 2;
  ASSERT_EQ(rig_.begin({{0}}, 1), KVC_OK);
  EXPECT_EQ(rig_.put(0), KVC_E_BAD_STATE);  // no slopes
  EXPECT_EQ(rig_.put_attention(0), KVC_E_BAD_STATE);
  const float slopes[] = {0, 0.5f}, negative[] = {0, -0.5f}, endless[] = {0, HUGE_VALF};
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, slopes), KVC_E_BAD_STATE);  // a pass is open
  ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, negative), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, endless), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, nullptr), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 3, slopes), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, slopes), KVC_OK);
  rig_.pass({{0}}, 1);
  commit(rig_);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, slopes), KVC_E_BAD_STATE);
  ASSERT_EQ(kvc_remove(rig_.cache, 0, 0, KVC_SEQ_END), KVC_OK);
  EXPECT_EQ(kvc_bind_decay(rig_.cache, 0, 2, slopes), KVC_OK);
}

TEST_F(Lightning, WhatASoftmaxWouldNeedIsNotSupported) {
  create(rig_);
  rig_.pass({{0}}, 1);
  std::vector<float> data(64), lse_data(2);
  kvc_tensor some = support::dense(data.data(), KVC_F32, {1, 1, 1});
  kvc_tensor lse = support::dense(lse_data.data(), KVC_F32, {1, 2});
  kvc_tensor q = support::dense(data.data(), KVC_F32, {1, 2, 5});
  std::vector<float> out_data(40);
  kvc_tensor out = support::dense(out_data.data(), KVC_F32, {1, 2, 20});
  for (const kvc_attention_extra& extra : {support::extra(&some), support::extra(nullptr, &some),
                                           support::extra(nullptr, nullptr, &some)})
    EXPECT_EQ(kvc_attention(rig_.cache, 1, &q, &out, &extra), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(support::attention(rig_.cache, 1, &q, &out, &lse), KVC_E_NOT_SUPPORTED);
  kvc_attention_extra dropout = KVC_ATTENTION_EXTRA_INIT;
  dropout.flags = KVC_EXTRA_DROPOUT;
  EXPECT_EQ(kvc_attention(rig_.cache, 1, &q, &out, &dropout), KVC_E_NOT_SUPPORTED);
  EXPECT_NE(support::last_message().find("KVC_EXTRA_DROPOUT"), std::string::npos);
  EXPECT_EQ(support::attention(rig_.cache, 1, &q, &out, nullptr), KVC_OK);
  int32_t n = 0;
  EXPECT_EQ(kvc_get(rig_.cache, 0, &some, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_mask(rig_.cache, 0, &some), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_history(rig_.cache, 0, &n, &n), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_gather(rig_.cache, 0, 0, &some, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_runs(rig_.cache, 0, 0, 0, nullptr, &n), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_set_causal(rig_.cache, 0, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_bind_rope(rig_.cache, 0, 1, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_bind_shift(rig_.cache, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_bind_scales(rig_.cache, 0, 1, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_get_copy(rig_.cache, 0, &some, nullptr), KVC_E_NOT_SUPPORTED);
  commit(rig_);
  kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
  constants.n_q_heads = 2;
  const float numbers[] = {1, 1};
  EXPECT_EQ(kvc_bind_attention(rig_.cache, 0, 2, &constants, numbers, nullptr), KVC_E_NOT_SUPPORTED);
  EXPECT_EQ(kvc_bind_attention(rig_.cache, 0, 2, &constants, nullptr, numbers), KVC_E_NOT_SUPPORTED);
  constants.softcap = 1;
  EXPECT_EQ(kvc_bind_attention(rig_.cache, 0, 2, &constants, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
}

TEST_F(Lightning, AReservePassChecksAndDoesNothing) {
  create(rig_);
  rig_.pass({{0}}, 1);
  commit(rig_);
  const support::Digest digest = support::digest(rig_.cache);
  ASSERT_EQ(kvc_begin(rig_.cache, 3, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr), KVC_OK);
  std::vector<float> data(3 * 2 * 20);
  kvc_tensor k = support::dense(data.data(), KVC_F32, {3, 2, 5}),
             v = support::dense(data.data(), KVC_F32, {3, 2, 20});
  kvc_tensor wrong = support::dense(data.data(), KVC_F32, {2, 2, 5});
  EXPECT_EQ(kvc_put(rig_.cache, 0, &k, &v), KVC_OK);
  EXPECT_EQ(kvc_put(rig_.cache, 0, &wrong, &v), KVC_E_SHAPE);
  std::vector<float> out_data(3 * 2 * 20);
  kvc_tensor out = support::dense(out_data.data(), KVC_F32, {3, 2, 20});
  EXPECT_EQ(kvc_attention(rig_.cache, 1, &k, &out, nullptr), KVC_OK) << support::last_message();
  ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
  EXPECT_EQ(support::digest(rig_.cache), digest);
}

TEST_F(Lightning, DescriptorsBeyondTheirBounds) {
  constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
  struct Case {
    const char* what;
    kvc_status expected;
    void (*spoil)(kvc_cache_desc&, kvc_lightning_desc&);
  };
  const Case cases[] = {
      {"capacity", invalid, [](auto& d, auto&) { d.capacity = 1; }},
      {"cells", invalid, [](auto& d, auto&) { d.cells = 1; }},
      {"block_k", invalid, [](auto& d, auto&) { d.block_k = 32; }},
      {"block_v", invalid, [](auto& d, auto&) { d.block_v = 32; }},
      {"v_first", invalid, [](auto& d, auto&) { d.v_first = 1; }},
      {"dtype_k", KVC_E_DTYPE, [](auto& d, auto&) { d.dtype_k = KVC_F16; }},
      {"dtype_v", KVC_E_DTYPE, [](auto& d, auto&) { d.dtype_v = KVC_BF16; }},
      {"rotated K", invalid, [](auto& d, auto&) { d.flags = KVC_CACHE_ROTATE_K; }},
      {"V within K", invalid, [](auto& d, auto&) { d.flags = KVC_CACHE_V_IN_K; }},
      {"head_dim_k", invalid, [](auto& d, auto&) { d.head_dim_k = 0; }},
      {"max_batch", invalid, [](auto& d, auto&) { d.max_batch = 0; }},
      {"slots", KVC_E_OVERFLOW, [](auto& d, auto&) { d.max_sequences = 1 << 30; }},
      {"flags", invalid, [](auto&, auto& l) { l.flags = 8; }},
      {"kind", invalid, [](auto&, auto& l) { l.kind = KVC_RECURRENT; }},
      {"block", invalid, [](auto&, auto& l) { l.block = -1; }},
      {"block", invalid, [](auto&, auto& l) { l.block = 1025; }},
      {"checkpoints", invalid, [](auto&, auto& l) { l.checkpoints = -2; }},
      {"checkpoint_interval", invalid, [](auto&, auto& l) { l.checkpoint_interval = -2; }},
      {"checkpoint_min_pos", invalid, [](auto&, auto& l) { l.checkpoint_min_pos = -2; }},
      {"draft_states", invalid, [](auto&, auto& l) { l.draft_states = -1; }},
      {"draft_states", invalid, [](auto&, auto& l) { l.draft_states = 65537; }}};
  support::BadInput bad(nullptr);
  for (const Case& each : cases) {
    kvc_cache_desc desc = rig_.desc;
    kvc_lightning_desc lightning = rig_.lightning;
    each.spoil(desc, lightning);
    bad.expect(each.expected, each.what, [&] {
      uint64_t bytes = 0;
      kvc_cache* cache = nullptr;
      const kvc_status told = kvc_cache_memory_bytes(device_, &desc, &lightning, &bytes);
      const kvc_status status = kvc_cache_create(device_, &desc, &lightning, &cache);
      EXPECT_EQ(support::name(told), support::name(status)) << each.what;
      EXPECT_EQ(cache, nullptr) << each.what;
      return status;
    });
  }
}

TEST_F(Lightning, StatesThatAreNotReadAndNotWritten) {
  constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
  create(rig_);
  rig_.pass({{0}, {1}}, 3);
  commit(rig_);
  support::BadInput bad(rig_.cache);
  std::vector<float> data(2 * 2 * 5 * 20);
  kvc_tensor state = support::dense(data.data(), KVC_F32, {2, 2, 5, 20});
  const auto read = [&](int32_t layer, int32_t first, int32_t n) {
    return kvc_lightning_read(rig_.cache, layer, first, n, &state);
  };
  const auto write = [&](int32_t layer, int32_t first, int32_t n) {
    return kvc_lightning_write(rig_.cache, layer, first, n, &state);
  };
  for (const support::Fault& fault : support::faults(state, support::Fault::written)) {
    const kvc_tensor good = state;
    fault.spoil(state);
    bad.expect(fault.expected, "read " + fault.what, [&] { return read(1, 0, 2); });
    state = good;
  }
  support::expect_faults(bad, "write", state, false, [&] { return write(1, 0, 2); });
  const std::array<int32_t, 3> wrong[] = {{-1, 0, 2}, {2, 0, 2}, {INT32_MAX, 0, 2},
                                          {0, -1, 2}, {0, 3, 2}, {0, INT32_MIN, 2},
                                          {0, 0, -1}, {0, 0, 5}, {0, 1, INT32_MAX}};
  for (const std::array<int32_t, 3>& at : wrong) {
    bad.expect(invalid, "read", [&] { return read(at[0], at[1], at[2]); });
    bad.expect(invalid, "write", [&] { return write(at[0], at[1], at[2]); });
  }
  bad.expect(invalid, "no tensor", [&] { return kvc_lightning_read(rig_.cache, 0, 0, 2, nullptr); });
  bad.expect(invalid, "no tensor", [&] { return kvc_lightning_write(rig_.cache, 0, 0, 2, nullptr); });

  Rig bare(device_);  // without slopes
  ASSERT_EQ(kvc_cache_create(device_, &bare.desc, nullptr, &bare.cache.handle), KVC_OK);
  const int32_t index[] = {4, 4};
  ASSERT_EQ(kvc_rows_set(bare.cache, 0, 2, index, nullptr), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_lightning_write(bare.cache, 0, 0, 2, &state), KVC_E_BAD_STATE);
  support::expect_words("without slopes", {"layer 0 has no slopes"});
}

TEST_F(Lightning, SlopesOfUnknownFamilies) {
  float out[4];
  EXPECT_EQ(kvc_slopes(0, 4, 0, 1, out), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_slopes(5, 4, 0, 1, out), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_slopes(KVC_SLOPES_ALIBI, 0, 0, 1, out), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_slopes(KVC_SLOPES_ALIBI, 4, -7, -7, out), KVC_OK);  // it looks at no layer
  EXPECT_EQ(kvc_slopes(KVC_SLOPES_LINEAR, 4, 1, 1, out), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_slopes(KVC_SLOPES_MINIMAX, 4, 0, 0, out), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_slopes(KVC_SLOPES_LINEAR, 4, 0, 1, nullptr), KVC_E_INVALID_ARGUMENT);
}

}  // namespace
