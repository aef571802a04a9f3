#include <algorithm>
#include <bit>
#include <cmath>

#include "encoder_world.hpp"

/// What is compared after every operation; the same state in other slots; NaN in free slots.
namespace fuzz {

void EncoderWorld::compare_all() {
  if (kvc_check(cache_) != KVC_OK) differ("check: " + support::last_message());
  compare_sequences();
  compare_places();
  compare_stats();
  compare_digest(!state_may_change_);
  coverage_.record(EncoderOp::state, true, circumstances());
  if (random_.chance(0.2)) compare_contents();
}

void EncoderWorld::compare_sequences() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
    int32_t position = -7, length = -7;
    if (kvc_sequence_query(cache_, s, &info) != KVC_OK ||
        kvc_encoder_query(cache_, s, &position, &length) != KVC_OK)
      differ("query: " + support::last_message());
    const model::Info wanted = oracle_.info(s);
    const std::string of = " of sequence " + std::to_string(s);
    expect_equal(info.next, wanted.next, ("next" + of).c_str());
    expect_equal(info.count, wanted.count, ("count" + of).c_str());
    expect_equal(info.first, wanted.first, ("first" + of).c_str());
    expect_equal(info.lost_below, wanted.lost_below, ("lost_below" + of).c_str());
    expect_equal(info.room, wanted.room, ("room" + of).c_str());
    expect_equal(length, wanted.count, ("length" + of).c_str());
    const bool has = oracle_.sequences[static_cast<size_t>(s)].input >= 0;
    expect_equal(position, has ? wanted.first : KVC_NONE, ("input" + of).c_str());
  }
}

/// An input is one run at the start of a slot, stays there, and shares its slot with no other.
void EncoderWorld::compare_places() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const std::vector<kvc_run> runs = support::runs(cache_, s);
    expect_equal(static_cast<int64_t>(runs.size()), oracle_.length(s) > 0, "runs");
    if (runs.empty()) continue;
    const kvc_run& run = runs[0];
    coverage_.trace(static_cast<uint64_t>(run.cell) << 32 | static_cast<uint32_t>(run.length));
    expect_equal(run.length, oracle_.length(s), "length of a run");
    expect_equal(run.position, 0, "position of a run");
    expect_equal(run.offset, 0, "offset of a run");
    expect_equal(run.cell % setup_.cache.capacity, 0, "place of an input in its slot");
    if (run.cell / setup_.cache.capacity >= oracle_.slots()) differ("a slot that does not exist");
    const int32_t input = oracle_.sequences[static_cast<size_t>(s)].input;
    expect_equal(cell_of_.insert({input, run.cell}).first->second, run.cell, "cell of an input");
  }
  std::set<int32_t> cells;
  for (const int32_t input : live_inputs())
    if (!cells.insert(cell_of_.at(input)).second) differ("two inputs lie in one slot");
}

void EncoderWorld::compare_stats() {
  const kvc_stats stats = support::stats(cache_);
  expect_equal(static_cast<int64_t>(stats.cells), oracle_.slots() * setup_.cache.capacity, "cells");
  expect_equal(static_cast<int64_t>(stats.cells_used), oracle_.used(), "cells_used");
  expect_equal(static_cast<int64_t>(stats.cells_shared), oracle_.shared(), "cells_shared");
  const int64_t state = !oracle_.pass_open     ? KVC_STATE_IDLE
                        : oracle_.pass.reserve ? KVC_STATE_RESERVE
                                               : KVC_STATE_PASS;
  expect_equal(stats.state, state, "stats.state");
  if (!oracle_.pass_open)
    expect_equal(static_cast<int64_t>(stats.passes), static_cast<int64_t>(oracle_.passes), "passes");
}

/// The oracle's state as a number. Equal `fine` states have equal digests, and equal digests mean states that are equal in
/// what the contract lists; what it leaves open is in `fine` alone: whether a reserve pass counts as open, which input abort
/// would bring back, and whether the one that is carried is another's.
uint64_t EncoderWorld::state(bool fine) const {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto fold = [&](uint64_t word) { hash = std::rotl((hash ^ word) * 0x9e3779b97f4a7c15u, 29); };
  const auto fold_sequence = [&](const model::EncoderSequence& sequence) {
    for (const int32_t number : {sequence.next, sequence.at, sequence.first})
      fold(static_cast<uint64_t>(number));
    if (sequence.input < 0) return;
    const model::EncoderInput& input = oracle_.inputs[static_cast<size_t>(sequence.input)];
    fold(static_cast<uint64_t>(input.length));
    for (int32_t layer = 0; input.length > 0 && layer < setup_.cache.n_layers; ++layer) {
      const bool put = input.put[static_cast<size_t>(layer)];
      fold(put);
      for (const std::vector<float>* values : {&input.k, &input.v}) {
        const size_t n = values->size() / input.put.size();
        for (size_t i = 0; put && i < n; ++i)
          fold(std::bit_cast<uint32_t>((*values)[static_cast<size_t>(layer) * n + i]));
      }
    }
  };
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    fold_sequence(oracle_.sequences[static_cast<size_t>(s)]);
    const auto carried = oracle_.pass.carries.find(s);
    if (!fine || carried == oracle_.pass.carries.end()) continue;
    fold(carried->second);
    fold_sequence(oracle_.pass.before[static_cast<size_t>(s)]);
  }
  fold(!oracle_.pass_open ? 0 : !oracle_.pass.reserve ? 1 : fine ? 2 : 0);
  return hash;
}

