#pragma once
#include "kernels/cuda/ptx.cuh"

/// The rotation of stored rows (docs/SEMANTICS.md, section 9), with the bits of kernels/cpu/hadamard.hpp: y = H (s ∘ x) / √b for each
/// block of b numbers, and back. Stages of distance 1, 2, 4, … replace each pair (u, v) by (u + v, u − v).
namespace kvc::cuda {

/// Those who share the work of a rotation, and one of them.
struct Worker {
  int index, n;
};

/// Rudin-Shapiro: a constant vector becomes flat instead of one spike.
KVC_DEVICE float with_sign(float x, int i) {
  const auto bits = static_cast<uint32_t>(i & i >> 1);
  return float_of(bits_of(x) ^ static_cast<uint32_t>(count_bits(bits) & 1) << 31);
}

/// 1/√size, correctly rounded. `size` is a power of two.
KVC_DEVICE float root_factor(int size) {
  float factor = 1;
  for (; size > 2; size /= 4) factor /= 2;
  return size == 2 ? factor * 0x1.6a09e6p-1f : factor;
}

/// Rotates `n_rows` rows of n numbers in blocks of `block`. at(row, i) is the number, sync() makes all workers wait for each other.
template <class At, class Sync>
KVC_DEVICE void rotate(int n_rows, int n, int block, bool back, Worker worker, At at, Sync sync) {
  const auto each = [&](auto change) {
    sync();
    for (int i = worker.index; i < n_rows * n; i += worker.n) change(at(i / n, i % n), i % n % block);
  };
  if (!back) each([](float& x, int i) { x = with_sign(x, i); });
  for (int distance = 1; distance < block; distance *= 2) {
    sync();
    for (int i = worker.index; i < n_rows * n / 2; i += worker.n) {
      const int row = i / (n / 2), pair = i % (n / 2);
      const int lower = pair / distance * 2 * distance + pair % distance;
      const float u = at(row, lower), v = at(row, lower + distance);
      at(row, lower) = add_rounded(u, v);
      at(row, lower + distance) = subtract_rounded(u, v);
    }
  }
  const float factor = root_factor(block);
  each([&](float& x, int i) {
    x = multiply_rounded(x, factor);
    if (back) x = with_sign(x, i);
  });
  sync();
}

}  // namespace kvc::cuda
