// Every integer at and beyond its bounds, every null pointer, unknown flags, and the errors of full
// caches and lost windows.
#include <gtest/gtest.h>

#include <iostream>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;
using support::Specimen;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr int32_t least = INT32_MIN, most = INT32_MAX;

std::string with(const char* what, int64_t number) { return what + std::to_string(number); }

/// What begin and fits refuse alike.
void expect_bad_batches(BadInput& bad, const char* function,
                        const std::function<kvc_status(int32_t, const int32_t*, const int32_t*)>& call) {
  const std::string f = function;
  const int32_t position[] = {3, 4, 5, 6, 7}, zero[] = {0, 0, 0, 0, 0};
  for (const int32_t n : {least, -1, 0, Specimen::max_batch + 1, most - 1, most})
    bad.expect(invalid, with("n_tokens ", n) + f, [&] { return call(n, position, zero); });
  bad.expect(invalid, "null position " + f, [&] { return call(2, nullptr, zero); });
  bad.expect(invalid, "null sequence " + f, [&] { return call(2, position, nullptr); });
  for (size_t at = 0; at < 2; ++at) {
    for (const int32_t wrong : {least, -2, Specimen::max_sequences, most}) {  // -1 is padding
      int32_t sequence[] = {0, 0};
      sequence[at] = wrong;
      bad.expect(invalid, with("sequence ", wrong) + f, [&] { return call(2, position, sequence); });
    }
    for (const int32_t wrong : {least, -1, 0, 2, most - 1, most}) {
      int32_t positions[] = {3, 4};
      positions[at] = wrong;
      bad.expect(invalid, with("position ", wrong) + f, [&] { return call(2, positions, zero); });
    }
  }
  const int32_t twice[] = {3, 3}, descending[] = {4, 3};
  bad.expect(invalid, "a position twice " + f, [&] { return call(2, twice, zero); });
  bad.expect(invalid, "descending " + f, [&] { return call(2, descending, zero); });
  // The whole batch is looked at before the room in the cache.
  const int32_t late[] = {3, 4, 5, -1};
  bad.expect(invalid, "the last one bad " + f, [&] { return call(4, late, zero); });
}

TEST(BadArguments, Begin) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  expect_bad_batches(bad, " in begin",
                     [&](int32_t n, const int32_t* position, const int32_t* sequence) {
                       return kvc_begin(s.cache, n, position, sequence, nullptr, 0, nullptr);
                     });
  expect_bad_batches(bad, " in fits", [&](int32_t n, const int32_t* position, const int32_t* sequence) {
    return kvc_fits(s.cache, n, position, sequence, nullptr);
  });
  const int32_t position[] = {3, 4}, sequence[] = {0, 0};
  for (const uint32_t flags : {4u, 1u << 31, ~0u, 5u}) {
    bad.expect(invalid, with("flags ", flags),
               [&] { return kvc_begin(s.cache, 2, position, sequence, nullptr, flags, nullptr); });
  }
  bad.expect(KVC_E_NOT_SUPPORTED, "a replay", [&] {
    return kvc_begin(s.cache, 2, position, sequence, nullptr, KVC_BEGIN_REPLAY, nullptr);
  });
  const int32_t padded[] = {0, KVC_NONE};
  for (const uint32_t flags : {uint32_t{KVC_TOKEN_SEES_LATER}, KVC_TOKEN_TYPE(1)}) {
    const uint32_t on_padding[] = {0, flags};
    bad.expect(invalid, "flags of padding",
               [&] { return kvc_begin(s.cache, 2, position, padded, on_padding, 0, nullptr); });
  }
  for (const uint32_t flags : {2u, 4u, 8u, 1u << 15, KVC_TOKEN_TYPE(3) | 4u, ~0u}) {
    for (size_t at = 0; at < 2; ++at) {
      uint32_t token_flags[] = {0, KVC_TOKEN_SEES_LATER};
      token_flags[at] = flags;
      bad.expect(invalid, with("token flags ", flags),
                 [&] { return kvc_begin(s.cache, 2, position, sequence, token_flags, 0, nullptr); });
      bad.expect(invalid, with("fits, token flags ", flags),
                 [&] { return kvc_fits(s.cache, 2, position, sequence, token_flags); });
      bad.expect(invalid, with("reserve, token flags ", flags), [&] {
        return kvc_begin(s.cache, 2, nullptr, nullptr, token_flags, KVC_BEGIN_RESERVE, nullptr);
      });
    }
  }
  for (const int32_t n : {least, -1, 0, Specimen::max_batch + 1, most})
    bad.expect(invalid, with("reserve n_tokens ", n), [&] {
      return kvc_begin(s.cache, n, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr);
    });
  for (const uint32_t flags : {uint32_t{KVC_TOKEN_ENCODER_INPUT}, 4u, ~0u})
    bad.expect(invalid, with("reserve token flags ", flags), [&] {
      const uint32_t token_flags[] = {0, flags};
      return kvc_begin(s.cache, 2, nullptr, nullptr, token_flags, KVC_BEGIN_RESERVE, nullptr);
    });
  bad.expect(invalid, "a stream on the CPU",
             [&] { return kvc_begin(s.cache, 2, position, sequence, nullptr, 0, &bad); });
  EXPECT_GE(bad.calls(), 80);
  std::cout << bad.calls() << " calls" << std::endl;
}

