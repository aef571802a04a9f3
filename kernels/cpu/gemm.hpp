#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"

/// Small matrix products whose sums stay in registers: C[rows][vectors · lanes] += A · B. An
/// element of A is broadcast and multiplied with a few vectors of B. Twelve sums of 8 lanes (24 of
/// 16) hide the latency of the multiply-add, and leave registers for the vectors of B and the
/// broadcast.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide {

/// One step of the product: a column of A, whose elements are given, times a row of B.
template <int32_t rows, int32_t vectors, class Element>
KVC_INLINE void multiply_add_step(Vec (&c)[rows][vectors], const float* b, Element element) {
  Vec right[vectors];
#pragma GCC unroll 8
  for (int32_t j = 0; j < vectors; ++j) right[j] = load(b + j * lanes);
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
    const Vec left = broadcast(element(i));
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) c[i][j] = fma(left, right[j], c[i][j]);
  }
}

inline constexpr int32_t unrolled = 4;

/// What a product does after every `unrolled` steps, unless the caller has something to do meanwhile.
struct Nothing {
  [[gnu::always_inline]] void operator()() const {}
};

/// A by rows: element (i, k) is a[i · a_row + k]. Row k of B starts at b + k · b_step.
template <int32_t rows, int32_t vectors, class Meanwhile = Nothing>
KVC_INLINE void multiply_add_rows(Vec (&c)[rows][vectors], const float* a, size_t a_row,
                                  const float* b, size_t b_step, int32_t depth,
                                  Meanwhile meanwhile = {}) {
  const float* row[rows];
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
    row[i] = a + static_cast<size_t>(i) * a_row;
    keep_in_register(row[i]);
  }
  for (; depth >= unrolled; depth -= unrolled) {
#pragma GCC unroll 8
    for (size_t k = 0; k < unrolled; ++k) {
      multiply_add_step(c, b + k * b_step, [&](int32_t i) { return row[i][k]; });
    }
#pragma GCC unroll 16
    for (int32_t i = 0; i < rows; ++i) row[i] += unrolled;
    b += unrolled * b_step;
    meanwhile();
  }
  for (; depth > 0; --depth, b += b_step) {
    multiply_add_step(c, b, [&](int32_t i) { return *row[i]++; });
  }
}

/// A by columns: element (i, k) is a[i + k · a_step].
template <int32_t rows, int32_t vectors, class Meanwhile = Nothing>
KVC_INLINE void multiply_add_columns(Vec (&c)[rows][vectors], const float* a, size_t a_step,
                                     const float* b, size_t b_step, int32_t depth,
                                     Meanwhile meanwhile = {}) {
  for (; depth >= unrolled; depth -= unrolled) {
#pragma GCC unroll 8
    for (size_t k = 0; k < unrolled; ++k) {
      multiply_add_step(c, b + k * b_step,
                        [&](int32_t i) { return a[k * a_step + static_cast<size_t>(i)]; });
    }
    a += unrolled * a_step;
    b += unrolled * b_step;
    meanwhile();
  }
  for (; depth > 0; --depth, a += a_step, b += b_step) {
    multiply_add_step(c, b, [&](int32_t i) { return a[i]; });
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void clear_sums(Vec (&c)[rows][vectors]) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) c[i][j] = zero();
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void read_sums(Vec (&c)[rows][vectors], const float* from, size_t stride) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      c[i][j] = load(from + static_cast<size_t>(i) * stride + j * lanes);
    }
  }
}

template <int32_t rows, int32_t vectors>
KVC_INLINE void write_sums(const Vec (&c)[rows][vectors], float* to, size_t stride) {
#pragma GCC unroll 16
  for (int32_t i = 0; i < rows; ++i) {
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      store(to + static_cast<size_t>(i) * stride + j * lanes, c[i][j]);
    }
  }
}

/// to = to · factor[row] + c, row by row.
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
