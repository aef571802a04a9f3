#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/tensor.hpp"

/// What the kernels of linear attention with decay work on (semantics §7). Rows are padded with zeros to 16 floats and aligned
/// to 64 bytes, but for k and q of a block, which may lie in tensors; `dims` are padded dimensions.
namespace kvc::cpu {

/// λ^n as the sum of two floats. One alone would be off by 2^-25 of it, the same in every step, which adds up over the steps of
/// a long sequence.
struct Decay {
  float high = 1;
  float low = 0;
};

/// One token of one state head: state' = decay · state + kᵀ v, and out = q state' for each query head.
struct LightningStep {
  const float* from = nullptr;  // [depth][dims_v]
  float* to = nullptr;          // [depth][dims_v]; null: not wanted
  const float* k = nullptr;     // [depth]
  const float* v = nullptr;     // [dims_v]
  const float* q = nullptr;     // [n_q][dims_k]
  float* out = nullptr;         // [n_q][dims_v]
  int32_t depth = 0;            // head_dim_k
  int32_t dims_k = 0;
  int32_t dims_v = 0;
  int32_t n_q = 0;  // query heads of the state head; 0: no output is wanted
  Decay decay;
  bool streams = false;  // `to` is not needed soon: it goes past the caches
};

/// Kernels read so many factors behind the last, for tokens that they then leave out.
inline constexpr int32_t decay_margin = 32;

/// Rows of memory that will be read next. Kernels prefetch them between the steps of their products, a few lines at a time: a
/// processor waits as soon as more lines are on their way than it can keep track of. Rows often lie in pages of their own, and finding
/// a page can take longer than reading a line: a few rows are prefetched side by side, so that their pages are looked up at once.
inline constexpr int32_t rows_ahead = 8;
struct LightningAhead {
  const std::byte* const* row = nullptr;  // [n]
  int32_t n = 0;
  int32_t row_bytes = 0;
  int32_t lines_at_once = 0;
  bool into_first_level = false;  // of the caches; else into the second
  int32_t at = 0;                 // rows before are prefetched,
  int32_t byte = 0;               // and so many bytes of rows_ahead from it on
  int32_t due = 0;                // lines
};

/// Rows of tokens, as they lie in tensors, as floats: to[column · n + i · panel + d], in panels of columns.
struct LightningRows {
  const std::byte* const* row = nullptr;  // [n]; null: zeros
  int32_t n = 0;
  DType type = DType::f32;
  int32_t dims = 0;
  int32_t panel = 0;  // a multiple of 16; the last panel may be narrower
  float factor = 1;
  float* to = nullptr;
  std::byte* kept = nullptr;  // [n] rows of kept_stride bytes, which become copies as they are; null: none
  size_t kept_stride = 0;
  bool keeps_past_caches = false;
};

/// Floats as rows of tokens.
struct LightningOutputs {
  const float* from = nullptr;      // [n][dims rounded up to 16]
  std::byte* const* row = nullptr;  // [n]
  int32_t n = 0;
  DType type = DType::f32;
  int32_t dims = 0;
  bool past_caches = false;
};

/// n tokens of one state head whose positions follow each other. The state lies in panels, as KernelTable::lightning_panel_dims
/// says: panel p at depth · p · panel dims, a row of it has as many floats (the last panel's rows what is left of dims_v).
struct LightningBlock {
  int32_t n = 0;
  int32_t depth = 0;  // head_dim_k
  int32_t dims_k = 0;
  int32_t dims_v = 0;
  const float* k = nullptr;  // [n][dims_k], rows k_stride floats apart
  int64_t k_stride = 0;
  const float* v = nullptr;      // [n][dims_v] in panels
  const float* decay = nullptr;  // [n + 1] λ^i
  const float* from_decay = nullptr;  // [n] what the state counts for in token i: λ^(i + 1), and a gap before the block
  Decay state_decay;  // of the whole block, and a gap before it
  float* state = nullptr;

  // One query head.
  const float* q = nullptr;  // [n][dims_k], rows q_stride floats apart
  int64_t q_stride = 0;
  float* out = nullptr;  // [n][dims_v]
  const LightningOutputs* outputs = nullptr;  // where outputs go in place of `out`, aligned to 64 bytes if past the caches; or null

  // Scratch, which pack() fills for attend() and advance().
  float* key_columns = nullptr;   // [n rounded up to 16][dims_k]
  float* decayed_keys = nullptr;  // [n][dims_k] each key as it counts in the state behind the block
  float* reversed = nullptr;      // [n + decay_margin] λ^(n − 1 − i), then zeros
  float* weights = nullptr;       // [n][n rounded up to 16]
  LightningAhead* ahead = nullptr;
};

}  // namespace kvc::cpu
