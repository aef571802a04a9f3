#include <algorithm>

#include "core/base/digest.hpp"
#include "core/caches/causal.hpp"
#include "core/caches/row_digests.hpp"

namespace kvc {

CacheStats CausalCache::stats() const {
  const CellPool& pool = book_.pool();
  CacheStats stats;
  stats.state = state();
  stats.cells = static_cast<uint64_t>(bounds_.cells);
  stats.cells_used = static_cast<uint64_t>(bounds_.cells - pool.n_free() - pool.n_free_at_commit());
  stats.cells_shared = static_cast<uint64_t>(pool.n_shared());
  stats.bytes = memory_.bytes();
  stats.passes = pass_.n_committed();
  return stats;
}

Status CausalCache::digest_tokens(int32_t index, DigestSum& sum) const {
  const CellBook::Sequence& sequence = book_.sequence(index);
  const int32_t count = sequence.tokens.count();
  const int32_t added = pass_.is_open() ? sequence.n_added : 0;
  RowDigests rows(*on_device_, health_);
  for (int32_t at = 0, n = 0; at < count; at += n) {
    const bool of_open_pass = at >= count - added;
    n = std::min((of_open_pass ? count : count - added) - at, RowDigests::rows_max);
    for (int32_t i = 0; i < n; ++i) {
      const Token token = sequence.tokens.at(at + i);
      const int32_t header[] = {index, token.position, book_.offset_of(token)};
      rows[i].update(header, sizeof header);
      rows.cell[i] = token.cell;
    }
    for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
      if (of_open_pass && !pass_.was_put(layer)) continue;
      if (Status s = rows.add_layer(layer, layers_[layer].storage, n); s != Status::ok) return s;
    }
    rows.finish(n, sum);
  }
  return Status::ok;
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
    if (Status s = digest_tokens(index, sum); s != Status::ok) return s;
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

}  // namespace kvc