TEST(BadArguments, BatchesThatDoNotFit) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  s.append(0);
  s.append(0);  // sequence 0 holds 5 of 8
  const int32_t zero[] = {0, 0, 0, 0}, four[] = {5, 6, 7, 8};
  bad.expect(KVC_E_CACHE_FULL, "nine positions of eight",
             [&] { return kvc_begin(s.cache, 4, four, zero, nullptr, 0, nullptr); });
  bad.expect(KVC_E_CACHE_FULL, "fits: nine of eight",
             [&] { return kvc_fits(s.cache, 4, four, zero, nullptr); });
  s.append(1);
  s.append(1);
  s.append(1);  // 9 of 12 cells
  const int32_t others[] = {0, 1, 2, 3}, two[] = {2, 2, 2, 2};
  bad.expect(KVC_E_CACHE_FULL, "thirteen cells of twelve",
             [&] { return kvc_begin(s.cache, 4, others, two, nullptr, 0, nullptr); });
  bad.expect(KVC_E_CACHE_FULL, "fits: thirteen of twelve",
             [&] { return kvc_fits(s.cache, 4, others, two, nullptr); });
  Specimen strict(device, KVC_CACHE_STRICT);
  BadInput bad_strict(strict.cache);
  const int32_t gap[] = {3, 5}, ahead[] = {4, 5};
  bad_strict.expect(invalid, "a gap in a strict cache",
                    [&] { return kvc_begin(strict.cache, 2, gap, zero, nullptr, 0, nullptr); });
  bad_strict.expect(invalid, "ahead of a strict cache",
                    [&] { return kvc_begin(strict.cache, 2, ahead, zero, nullptr, 0, nullptr); });
}

/// The header promises that a full cache names the sequence, the cells and the batch.
TEST(BadArguments, FullCachesSayWhatIsFull) {
  const support::Device device(1);
  Specimen s(device);
  s.append(0);
  s.append(0);  // sequence 0 holds 5 of 8 positions, and 6 of 12 cells are used
  const auto expect_words = [&](const std::function<kvc_status()>& call,
                                const std::vector<std::string>& words) {
    EXPECT_EQ(call(), KVC_E_CACHE_FULL);
    const std::string message = support::last_message();
    for (const std::string& word : words)
      EXPECT_NE(message.find(word), std::string::npos) << "\"" << word << "\" in: " << message;
  };
  const int32_t zero[] = {0, 0, 0, 0}, four[] = {5, 6, 7, 8};
  const std::vector<std::string> positions = {"sequence 0", "5 positions", "at most 8", "brings 4"};
  expect_words([&] { return kvc_begin(s.cache, 4, four, zero, nullptr, 0, nullptr); }, positions);
  expect_words([&] { return kvc_fits(s.cache, 4, four, zero, nullptr); }, positions);
  s.append(1);
  s.append(1);
  s.append(1);  // 9 of 12 cells
  // The first three would still fit: the one that does not belongs to sequence 2.
  const int32_t others[] = {4, 5, 0, 1}, sequences[] = {1, 1, 2, 2};
  const std::vector<std::string> cells = {"sequence 2", "3 free cells", "of 12", "brings 4 tokens"};
  expect_words([&] { return kvc_begin(s.cache, 4, others, sequences, nullptr, 0, nullptr); }, cells);
  expect_words([&] { return kvc_fits(s.cache, 4, others, sequences, nullptr); }, cells);
}

