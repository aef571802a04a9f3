#include "core/caches/causal.hpp"

#include "core/base/carver.hpp"
#include "core/caches/bounds.hpp"

namespace kvc {
namespace {

/// Cells that the other bounds can need at most.
CheckedSize needed_cells(const CacheBounds& bounds, const CausalSettings& settings) {
  const CheckedSize sequences(static_cast<uint64_t>(bounds.max_sequences));
  if (!settings.limited) return sequences * CheckedSize(static_cast<uint64_t>(bounds.capacity));
  const CheckedSize kept = CheckedSize(static_cast<uint64_t>(settings.memory)) +
                           CheckedSize(static_cast<uint64_t>(settings.visibility.keep_first));
  return sequences * kept + CheckedSize(2) * CheckedSize(static_cast<uint64_t>(bounds.max_batch));
}

Status check_request(const CausalRequest& r) {
  if (Status s = check_range("reach", r.reach, 0, max_count); s != Status::ok) return s;
  if (Status s = check_range("memory", r.memory, -1, max_count); s != Status::ok) return s;
  if (Status s = check_range("chunk", r.chunk, 0, max_count); s != Status::ok) return s;
  if (Status s = check_range("keep_first", r.keep_first, 0, max_count); s != Status::ok) return s;
  if (Status s = check_range("cell_padding", r.cell_padding, 0, max_extent); s != Status::ok)
    return s;
  return Status::ok;
}

/// semantics §2, Sizes.
void resolve_memory(const CacheBounds& bounds, const CausalRequest& request, CausalSettings* settings) {
  settings->limited = request.memory != -1 &&
                      (request.reach > 0 || (request.chunk > 0 && request.memory > 0));
  if (!settings->limited) return;
  int64_t least = request.reach > 0 ? request.reach : request.chunk - 1;
  if (bounds.max_sequences > 1) least += 1;  // room to step back one token
  const int64_t wanted = request.memory > 0 ? request.memory : request.reach;
  const int64_t memory = wanted > least ? wanted : least;
  settings->limited = memory < bounds.capacity;
  settings->memory = static_cast<int32_t>(settings->limited ? memory : bounds.capacity);
}

/// How many positions a sequence stores at most. resolve() makes sure that it fits max_count.
int64_t sequence_limit(const CacheBounds& bounds, const CausalSettings& settings) {
  if (!settings.limited) return bounds.capacity;
  return int64_t{settings.memory} + settings.visibility.keep_first + 2 * int64_t{bounds.max_batch};
}

BookRules rules_of(const CacheBounds& bounds, const CausalSettings& settings,
                   const DeviceInfo& device) {
  return {.max_sequences = bounds.max_sequences,
          .max_batch = bounds.max_batch,
          .n_cells = bounds.cells,
          .sequence_limit = static_cast<int32_t>(sequence_limit(bounds, settings)),
          .visibility = settings.visibility,
          .memory = settings.memory,
          .limited = settings.limited,
          .strict = bounds.strict,
          .notes_freed = bounds.zero_on_free,
          .notes_changes = device.follows_tokens};
}

}  // namespace

Status CausalCache::resolve(CacheBounds& bounds, const CausalRequest& request,
                            CausalSettings* settings) {
  if (Status s = check_bounds(bounds); s != Status::ok) return s;
  if (Status s = check_request(request); s != Status::ok) return s;
  if (Status s = resolve_heads(bounds); s != Status::ok) return s;
  if (Status s = resolve_storage(bounds); s != Status::ok) return s;
  settings->visibility = {request.reach, request.chunk, request.keep_first};
  settings->position_free = request.position_free;
  settings->cell_padding = request.cell_padding > 0 ? request.cell_padding : 1;
  settings->mask_dtype = request.mask_dtype;
  resolve_memory(bounds, request, settings);
  if (sequence_limit(bounds, *settings) > max_count) {
    return fail(
        Status::overflow,
        "memory %d + keep_first %d + 2 * max_batch %d are more positions than the %d that a "
        "sequence may hold",
        settings->memory, request.keep_first, bounds.max_batch, max_count);
  }
  const CheckedSize cells = needed_cells(bounds, *settings);
  const auto padding = static_cast<uint64_t>(settings->cell_padding);
  if (bounds.cells == 0) {
    if (cells.overflowed() || cells.value() > static_cast<uint64_t>(max_count)) {
      return fail(Status::overflow,
                  "max_sequences %d * %s %d need more than %d cells: lower them, or choose cells",
                  bounds.max_sequences, settings->limited ? "(memory + keep_first)" : "capacity",
                  settings->limited ? settings->memory + request.keep_first : bounds.capacity,
                  max_count);
    }
    bounds.cells = static_cast<int32_t>(cells.value());
  }
  if (static_cast<uint64_t>(bounds.cells) + padding > static_cast<uint64_t>(max_count) + 1) {
    return fail(Status::overflow, "cells %d, rounded up to cell_padding %d, are more than %d",
                bounds.cells, settings->cell_padding, max_count);
  }
  return Status::ok;
}

CausalCache::CausalCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                         const CausalSettings& settings)
    : TokenCache(device, bounds, rules_of(bounds, settings, device->info()), {},
                 features_of(settings.visibility), bounds.max_batch),
      settings_(settings),
      copies_(book_) {}

Status CausalCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                 const CausalSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<CausalCache>(device, bounds, settings, bytes);
}

Status CausalCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                           const CausalSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<CausalCache>(device, bounds, settings, out);
}

Status CausalCache::attach() {
  return device_->attach(attention_bounds(), workspace_, &on_device_);
}

AttentionBounds CausalCache::attention_bounds() const {
  return {.n_token_entries = book_.n_token_entries(),
          .max_batch = bounds_.max_batch,
          .max_q_heads = bounds_.max_q_heads,
          .n_kv_heads = bounds_.n_kv_heads,
          .head_dim_k = bounds_.head_dim_k,
          .head_dim_v = bounds_.head_dim_v,
          .shares_prefixes = true};
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void CausalCache::carve_host(Carver& carver) {
  layers_.carve_host(carver);
  book_.carve(carver);
  pass_.carve(carver);
  plan_.carve(carver);
  carve_host_workspace(carver, attention_bounds());
}

void CausalCache::carve_device(Carver& carver) {
  // The dense view of get() may be rounded up to the padding: rows behind the last cell exist and stay zero.
  const int32_t padding = settings_.cell_padding;
  layers_.carve_device(carver, (bounds_.cells + padding - 1) / padding * padding);
  workspace_.on_device = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()),
                                                page_bytes);
}

}  // namespace kvc
