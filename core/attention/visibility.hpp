#pragma once
#include <algorithm>
#include <cstdint>

namespace kvc {

/// What a token may see, in positions. All zero: everything up to itself.
struct Visibility {
  int32_t reach = 0;       // itself and the `reach` positions before it; 0: no limit
  int32_t chunk = 0;       // nothing before the start of its chunk; 0: no chunks
  int32_t keep_first = 0;  // positions below stay visible whatever the reach (never across a chunk)

  int32_t chunk_start(int32_t position) const {
    return chunk > 0 ? position - position % chunk : 0;
  }

  /// The lowest position inside the reach and the chunk of a token at `position` (keep_first aside).
  int32_t low(int32_t position) const {
    const int32_t reached = reach > 0 ? std::max(0, position - reach) : 0;
    return std::max(reached, chunk_start(position));
  }
};

}  // namespace kvc
