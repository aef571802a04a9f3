#include <cmath>

#include "kvc/rows.h"
#include "lightning_world.hpp"

/// What is compared after every operation; the same state in another cache; NaN in free slots.
namespace fuzz {

/// Row `row` of an array of states.
void LightningWorld::compare_state(int32_t layer, int32_t s, const support::Array& got,
                                   int64_t row) const {
  const int32_t state = oracle_.sequences[static_cast<size_t>(s)].state;
  const model::LightningState& wanted = oracle_.states[static_cast<size_t>(state)];
  const auto size = static_cast<int64_t>(wanted.value.size()) / setup_.cache.n_layers;
  for (int64_t i = 0; i < size; ++i) {
    const auto at = static_cast<size_t>(layer * size + i);
    const double number = got.get(row * size + i);
    if (std::fabs(number - wanted.value[at]) <= 1e-5 * wanted.magnitude[at] + tiny) continue;
    differ("number " + std::to_string(i) + " of the state of sequence " + std::to_string(s) +
           " in layer " + std::to_string(layer) + " is " + std::to_string(number) + ", expected " +
           std::to_string(wanted.value[at]));
  }
}

void LightningWorld::compare_contents() {
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
    support::Array into(KVC_F32,
                        {n_sequences(), setup_.cache.n_kv_heads, setup_.cache.head_dim_k, dim_v()});
    if (kvc_lightning_read(handle(), layer, 0, n_sequences(), into.tensor()) != KVC_OK)
      differ("lightning_read: " + support::last_message());
    for (int32_t s = 0; s < n_sequences(); ++s) compare_state(layer, s, into, s);
  }
}

/// The same passes of the same tokens leave the same bits, and other bits may be equal by chance: numbers are only in `fine`.
StateHashes LightningWorld::state_hashes() {
  StateHashes result;
  const auto fine = [&](uint64_t word) { fold(result.fine, word); };
  const auto both = [&](uint64_t word) {
    fold(result.fine, word);
    fold(result.coarse, word);
  };
  const auto fold_state = [&](int32_t state) {
    fold(result.fine, oracle_.states[static_cast<size_t>(state)].made_by);
  };
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const model::RecurrentSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    both(static_cast<uint64_t>(sequence.next));
    both(sequence.approximate);
    both(sequence.checkpoints.size());
    for (const model::Checkpoint& each : sequence.checkpoints) {
      both(static_cast<uint64_t>(each.at));
      both(each.approximate);
      fold_state(each.state);
    }
    fold_state(sequence.state);
    if (oracle_.tokens_of(s) == 0) continue;
    const model::RecurrentSequence& before = oracle_.pass.before[static_cast<size_t>(s)];
    fine(static_cast<uint64_t>(before.next));
    fine(before.approximate);
    fold_state(before.state);
    for (const model::Checkpoint& each : before.checkpoints) {
      fine(static_cast<uint64_t>(each.at));
      fine(each.approximate);
      fold_state(each.state);
    }
  }
  for (const model::LightningRows& rows : oracle_.pass.layout) {
    fine(static_cast<uint64_t>(rows.sequence));
    fine(rows.tokens.size());
    for (const int32_t token : rows.tokens)
      fine(static_cast<uint64_t>(oracle_.pass.position[static_cast<size_t>(token)]));
  }
  for (const std::vector<float>& k : oracle_.pass.k) fine(k.empty());
  fine(!oracle_.pass_open ? 0 : oracle_.pass.reserve ? 2 : 1);
  fold(result.coarse, oracle_.pass_open && !oracle_.pass.reserve);
  return result;
}

/// All rows inserted into a fresh cache: other slots, nothing shared.
void LightningWorld::compare_rebuilt() {
  support::Cache other;
  if (kvc_cache_create(device_, &setup_.cache, &setup_.lightning, &other.handle) != KVC_OK)
    differ("the second cache: " + support::last_message());
  bind(other);
  if (kvc_insert(other, handle(), 0) != KVC_OK || kvc_check(other) != KVC_OK)
    differ("the second cache: " + support::last_message());
  if (support::digest(other) != last_digest_)
    differ("the same state in other slots has another digest");
  ++counts_.rebuilt;
}

// ---- Poison --------------------------------------------------------------------------------------------------------

void LightningWorld::put_nan(const Batch& batch) {
  support::Array k(KVC_F32, {batch.n, setup_.cache.n_kv_heads, setup_.cache.head_dim_k});
  support::Array v(KVC_F32, {batch.n, setup_.cache.n_kv_heads, dim_v()});
  k.fill(std::nan(""));
  v.fill(std::nan(""));
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (kvc_put(handle(), layer, k.tensor(), v.tensor()) != KVC_OK)
      differ("put of NaN: " + support::last_message());
}

}  // namespace fuzz
