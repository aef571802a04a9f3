#include "core/caches/transformer.hpp"

#include <algorithm>

#include "core/base/carver.hpp"
#include "core/base/digest.hpp"
#include "core/base/planted.hpp"
#include "core/caches/bounds.hpp"
#include "core/caches/row_digests.hpp"

namespace kvc {
namespace {

/// What a row of a batch holds, and how far a token sees.
Status resolve_rules(const CacheBounds& bounds, const TransformerRequest& request, RowRules* rules) {
  rules->n_rows = bounds.max_sequences;
  rules->length = bounds.capacity;
  rules->q_max = bounds.max_batch / bounds.max_sequences;
  if (rules->q_max < 1) {
    return fail(Status::invalid_argument,
                "max_batch %d is below max_sequences %d: a pass has a token or more of each row",
                bounds.max_batch, bounds.max_sequences);
  }
  rules->ring = request.ring;
  rules->not_causal = request.not_causal;
  rules->notes_freed = bounds.zero_on_free;
  rules->columns = bounds.capacity + (request.ring ? rules->q_max : 0);
  rules->reach = request.reach > 0 ? request.reach : RowRules::no_limit;
  if (request.ring) rules->reach = std::min(rules->reach, bounds.capacity - 1);
  return Status::ok;
}

}  // namespace

Status TransformerCache::resolve(CacheBounds& bounds, const TransformerRequest& request,
                                 TransformerSettings* settings) {
  if (Status s = check_bounds(bounds); s != Status::ok) return s;
  if (bounds.cells != 0) {
    return fail(Status::invalid_argument,
                "cells is %d; it must be 0: a transformer cache has max_sequences rows of capacity "
                "cells",
                bounds.cells);
  }
  if (Status s = check_range("reach", request.reach, 0, max_count); s != Status::ok) return s;
  if (Status s = check_range("value_heads", bounds.value_heads, 0, max_extent); s != Status::ok)
    return s;
  if (Status s = resolve_rules(bounds, request, &settings->rules); s != Status::ok) return s;
  if (Status s = resolve_heads(bounds); s != Status::ok) return s;
  if (Status s = resolve_storage(bounds); s != Status::ok) return s;
  if (bounds.value_heads != bounds.n_kv_heads && (bounds.interleaved || bounds.v_in_k)) {
    return fail(Status::invalid_argument,
                "value_heads %d differs from n_kv_heads %d; with %s a head of K holds one of V",
                bounds.value_heads, bounds.n_kv_heads,
                bounds.interleaved ? "KVC_CACHE_INTERLEAVED" : "KVC_CACHE_V_IN_K");
  }
  const int64_t cells = int64_t{bounds.max_sequences} * settings->rules.columns;
  if (cells > max_count) {
    return fail(Status::overflow, "max_sequences %d * %d columns are more than %d cells: lower them",
                bounds.max_sequences, settings->rules.columns, max_count);
  }
  settings->mask_dtype = request.mask_dtype;
  bounds.cells = static_cast<int32_t>(cells);
  return Status::ok;
}

TransformerCache::TransformerCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                   const TransformerSettings& settings)
    : TokenCache(device, bounds, settings.rules, {.begin = "kvc_begin_rows"},
                 feature_transformer | features_of(visibility_of(settings.rules))),
      settings_(settings) {}

Status TransformerCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                      const TransformerSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<TransformerCache>(device, bounds, settings, bytes);
}

Status TransformerCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                const TransformerSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<TransformerCache>(device, bounds, settings, out);
}

Status TransformerCache::attach() {
  plan_.reset();
  return device_->attach(attention_bounds(), workspace_, &on_device_);
}

AttentionBounds TransformerCache::attention_bounds() const {
  return {plan_.n_entries(),  bounds_.max_batch,  bounds_.max_q_heads, bounds_.n_kv_heads,
          bounds_.head_dim_k, bounds_.head_dim_v, plan_.seen_words()};
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void TransformerCache::carve_host(Carver& carver) {
  layers_.carve_host(carver);
  book_.carve(carver);
  pass_.carve(carver);
  plan_.carve(carver);
  moves_ = carver.take<Move>(static_cast<uint64_t>(bounds_.max_sequences), 64);
  carve_host_workspace(carver, attention_bounds());
}

void TransformerCache::carve_device(Carver& carver) {
  layers_.carve_device(carver, bounds_.cells);
  workspace_.on_device = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()),
                                                page_bytes);
}

// ---- Watching -------------------------------------------------------------------------------------------------------------

CacheStats TransformerCache::stats() const {
  CacheStats stats;
  stats.state = state();
  stats.cells = static_cast<uint64_t>(bounds_.cells);
  stats.cells_used = static_cast<uint64_t>(book_.used());
  stats.cells_shared = 0;
  stats.bytes = memory_.bytes();
  stats.passes = pass_.n_committed();
  return stats;
}

Status TransformerCache::digest_row(int32_t index, DigestSum& sum) const {
  const RowBook::Row& row = book_.sequence(index);
  const int32_t added = row.next - row.n_added;
  RowDigests rows(*on_device_, health_);
  for (int32_t at = book_.first_kept(row), n = 0; at < row.next; at += n) {
    const bool of_open_pass = at >= added;
    n = std::min((of_open_pass ? row.next : added) - at, RowDigests::rows_max);
    for (int32_t i = 0; i < n; ++i) {
      const int32_t place[] = {index, at + i};
      rows[i].update(place, sizeof place);
      rows.cell[i] = book_.cell(index, at + i);
    }
    for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
      if (of_open_pass && !pass_.was_put(layer)) continue;
      if (Status s = rows.add_layer(layer, layers_[layer].storage, n); s != Status::ok) return s;
    }
    rows.finish(n, sum);
  }
  return Status::ok;
}

Status TransformerCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const RowBook::Row& row = book_.sequence(index);
    if (row.next != 0 || row.starts != 0) {
      const int32_t starts = planted(Bug::digest_without_starts) ? 0 : row.starts;
      const int32_t header[] = {-1, index, row.next, book_.lost_after(row), starts};
      sum.add(Digest().update(header, sizeof header));
    }
    if (Status s = digest_row(index, sum); s != Status::ok) return s;
  }
  if (pass_.is_open()) {
    const int32_t open[] = {-2};
    sum.add(Digest().update(open, sizeof open));
    for (int32_t token = 0; token < pass_.n_tokens(); ++token) {
      if (!plan_.sees_later(token)) continue;
      const int32_t except[] = {-3, token / q_len(), token % q_len()};
      sum.add(Digest().update(except, sizeof except));
    }
  }
  sum.copy_to(out);
  return Status::ok;
}

}  // namespace kvc
