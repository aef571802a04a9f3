#pragma once
#include "kernels/cuda/runtime.hpp"
#include "tests/simt/instructions.hpp"
#include "tests/simt/sm90.hpp"

/// What kernels/cuda/ptx_sm90.cuh says in PTX, on the CPU.
namespace kvc::cuda {

inline void sync_threads(int barrier, int n) {
  simt::sm90::sync_threads(static_cast<unsigned>(barrier), static_cast<unsigned>(n));
}

inline void init_barrier(uint32_t barrier, int count) {
  simt::sm90::init_barrier(barrier - shared_begin, static_cast<unsigned>(count));
}
inline void arrive(uint32_t barrier) { simt::sm90::arrive(barrier - shared_begin); }
inline void arrive_when_copied(uint32_t barrier) {
  simt::sm90::arrive_when_copied(barrier - shared_begin);
}
inline void arrive_and_expect(uint32_t barrier, int bytes) {
  simt::sm90::arrive_and_expect(barrier - shared_begin, static_cast<size_t>(bytes));
}
inline void prefetch_map(const RowMap&) {}
/// `map` is as map_rows() of runtime_simt.cpp made it.
inline void copy_box(uint32_t shared, const RowMap& map, int dim, int row, int head, uint32_t barrier) {
  MappedRows of;
  static_assert(sizeof of <= sizeof map);
  std::memcpy(&of, &map, sizeof of);
  // CUDA would take zeros for rows that are not there; nobody here asks for them.
  if (dim % 64 != 0 || dim < 0 || row < 0 || row + of.box_rows > of.n_rows || head < 0 ||
      head >= of.n_heads)
    simt::fail("a box of head %d, row %d, dim %d", head, row, dim);
  const int dims_left = std::clamp(of.dim - dim, 0, 64);
  simt::sm90::copy_box(
      shared - shared_begin,
      {static_cast<const char*>(of.data) + head * of.head_stride + row * of.row_stride + 2 * dim,
       static_cast<size_t>(of.row_stride), static_cast<size_t>(of.box_rows),
       static_cast<size_t>(2 * dims_left)},
      barrier - shared_begin);
}
inline void wait_for_phase(uint32_t barrier, int parity) {
  simt::sm90::wait_for_phase(barrier - shared_begin, static_cast<unsigned>(parity));
}

/// By a warp, whose lanes do it at once: it takes long here.
inline void publish_shared() {
  sync_warp();
  if (simt::thread_index() % simt::warp_lanes == 0) simt::sm90::publish_shared();
  sync_warp();
}

template <int n>
void give_registers() {
  simt::sm90::change_registers(n, false);
}
template <int n>
void take_registers() {
  simt::sm90::change_registers(n, true);
}

inline void fence_products() { simt::sm90::fence_products(); }
inline void end_product_group() { simt::sm90::end_product_group(); }
template <int n_left, int n>
void wait_for_products(float (&)[n][4]) {
  simt::sm90::wait_for_products(n_left);
}

/// An element of a matrix that a descriptor names. `by_rows`: its inner dimension, of the product, lies in a row; else its other one.
inline uint16_t shared_element(uint64_t matrix, int inner, int other, bool by_rows) {
  const auto field = [matrix](int first) {
    return static_cast<uint32_t>(matrix >> first & 0x3fffu) * 16;
  };
  const uint32_t begin = field(0), leading = field(16), stride = field(32);
  if (matrix >> 49 != uint64_t{1} << 13)
    simt::fail("a matrix whose chunks are not exchanged by 128 bytes");
  const int line = by_rows ? other : inner, at = by_rows ? inner : other;
  const uint32_t plain = begin + static_cast<uint32_t>(at / 64) * leading +
                         static_cast<uint32_t>(line / 8) * stride +
                         static_cast<uint32_t>(line % 8 * 128 + at % 64 * 2);
  const uint32_t exchanged = (plain ^ (plain >> 3 & 0x70u)) - shared_begin;
  if (exchanged + size_t{2} > simt::shared_bytes())
    simt::fail("a matrix at byte %u of %zu of shared memory", exchanged, simt::shared_bytes());
  uint16_t element = 0;
  std::memcpy(&element, simt::sm90::published() + exchanged, sizeof element);
  return element;
}

template <class T>
float number_of(uint16_t element) {
  return T::low(element);
}

/// Row `row` of the left factor from the registers of the threads that have it.
template <class T>
void row_of_registers(const simt::sm90::GroupFactors& of, size_t row, float* to) {
  for (size_t inner = 0; inner < 16; ++inner) {
    const size_t thread = row / 16 * 32 + row % 8 * 4 + inner % 8 / 2;
    const uint32_t pair = of[thread].left[row % 16 / 8 + inner / 8 * 2];
    to[inner] = inner % 2 == 0 ? T::low(pair) : T::high(pair);
  }
}

/// A row or a column of a factor. Products with zeros are passed over, for they are many.
struct Factor {
  float numbers[16];
  bool is_zero, is_finite;

