#include "kernels/cpu/row_codec.hpp"

#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {

void encode_row(const RowFormat& format, const StoredRow& to, const Row& from, float* values) noexcept {
  const KernelTable& table = kernels();
  if (from.dtype == DType::f32 && from.stride == 1 && format.rotation == 0) {
    table.encode(format, to, reinterpret_cast<const float*>(from.data));
    return;
  }
  convert_row({.data = reinterpret_cast<std::byte*>(values)}, from, format.head_dim);
  if (format.rotation != 0) table.rotate(values, format.head_dim, format.rotation);
  table.encode(format, to, values);
}

void decode_row(const RowFormat& format, const StoredRow& from, float* values) noexcept {
  const KernelTable& table = kernels();
  table.decode(format, values, from);
  if (format.rotation != 0) table.rotate_back(values, format.head_dim, format.rotation);
}

}  // namespace kvc::cpu
