#pragma once
#include <cstdint>

#include "core/base/status.hpp"
#include "core/caches/cache.hpp"

/// Checks of the bounds that caches of keys and values share.
namespace kvc {

inline constexpr int32_t max_extent = 65536;  // layers, heads, dimensions
inline constexpr int32_t max_count = 1 << 30;  // sequences, positions, tokens, cells: two of them add up without overflow

Status check_range(const char* name, int32_t value, int32_t low, int32_t high);
Status check_bounds(const CacheBounds& bounds);

/// Fills in the defaults of head_dim_v and max_q_heads. Behind everything that checks a single bound.
Status resolve_heads(CacheBounds& bounds);

/// Fills in how K and V are stored. Behind resolve_heads().
Status resolve_storage(CacheBounds& bounds);

}  // namespace kvc
