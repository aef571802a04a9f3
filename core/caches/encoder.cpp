#include "core/caches/encoder.hpp"

#include <algorithm>
#include <numeric>

#include "core/base/carver.hpp"
#include "core/base/digest.hpp"
#include "core/base/planted.hpp"
#include "core/caches/bounds.hpp"
#include "core/caches/row_digests.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

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
  if (Status s = resolve_storage(bounds); s != Status::ok) return s;
  if (bounds.interleaved || bounds.v_in_k) {
    return fail(Status::not_supported,
                "an encoder cache (KVC_ENCODER) has no %s: a causal cache (KVC_CAUSAL) has",
                bounds.interleaved ? "KVC_CACHE_INTERLEAVED" : "KVC_CACHE_V_IN_K");
  }
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
    : KvCache(device, bounds,
              InputRules{.max_sequences = bounds.max_sequences,
                         .max_batch = bounds.max_batch,
                         .n_slots = settings.n_slots,
                         .strict = bounds.strict},
              {}, feature_not_causal),
      settings_(settings) {}

Status EncoderCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                  const EncoderSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<EncoderCache>(device, bounds, settings, bytes);
}

Status EncoderCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                            const EncoderSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<EncoderCache>(device, bounds, settings, out);
}

Status EncoderCache::attach() {
  std::iota(entries_, entries_ + bounds_.capacity, 0);
  return device_->attach(attention_bounds(), workspace_, &on_device_);
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
  carve_host_workspace(carver, attention_bounds());
}

void EncoderCache::carve_device(Carver& carver) {
  layers_.carve_device(carver, bounds_.cells);
  workspace_.on_device = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()),
                                                page_bytes);
}

// ---- Sequences ----------------------------------------------------------------------------------------------------------

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
  stats.state = state();
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

}  // namespace kvc
