#pragma once
#include "core/base/allocator.hpp"

namespace gpu {

/// Where caches of a test have their device memory, so that a test can read views of it. Null: where the device has it.
const kvc::Allocator* lent_memory();

}  // namespace gpu
