#include <algorithm>

#include "fuzz_world.hpp"

/// NaN in free cells, put there through the API: whoever reads a cell that nobody holds is found out.
namespace fuzz {

/// Begins a pass of n tokens of one sequence and puts NaN in every layer. False when it does not fit.
bool World::fill_with_nan(int32_t sequence, int32_t n) {
  Numbers position, sequences(static_cast<size_t>(n), sequence);
  const int32_t next = support::sequence_info(cache_, sequence).next;
  for (int32_t i = 0; i < n; ++i) position.push_back(next + i);
  if (kvc_begin(cache_, n, position.data(), sequences.data(), nullptr, 0, nullptr) != KVC_OK)
    return false;
  Batch batch;
  batch.n = n;
  put_nan(batch);
  return true;
}

/// An empty cache: fills all of it, then empties it again. The oracle need not know.
void World::poison_all() {
  bool filled = true;
  for (int32_t round = 0; filled && round < 64; ++round) {
    filled = false;
    for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
      const kvc_stats stats = support::stats(cache_);
      const auto room = static_cast<int32_t>(stats.cells - stats.cells_used);
      const int32_t n = std::min(
          {setup_.cache.max_batch, room, support::sequence_info(cache_, s).room});
      if (n < 1 || !fill_with_nan(s, n)) continue;
      filled = true;
      if (kvc_commit(cache_) != KVC_OK) differ("commit: " + support::last_message());
    }
  }
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s)
    if (kvc_remove(cache_, s, 0, KVC_SEQ_END) != KVC_OK)
      differ("remove: " + support::last_message());
  oracle_.passes = support::stats(cache_).passes;
  ++counts_.poisonings;
}

/// A sequence that holds nothing takes all the room, then gives it back. Others slide meanwhile.
void World::poison_by_spare_sequence() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    if (oracle_.sequences[static_cast<size_t>(s)].next != 0) continue;
    for (int32_t pass = 0; pass < 12; ++pass) {
      Batch batch;
      const model::Info info = oracle_.info(s);
      batch.n = std::min(setup_.cache.max_batch, info.room);
      if (batch.n < 1) break;
      for (int32_t i = 0; i < batch.n; ++i) batch.position.push_back(info.next + i);
      batch.sequence.assign(static_cast<size_t>(batch.n), s);
      begin(batch);
      if (!oracle_.pass_open) break;
      for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
        put_codes(layer, nan_codes(batch.n));
      commit();
    }
    remove(Op::remove_tail, s, 0, KVC_SEQ_END);
    ++counts_.poisonings;
    return;
  }
}

}  // namespace fuzz
