#pragma once
#include "kernels/cuda/ptx.cuh"

/// Factors of the products in narrow kernels, which hold numbers of 16 bits: T, which is F16 or Bf16.
namespace kvc::cuda {

/// A thread in its warp: lane (g, t), as the layout of products counts.
struct Lane {
  int index, g, t;
};

/// Numbers of 16 bits that add up to one of f32.
template <class T>
inline constexpr int parts_of = T::has_small_range ? 2 : 3;

// Parts of f16 would underflow: queries are multiplied with a power of two of their own, weights with this one.
inline constexpr int weight_exponent = 14;
template <class T>
inline constexpr float weight_scale = T::has_small_range ? 16384.0f : 1.0f;

/// Where a lane has its two words of a part of a step's right factor, of the products with K: those of parts 0 and 1 lie side by side,
/// part 2 behind those of all lanes.
template <class T>
KVC_DEVICE int fragment_at(int step, int lane, int part) {
  return step * 32 * 2 * parts_of<T> + (part < 2 ? lane * 4 + 2 * part : 128 + lane * 2);
}

/// Weights of tokens g and g + 8 for columns 2t and 2t + 1 become the right factor of the products with V, part by part.
template <class T>
KVC_DEVICE void split_weights(const float (&s)[4], float factor, uint32_t (&weights)[parts_of<T>][2]) {
  KVC_UNROLL for (int r = 0; r < 2; ++r) {
    float x = s[2 * r] * factor, y = s[2 * r + 1] * factor;
    KVC_UNROLL for (int part = 0; part < parts_of<T>; ++part) {
      const uint32_t pair = T::pack(x, y);
      x -= T::low(pair);
      y -= T::high(pair);
      weights[part][r] = transpose_8x8(pair);
    }
  }
}

/// Columns are multiplied in eights, of which a lane has columns 2t and 2t + 1: the c-th of these.
KVC_DEVICE int column_of(int eight, Lane lane, int c) { return 8 * eight + 2 * lane.t + c; }

/// Of the weights s of eight columns: a word for each token whose value lane (g, t) multiplies, without a bit where the c-th of these
/// columns does not see it.
KVC_DEVICE void seen_by(int c, const float (&s)[4], Lane lane, uint32_t (&keep)[4]) {
  KVC_UNROLL for (int r = 0; r < 4; ++r) {
    // Lane (g, c / 2) has the weight of token g in s[c % 2], that of token g + 8 two further.
    const float even = r < 2 ? s[0] : s[2], odd = r < 2 ? s[1] : s[3];
    keep[r] = shuffle(c % 2 == 0 ? even : odd, (2 * lane.t + r % 2) * 4 + c / 2) == 0 ? 0u : ~0u;
  }
}

/// The r-th of the four tokens whose values lane (g, t) multiplies.
KVC_DEVICE int value_token(Lane lane, int r) { return 2 * lane.t + r % 2 + r / 2 * 8; }

}  // namespace kvc::cuda
