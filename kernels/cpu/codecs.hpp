#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/storage.hpp"
#include "kernels/cpu/vectors.hpp"

/// Codecs of the storage types (docs/SEMANTICS.md, section 9).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

[[maybe_unused]] static void encode_row(const RowFormat& format, const StoredRow& to,
                                        const float* values) {
  from_f32(to.codes, format_of(format.type).code, values, format.head_dim);
}

[[maybe_unused]] static void decode_row(const RowFormat& format, float* values, const StoredRow& from) {
  to_f32(values, from.codes, format_of(format.type).code, format.head_dim);
}

[[maybe_unused]] static void rotate_blocks(float*, int64_t, int32_t) {}
[[maybe_unused]] static void rotate_blocks_back(float*, int64_t, int32_t) {}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
