#pragma once
#include "core/base/storage.hpp"
#include "kernels/cpu/convert.hpp"

/// A row of numbers, wherever they lie, to and from a stored row: converted, rotated where the format says so, encoded.
namespace kvc::cpu {

/// `values` has room for format.head_dim floats.
void encode_row(const RowFormat& format, const StoredRow& to, const Row& from, float* values) noexcept;

/// The numbers as they were before they were rotated, in `values`.
void decode_row(const RowFormat& format, const StoredRow& from, float* values) noexcept;

}  // namespace kvc::cpu