TEST(BadArguments, RopeForACacheWithoutPositions) {
  const support::Device device(1);
  const kvc_cache_desc desc = support::cache_desc(2, 1, 4, 4);
  kvc_causal_desc causal = support::causal_desc();
  causal.flags = KVC_CAUSAL_POSITION_FREE;
  const support::Cache cache(device, desc, &causal);
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  BadInput bad(cache);
  bad.expect(KVC_E_NOT_SUPPORTED, "RoPE for all layers",
             [&] { return kvc_bind_rope(cache, 0, 2, &rope, nullptr); });
  bad.expect(KVC_E_NOT_SUPPORTED, "RoPE for one",
             [&] { return kvc_bind_rope(cache, 1, 2, &rope, nullptr); });
  rope.n_dims = 3;
  bad.expect(invalid, "RoPE of three dimensions, which comes first",
             [&] { return kvc_bind_rope(cache, 0, 2, &rope, nullptr); });
  rope.n_dims = 0;
  float data[3 * 4] = {};
  const kvc_tensor rows = support::dense(data, KVC_F32, {3, 1, 4});
  const int32_t position[] = {0, 1, 2}, sequence[] = {0, 0, 0};
  ASSERT_EQ(kvc_begin(cache, 3, position, sequence, nullptr, 0, nullptr), KVC_OK);
  for (int32_t layer = 0; layer < 2; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, &rows, &rows), KVC_OK);
  bad.expect(KVC_E_BAD_STATE, "RoPE in a pass",
             [&] { return kvc_bind_rope(cache, 0, 2, &rope, nullptr); });
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  bad.expect(KVC_E_BAD_STATE, "RoPE for a cache that is not empty",
             [&] { return kvc_bind_rope(cache, 0, 2, &rope, nullptr); });
  EXPECT_EQ(kvc_remove(cache, 0, 0, 1), KVC_OK)
      << "positions move without any: " << support::last_message();
  for (const kvc_run& run : support::runs(cache, 0)) EXPECT_EQ(run.offset, 0);
}

TEST(BadArguments, InAPass) {
  const support::Device device(1);
  Specimen s(device);
  s.open(2);
  BadInput bad(s.cache);
  for (const int32_t layer : {least, -1, Specimen::n_layers, most}) {
    bad.expect(invalid, with("put layer ", layer),
               [&] { return kvc_put(s.cache, layer, &s.k, &s.v); });
    bad.expect(invalid, with("get layer ", layer),
               [&] { return kvc_get(s.cache, layer, &s.k, &s.v); });
    bad.expect(invalid, with("attention layer ", layer),
               [&] { return support::attention(s.cache, layer, &s.q, &s.out, &s.lse); });
    bad.expect(invalid, with("attention_extra layer ", layer), [&] {
      const kvc_attention_extra extra = support::extra(&s.bias, &s.mask, &s.weights);
      return support::attention(s.cache, layer, &s.q, &s.out, &s.lse, &extra);
    });
    bad.expect(invalid, with("put_attention layer ", layer), [&] {
      return support::put_attention(s.cache, layer, &s.k, &s.v, &s.q, &s.out, &s.lse);
    });
  }
  for (const int32_t index : {least, -1, 2, most}) {
    const int32_t except[] = {0, index};
    bad.expect(invalid, with("except ", index), [&] { return kvc_set_causal(s.cache, 2, except); });
  }
  for (const int32_t n : {least, -1})
    bad.expect(invalid, with("n_except ", n), [&] { return kvc_set_causal(s.cache, n, nullptr); });
  bad.expect(invalid, "null except", [&] { return kvc_set_causal(s.cache, 1, nullptr); });

  int32_t untouched = 9;
  bad.expect(invalid, "history into no first_cell",
             [&] { return kvc_history(s.cache, 0, nullptr, &untouched); });
  bad.expect(invalid, "history into no n_cells",
             [&] { return kvc_history(s.cache, 0, &untouched, nullptr); });
  EXPECT_EQ(untouched, 9);

  const auto commit_prefix = [&](int32_t n, std::vector<int32_t> sequence, std::vector<int32_t> keep) {
    return kvc_commit_prefix(s.cache, n, sequence.data(), keep.data());
  };
  for (const int32_t n : {least, -1})
    bad.expect(invalid, with("commit_prefix n ", n), [&] { return commit_prefix(n, {0}, {1}); });
  for (const int32_t wrong : {least, -1, Specimen::max_sequences, most})
    bad.expect(invalid, with("commit_prefix sequence ", wrong), [&] {
      return commit_prefix(2, {0, wrong}, {1, 0});
    });
  for (const int32_t wrong : {least, -1, 2, most})
    bad.expect(invalid, with("commit_prefix keep ", wrong), [&] {
      return commit_prefix(2, {0, 1}, {1, wrong});
    });
  bad.expect(invalid, "named twice", [&] { return commit_prefix(2, {1, 1}, {1, 1}); });
  bad.expect(invalid, "not in the batch", [&] { return commit_prefix(1, {2}, {1}); });
  const int32_t number[] = {0};
  bad.expect(invalid, "null sequences",
             [&] { return kvc_commit_prefix(s.cache, 1, nullptr, number); });
  bad.expect(invalid, "null keeps", [&] { return kvc_commit_prefix(s.cache, 1, number, nullptr); });
  bad.expect(invalid, "more than there are", [&] {
    const std::vector<int32_t> many(static_cast<size_t>(Specimen::max_sequences + 1), 0);
    return kvc_commit_prefix(s.cache, Specimen::max_sequences + 1, many.data(), many.data());
  });
  EXPECT_EQ(kvc_abort(s.cache), KVC_OK);
  // A kept token of the except set that saw a dropped one.
  const int32_t position[] = {3, 4}, zero[] = {0, 0}, one[] = {1};
  const uint32_t later[] = {KVC_TOKEN_SEES_LATER, 0};
  ASSERT_EQ(kvc_begin(s.cache, 2, position, zero, later, 0, nullptr), KVC_OK);
  bad.expect(invalid, "kept, and saw a dropped one",
             [&] { return kvc_commit_prefix(s.cache, 1, zero, one); });
  EXPECT_EQ(kvc_abort(s.cache), KVC_OK);
  EXPECT_GE(bad.calls(), 42);
  std::cout << bad.calls() << " calls" << std::endl;
}