  void look() {
    is_zero = std::all_of(numbers, numbers + 16, [](float x) { return x == 0; });
    is_finite = std::all_of(numbers, numbers + 16, [](float x) { return std::isfinite(x); });
  }
};

/// A thread has, of rows g and g + 8 of its warp's 16, columns 8i + 2t and the next: its sums [i][4].
template <class T, int n>
void multiply_group(const simt::sm90::GroupFactors& of, simt::sm90::GroupSums& sums) {
  static thread_local Factor right[n];
  for (int column = 0; column < n; ++column) {
    for (int inner = 0; inner < 16; ++inner)
      right[column].numbers[inner] = number_of<T>(
          shared_element(of[0].right_matrix, inner, column, of[0].right_by_rows));
    right[column].look();
  }
  const auto sum = simt::options().truncates ? truncating_sum : plain_sum;
  for (size_t row = 0; row < 64; ++row) {
    Factor left;
    if (of[0].left != nullptr) {
      row_of_registers<T>(of, row, left.numbers);
    } else {
      for (int inner = 0; inner < 16; ++inner)
        left.numbers[inner] = number_of<T>(
            shared_element(of[0].left_matrix, inner, static_cast<int>(row), true));
    }
    left.look();
    for (size_t column = 0; column < n; ++column) {
      const size_t thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
      float& to = sums[thread][column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
      if (!of[0].accumulates) to = 0;
      const Factor& other = right[column];
      const bool adds_nothing = (left.is_zero && other.is_finite) ||
                                (other.is_zero && left.is_finite);
      if (!adds_nothing) to = sum(to, left.numbers, other.numbers);
    }
  }
  simt::count_product();
}

template <class T, int n>
void begin_group_product(const simt::sm90::Factors& own) {
  simt::sm90::meet("wgmma", &own, [](const simt::sm90::Brought& brought) {
    simt::sm90::Product product{{}, n / 2, multiply_group<T, n>};
    for (size_t t = 0; t < brought.size(); ++t) {
      product.of[t] = *static_cast<const simt::sm90::Factors*>(brought[t]);
      if (!product.of[t].agrees(product.of[0]))
        simt::fail("threads of a group multiply other matrices");
    }
    simt::sm90::begin_product(product);
  });
}

template <class T, int n>
void multiply_shared(float (&d)[n / 8][4], uint64_t left, uint64_t right, bool accumulates) {
  begin_group_product<T, n>({d[0], nullptr, left, right, true, accumulates});
}
template <class T, int n>
void multiply_registers(float (&d)[n / 8][4], const uint32_t (&left)[4], uint64_t right,
                        bool accumulates) {
  begin_group_product<T, n>({d[0], left, 0, right, false, accumulates});
}

}  // namespace kvc::cuda
