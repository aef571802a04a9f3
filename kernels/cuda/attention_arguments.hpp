#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "kernels/cuda/coding.hpp"
#include "kernels/cuda/element.hpp"
#include "kernels/cuda/schedule.hpp"

/// What the attention kernels are told. All addresses are the device's.
namespace kvc::cuda {

/// One layer's K, or its V: [n_kv_heads][cells][dim] numbers, or their codes.
struct Numbers {
  const char* data;
  int64_t head_stride;  // bytes
  int64_t row_stride;   // bytes, from one cell to the next
  int32_t dim, n_cells;
  Element element;
  // Of codes.
  Coding coding;
  const char* scales;  // [n_kv_heads][cells] rows; null: none is stored
  int64_t scale_head_stride, scale_row_stride;
  const float* head_scale;  // [n_kv_heads] of f8; null: 1
};

/// A tensor of a call, whose dimension of tokens may be folded (Tensor::token_offset).
struct Strided {
  char* data;                 // null: none
  int64_t head, token, last;  // strides in elements
  int64_t fold_stride;
  int32_t fold;
  Element element;
};

/// The device's copies of what an AttentionPlan names.
struct DeviceTokens {
  const int32_t* cells = nullptr;
  const int32_t* positions = nullptr;
  const uint64_t* seen = nullptr;  // read where the plan has one
};

struct AttentionArguments {
  Numbers k, v;

  // The pass.
  const int32_t* cells;  // the device's token arrays
  const int32_t* positions;
  const Tile* tiles;
  const TileRow* rows;
  const ListRef* lists;
  const Segment* segments;
  const uint64_t* seen;  // AttentionPlan::seen; null: all that rows name
  int64_t seen_words;

  // The call.
  Strided q, out;
  Strided lse;  // f32; no last dimension
  Strided bias;
  Strided mask;       // bytes
  Strided weights;    // f32
  int64_t n_columns;  // of weights
  int32_t bias_sharers, mask_sharers;
  int32_t first_column;     // the cell of column 0
  int32_t columns_by_list;  // 1: that is the first cell of the list

  // Constants.
  const float* slopes;      // [n_q_heads] or null
  const float* sinks;       // [n_q_heads] or null
  const double* frequency;  // [rope_dims / 2] where a list has pending rotations
  int32_t rope_dims, rope_first, rope_halves;
  // The scale, in units of log2 where there is no softcap: what queries are multiplied with, and what their products are.
  float q_factor, score_factor;
  float softcap;   // 0: none
  int32_t rounds;  // 1: factors of products may be rounded to the type of K

  // The launch.
  TileShape shape;
  int32_t n_tiles;
  int32_t first_part, n_parts;
  const LaunchedParts* launched;  // these three, where a graph launches; null: they are as they stand here
  float* partial;  // [slots][tile_columns][dim of V + 2]: the sums, their weight, and the maximum that they count from
  int32_t* counters;  // [slots] of finished parts, at a tile's first slot; zero before a launch and after it

  KVC_BOTH bool has_codes() const {
    return k.element == Element::code || v.element == Element::code;
  }
  /// Whether something beside the ranges of rows decides about scores.
  KVC_BOTH bool changes_scores() const {
    return softcap != 0 || slopes != nullptr || bias.data != nullptr || mask.data != nullptr ||
           seen != nullptr;
  }
};

/// The kernels' arguments as far as the call and the schedule decide them; addresses of what is uploaded are left out.
AttentionArguments arguments_of(const AttentionParams& params, const DeviceTokens& tokens);
/// Where the arrays of a schedule lie in `block`.
void place_schedule(AttentionArguments& a, const Schedule& schedule, const std::byte* block);
/// What the width of tiles decides. Wide kernels multiply queries with a power of two, which leaves 16-bit ones what they are.
void place_width(AttentionArguments& a, const TileShape& shape, Width width);
/// What the index-th wave decides.
void place_wave(AttentionArguments& a, const Schedule& schedule, int32_t index);

}  // namespace kvc::cuda