TEST(BadArguments, Sequences) {
  const support::Device device(1);
  Specimen s(device, 0, true);
  BadInput bad(s.cache);
  int32_t got = 0;
  kvc_sequence_info info{};
  info.struct_size = sizeof info;
  for (const int32_t wrong : {least, -1, Specimen::max_sequences, most}) {
    bad.expect(invalid, with("can_resume ", wrong),
               [&] { return kvc_can_resume(s.cache, wrong, 1, &got); });
    bad.expect(invalid, with("resume ", wrong), [&] { return kvc_resume(s.cache, wrong, 1, &got); });
    bad.expect(invalid, with("remove ", wrong), [&] { return kvc_remove(s.cache, wrong, 0, 1); });
    bad.expect(invalid, with("query ", wrong),
               [&] { return kvc_sequence_query(s.cache, wrong, &info); });
    bad.expect(invalid, with("runs ", wrong),
               [&] { return kvc_runs(s.cache, 0, wrong, 0, nullptr, &got); });
    bad.expect(invalid, with("gather ", wrong),
               [&] { return kvc_gather(s.cache, 0, wrong, nullptr, nullptr); });
    bad.expect(invalid, with("gather layer ", wrong),
               [&] { return kvc_gather(s.cache, wrong == 3 ? 2 : wrong, 0, nullptr, nullptr); });
    bad.expect(invalid, with("copy from ", wrong),
               [&] { return kvc_copy_prefix(s.cache, wrong, 1, 1, &got); });
    bad.expect(invalid, with("copy to ", wrong),
               [&] { return kvc_copy_prefix(s.cache, 0, wrong, 1, &got); });
    const int32_t good[] = {0, 1}, listed[] = {1, wrong};
    bad.expect(invalid, with("reorder to ", wrong),
               [&] { return kvc_reorder(s.cache, 2, listed, good); });
    bad.expect(invalid, with("reorder from ", wrong),
               [&] { return kvc_reorder(s.cache, 2, good, listed); });
  }
  for (const int32_t wrong : {least, -1}) {
    bad.expect(invalid, with("can_resume want ", wrong),
               [&] { return kvc_can_resume(s.cache, 0, wrong, &got); });
    bad.expect(invalid, with("resume want ", wrong),
               [&] { return kvc_resume(s.cache, 0, wrong, &got); });
    bad.expect(invalid, with("copy len ", wrong),
               [&] { return kvc_copy_prefix(s.cache, 0, 1, wrong, &got); });
    bad.expect(invalid, with("remove begin ", wrong),
               [&] { return kvc_remove(s.cache, 0, wrong, 2); });
    bad.expect(invalid, with("remove end ", wrong), [&] { return kvc_remove(s.cache, 0, 0, wrong); });
    bad.expect(invalid, with("remove both ", wrong),
               [&] { return kvc_remove(s.cache, 0, wrong, wrong); });
    bad.expect(invalid, with("reorder n ", wrong),
               [&] { return kvc_reorder(s.cache, wrong, &got, &got); });
    bad.expect(invalid, with("runs capacity ", wrong),
               [&] { return kvc_runs(s.cache, 0, 0, wrong, nullptr, &got); });
  }
  bad.expect(invalid, "remove backwards", [&] { return kvc_remove(s.cache, 0, 2, 1); });
  bad.expect(invalid, "remove far backwards", [&] { return kvc_remove(s.cache, 0, most, 0); });
  bad.expect(invalid, "copy to itself", [&] { return kvc_copy_prefix(s.cache, 1, 1, 1, &got); });
  const int32_t twice[] = {2, 2}, good[] = {0, 1};
  bad.expect(invalid, "reorder to one twice", [&] { return kvc_reorder(s.cache, 2, twice, good); });
  bad.expect(invalid, "reorder null dst", [&] { return kvc_reorder(s.cache, 1, nullptr, good); });
  bad.expect(invalid, "reorder null src", [&] { return kvc_reorder(s.cache, 1, good, nullptr); });
  bad.expect(invalid, "reorder more than there are", [&] {
    const int32_t four[] = {0, 1, 2, 0};
    return kvc_reorder(s.cache, 4, four, four);
  });
  bad.expect(invalid, "can_resume into null", [&] { return kvc_can_resume(s.cache, 0, 1, nullptr); });
  bad.expect(invalid, "runs into null", [&] { return kvc_runs(s.cache, 0, 0, 0, nullptr, nullptr); });
  bad.expect(invalid, "runs without room", [&] { return kvc_runs(s.cache, 0, 0, 3, nullptr, &got); });
  bad.expect(invalid, "digest into null", [&] { return kvc_state_digest(s.cache, nullptr); });
  bad.expect(invalid, "stats into null", [&] { return kvc_cache_stats(s.cache, nullptr); });
  bad.expect(invalid, "query into null", [&] { return kvc_sequence_query(s.cache, 0, nullptr); });
  EXPECT_GE(bad.calls(), 72);
  std::cout << bad.calls() << " calls" << std::endl;
}

