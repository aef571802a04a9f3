#pragma once
#include "kernels/cuda/coding.hpp"
#include "kernels/cuda/row_params.hpp"

/// What the kernels are launched with that write numbers as codes, and read them (docs/SEMANTICS.md, section 9).
namespace kvc::cuda {

/// Heads of a launch: what f8 codes are multiplied with travels in the parameters, too.
inline constexpr int32_t coded_heads = 256;

/// Heads of K or of V as codes, and rows of the numbers.
struct CodedView {
  PlaneView codes, scales;  // n_heads 0: left out; at most coded_heads
  Coding coding;
  RowsView rows;
  float head_scale[coded_heads] = {};
};

inline constexpr int32_t most_encoded = 6144;

template <int32_t n>
struct EncodeLaunch {
  CodedView side[2];
  int32_t n_sides = 0;
  int32_t n_heads = 0;      // of the side that has most
  int32_t warp_floats = 0;  // of shared memory: a row
  int32_t first_row = 0;    // of the tensors
  int32_t n_cells = 0;
  const int32_t* planned = nullptr;  // as in StoreLaunch
  int32_t cell[n];                   // −1: the row is not read
};

struct DecodeLaunch {
  CodedView k, v;
  int32_t warp_floats = 0;
  LoadedTokens tokens;
};

// Warps of such a launch serve a row each, of all heads.
Kernel encode_few_kernel() noexcept;
Kernel encode_many_kernel() noexcept;
Kernel decode_kernel() noexcept;

}  // namespace kvc::cuda
