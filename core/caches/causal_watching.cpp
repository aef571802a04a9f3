#include <algorithm>

#include "core/base/digest.hpp"
#include "core/caches/causal.hpp"

namespace kvc {
namespace {

/// Scatters cell numbers over 64 bits, so that sums of them tell different multisets apart.
uint64_t mixed(uint64_t value) {
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 29)) * 0xbf58476d1ce4e5b9u;
  return value ^ (value >> 32);
}

}  // namespace

CacheStats CausalCache::stats() const {
  CacheStats stats;
  stats.state = health_ == Status::ok ? state_ : CacheState::poisoned;
  stats.cells = static_cast<uint64_t>(bounds_.cells);
  stats.cells_used = static_cast<uint64_t>(bounds_.cells - pool_.n_free() - pool_.n_free_at_commit());
  stats.cells_shared = static_cast<uint64_t>(pool_.n_shared());
  stats.bytes = block_bytes_;
  stats.passes = n_passes_;
  return stats;
}

// ---- Digest -------------------------------------------------------------------------------------------------------------------

/// A sum over tokens and sequences, so neither cells nor order matter.
Status CausalCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const Sequence& sequence = sequences_[index];
    if (sequence.next != 0 || sequence.lost_below != 0) {
      const int32_t header[] = {-1, index, sequence.next, sequence.lost_below};
      sum.add(Digest().update(header, sizeof header));
    }
    const int32_t count = sequence.tokens.count();
    const int32_t added = state_ == CacheState::pass ? sequence.n_added : 0;
    for (int32_t i = 0; i < count; ++i)
      sum.add(digest_of(index, sequence.tokens.at(i), i >= count - added));
  }
  if (state_ == CacheState::pass) {
    const int32_t open[] = {-2};
    sum.add(Digest().update(open, sizeof open));
    for (int32_t token = 0; token < n_tokens_; ++token) {
      if (!in_except_set(token)) continue;
      const int32_t except[] = {-3, batch_sequence_[token], batch_position_[token]};
      sum.add(Digest().update(except, sizeof except));
    }
  }
  sum.copy_to(out);
  return Status::ok;
}

Digest CausalCache::digest_of(int32_t sequence, Token token, bool of_open_pass) const {
  Digest digest;
  const int32_t header[] = {sequence, token.position, offset_of(token)};
  digest.update(header, sizeof header);
  for (int32_t index = 0; index < bounds_.n_layers; ++index) {
    const Layer& layer = layers_[index];
    if (of_open_pass && !layer.put) continue;
    digest.update(&index, sizeof index);
    const LayerStorage& storage = layer.storage;
    for (int32_t head = 0; head < storage.k.n_heads; ++head) {
      digest.update(storage.k.row(head, token.cell), storage.k.row_bytes);
      digest.update(storage.v.row(head, token.cell), storage.v.row_bytes);
    }
  }
  return digest;
}

// ---- Invariants ------------------------------------------------------------------------------------------------------------------

Status CausalCache::check_sequence_invariants(int32_t index) const {
  const Sequence& sequence = sequences_[index];
  const TokenSequence& tokens = sequence.tokens;
  const auto broken = [index](const char* what) {
    return fail(Status::internal, "sequence %d: %s", index, what);
  };
  if (tokens.stored() > sequence_limit_) return broken("stores more than its limit");
  if (state_ != CacheState::pass && tokens.n_hidden() != 0)
    return broken("hides tokens while no pass is open");
  int32_t previous = -1;
  for (int32_t i = 0; i < tokens.count(); ++i) {
    const Token token = tokens.at(i);
    if (token.cell < 0 || token.cell >= bounds_.cells)
      return broken("names a cell outside the pool");
    if (token.position <= previous) return broken("positions do not ascend");
    const bool in_head = i < tokens.n_head();
    if (tokens.head_capacity() > 0 && in_head != (token.position < tokens.head_capacity()))
      return broken("kept-first tokens");
    if (has_rope_ && !sequence.may_owe && pool_.rotated_for(token.cell) != token.position)
      return broken("a key owes a rotation that was not noted");
    previous = token.position;
  }
  if (previous >= sequence.next) return broken("holds a position at or behind its next");
  if (sequence.lost_below < 0 || sequence.lost_below > sequence.next)
    return broken("lost_below lies behind its next");
  if (!settings_.limited && sequence.lost_below != 0) return broken("lost tokens without a window");
  if (!can_continue(sequence, sequence.next)) return broken("cannot continue at its next");
  return Status::ok;
}

Status CausalCache::check() const {
  if (const char* broken = pool_.broken_invariant(); broken != nullptr)
    return fail(Status::internal, "%s", broken);
  // Owner counts are recounted as sums of scattered cell numbers: no memory, and no two counts that differ agree by chance.
  uint64_t owners = 0, hidden = 0;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    if (Status s = check_sequence_invariants(index); s != Status::ok) return s;
    const TokenSequence& tokens = sequences_[index].tokens;
    for (int32_t i = 0; i < tokens.count(); ++i)
      owners += mixed(static_cast<uint64_t>(tokens.at(i).cell));
    tokens.for_each_hidden(0, tokens.n_hidden(), [&hidden](const int32_t* cells, int32_t n) {
      for (int32_t i = 0; i < n; ++i) hidden += mixed(static_cast<uint64_t>(cells[i]));
    });
  }
  for (int32_t cell = 0; cell < bounds_.cells; ++cell) {
    const uint64_t number = mixed(static_cast<uint64_t>(cell));
    owners -= number * static_cast<uint64_t>(pool_.owners(cell) - pool_.hidden(cell));
    hidden -= number * static_cast<uint64_t>(pool_.hidden(cell));
  }
  if (owners != 0)
    return fail(Status::internal, "owner counts differ from what the sequences hold");
  if (hidden != 0)
    return fail(Status::internal, "hidden counts differ from what the sequences hide");
  if (state_ != CacheState::pass && pool_.n_free_at_commit() != 0) {
    return fail(Status::internal, "cells wait for a commit while no pass is open");
  }
  return Status::ok;
}

}  // namespace kvc
