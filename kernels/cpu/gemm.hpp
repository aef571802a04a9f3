#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

/// Small matrix products held in registers: C[rows][vectors · lanes] += A · B.
///
/// One element of A is broadcast against a few vectors of B. Twelve accumulators of 8 lanes (24 of 16) hide the latency
/// of the multiply-add, and leave registers for the vectors of B and the broadcast.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide {

/// Element (i, k) of A is a[i · a_row + k · a_step]; row k of B starts at b + k · b_step.
template <int32_t rows, int32_t vectors>
KVC_INLINE void multiply_add(Vec (&c)[rows][vectors], const float* a, size_t a_row, size_t a_step,
                             const float* b, size_t b_step, int32_t depth) {
#pragma GCC unroll 4
  for (int32_t k = 0; k < depth; ++k) {
    Vec right[vectors];
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) right[j] = load(b + j * lanes);
#pragma GCC unroll 16
    for (int32_t i = 0; i < rows; ++i) {
      const Vec left = broadcast(a[static_cast<size_t>(i) * a_row]);
#pragma GCC unroll 8
      for (int32_t j = 0; j < vectors; ++j) c[i][j] = fma(left, right[j], c[i][j]);
    }
    a += a_step;
    b += b_step;
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void clear_block(Vec (&c)[rows][vectors]) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) c[i][j] = zero();
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void load_block(Vec (&c)[rows][vectors], const float* from, size_t stride) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      c[i][j] = load(from + static_cast<size_t>(i) * stride + j * lanes);
    }
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void store_block(const Vec (&c)[rows][vectors], float* to, size_t stride) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      store(to + static_cast<size_t>(i) * stride + j * lanes, c[i][j]);
    }
  }
}

/// Row i of `to` becomes itself times factor[i], plus the block's.
template <int32_t rows, int32_t vectors>
KVC_INLINE void add_rescaled(const Vec (&c)[rows][vectors], float* to, size_t stride,
                             const float* factor) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
    const Vec f = broadcast(factor[i]);
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      float* at = to + static_cast<size_t>(i) * stride + j * lanes;
      store(at, fma(load(at), f, c[i][j]));
    }
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide
