#pragma once
#include <cstdint>

#include "kernels/cuda/runtime.hpp"

/// Every instruction of kernels/cuda/ptx.cuh that the simulation has to imitate, each by itself: what a warp brings, and what its
/// lanes get.
namespace instructions {

enum class Instruction : int32_t {
  shuffle,
  shuffle_xor,
  largest_of_lanes,
  any_lane,
  transpose_8x8,
  load_matrices,
  load_matrices_transposed,
  permute,
  select_and_flip,
  load_stream,
  load_stream_8,
  load_stream_4,
  copy_async,
  round_f32,  // products, sums, differences and quotients
  pack,       // f32 to bf16 and f16
  unpack,     // and back
  count_bits,
  multiply_add,
  multiply_add_f16,
  exp2_fast,
  cosine,  // of doubles, of which a lane gets the two words
  exponential,
  mma_bf16,
  mma_f16,
  n
};

inline constexpr int32_t lanes = 32, words_in = 10, words_out = 4;

struct Params {
  Instruction instruction;
  int32_t n_rounds;    // a warp does one after another
  const uint32_t* in;  // [n_rounds][lanes][words_in], aligned to 16
  uint32_t* out;       // [n_rounds][lanes][words_out]
};

/// Dynamic shared memory that a launch of one warp needs.
inline constexpr size_t shared_bytes = 1024;

kvc::cuda::Kernel instruction_kernel() noexcept;

/// The same on the host, by the simulation's instructions.
void simulate(const Params& params);

}  // namespace instructions
