#pragma once
#include "kernels/cuda/kernel.cuh"
#include "tests/bench/cuda/roof_kernels.hpp"

/// What a GPU can do at most: read, copy, and multiply on its tensor cores.
namespace bench_cuda {

using namespace kvc::cuda;

/// Loads that a thread has under way.
inline constexpr uint64_t n_loads = 8;

/// Calls per_piece(piece, index) for the pieces of 16 bytes that are the thread's, behind the loads of n_loads of them.
template <class PerPiece>
KVC_DEVICE void for_pieces(const void* from, uint64_t bytes, PerPiece per_piece) {
  const auto* const pieces = static_cast<const Word4*>(from);
  const uint64_t stride = static_cast<uint64_t>(n_blocks()) * static_cast<uint64_t>(n_threads());
  const uint64_t n_pieces = bytes / sizeof(Word4);
  uint64_t at = static_cast<uint64_t>(block_index()) * static_cast<uint64_t>(n_threads()) +
                static_cast<uint64_t>(thread_index());
  for (; at + (n_loads - 1) * stride < n_pieces; at += n_loads * stride) {
    Word4 loaded[n_loads];
    KVC_UNROLL
    for (uint64_t i = 0; i < n_loads; ++i) loaded[i] = load_stream(pieces + at + i * stride);
    KVC_UNROLL
    for (uint64_t i = 0; i < n_loads; ++i) per_piece(loaded[i], at + i * stride);
  }
  for (; at < n_pieces; at += stride) per_piece(load_stream(pieces + at), at);
}

/// What is read counts: a compiler must not leave it out. Writes what it read where that is one certain number.
KVC_GLOBAL void read_all(KVC_PARAMS(ReadParams) p) {
  uint32_t seen = 0;
  for_pieces(p.from, p.bytes, [&](const Word4& piece, uint64_t) {
    seen ^= piece.w[0] ^ piece.w[1] ^ piece.w[2] ^ piece.w[3];
  });
  if (seen == 0x12345678u) *p.sink = seen;
}

KVC_GLOBAL void copy_all(KVC_PARAMS(CopyParams) p) {
  auto* const to = static_cast<Word4*>(p.to);
  for_pieces(p.from, p.bytes, [to](const Word4& piece, uint64_t at) { to[at] = piece; });
}

/// Chains of products of numbers around 1, of either sign: constant operands would cost less power, and so be faster.
KVC_GLOBAL void multiply_all(KVC_PARAMS(MultiplyParams) p) {
  float sums[multiply_chains][4] = {};
  uint32_t mixed = (static_cast<uint32_t>(block_index() * n_threads() + thread_index()) + 1) * 2654435761u;
  const auto numbers = [&mixed] {  // two of bf16: signs and mantissas vary
    mixed = mixed * 1664525u + 1013904223u;
    return (mixed & 0x807f807fu) | 0x3f803f80u;
  };
  uint32_t a[4], b[multiply_chains][2];
  for (uint32_t& pair : a) pair = numbers();
  KVC_UNROLL
  for (int c = 0; c < multiply_chains; ++c) {
    b[c][0] = numbers();
    b[c][1] = numbers();
  }
  KVC_NO_UNROLL
  for (int32_t round = 0; round < p.n_rounds; ++round) {
    KVC_UNROLL
    for (int c = 0; c < multiply_chains; ++c) mma_16x8x16<Bf16>(sums[c], a, b[c]);
  }
  float sum = 0;
  KVC_UNROLL
  for (int c = 0; c < multiply_chains; ++c) sum += sums[c][0] + sums[c][1] + sums[c][2] + sums[c][3];
  if (sum == 0.12345678f) *p.sink = bits_of(sum);
}

}  // namespace bench_cuda
