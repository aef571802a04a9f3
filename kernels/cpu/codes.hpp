#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_products.hpp"
#include "kernels/cpu/code_tiles.hpp"
#include "kernels/cpu/code_work.hpp"
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

/// A block on its way through the kernel.
struct Block {
  int32_t begin;
  BlockCells k, v;
  Keys keys;
  Sight sight;
  float key_scale;  // the largest
  float value_scale;
  float unit;       // what an integer of its values counts for
  bool has_digits;  // its values are multiplied as codes

  [[gnu::always_inline]] void locate(const Tile& tile, int32_t first) {
    begin = first;
    k.locate(tile.k, tile.n_cells, first);
    v.locate(tile.v, tile.n_cells, first);
  }
};

/// Adds what multiply_block_values has left.
KVC_INLINE void add_last_values(AmxWork& work, const Block& block) {
  const int32_t last = block.sight.n_quads - 1;
  add_values(work, block.sight.quad[last], block.unit, work.value_sums[last % 2]);
}

/// Places the keys and the scales of a block.
template <class K, class V>
[[gnu::noinline]] static void prepare(const AmxWork& work, Block& block) {
  const Tile& tile = *work.tile;
  look(work, block.begin, block.sight);
  if (block.sight.n_quads == 0) return;
  block.key_scale = place_scales<K>(work.key_scales, tile.k, block.k).largest();
  const Magnitudes value_scales = place_scales<V>(work.value_scales, tile.v, block.v);
  block.value_scale = value_scales.largest();
  block.has_digits = have_digits(value_scales, block.sight.is_mixed);
  block.keys = place_keys<K>(work.keys, tile.k, block.k);
}

/// Scores, probabilities and packed values of a prepared block. `before` is the block whose last values
/// are not added yet, or null.
template <class K, class V>
[[gnu::noinline]] static void score_block(AmxWork& work, Block& block, const Block& next,
                                          const Block* before) {
  const Tile& tile = *work.tile;
  const Sight& sight = block.sight;
  work.ahead_k.begin(tile.k, next.k);
  work.ahead_v.begin(tile.v, next.v);
  multiply_keys(work, block.keys, sight.quad[0], work.key_sums[0]);
  if (before != nullptr) add_last_values(work, *before);
  if (block.has_digits) block.unit = order_value_scales(work, block.value_scale);
  const auto codes = [&](int32_t i) { return stored::row_of(tile.v, block.v.cell[i]).codes; };
  pack_values<V>(
      work.values, tile.v.bytes, codes, [](__m512i x) { return signed_codes<V>(x); },
      [&](int32_t i) {
        work.prefetch_some();
        if (i % 4 == 3) matrix::amx_stay_awake(work.unused);
      });
  for (int32_t i = 0; i < sight.n_quads; ++i) {
    const int32_t index = sight.quad[i];
    const RowQuad& quad = work.quad[index];
    if (i + 1 < sight.n_quads)
      multiply_keys(work, block.keys, sight.quad[i + 1], work.key_sums[(i + 1) % 2]);
    fold_scores<!Codes<K>::is_scaled_by_block>(work, index, work.key_sums[i % 2]);
    correct_scores<K>(work, index, block.k.cell, block.key_scale);
    finish_scores<block_cells>(tile, quad, quad.scored, block.begin, work.scores_of(index));
    if (block.has_digits) {
      pack_probabilities<true>(work, index);
    } else {
      add_values_plainly<V>(work, index, block.v.cell, block.begin);
    }
  }
}

/// Multiplies the values of a block, and adds those of all quads but the last.
KVC_INLINE void multiply_block_values(AmxWork& work, const Block& block) {
  const Sight& sight = block.sight;
  for (int32_t i = 0; i < sight.n_quads; ++i) {
    multiply_values(work, sight.quad[i], work.value_sums[i % 2]);
    if (i > 0) add_values(work, sight.quad[i - 1], block.unit, work.value_sums[(i - 1) % 2]);
  }
}

/// The walk, for up to rows_max rows.
template <class K, class V>
[[gnu::noinline]] static void process_rows(AmxWork& work) {
  const Tile& tile = *work.tile;
  pack_queries(work);
  Block blocks[3];
  const auto locate = [&](int32_t i) { blocks[i % 3].locate(tile, i * block_cells); };
  locate(0);
  locate(1);
  prepare<K, V>(work, blocks[0]);
  const Block* before = nullptr;
  for (int32_t i = 0; i * block_cells < tile.n_cells; ++i) {
    Block &block = blocks[i % 3], &next = blocks[(i + 1) % 3];
    const bool is_seen = block.sight.n_quads > 0;
    locate(i + 2);
    if (is_seen) {
      score_block<K, V>(work, block, next, before);
    } else if (before != nullptr) {
      add_last_values(work, *before);
    }
    prepare<K, V>(work, next);
    before = nullptr;
    if (is_seen && block.has_digits) {
      multiply_block_values(work, block);
      before = &block;
    }
  }
  if (before != nullptr) add_last_values(work, *before);
}

}  // namespace codes

// NOLINTBEGIN(misc-definitions-in-headers): isa_amx.cpp alone includes them
size_t codes_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  codes::AmxWork work = {};
  return codes::scratch_bytes_with(codes::lay_out(work, nullptr, head_dim_k, head_dim_v),
                                   head_dim_k, head_dim_v);
}

/// The same contract as process_narrow_tile, which does what has no integer codes.
void process_codes_tile(const Tile& tile) {
  codes::AmxWork work = {};
  work.tile = &tile;
  codes::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim);
  matrix::amx_begin();
  const bool is_done = codes::with_rows(
      work, [&]<class K, class V>(K, V) { codes::process_rows<K, V>(work); });
  matrix::amx_end();
  if (!is_done) avx512_kernels.process_narrow_tile(tile);
}

/// The same contract as process_medium_tile, which does what has more rows, or no integer codes.
void process_medium_codes_tile(const Tile& tile) {
  if (tile.n_rows <= codes::rows_max && codes::have_codes(tile)) return process_codes_tile(tile);
  avx512_kernels.process_medium_tile(tile);
}

// NOLINTEND(misc-definitions-in-headers)

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
