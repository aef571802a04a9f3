#include "core/caches/encoder.hpp"

#include <algorithm>
#include <new>
#include <numeric>

#include "core/base/digest.hpp"
#include "core/base/planted.hpp"
#include "core/caches/bounds.hpp"
#include "core/caches/row_digests.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

constexpr uint64_t page_bytes = 4096;

/// Inputs that a pass carries at most.
int32_t max_carrying(const CacheBounds& bounds) {
  return std::min(bounds.max_sequences, bounds.max_batch);
}

}  // namespace

Status EncoderCache::resolve(CacheBounds& bounds, const EncoderRequest& request,
                             EncoderSettings* settings) {
  if (Status s = check_bounds(bounds); s != Status::ok) return s;
  if (bounds.cells != 0) {
    return fail(Status::invalid_argument,
                "cells is %d; it must be 0: an encoder cache has `inputs` slots of capacity cells",
                bounds.cells);
  }
  if (Status s = check_range("inputs", request.inputs, 0, max_count); s != Status::ok) return s;
  if (Status s = resolve_heads(bounds); s != Status::ok) return s;
  const int64_t wanted = request.inputs > 0 ? request.inputs
                                            : int64_t{bounds.max_sequences} + max_carrying(bounds);
  if (wanted * bounds.capacity > max_count) {
    return fail(Status::overflow, "%lld inputs * capacity %d need more than %d cells: lower them",
                static_cast<long long>(wanted), bounds.capacity, max_count);
  }
  settings->n_slots = static_cast<int32_t>(wanted);
  settings->mask_dtype = request.mask_dtype;
  bounds.cells = settings->n_slots * bounds.capacity;
  return Status::ok;
}

EncoderCache::EncoderCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                           const EncoderSettings& settings)
    : device_(device),
      bounds_(bounds),
      settings_(settings),
      device_info_(device->info()),
      operator_(device->attention_operator(0)),
      memory_(device),
      pass_(bounds.n_layers),
      book_({.max_sequences = bounds.max_sequences,
             .max_batch = bounds.max_batch,
             .n_slots = settings.n_slots,
             .strict = bounds.strict},
            health_),
      layers_(bounds_) {}

Status EncoderCache::measure() {
  Carver host, on_device;
  carve_host(host);
  carve_device(on_device);
  return memory_.measure(host, on_device, bounds_);
}

Status EncoderCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                  const EncoderSettings& settings, uint64_t* bytes) {
  EncoderCache cache(device, bounds, settings);
  if (Status s = cache.measure(); s != Status::ok) return s;
  *bytes = cache.memory_.bytes();
  return Status::ok;
}

Status EncoderCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                            const EncoderSettings& settings, std::shared_ptr<Cache>* out) {
  std::shared_ptr<EncoderCache> cache(new (std::nothrow) EncoderCache(device, bounds, settings));
  if (!cache) return fail(Status::out_of_memory, "the process has no memory for a cache's object");
  if (Status s = cache->measure(); s != Status::ok) return s;
  if (Status s = cache->memory_.take(bounds.prefault); s != Status::ok) return s;
  Carver host(cache->memory_.host()), on_device(cache->memory_.on_device());
  cache->carve_host(host);
  cache->carve_device(on_device);
  cache->book_.reset();
  std::iota(cache->entries_, cache->entries_ + bounds.capacity, 0);
  const Status attached = device->attach(cache->attention_bounds(), cache->workspace_,
                                         &cache->on_device_);
  if (attached != Status::ok) return attached;
  *out = std::move(cache);
  return Status::ok;
}

AttentionBounds EncoderCache::attention_bounds() const {
  return {bounds_.capacity,   bounds_.max_batch,  bounds_.max_q_heads,
          bounds_.n_kv_heads, bounds_.head_dim_k, bounds_.head_dim_v};
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void EncoderCache::carve_host(Carver& carver) {
  const auto batch = static_cast<uint64_t>(bounds_.max_batch);
  const auto layers = static_cast<uint64_t>(bounds_.n_layers);
  const auto carrying = static_cast<uint64_t>(max_carrying(bounds_));
  layers_.carve_host(carver);
  book_.carve(carver);
  pass_.carve(carver);
  carrying_ = carver.take<int32_t>(static_cast<uint64_t>(bounds_.max_sequences), 64);
  carrying_slot_ = carver.take<int32_t>(carrying, 64);
  was_put_ = carver.take<uint8_t>(CheckedSize(carrying) * CheckedSize(layers), 64);
  missing_ = carver.take<int32_t>(layers, 64);
  entries_ = carver.take<int32_t>(static_cast<uint64_t>(bounds_.capacity), 64);
  list_of_ = carver.take<int32_t>(static_cast<uint64_t>(settings_.n_slots), 64);
  list_end_ = carver.take<int32_t>(batch, 64);
  rows_ = carver.take<AttentionRow>(batch, 64);
  lists_ = carver.take<TokenList>(batch, 64);
  padding_ = carver.take<int32_t>(batch, 64);
}

void EncoderCache::carve_device(Carver& carver) {
  layers_.carve_device(carver, bounds_.cells);
  workspace_ = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()), page_bytes);
}

