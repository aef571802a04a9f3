#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

/// AMX: eight tile registers of 16 rows by 64 bytes, and instructions that multiply bf16 and add in
/// f32, or multiply bytes and add 32-bit integers (Intel Architecture Instruction Set Extensions, chapter 3). A product takes a tile of A (16
/// rows × 32 columns) and one of B, whose rows are interleaved in pairs (16 pairs of rows × 16
/// columns × 2).
///
/// Written in assembly, because the compilers' intrinsics do not declare that they read memory.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

inline constexpr int32_t amx_rows = 16;
inline constexpr int32_t amx_depth = 32;  // of bf16: columns of A, rows of B
inline constexpr size_t amx_tile_bytes = 1024;

/// Configures all eight registers at full size. The thread's state is larger until amx_end.
KVC_INLINE void amx_begin() {
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Configuration whole;
  asm volatile("ldtilecfg %0" : : "m"(whole));
}
KVC_INLINE void amx_end() { asm volatile("tilerelease"); }

template <int32_t index>
KVC_INLINE void amx_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(index));
}
/// `stride` in bytes, from row to row.
template <int32_t index, class Number>
KVC_INLINE void amx_load(const Number* from, size_t stride = 64) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(index) : "memory");
}
template <int32_t index, class Number>
KVC_INLINE void amx_store(Number* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(index) : "memory");
}
/// Register `sum` += A · B.
template <int32_t sum, int32_t a, int32_t b>
KVC_INLINE void amx_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

/// The same of signed bytes, added as 32-bit integers: A has 64 columns, and each row of B four rows of 16
/// columns, interleaved.
template <int32_t sum, int32_t a, int32_t b>
KVC_INLINE void amx_multiply_add_bytes() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

/// Keeps AMX awake. On Sapphire Rapids products and stores that come half a microsecond or more after the
/// last one wait for another third of a microsecond. This multiplies what registers 4 and 6 hold into register
/// 7, which goes to `unused`.
KVC_INLINE void amx_stay_awake(int32_t* unused) {
  amx_multiply_add_bytes<7, 4, 6>();
  amx_store<7>(unused, 64);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
