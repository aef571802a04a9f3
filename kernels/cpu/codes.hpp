#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_products.hpp"
#include "kernels/cpu/code_tiles.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/matrix_tiles.hpp"
#include "kernels/cpu/quad_softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// The narrow kernel over integer codes (int8, q8_0, q4_0), with its products done by AMX: codes are
/// multiplied as they are, by queries and probabilities that are sums of four 8-bit digits (digits.hpp).
/// It walks a tile in blocks of 64 cells, and its rows in quads of four (quad_softmax.hpp):
///
///   multiply_keys        of block b: keys (A [16 cells][64 dimensions]) × digits of queries → integers
///   add_values           of block b − 1: o += integers · 256^digit
///   pack_values          of block b: codes → B [64 cells][16 dimensions]
///   fold_scores          integers · scales of the cells, · 256^digit, summed up → scores [cell][row]
///   finish_scores        options and softmax → probabilities
///   pack_probabilities   · scales of the cells → A [digit, row][64 cells], one for each scale of a row
///   place_keys           of block b + 1
///   multiply_values      of block b: digits of probabilities × values → integers
///
/// A product is stored well before it is read, and an operand well before it is multiplied: vectors work
/// while AMX does. The next block is prefetched a few lines at a time all along.
///
/// A quad of rows has as many digits as a tile of AMX has columns, so one product does for all of them,
/// and no code becomes a float. Integers are added exactly. What is rounded is a query, to 2^−30 of its
/// largest number, and a probability · scale, to 2^−30 of the block's largest scale. Where that could
/// matter, or where a scale is not finite, a block is multiplied as floats: the scores of a row
/// (score_plainly), or the values (add_values_plainly).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace codes {

/// Where a query's largest number times a key's can be more, the query's rounding could matter.
inline constexpr float product_max = 256;

/// Where a value's scale is less than this of the largest, the rounding of probability · scale could matter
/// to a row that sees none of the larger ones.
inline constexpr float scale_ratio_min = 0x1p-6f;

/// A block on its way through the kernel.
struct Block {
  int32_t begin;
  BlockCells k, v;
  Keys keys;
  float value_scale;        // the largest
  float unit;               // what an integer of its values counts for
  int32_t quad[quads_max];  // those that see something of it
  int32_t n_quads;
  float key_scale;  // the largest
  bool has_digits;  // its values are multiplied as codes

  [[gnu::always_inline]] void locate(const Tile& tile, int32_t first) {
    begin = first;
    k.locate(tile.k, tile.n_cells, first);
    v.locate(tile.v, tile.n_cells, first);
  }
};

/// Adds what multiply_block_values has left.
KVC_INLINE void add_last_values(Work& work, const Block& block) {
  const int32_t last = block.n_quads - 1;
  add_values(work, block.quad[last], block.unit, work.value_sums[last % 2]);
}

/// Finds the quads that see something of the block.
KVC_INLINE void look(const Work& work, Block& block) {
  const Tile& tile = *work.tile;
  const int32_t end = smaller(block.begin + block_cells, tile.n_cells);
  block.n_quads = 0;
  for (int32_t i = 0; i < work.n_quads && block.begin < end; ++i) {
    RowQuad& quad = work.quad[i];
    quad.scored = visibility_of(quad, block.begin, end);
    if (tile.bias) quad.scored = visibility_with_bias(tile, quad, quad.scored, block.begin, end);
    if (quad.scored != Visibility::none) block.quad[block.n_quads++] = i;
  }
}

/// Whether some row sees the block only in part, and so perhaps none of its largest values.
KVC_INLINE bool is_mixed(const Work& work, const Block& block) {
  bool mixed = false;
  for (int32_t i = 0; i < block.n_quads; ++i)
    mixed |= work.quad[block.quad[i]].scored == Visibility::mixed;
  return mixed;
}

/// Places the keys and the scales of a block.
template <class K, class V>
[[gnu::noinline]] static void prepare(const Work& work, Block& block) {
  const Tile& tile = *work.tile;
  look(work, block);
  if (block.n_quads == 0) return;
  block.key_scale = place_scales<K>(work.key_scales, tile.k, block.k.cell).largest();
  const Magnitudes value_scales = place_scales<V>(work.value_scales, tile.v, block.v.cell);
  block.value_scale = value_scales.largest();
  const bool is_narrow = value_scales.smallest() >= block.value_scale * scale_ratio_min;
  block.has_digits = integer_factor(block.value_scale) != 0 && (is_narrow || !is_mixed(work, block));
  block.keys = place_keys<K>(work.keys, tile.k, block.k);
}

/// Scores of a quad, then its probabilities.
template <class K>
KVC_INLINE void score_quad(Work& work, const Block& block, int32_t index, const int32_t* sums) {
  const Tile& tile = *work.tile;
  const RowQuad& quad = work.quad[index];
  float* scores = work.scores + index * block_cells * quad_rows;
  fold_scores<!Codes<K>::is_scaled_by_block>(work, index, sums);
  for (int32_t r = 0; r < quad.n_rows; ++r) {
    const float largest = work.query_max[index * quad_rows + r] *
                          (Codes<K>::largest * block.key_scale);
    if (!(largest <= product_max)) score_plainly<K>(tile, block.k.cell, quad.row + r, scores + r);
  }
  finish_scores<block_cells>(tile, quad, quad.scored, block.begin, scores);
}

