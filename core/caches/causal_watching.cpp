#include "core/base/digest.hpp"
#include "core/caches/causal.hpp"

namespace kvc {

CacheStats CausalCache::stats() const {
  const CellPool& pool = book_.pool();
  CacheStats stats;
  stats.state = health_.ok() ? pass_.state() : CacheState::poisoned;
  stats.cells = static_cast<uint64_t>(bounds_.cells);
  stats.cells_used = static_cast<uint64_t>(bounds_.cells - pool.n_free() - pool.n_free_at_commit());
  stats.cells_shared = static_cast<uint64_t>(pool.n_shared());
  stats.bytes = block_bytes_;
  stats.passes = pass_.n_committed();
  return stats;
}

/// A sum over tokens and sequences, so neither cells nor order matter.
Status CausalCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const CellBook::Sequence& sequence = book_.sequence(index);
    if (sequence.next != 0 || sequence.lost_below != 0) {
      const int32_t header[] = {-1, index, sequence.next, sequence.lost_below};
      sum.add(Digest().update(header, sizeof header));
    }
    const int32_t count = sequence.tokens.count();
    const int32_t added = pass_.is_open() ? sequence.n_added : 0;
    for (int32_t i = 0; i < count; ++i)
      sum.add(digest_of(index, sequence.tokens.at(i), i >= count - added));
  }
  if (pass_.is_open()) {
    const int32_t open[] = {-2};
    sum.add(Digest().update(open, sizeof open));
    for (int32_t token = 0; token < pass_.n_tokens(); ++token) {
      if (!plan_.sees_later(token)) continue;
      const int32_t except[] = {-3, book_.batch_sequence()[token], book_.batch_position()[token]};
      sum.add(Digest().update(except, sizeof except));
    }
  }
  sum.copy_to(out);
  return Status::ok;
}

Digest CausalCache::digest_of(int32_t sequence, Token token, bool of_open_pass) const {
  Digest digest;
  const int32_t header[] = {sequence, token.position, book_.offset_of(token)};
  digest.update(header, sizeof header);
  for (int32_t index = 0; index < bounds_.n_layers; ++index) {
    if (of_open_pass && !pass_.was_put(index)) continue;
    digest.update(&index, sizeof index);
    const LayerStorage& storage = layers_[index].storage;
    for (int32_t head = 0; head < storage.k.n_heads; ++head) {
      digest.update(storage.k.row(head, token.cell), storage.k.row_bytes);
      digest.update(storage.v.row(head, token.cell), storage.v.row_bytes);
    }
  }
  return digest;
}

Status CausalCache::check() const { return book_.check(pass_.is_open()); }

}  // namespace kvc
