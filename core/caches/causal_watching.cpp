#include <algorithm>

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
  stats.bytes = host_block_.bytes + device_block_.bytes;
  stats.passes = pass_.n_committed();
  return stats;
}

/// Hashes of some tokens of a sequence at a time, so that one call reads several rows from the device. Stored bytes come through
/// a buffer on the stack, because const calls may overlap; a longer row comes in parts.
class CausalCache::TokenDigests {
 public:
  static constexpr int32_t tokens_max = 16;

  TokenDigests(const CausalCache& cache, int32_t sequence) : cache_(cache), sequence_(sequence) {}

  Status add(const Token* tokens, int32_t n, bool of_open_pass, DigestSum& sum) {
    Digest digest[tokens_max];
    int32_t cell[tokens_max];
    for (int32_t i = 0; i < n; ++i) {
      const int32_t header[] = {sequence_, tokens[i].position, cache_.book_.offset_of(tokens[i])};
      digest[i].update(header, sizeof header);
      cell[i] = tokens[i].cell;
    }
    for (int32_t layer = 0; layer < cache_.bounds_.n_layers; ++layer) {
      if (of_open_pass && !cache_.pass_.was_put(layer)) continue;
      for (int32_t i = 0; i < n; ++i) digest[i].update(&layer, sizeof layer);
      const LayerStorage& storage = cache_.layers_[layer].storage;
      for (int32_t head = 0; head < storage.k.n_heads; ++head) {
        for (const Slab* slab : {&storage.k, &storage.v}) {
          if (Status s = add_rows(*slab, head, cell, n, digest); s != Status::ok) return s;
        }
      }
    }
    for (int32_t i = 0; i < n; ++i) sum.add(digest[i]);
    return Status::ok;
  }

 private:
  Status add_rows(const Slab& slab, int32_t head, const int32_t* cell, int32_t n, Digest* digest) {
    const size_t part = std::min(slab.row_bytes, sizeof buffer_);
    const auto at_once = static_cast<int32_t>(std::min<size_t>(sizeof buffer_ / part, tokens_max));
    for (int32_t first = 0; first < n; first += at_once) {
      const int32_t rows = std::min(at_once, n - first);
      for (size_t at = 0; at < slab.row_bytes; at += part) {
        const size_t bytes = std::min(part, slab.row_bytes - at);
        const RowBytes read = {slab, head, cell + first, rows, at, bytes, buffer_};
        const Status status = cache_.health_.after(cache_.on_device_->read_rows(read));
        if (status != Status::ok) return status;
        for (int32_t i = 0; i < rows; ++i)
          digest[first + i].update(buffer_ + static_cast<size_t>(i) * bytes, bytes);
      }
    }
    return Status::ok;
  }

  const CausalCache& cache_;
  int32_t sequence_;
  std::byte buffer_[4096];
};

Status CausalCache::digest_tokens(int32_t index, DigestSum& sum) const {
  const CellBook::Sequence& sequence = book_.sequence(index);
  const int32_t count = sequence.tokens.count();
  const int32_t added = pass_.is_open() ? sequence.n_added : 0;
  TokenDigests digests(*this, index);
  for (int32_t at = 0; at < count;) {
    const bool of_open_pass = at >= count - added;
    const int32_t end = of_open_pass ? count : count - added;
    const int32_t n = std::min(end - at, TokenDigests::tokens_max);
    Token tokens[TokenDigests::tokens_max];
    for (int32_t i = 0; i < n; ++i) tokens[i] = sequence.tokens.at(at + i);
    if (Status s = digests.add(tokens, n, of_open_pass, sum); s != Status::ok) return s;
    at += n;
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

Status CausalCache::check() const { return book_.check(pass_.is_open()); }

}  // namespace kvc
