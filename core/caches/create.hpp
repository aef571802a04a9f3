#pragma once
#include <cstdint>
#include <memory>

#include "core/caches/cache.hpp"
#include "core/caches/causal.hpp"
#include "core/caches/encoder.hpp"
#include "core/caches/lightning.hpp"
#include "core/caches/recurrent.hpp"
#include "core/caches/transformer.hpp"
#include "core/device.hpp"

namespace kvc {

/// The numbers are the ABI's.
enum class CacheKind : uint32_t { causal = 1, encoder, recurrent, wrapper, transformer, lightning };

/// What a caller asks for, as the boundary read it: bounds, and what the kind alone needs.
struct CacheRequest {
  CacheKind kind = CacheKind::causal;
  CacheBounds bounds;
  CausalRequest causal;
  EncoderRequest encoder;
  RecurrentRequest recurrent;
  TransformerRequest transformer;
  LightningRequest lightning;
};

/// Checks kind, bounds and what the kind alone needs, as the two functions below do.
Status check_request(const CacheRequest& request);

/// Bytes that create_cache() would take. Allocates nothing.
Status cache_memory_bytes(const std::shared_ptr<Device>& device, const CacheRequest& request,
                          uint64_t* bytes);

/// These three hold the only switch over kinds.
Status create_cache(const std::shared_ptr<Device>& device, const CacheRequest& request,
                    std::shared_ptr<Cache>* out);

}  // namespace kvc
