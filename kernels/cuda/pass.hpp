#pragma once
#include <cstddef>

#include "core/attention/params.hpp"
#include "kernels/cuda/launcher.hpp"

/// What the device is told about a pass, and what it shows of it.
namespace kvc::cuda {

/// Brings the device's copies of the token arrays up to date. Changes are told as runs: what a decode pass appends, or a prefix
/// that is copied, is a few numbers.
Error follow_tokens(const TokenArrays& host, const TokenChanges& changes, int32_t* cell,
                    int32_t* position, const Launcher& launcher);

/// Copies to device memory, aligned to 16, by way of parameters: `from` is read before the call returns, and nothing waits. Up to 15
/// more bytes are written.
Error upload(std::byte* to, const void* from, size_t n_bytes, const Launcher& launcher);

/// `cell` and `seen` are the device's own arrays.
Error write_mask(const MaskParams& params, const int32_t* cell, const uint64_t* seen,
                 const Launcher& launcher);

}  // namespace kvc::cuda