TEST(BadArguments, LostWindowsAndTurnsThatNobodyDescribed) {
  const support::Device device(1);
  Specimen plain(device);
  BadInput bad(plain.cache);
  bad.expect(KVC_E_NOT_SUPPORTED, "a middle part, and nothing says how keys turn",
             [&] { return kvc_remove(plain.cache, 0, 0, 1); });
  bad.expect(KVC_E_NOT_SUPPORTED, "another", [&] { return kvc_remove(plain.cache, 0, 1, 2); });

  kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  desc.capacity = 100;
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 4;
  causal.memory = 6;
  const support::Cache window(device, desc, &causal);
  float data[2] = {1, 2};
  const kvc_tensor row = support::dense(data, KVC_F32, {1, 1, 2});
  for (int32_t position = 0; position < 20; ++position) {
    const int32_t sequence = 0;
    ASSERT_EQ(kvc_begin(window, 1, &position, &sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_put(window, 0, &row, &row), KVC_OK);
    ASSERT_EQ(kvc_commit(window), KVC_OK);
  }
  BadInput lost(window);
  for (const int32_t begin : {1, 5, 13, 16})
    lost.expect(KVC_E_WINDOW_LOST, with("remove to the end from ", begin),
                [&] { return kvc_remove(window, 0, begin, KVC_SEQ_END); });
  // A window that is lost is seen before keys that cannot turn.
  lost.expect(KVC_E_WINDOW_LOST, "a middle part larger than the memory beyond the reach",
              [&] { return kvc_remove(window, 0, 14, 18); });
  lost.expect(KVC_E_NOT_SUPPORTED, "a middle part that would do",
              [&] { return kvc_remove(window, 0, 15, 16); });
}

}  // namespace
