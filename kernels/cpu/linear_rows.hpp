#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/lightning_block.hpp"
#include "kernels/cpu/vectors.hpp"

/// Rows of tensors to floats and back, for linear attention: many rows in a call, because a row is short.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear {

KVC_INLINE void store_past_caches(float* p, Vec x) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, x);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, x);
#else
  store(p, x);
#endif
}

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
      store_past_caches(reinterpret_cast<float*>(to), x);
    } else {
      store_unaligned(reinterpret_cast<float*>(to), x);
    }
  }
  copy_some(to, from, bytes);
}

[[maybe_unused]] static void lightning_load(const LightningRows& rows) {
  const auto element = static_cast<int32_t>(size_of(rows.type));
  const int32_t padded = (rows.dims + 15) / 16 * 16;
  for (int32_t i = 0; i < rows.n; ++i) {
    const std::byte* from = rows.row[i];
    const bool is_hidden = from == nullptr;
    for (int32_t column = 0; column < padded; column += rows.panel) {
      const int32_t width = padded - column < rows.panel ? padded - column : rows.panel;
      int32_t filled = is_hidden ? 0 : rows.dims - column;
      if (filled > width) filled = width;
      float* to = rows.to + static_cast<size_t>(column) * static_cast<size_t>(rows.n) + i * width;
      if (filled > 0) to_f32_scaled(to, from + column * element, rows.type, rows.factor, filled);
      for (; filled < width; ++filled) to[filled] = 0;
    }
    if (!is_hidden && rows.kept != nullptr)
      copy_bytes(rows.kept + static_cast<size_t>(i) * rows.kept_stride, from,
                 static_cast<size_t>(rows.dims * element), rows.keeps_past_caches);
  }
  if (rows.keeps_past_caches) finish_stores();
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
        continue;
      }
      from_f32(narrow, rows.type, from + d, n);
      copy_bytes(at, narrow, static_cast<size_t>(n) * size_of(rows.type), true);
    }
  }
  if (rows.past_caches) finish_stores();
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear
