#pragma once
#include <cstdint>
#include <vector>

#include "core/base/storage.hpp"

namespace kvc {

/// The numbers that a stored row stands for (docs/SEMANTICS.md, section 9), rotated back in double.
std::vector<double> read_stored_row(const Slab& slab, int32_t head, int32_t cell);

}  // namespace kvc
