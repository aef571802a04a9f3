#include "fuzz_kind.hpp"

/// What is compared after every operation.
namespace fuzz {

void KindWorld::compare_all() {
  if (kvc_check(handle()) != KVC_OK) differ("check: " + support::last_message());
  compare_sequences();
  compare_kind();
  compare_stats();
  compare_digest(!state_may_change_);
  const Met met = circumstances({});
  for (const Op op : {Op::check, Op::sequence_query, Op::stats, Op::digest})
    counts_.record(op, true, met);
}

void KindWorld::compare_sequences() {
  for (int32_t s = 0; s < n_sequences(); ++s) {
    kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
    if (kvc_sequence_query(handle(), s, &info) != KVC_OK)
      differ("sequence_query: " + support::last_message());
    const model::Info wanted = oracle().info(s);
    const std::string of = " of sequence " + std::to_string(s);
    expect_equal(info.next, wanted.next, ("next" + of).c_str());
    expect_equal(info.count, wanted.count, ("count" + of).c_str());
    expect_equal(info.first, wanted.first, ("first" + of).c_str());
    expect_equal(info.lost_below, wanted.lost_below, ("lost_below" + of).c_str());
    expect_equal(info.room, wanted.room, ("room" + of).c_str());
    expect_equal(info.flags, wanted.flags, ("flags" + of).c_str());
  }
}

void KindWorld::compare_stats() {
  kvc_stats stats = KVC_STATS_INIT;
  if (kvc_cache_stats(handle(), &stats) != KVC_OK) differ("stats: " + support::last_message());
  compare_cells(stats);
  const int64_t state = !oracle().pass_open        ? KVC_STATE_IDLE
                        : oracle().batch().reserve ? KVC_STATE_RESERVE
                                                   : KVC_STATE_PASS;
  expect_equal(stats.state, state, "stats.state");
  if (!oracle().pass_open)
    expect_equal(static_cast<int64_t>(stats.passes), static_cast<int64_t>(oracle().passes),
                 "stats.passes");
}

void KindWorld::compare_digest(bool must_stay) {
  support::Digest now{};
  if (kvc_state_digest(handle(), now.data()) != KVC_OK)
    differ("digest: " + support::last_message());
  if (must_stay && !digest_of_.empty() && now != last_digest_) differ("the digest changed");
  last_digest_ = now;
  for (const uint64_t word : now) counts_.trace(word);
  const StateHashes state = state_hashes();
  if (digest_of_.insert({state.fine, now}).first->second != now)
    differ("digest: this state had another digest before");
  if (state_of_.insert({now, state.coarse}).first->second != state.coarse)
    differ("digest: a different state had the same digest before");
}

}  // namespace fuzz