/// Scores, probabilities and packed values of a prepared block. `before` is the block whose last values
/// are not added yet, or null.
template <class K, class V>
[[gnu::noinline]] static void score_block(Work& work, Block& block, const Block& next,
                                          const Block* before) {
  const Tile& tile = *work.tile;
  work.ahead_k.begin(tile.k, next.k);
  work.ahead_v.begin(tile.v, next.v);
  multiply_keys(work, block.keys, block.quad[0], work.key_sums[0]);
  if (before != nullptr) add_last_values(work, *before);
  if (block.has_digits) block.unit = order_value_scales(work, block.value_scale);
  pack_values<V>(work.values, tile.v, block.v.cell, [&](int32_t i) {
    work.prefetch_some();
    if (i % 4 == 3) matrix::amx_stay_awake(work.unused);
  });
  for (int32_t i = 0; i < block.n_quads; ++i) {
    const int32_t quad = block.quad[i];
    if (i + 1 < block.n_quads)
      multiply_keys(work, block.keys, block.quad[i + 1], work.key_sums[(i + 1) % 2]);
    score_quad<K>(work, block, quad, work.key_sums[i % 2]);
    if (block.has_digits) {
      pack_probabilities(work, quad);
    } else {
      add_values_plainly<V>(work, quad, block.v.cell, block.begin);
    }
  }
}

/// Multiplies the values of a block, and adds those of all quads but the last.
KVC_INLINE void multiply_block_values(Work& work, const Block& block) {
  for (int32_t i = 0; i < block.n_quads; ++i) {
    multiply_values(work, block.quad[i], work.value_sums[i % 2]);
    if (i > 0) add_values(work, block.quad[i - 1], block.unit, work.value_sums[(i - 1) % 2]);
  }
}

/// The walk, for up to rows_max rows.
template <class K, class V>
[[gnu::noinline]] static void process_rows(Work& work) {
  const Tile& tile = *work.tile;
  for (int32_t i = 0; i < work.n_quads; ++i) describe_quad(tile, work.first_quad + i, work.quad[i]);
  pack_queries(work);
  Block blocks[3];
  const auto locate = [&](int32_t i) { blocks[i % 3].locate(tile, i * block_cells); };
  locate(0);
  locate(1);
  prepare<K, V>(work, blocks[0]);
  const Block* before = nullptr;
  for (int32_t i = 0; i * block_cells < tile.n_cells; ++i) {
    Block &block = blocks[i % 3], &next = blocks[(i + 1) % 3];
    locate(i + 2);
    if (block.n_quads > 0) {
      score_block<K, V>(work, block, next, before);
    } else if (before != nullptr) {
      add_last_values(work, *before);
    }
    prepare<K, V>(work, next);
    before = nullptr;
    if (block.n_quads > 0 && block.has_digits) {
      multiply_block_values(work, block);
      before = &block;
    }
  }
  if (before != nullptr) add_last_values(work, *before);
}

template <class K, class V>
KVC_INLINE void process(Work& work) {
  const Tile& tile = *work.tile;
  work.n_key_steps = divide_up(tile.k.head_dim, step_dims);
  work.n_key_sums = Codes<K>::is_scaled_by_block ? tile.k.head_dim / stored::ggml_block : 1;
  work.n_value_tiles = divide_up(tile.v.head_dim, tile_dims);
  work.n_value_scales = Codes<V>::is_scaled_by_block ? tile.v.head_dim / stored::ggml_block : 1;
  const int32_t n_quads = divide_up(tile.n_rows, quad_rows);
  matrix::amx_begin();
  for (work.first_quad = 0; work.first_quad < n_quads; work.first_quad += quads_max) {
    work.n_quads = smaller(quads_max, n_quads - work.first_quad);
    process_rows<K, V>(work);
  }
  matrix::amx_end();
}

}  // namespace codes

size_t codes_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  codes::Work work = {};
  size_t bytes = codes::lay_out(work, nullptr, head_dim_k, head_dim_v);
  for (const auto other :
       {avx512_kernels.narrow_tile_scratch_bytes, avx512_kernels.medium_tile_scratch_bytes}) {
    const size_t others = other(head_dim_k, head_dim_v);
    bytes = others > bytes ? others : bytes;
  }
  return bytes;
}

/// The same contract as process_narrow_tile, which does what has no integer codes.
void process_codes_tile(const Tile& tile) {
  codes::Work work = {};
  work.tile = &tile;
  codes::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim);
  bool is_done = false;
  codes::with_codes(tile.k.type, [&]<class K>(K) {
    is_done = codes::with_codes(tile.v.type, [&]<class V>(V) { codes::process<K, V>(work); });
  });
  if (!is_done) avx512_kernels.process_narrow_tile(tile);
}

/// The same contract as process_medium_tile, which does what has more rows, or no integer codes.
void process_medium_codes_tile(const Tile& tile) {
  const auto has_codes = [](StorageType type) { return codes::with_codes(type, [](auto) {}); };
  if (tile.n_rows <= codes::rows_max && has_codes(tile.k.type) && has_codes(tile.v.type))
    return process_codes_tile(tile);
  avx512_kernels.process_medium_tile(tile);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