void EncoderWorld::compare_digest(bool must_stay) {
  support::Digest now{};
  if (kvc_state_digest(cache_, now.data()) != KVC_OK) differ("digest: " + support::last_message());
  if (must_stay && !digest_of_.empty() && now != last_digest_) differ("the digest changed");
  last_digest_ = now;
  for (const uint64_t word : now) coverage_.trace(word);
  if (digest_of_.insert({state(true), now}).first->second != now)
    differ("digest: this state had another digest before");
  const uint64_t coarse = state(false);
  if (state_of_.insert({now, coarse}).first->second != coarse)
    differ("digest: a different state had the same digest before");
}

void EncoderWorld::compare_contents() {
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
      const int64_t n = oracle_.length(s), heads = setup_.cache.n_kv_heads;
      support::Array k(KVC_F32, {n, heads, oracle_.cache.head_dim_k});
      support::Array v(KVC_F32, {n, heads, oracle_.cache.head_dim_v});
      if (kvc_gather(cache_, layer, s, k.tensor(), v.tensor()) != KVC_OK)
        differ("gather: " + support::last_message());
      compare_gathered(layer, s, &k, &v, false);
    }
}

// ---- The same state in other slots ---------------------------------------------------------------------------------

/// One pass of one token, which carries an input of the oracle; −1: another, of one position; −2: none.
void EncoderWorld::put_again(kvc_cache* other, int32_t sequence, int32_t position,
                             int32_t input) const {
  const uint32_t flags = input == -2 ? 0 : KVC_TOKEN_ENCODER_INPUT;
  if (kvc_begin(other, 1, &position, &sequence, &flags, 0, nullptr) != KVC_OK)
    differ("the second cache: " + support::last_message());
  const int32_t n = input == -2   ? 0
                    : input == -1 ? 1
                                  : oracle_.inputs[static_cast<size_t>(input)].length;
  for (int32_t layer = 0; n > 0 && layer < setup_.cache.n_layers; ++layer) {
    support::Array k(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k});
    support::Array v(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_v});
    k.fill(1);
    v.fill(1);
    for (int32_t row = 0; input >= 0 && row < n; ++row) {
      const std::vector<double> key = oracle_.key(layer, input, row);
      const std::vector<double> value = oracle_.value(layer, input, row);
      for (size_t e = 0; e < key.size(); ++e)
        k.set(row * static_cast<int64_t>(key.size()) + static_cast<int64_t>(e), key[e]);
      for (size_t e = 0; e < value.size(); ++e)
        v.set(row * static_cast<int64_t>(value.size()) + static_cast<int64_t>(e), value[e]);
    }
    if (kvc_put(other, layer, k.tensor(), v.tensor()) != KVC_OK)
      differ("the second cache: " + support::last_message());
  }
  if (kvc_commit(other) != KVC_OK) differ("the second cache: " + support::last_message());
}

/// The sequences in the opposite order, nothing shared, each with its first input, its newest and its last token.
void EncoderWorld::compare_rebuilt() {
  kvc_cache_desc desc = setup_.cache;
  desc.flags &= ~uint32_t{KVC_CACHE_STRICT};
  kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
  support::Cache other;
  if (kvc_cache_create(device_, &desc, &encoder, &other.handle) != KVC_OK)
    differ("the second cache: " + support::last_message());
  for (int32_t s = setup_.cache.max_sequences; s-- > 0;) {
    const model::EncoderSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    const bool has = sequence.input >= 0;
    if (has && sequence.first < sequence.at) put_again(other, s, sequence.first, -1);
    if (has) put_again(other, s, sequence.at, sequence.input);
    if (sequence.next > (has ? sequence.at + 1 : 0)) put_again(other, s, sequence.next - 1, -2);
  }
  if (support::digest(other) != last_digest_)
    differ("the same state in other slots has another digest");
  ++coverage_.rebuilt;
}

// ---- Poison ----------------------------------------------------------------------------------------------------------

/// A pass whose inputs are NaN and that is aborted leaves NaN in free slots, and the state as it was. No pass is open.
void EncoderWorld::poison() {
  log_.push_back("poison by an aborted pass");
  Numbers position, sequence;
  const auto free = static_cast<int32_t>(oracle_.slots() - oracle_.slots_used());
  const int32_t most = std::min(free, setup_.cache.max_batch);
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const int32_t next = oracle_.sequences[static_cast<size_t>(s)].next;
    if (static_cast<int32_t>(sequence.size()) == most || next >= INT32_MAX - 1) continue;
    position.push_back(next);
    sequence.push_back(s);
  }
  if (sequence.empty()) return;
  const std::vector<uint32_t> flags(sequence.size(), KVC_TOKEN_ENCODER_INPUT);
  const int64_t n = setup_.cache.capacity, heads = setup_.cache.n_kv_heads;
  support::Array k(KVC_F32, {n, heads, oracle_.cache.head_dim_k});
  support::Array v(KVC_F32, {n, heads, oracle_.cache.head_dim_v});
  k.fill(std::nan(""));
  v.fill(std::nan(""));
  kvc_status status = kvc_begin(cache_, static_cast<int32_t>(sequence.size()), position.data(),
                                sequence.data(), flags.data(), 0, nullptr);
  for (const int32_t s : sequence)
    for (int32_t layer = 0; status == KVC_OK && layer < setup_.cache.n_layers; ++layer)
      status = kvc_encoder_put(cache_, layer, s, k.tensor(), v.tensor());
  if (status == KVC_OK) status = kvc_abort(cache_);
  if (status != KVC_OK) differ("poison: " + support::last_message());
  ++coverage_.poisonings;
  state_may_change_ = false;
  compare_all();
}

}  // namespace fuzz
