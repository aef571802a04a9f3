#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/lightning_block.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/vectors.hpp"

/// Rows of tensors to floats and back, for linear attention: many rows in a call, because a row is short.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear {

/// Whoever is told that a kernel is done must find what it stored past the caches.
KVC_INLINE void finish_stores() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

/// Less than a vector.
KVC_INLINE void copy_some(std::byte* to, const std::byte* from, size_t bytes) {
  for (; bytes >= 16; bytes -= 16, to += 16, from += 16) __builtin_memcpy(to, from, 16);
  for (; bytes > 0; --bytes) *to++ = *from++;
}

KVC_INLINE void copy_bytes(std::byte* to, const std::byte* from, size_t bytes, bool past_caches) {
  constexpr size_t vector = lanes * sizeof(float);
  if (past_caches) {  // whole vectors alone, where memory is aligned to them
    size_t before = (vector - reinterpret_cast<uintptr_t>(to) % vector) % vector;
    if (before > bytes) before = bytes;
    copy_some(to, from, before);
    to += before, from += before, bytes -= before;
  }
  for (; bytes >= vector; bytes -= vector, to += vector, from += vector) {
    const Vec x = load_unaligned(reinterpret_cast<const float*>(from));
    if (past_caches) {
      stream_as<F32>(reinterpret_cast<float*>(to), x);
    } else {
      store_unaligned(reinterpret_cast<float*>(to), x);
    }
  }
  copy_some(to, from, bytes);
}

/// `filled` numbers as floats, zeros up to `width`.
template <class Storage>
KVC_INLINE void load_columns(float* to, int32_t width, const typename Storage::Element* from,
                             int32_t filled, Vec factor) {
  int32_t whole = 0;
#pragma GCC unroll 4
  for (; whole + lanes <= filled; whole += lanes)
    store(to + whole, load_as<Storage>(from + whole) * factor);
  if (whole < filled) widen<Storage>(to + whole, from + whole, filled - whole, Times{factor});
  for (; filled < width; ++filled) to[filled] = 0;
}

template <class Storage>
KVC_INLINE void load_rows(const LightningRows& rows) {
  const int32_t padded = (rows.dims + 15) / 16 * 16;
  const Vec factor = broadcast(rows.factor);
  for (int32_t i = 0; i < rows.n; ++i) {
    const auto* from = reinterpret_cast<const typename Storage::Element*>(rows.row[i]);
    for (int32_t column = 0; column < padded; column += rows.panel) {
      const int32_t width = smaller(padded - column, rows.panel);
      float* to = rows.to + static_cast<size_t>(column) * static_cast<size_t>(rows.n) + i * width;
      if (from == nullptr) {
        load_columns<Storage>(to, width, from, 0, factor);
      } else {
        load_columns<Storage>(to, width, from + column, smaller(rows.dims - column, width), factor);
      }
    }
    if (from != nullptr && rows.kept != nullptr)
      copy_bytes(rows.kept + static_cast<size_t>(i) * rows.kept_stride, rows.row[i],
                 static_cast<size_t>(rows.dims) * element_bytes<Storage>, rows.keeps_past_caches);
  }
  if (rows.keeps_past_caches) finish_stores();
}

[[maybe_unused]] static void lightning_load(const LightningRows& rows) {
  switch (rows.type) {
    case DType::f32: return load_rows<F32>(rows);
    case DType::f16: return load_rows<F16>(rows);
    case DType::bf16: return load_rows<Bf16>(rows);
    default: break;
  }
  __builtin_unreachable();
}

[[maybe_unused]] static void lightning_store(const LightningOutputs& rows) {
  constexpr int32_t part = 256;
  alignas(64) std::byte narrow[part * sizeof(float)];
  const int32_t padded = (rows.dims + 15) / 16 * 16;
  for (int32_t i = 0; i < rows.n; ++i) {
    const float* from = rows.from + static_cast<size_t>(i) * static_cast<size_t>(padded);
    std::byte* to = rows.row[i];
    for (int32_t d = 0; d < rows.dims; d += part) {
      const int32_t n = rows.dims - d < part ? rows.dims - d : part;
      std::byte* at = to + static_cast<size_t>(d) * size_of(rows.type);
      if (!rows.past_caches) {
        from_f32(at, rows.type, from + d, n);
      } else if (rows.type == DType::f32) {
        copy_bytes(at, reinterpret_cast<const std::byte*>(from + d),
                   static_cast<size_t>(n) * sizeof(float), true);
      } else {
        from_f32(narrow, rows.type, from + d, n);
        copy_bytes(at, narrow, static_cast<size_t>(n) * size_of(rows.type), true);
      }
    }
  }
  if (rows.past_caches) finish_stores();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear
