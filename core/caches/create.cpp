#include "core/caches/create.hpp"

namespace kvc {
namespace {

/// Calls the use for the kind, with bounds and settings resolved.
template <class Use>
Status with_kind(const CacheRequest& request, Use use) {
  CacheBounds bounds = request.bounds;
  switch (request.kind) {
    case CacheKind::causal: {
      CausalSettings settings;
      if (Status s = CausalCache::resolve(bounds, request.causal, &settings); s != Status::ok)
        return s;
      return use(static_cast<CausalCache*>(nullptr), bounds, settings);
    }
    case CacheKind::encoder: {
      EncoderSettings settings;
      if (Status s = EncoderCache::resolve(bounds, request.encoder, &settings); s != Status::ok)
        return s;
      return use(static_cast<EncoderCache*>(nullptr), bounds, settings);
    }
    case CacheKind::wrapper:
      return fail(
          Status::not_supported,
          "kind %u (KVC_WRAPPER) has no memory of its own: kvc_cache_wrap makes it of other "
          "caches",
          static_cast<uint32_t>(request.kind));
    case CacheKind::recurrent: {
      RecurrentSettings settings;
      if (Status s = RecurrentCache::resolve(bounds, request.recurrent, &settings); s != Status::ok)
        return s;
      return use(static_cast<RecurrentCache*>(nullptr), bounds, settings);
    }
    case CacheKind::transformer: {
      TransformerSettings settings;
      if (Status s = TransformerCache::resolve(bounds, request.transformer, &settings);
          s != Status::ok)
        return s;
      return use(static_cast<TransformerCache*>(nullptr), bounds, settings);
    }
    case CacheKind::lightning: {
      LightningSettings settings;
      if (Status s = LightningCache::resolve(bounds, request.lightning, &settings); s != Status::ok)
        return s;
      return use(static_cast<LightningCache*>(nullptr), bounds, settings);
    }
  }
  __builtin_unreachable();  // the boundary knows no other kinds
}

/// Whether the device has what the kind needs. The request is valid.
Status check_device(const Device& device, CacheKind kind, const CacheBounds& bounds) {
  CacheNeeds needs;
  needs.row_k = bounds.row_k;
  needs.row_v = bounds.row_v;
  switch (kind) {
    case CacheKind::causal: needs.kind = "a causal cache (KVC_CAUSAL)"; break;
    case CacheKind::encoder: needs.kind = "an encoder cache (KVC_ENCODER)"; break;
    case CacheKind::transformer: needs.kind = "a transformer cache (KVC_TRANSFORMER)"; break;
    case CacheKind::recurrent: needs.kind = "a recurrent cache (KVC_RECURRENT)"; break;
    case CacheKind::lightning:
      needs.kind = "a lightning cache (KVC_LIGHTNING)";
      needs.lightning = {bounds.n_kv_heads, bounds.max_q_heads, bounds.head_dim_k,
                         bounds.head_dim_v, 0};
      break;
    case CacheKind::wrapper: break;  // of caches that exist
  }
  return device.check(needs);
}

}  // namespace

Status check_request(const CacheRequest& request) {
  return with_kind(request,
                   [](auto*, const CacheBounds&, const auto&) -> Status { return Status::ok; });
}

Status cache_memory_bytes(const std::shared_ptr<Device>& device, const CacheRequest& request,
                          uint64_t* bytes) {
  return with_kind(request, [&](auto* kind, const CacheBounds& bounds, const auto& settings) {
    if (Status s = check_device(*device, request.kind, bounds); s != Status::ok) return s;
    return std::remove_pointer_t<decltype(kind)>::memory_bytes(device, bounds, settings, bytes);
  });
}

Status create_cache(const std::shared_ptr<Device>& device, const CacheRequest& request,
                    std::shared_ptr<Cache>* out) {
  return with_kind(request, [&](auto* kind, const CacheBounds& bounds, const auto& settings) {
    if (Status s = check_device(*device, request.kind, bounds); s != Status::ok) return s;
    return std::remove_pointer_t<decltype(kind)>::create(device, bounds, settings, out);
  });
}

}  // namespace kvc
