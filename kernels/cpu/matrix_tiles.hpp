#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

/// AMX: eight registers of 16 rows by 64 bytes, and a unit that multiplies bf16 and adds in f32 (Intel Architecture
/// Instruction Set Extensions, chapter 3). A product takes a tile of A (16 rows × 32 columns) and one of B, of which two rows
/// lie interleaved (16 pairs of rows × 16 columns × 2).
///
/// Spelled in assembly, because the compilers' intrinsics do not say that they read memory.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

inline constexpr int32_t tile_rows = 16;
inline constexpr int32_t tile_depth = 32;  // of bf16: columns of A, rows of B
inline constexpr size_t tile_bytes = 1024;

/// All eight registers whole. Until they are released the thread's state is larger.
KVC_INLINE void use_tiles() {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Configuration whole;
  asm volatile("ldtilecfg %0" : : "m"(whole));
}
KVC_INLINE void release_tiles() { asm volatile("tilerelease"); }

template <int32_t index>
KVC_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(index));
}
template <int32_t index>
KVC_INLINE void tile_load(const std::byte* from) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(from), "r"(size_t{64}), "i"(index)
               : "memory");
}
/// `stride` in bytes, from row to row.
template <int32_t index>
KVC_INLINE void tile_store(float* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(index) : "memory");
}
/// Register `sum` += A · B.
template <int32_t sum, int32_t a, int32_t b>
KVC_INLINE void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
