#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/storage.hpp"
#include "kernels/cpu/encode.hpp"
#include "kernels/cpu/hadamard.hpp"
#include "kernels/cpu/stored_rows.hpp"
#include "kernels/cpu/vectors.hpp"

/// Rows of numbers to and from rows of codes and scales: the codecs of the storage types.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

/// Calls `encode` with the codes, the scale and the first value of each block.
template <class Encode>
KVC_INLINE void encode_blocks(const RowFormat& format, const StoredRow& to, const float* values,
                              Encode encode) {
  const StorageFormat stored = format_of(format.type);
  const int32_t code_bytes = format.block / stored.codes_per_byte;
  std::byte *codes = to.codes, *scale = to.scales;
  for (int32_t i = 0; i < format.head_dim; i += format.block) {
    encode(codes, scale, values + i);
    codes += code_bytes;
    scale += size_of(stored.scale);
  }
}

[[maybe_unused]] static void encode_row(const RowFormat& format, const StoredRow& to,
                                        const float* values) {
  switch (format.type) {
    case StorageType::f32:
    case StorageType::f16:
    case StorageType::bf16:
      return from_f32(to.codes, format_of(format.type).code, values, format.head_dim);
    case StorageType::f8_e4m3:
      return encode_f8<ToE4m3>(to.codes, values, format.head_dim, to.scale);
    case StorageType::f8_e5m2:
      return encode_f8<ToE5m2>(to.codes, values, format.head_dim, to.scale);
    case StorageType::q8_0:
      return encode_blocks(format, to, values,
                           [](std::byte* codes, std::byte* scale, const float* from) {
                             encode_q8_0(codes, scale, from);
                           });
    case StorageType::q4_0:
      return encode_blocks(format, to, values,
                           [](std::byte* codes, std::byte* scale, const float* from) {
                             encode_q4_0(codes, scale, from);
                           });
    case StorageType::int8: return encode_int8(to.codes, to.scales, values, format.head_dim);
    case StorageType::nf4: {
      const int32_t block = format.block;
      return encode_blocks(format, to, values,
                           [block](std::byte* codes, std::byte* scale, const float* from) {
                             encode_nf4(codes, scale, from, block);
                           });
    }
  }
}

/// `scale`: of f8, which is stored without one.
template <class Type>
KVC_INLINE void decode_with(stored::Reader<Type> reader, float* values, float scale) {
  const TileRows& rows = reader.rows;
  const stored::Row row = {rows.codes, rows.scales};
  const Vec factor = broadcast(scale);
  const int32_t n_whole = reader.n_whole();
  for (int32_t i = 0; i < n_whole; ++i)
    store_unaligned(values + i * lanes, reader.whole(row, i) * factor);
  if (n_whole * lanes == rows.head_dim) return;
  float rest[lanes];
  store_unaligned(rest, reader.vector(row, n_whole) * factor);
  for (int32_t i = n_whole * lanes; i < rows.head_dim; ++i) values[i] = rest[i - n_whole * lanes];
}

[[maybe_unused]] static void decode_row(const RowFormat& format, float* values, const StoredRow& from) {
  const TileRows rows = {.codes = from.codes,
                         .scales = from.scales,
                         .type = format.type,
                         .head_dim = format.head_dim,
                         .block = format.block};
  stored::with_reader(rows, [&](auto reader) { decode_with(reader, values, from.scale); });
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
