#pragma once
#include <cstdint>

namespace kvc {

/// The number of the ABI: its state contains tokens that were removed from its middle.
inline constexpr uint32_t sequence_approximate = 1;

/// What a sequence holds, as sequence_query tells it.
struct SequenceInfo {
  int32_t first, next, count, room, lost_below;
  uint32_t flags = 0;  // sequence_…
};

}  // namespace kvc
