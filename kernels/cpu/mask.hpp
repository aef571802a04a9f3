#pragma once
#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"

namespace kvc::cpu {

/// Writes which cells each token of the batch sees: for booleans 1 and 0, for floats 0 and minus infinity.
void write_mask(const MaskParams& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
