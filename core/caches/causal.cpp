#include "core/caches/causal.hpp"

#include <cmath>
#include <new>

#include "core/base/messages.hpp"

namespace kvc {
namespace {

constexpr int32_t max_extent = 65536;  // layers, heads, dimensions
constexpr int32_t max_count = 1 << 30;  // sequences, positions, tokens, cells: two of them add up without overflow
constexpr uint64_t page_bytes = 4096;

Status in_range(const char* name, int32_t value, int32_t low, int32_t high) {
  return value >= low && value <= high ? Status::ok : out_of_range(name, value, low, high);
}

/// Heads of a layer lie this far apart: off powers of two, so that the streams of several heads, and K's and V's of one
/// head, do not meet in the same sets of the first-level cache.
CheckedSize head_stride(int32_t rows, size_t row_bytes) {
  const CheckedSize bytes = CheckedSize(static_cast<uint64_t>(rows)) * CheckedSize(row_bytes);
  return bytes.rounded_up(page_bytes) + CheckedSize(uint64_t{9} * 64);
}

/// Cells that the other bounds can need at most.
CheckedSize needed_cells(const CacheBounds& bounds, const CausalSettings& settings) {
  const CheckedSize sequences(static_cast<uint64_t>(bounds.max_sequences));
  if (!settings.limited) return sequences * CheckedSize(static_cast<uint64_t>(bounds.capacity));
  const CheckedSize kept = CheckedSize(static_cast<uint64_t>(settings.memory)) +
                           CheckedSize(static_cast<uint64_t>(settings.visibility.keep_first));
  return sequences * kept + CheckedSize(2) * CheckedSize(static_cast<uint64_t>(bounds.max_batch));
}

Status check_bounds(const CacheBounds& b) {
  struct Check {
    const char* name;
    int32_t value, low, high;
  };
  const Check checks[] = {{"n_layers", b.n_layers, 1, max_extent},
                          {"n_kv_heads", b.n_kv_heads, 1, max_extent},
                          {"head_dim_k", b.head_dim_k, 1, max_extent},
                          {"head_dim_v", b.head_dim_v, 0, max_extent},
                          {"max_sequences", b.max_sequences, 1, max_count},
                          {"capacity", b.capacity, 1, max_count},
                          {"max_batch", b.max_batch, 1, max_count},
                          {"cells", b.cells, 0, max_count},
                          {"max_q_heads", b.max_q_heads, 0, max_extent * 16}};
  for (const Check& check : checks) {
    if (Status s = in_range(check.name, check.value, check.low, check.high); s != Status::ok)
      return s;
  }
  return Status::ok;
}

Status check_request(const CausalRequest& r) {
  if (Status s = in_range("reach", r.reach, 0, max_count); s != Status::ok) return s;
  if (Status s = in_range("memory", r.memory, -1, max_count); s != Status::ok) return s;
  if (Status s = in_range("chunk", r.chunk, 0, max_count); s != Status::ok) return s;
  if (Status s = in_range("keep_first", r.keep_first, 0, max_count); s != Status::ok) return s;
  if (Status s = in_range("cell_padding", r.cell_padding, 0, max_extent); s != Status::ok) return s;
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
  if (bounds.head_dim_v == 0) bounds.head_dim_v = bounds.head_dim_k;
  if (bounds.max_q_heads == 0) bounds.max_q_heads = bounds.n_kv_heads * 16;
  if (bounds.max_q_heads < bounds.n_kv_heads) {
    return fail(Status::invalid_argument,
                "max_q_heads %d is below n_kv_heads %d: each KV head serves a query head or more",
                bounds.max_q_heads, bounds.n_kv_heads);
  }
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
    : device_(device),
      bounds_(bounds),
      settings_(settings),
      device_info_(device->info()),
      operator_(device->attention_operator(0)),
      pass_(bounds.n_layers),
      book_(rules_of(bounds, settings, device_info_), health_),
      plan_(book_, bounds.max_batch) {}

CausalCache::~CausalCache() {
  on_device_.reset();
  if (host_block_.data != nullptr)
    device_->release(Place::host, host_block_.data, host_block_.bytes);
  if (device_block_.data != nullptr)
    device_->release(Place::device, device_block_.data, device_block_.bytes);
}

/// Lays the cache out over no blocks, which touches nothing.
Status CausalCache::measure() {
  Carver host, device;
  carve_host(host);
  carve_device(device);
  const CheckedSize host_bytes = host.used().rounded_up(page_bytes);
  const CheckedSize device_bytes = device.used().rounded_up(page_bytes);
  const CheckedSize total = host_bytes + device_bytes;
  if (total.overflowed() || total.value() > static_cast<uint64_t>(PTRDIFF_MAX)) {
    return fail(
        Status::overflow,
        "n_layers %d, n_kv_heads %d, head_dim_k %d, head_dim_v %d, max_batch %d and %d cells need "
        "more bytes than the address space has",
        bounds_.n_layers, bounds_.n_kv_heads, bounds_.head_dim_k, bounds_.head_dim_v,
        bounds_.max_batch, bounds_.cells);
  }
  host_block_.bytes = host_bytes.value();
  device_block_.bytes = device_bytes.value();
  return Status::ok;
}

Status CausalCache::take_blocks() {
  const auto take = [this](Place place, Block& block) {
    block.data = device_->allocate(place, block.bytes, bounds_.prefault);
    if (block.data != nullptr) return Status::ok;
    return fail(Status::out_of_memory,
                "there is no block of %llu bytes for %s; fewer cells, layers or sequences need "
                "less (kvc_cache_memory_bytes)",
                static_cast<unsigned long long>(block.bytes),
                place == Place::device ? "K, V and workspace" : "the bookkeeping");
  };
  if (Status s = take(Place::device, device_block_); s != Status::ok) return s;
  return take(Place::host, host_block_);
}

Status CausalCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                 const CausalSettings& settings, uint64_t* bytes) {
  CausalCache cache(device, bounds, settings);
  if (Status s = cache.measure(); s != Status::ok) return s;
  *bytes = cache.host_block_.bytes + cache.device_block_.bytes;
  return Status::ok;
}

Status CausalCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                           const CausalSettings& settings, std::shared_ptr<Cache>* out) {
  std::shared_ptr<CausalCache> cache(new (std::nothrow) CausalCache(device, bounds, settings));
  if (!cache) return fail(Status::out_of_memory, "the process has no memory for a cache's object");
  if (Status s = cache->measure(); s != Status::ok) return s;
  if (Status s = cache->take_blocks(); s != Status::ok) return s;
  Carver host(cache->host_block_.data), on_device(cache->device_block_.data);
  cache->carve_host(host);
  cache->carve_device(on_device);
  cache->book_.reset();
  const Status attached = device->attach(cache->attention_bounds(), cache->workspace_,
                                         &cache->on_device_);
  if (attached != Status::ok) return attached;
  *out = std::move(cache);
  return Status::ok;
}

AttentionBounds CausalCache::attention_bounds() const {
  return {book_.n_token_entries(), bounds_.max_batch,  bounds_.max_q_heads,
          bounds_.n_kv_heads,      bounds_.head_dim_k, bounds_.head_dim_v};
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void CausalCache::carve_host(Carver& carver) {
  layers_ = carver.take<Layer>(static_cast<uint64_t>(bounds_.n_layers), page_bytes);
  book_.carve(carver);
  pass_.carve(carver);
  plan_.carve(carver);
  Layer measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index) {
    Layer& layer = layers_ == nullptr ? measured : *new (&layers_[index]) Layer();
    layer.slopes = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.sinks = carver.take<float>(static_cast<uint64_t>(bounds_.max_q_heads), 64);
    layer.frequency = carver.take<double>(static_cast<uint64_t>(bounds_.head_dim_k / 2), 64);
  }
}

void CausalCache::carve_device(Carver& carver) {
  LayerStorage measured;
  for (int32_t index = 0; index < bounds_.n_layers; ++index)
    carve_slabs(carver, layers_ == nullptr ? measured : layers_[index].storage);
  workspace_ = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()), page_bytes);
}

void CausalCache::carve_slabs(Carver& carver, LayerStorage& storage) const {
  // The dense view of get() may be rounded up to the padding: rows behind the last cell exist and stay zero.
  const int32_t padding = settings_.cell_padding;
  const int32_t rows = (bounds_.cells + padding - 1) / padding * padding;
  const auto carve_slab = [&](Slab& slab, int32_t head_dim, StorageType type, uint64_t alignment) {
    slab.type = type;
    slab.n_heads = bounds_.n_kv_heads;
    slab.n_cells = rows;
    slab.head_dim = head_dim;
    slab.row_bytes = row_bytes(type, head_dim);
    const CheckedSize stride = head_stride(rows, slab.row_bytes);
    slab.head_stride = stride.value();
    slab.data = carver.take<std::byte>(CheckedSize(static_cast<uint64_t>(slab.n_heads)) * stride,
                                       alignment);
  };
  carve_slab(storage.k, bounds_.head_dim_k, bounds_.type_k, page_bytes);
  carver.take<std::byte>(page_bytes / 2, page_bytes);  // V begins half a page off K
  carve_slab(storage.v, bounds_.head_dim_v, bounds_.type_v, 64);
}

}  // namespace kvc
