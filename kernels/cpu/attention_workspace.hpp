#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "kernels/cpu/attention_plan.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/cpu/tile.hpp"

/// Where an attention call keeps what it needs: its plan, partial results, and for each thread what kernels work with.
namespace kvc::cpu {

/// A tile with a bias has at least so many cells (a multiple of the kernels' steps), and the thread room for their bias.
inline constexpr int32_t bias_cells_min = 96;
inline constexpr int32_t bias_floats_max = bias_cells_min * tile_rows_max;

/// Elements of a row of q or o: whole vectors of the widest instruction set.
constexpr int32_t padded(int32_t head_dim) { return (head_dim + 15) / 16 * 16; }

/// Bytes of a partial result of all heads of one token.
size_t slot_bytes(int32_t n_q_heads, int32_t head_dim_v);

/// Keys that are turned at once, in f32: about as many as leave room for other things in the second-level cache, in whole steps of
/// the kernels.
constexpr int32_t turned_cells(int32_t head_dim) {
  return head_dim <= 128 ? 384 : head_dim <= 256 ? 192 : 96;
}

/// What one thread works with. The arrays that the kernels touch all the time begin at page offsets of their own.
struct ThreadScratch {
  std::byte* kernel = nullptr;
  float* q = nullptr;          // [tile_rows_max][q_stride]
  float* q_rotated = nullptr;  // [tile_rows_max][q_stride]
  float* o = nullptr;          // [tile_rows_max][o_stride]
  float* max = nullptr;        // [tile_rows_max]
  float* sum = nullptr;        // [tile_rows_max]
  float* folded_o = nullptr;   // of the stretches that one thread attends one after another
  float* folded_max = nullptr;
  float* folded_sum = nullptr;
  float* slope = nullptr;              // [tile_rows_max]
  TileToken* token = nullptr;          // [tile_rows_max] ranges within the chunk of cells
  TileToken* segment_token = nullptr;  // [tile_rows_max] ranges within a segment of it
  int32_t* cell = nullptr;             // [tile_cells_max]
  int32_t* position = nullptr;         // [tile_cells_max]
  std::byte* rotations = nullptr;      // OffsetRotations
  float* turned = nullptr;             // [turned_cells][q_stride] keys, or queries of several runs
  int32_t* ordinal = nullptr;          // [turned_cells] 0, 1, 2, …
  int32_t* run = nullptr;              // [turned_cells] that a cell is of
  float* bias = nullptr;               // [bias_floats_max]

  void place(Carver& carver, int32_t head_dim_k, int32_t head_dim_v);
};

/// The whole workspace of a call.
struct Workspace {
  WorkPlan work;
  std::atomic<int32_t>* finished = nullptr;  // [rows with slots][n_q_heads] partial results that are there
  float* partial = nullptr;  // [slots][n_q_heads][o_stride + 16]: o, then max and sum
  ThreadScratch first;       // of thread 0; the others follow, scratch_bytes apart
  size_t scratch_bytes = 0;

  void place(Carver& carver, const AttentionBounds& bounds, int32_t n_threads);
  void place(const AttentionParams& params, int32_t n_threads);  // for one call
  ThreadScratch scratch_of(int32_t thread) const;
};

/// Room for rows that are encoded and decoded, where attention keeps its queries or, if vectors of V are longer, its outputs.
RowScratch row_scratch(const AttentionBounds& bounds, std::byte* workspace, int32_t n_threads);

}  // namespace kvc::cpu
