#include <bit>
#include <cmath>

#include "recurrent_world.hpp"

/// What is compared after every operation; the same state in other slots; NaN in free slots.
namespace fuzz {

/// Every state that a sequence can continue with.
void RecurrentWorld::compare_contents() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const model::RecurrentSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    Numbers places = {0, sequence.next};
    for (const model::Checkpoint& each : sequence.checkpoints) places.push_back(each.at);
    for (const int32_t g : places)
      for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
        for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT}) {
          if (!oracle_.has(part)) continue;
          support::Array into(KVC_F32, {oracle_.size_of(part)});
          if (kvc_state_gather(handle(), layer, part, s, g, into.tensor()) != KVC_OK)
            differ("state_gather: " + support::last_message());
          compare_states(layer, part, oracle_.state_at(s, g), into, 0, "a state");
        }
  }
}

/// Of an open pass the digest has the rows of what was put. Left open by the contract: whether a reserve pass counts as open,
/// what abort would bring back, and what else rows hold.
StateHashes RecurrentWorld::state_hashes() {
  StateHashes result;
  const auto fine = [&](uint64_t word) { fold(result.fine, word); };
  const auto both = [&](uint64_t word) {
    fold(result.fine, word);
    fold(result.coarse, word);
  };
  const auto fold_state = [&](int32_t state, const auto& into, const auto& wanted) {
    for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
      for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT})
        if (oracle_.has(part) && wanted(layer, part))
          for (const float value : oracle_.values(state, layer, part))
            into(std::bit_cast<uint32_t>(value));
  };
  const auto all = [](int32_t, int32_t) { return true; };
  const auto was_put = [&](int32_t layer, int32_t part) {
    return oracle_.pass.put[static_cast<size_t>(layer * 2 + (part == KVC_PART_RECURRENT))] != 0;
  };
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const model::RecurrentSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    both(static_cast<uint64_t>(sequence.next));
    both(sequence.approximate);
    both(sequence.checkpoints.size());
    const bool in_pass = oracle_.tokens_of(s) > 0;
    for (const model::Checkpoint& each : sequence.checkpoints) {
      both(static_cast<uint64_t>(each.at));
      both(each.approximate);
      fold_state(each.state, fine, all);
      if (!in_pass)
        fold_state(
            each.state, [&](uint64_t word) { fold(result.coarse, word); }, all);
    }
    fold_state(sequence.state, fine, all);
    if (!in_pass)
      fold_state(
          sequence.state, [&](uint64_t word) { fold(result.coarse, word); }, all);
    if (!in_pass) continue;
    const model::RecurrentSequence& before = oracle_.pass.before[static_cast<size_t>(s)];
    fine(static_cast<uint64_t>(before.next));
    fine(before.approximate);
    fold_state(before.state, fine, all);
    for (const model::Checkpoint& each : before.checkpoints) {
      fine(static_cast<uint64_t>(each.at));
      fine(each.approximate);
      fold_state(each.state, fine, all);
    }
  }
  for (const model::RecurrentRows& rows : oracle_.pass.layout) {
    fine(static_cast<uint64_t>(rows.sequence));
    fine(rows.states.size());  // else words of one list could stand for those of the next
    fine(rows.tokens.size());
    for (const int32_t state : rows.states) {
      fold_state(state, fine, all);
      fold_state(
          state, [&](uint64_t word) { fold(result.coarse, word); }, was_put);
    }
  }
  for (const char put : oracle_.pass.put) fine(static_cast<uint64_t>(put));
  for (const model::RecurrentRows& rows : oracle_.pass.layout)
    for (const int32_t token : rows.tokens) {
      fine(static_cast<uint64_t>(rows.sequence));
      fine(static_cast<uint64_t>(oracle_.pass.position[static_cast<size_t>(token)]));
    }
  fine(!oracle_.pass_open ? 0 : oracle_.pass.reserve ? 2 : 1);
  fold(result.coarse, oracle_.pass_open && !oracle_.pass.reserve);
  return result;
}

// ---- The same state in other slots ---------------------------------------------------------------------------------

/// One pass of one token that leaves a state of the oracle.
void RecurrentWorld::put_again(kvc_cache* other, int32_t sequence, int32_t position,
                               int32_t state) const {
  kvc_status status = kvc_begin(other, 1, &position, &sequence, nullptr, 0, nullptr);
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT}) {
      if (!oracle_.has(part) || status != KVC_OK) continue;
      support::Array rows(KVC_F32, {1, oracle_.size_of(part)});
      const std::vector<float> values = oracle_.values(state, layer, part);
      for (size_t e = 0; e < values.size(); ++e)
        rows.set(static_cast<int64_t>(e), static_cast<double>(values[e]));
      status = kvc_state_put(other, layer, part, rows.tensor());
    }
  if (status != KVC_OK || kvc_commit(other) != KVC_OK)
    differ("the second cache: " + support::last_message());
}

/// The sequences in the opposite order, nothing shared: each state is put where it continues. The first approximate one is made so
/// by removing a position in front of it; from there on all are.
void RecurrentWorld::compare_rebuilt() {
  kvc_cache_desc desc = setup_.cache;
  desc.flags &= ~uint32_t{KVC_CACHE_STRICT};
  kvc_recurrent_desc recurrent = setup_.recurrent;
  recurrent.flags |= KVC_RECURRENT_APPROXIMATE;
  recurrent.checkpoint_interval = KVC_NONE;
  support::Cache other;
  if (kvc_cache_create(device_, &desc, &recurrent, &other.handle) != KVC_OK)
    differ("the second cache: " + support::last_message());
  for (int32_t s = setup_.cache.max_sequences; s-- > 0;) {
    const model::RecurrentSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    std::vector<model::Checkpoint> places = sequence.checkpoints;
    const bool ends_at_checkpoint = !places.empty() && places.back().at == sequence.next;
    if (sequence.next > 0 && !ends_at_checkpoint)
      places.push_back({sequence.next, sequence.state, sequence.approximate});
    int32_t before = 0;
    bool approximate = false;
    for (const model::Checkpoint& place : places) {
      const bool becomes = place.approximate && !approximate;
      if (becomes && place.at == INT32_MAX - 1) return;  // no position is left in front of it
      put_again(other, s, place.at - !becomes, place.state);
      if (becomes && kvc_remove(other, s, before, before + 1) != KVC_OK)
        differ("the second cache: " + support::last_message());
      approximate = place.approximate;
      before = place.at;
      if (place.at == sequence.next && !ends_at_checkpoint) break;
      if (kvc_checkpoint_take(other, s) != KVC_OK)
        differ("the second cache: " + support::last_message());
    }
  }
  if (support::digest(other) != last_digest_)
    differ("the same state in other slots has another digest");
  ++counts_.rebuilt;
}

// ---- Poison --------------------------------------------------------------------------------------------------------

void RecurrentWorld::put_nan(const Batch&) {
  int32_t n = 0;
  if (kvc_state_slots(handle(), 0, nullptr, &n) != KVC_OK)
    differ("slots: " + support::last_message());
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT}) {
      if (!oracle_.has(part)) continue;
      support::Array rows(KVC_F32, {n, oracle_.size_of(part)});
      rows.fill(std::nan(""));
      if (kvc_state_put(handle(), layer, part, rows.tensor()) != KVC_OK)
        differ("put of NaN: " + support::last_message());
    }
}

}  // namespace fuzz
