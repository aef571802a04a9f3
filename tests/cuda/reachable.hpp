#pragma once
#include <cstddef>

namespace gpu {

/// Makes a block of the host's memory one that kernels reach at the same address, until the program ends. Ends it where that cannot be.
void make_reachable(void* block, size_t bytes);

}  // namespace gpu