// ---- Sequences ----------------------------------------------------------------------------------------------------------

Status EncoderCache::can_resume(int32_t sequence, int32_t want, int32_t* best) const {
  if (Status s = check_resume(sequence, want, bounds_.max_sequences); s != Status::ok) return s;
  *best = book_.best_continuation(sequence, want);
  return Status::ok;
}

Status EncoderCache::resume(int32_t sequence, int32_t want, int32_t* got) {
  int32_t best = 0;
  if (Status s = can_resume(sequence, want, &best); s != Status::ok) return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  book_.cut(sequence, best);
  if (got != nullptr) *got = best;
  return clear_freed();
}

Status EncoderCache::copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) {
  if (Status s = check_copy(source, destination, length, bounds_.max_sequences); s != Status::ok)
    return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  const int32_t best = book_.best_continuation(source, length);
  book_.copy_prefix(source, destination, best);
  if (got != nullptr) *got = best;
  return clear_freed();
}

Status EncoderCache::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  if (Status s = book_.check_reorder(n, destination, source); s != Status::ok) return s;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  book_.reorder(n, destination, source);
  return clear_freed();
}

Status EncoderCache::check_removal(int32_t sequence, int32_t begin, int32_t end) const {
  const Status status = kvc::check_range(sequence, begin, end, bounds_.max_sequences);
  if (status != Status::ok) return status;
  if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
  return book_.check_removal(sequence, begin, end);
}

Status EncoderCache::can_remove(int32_t sequence, int32_t begin, int32_t end) const {
  return check_removal(sequence, begin, end);
}

Status EncoderCache::remove(int32_t sequence, int32_t begin, int32_t end) {
  if (Status s = check_removal(sequence, begin, end); s != Status::ok) return s;
  if (Status s = keep_pass(); s != Status::ok) return s;
  book_.remove(sequence, begin, end);
  return clear_freed();
}

Status EncoderCache::sequence_info(int32_t sequence, SequenceInfo* info) const {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  *info = book_.info(sequence);
  return Status::ok;
}

Status EncoderCache::input_of(int32_t sequence, int32_t* position, int32_t* length) const {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  const Input& input = book_.sequence(sequence).then;
  if (position != nullptr) *position = input.exists() ? input.at : -1;
  if (length != nullptr) *length = input.exists() ? book_.length(input.slot) : 0;
  return Status::ok;
}

// ---- Watching -------------------------------------------------------------------------------------------------------------

CacheStats EncoderCache::stats() const {
  CacheStats stats;
  stats.state = health_.ok() ? pass_.state() : CacheState::poisoned;
  stats.cells = static_cast<uint64_t>(bounds_.cells);
  stats.cells_used = static_cast<uint64_t>(book_.used());
  stats.cells_shared = static_cast<uint64_t>(book_.shared());
  stats.bytes = memory_.bytes();
  stats.passes = pass_.n_committed();
  return stats;
}

Status EncoderCache::digest_input(int32_t sequence, const Input& input, int32_t tag,
                                  DigestSum& sum) const {
  if (!input.exists()) return Status::ok;
  const int32_t length = book_.length(input.slot);
  const int32_t header[] = {tag, sequence, input.at, input.first, length};
  sum.add(Digest().update(header, sizeof header));
  RowDigests rows(*on_device_, health_);
  for (int32_t at = 0; at < length; at += RowDigests::rows_max) {
    const int32_t n = std::min(length - at, RowDigests::rows_max);
    for (int32_t i = 0; i < n; ++i) {
      const int32_t place[] = {tag, sequence, at + i};
      rows[i].update(place, sizeof place);
      rows.cell[i] = at + i;
    }
    const int32_t n_layers = bounds_.n_layers - planted(Bug::digest_without_last_layer);
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      if (!is_stored(layer, input.slot)) continue;
      const Status status = rows.add_layer(layer, storage_at(layer, input.slot), n);
      if (status != Status::ok) return status;
    }
    rows.finish(n, sum);
  }
  return Status::ok;
}

/// A sum over sequences and positions of inputs, so neither slots nor order matter.
Status EncoderCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const InputBook::Sequence& sequence = book_.sequence(index);
    if (sequence.next != 0) {
      const int32_t header[] = {-1, index, sequence.next};
      sum.add(Digest().update(header, sizeof header));
    }
    if (Status s = digest_input(index, sequence.then, 0, sum); s != Status::ok) return s;
    if (sequence.carrier < 0) continue;
    // What abort brings back, and that it is an open pass which carries the other.
    if (Status s = digest_input(index, sequence.held, 1, sum); s != Status::ok) return s;
    const int32_t carried[] = {-3, index, sequence.shares};
    sum.add(Digest().update(carried, sizeof carried));
  }
  if (pass_.is_open()) {
    const int32_t open[] = {-2};
    sum.add(Digest().update(open, sizeof open));
  }
  sum.copy_to(out);
  return Status::ok;
}

Status EncoderCache::check() const { return book_.check(pass_.is_open()); }

}  // namespace kvc
