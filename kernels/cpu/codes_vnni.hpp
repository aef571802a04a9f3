#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/code_tiles.hpp"
#include "kernels/cpu/code_work.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/quad_softmax.hpp"
#include "kernels/cpu/tile.hpp"

/// The narrow kernel over integer codes (int8, q8_0, q4_0), with its products done by AVX-512's VNNI: an instruction
/// multiplies four bytes without a sign by four with one, in each of 16 lanes, and adds them to a 32-bit sum (Intel Architecture
/// Instruction Set Extensions, VPDPBUSD). Codes are multiplied as they are, by queries and probabilities that are sums of
/// four 8-bit digits (digits.hpp), so a product of four rows takes as many instructions as one of floats, but no code
/// becomes a float, and no sum is folded across lanes. The walk goes in blocks of 64 cells, and its rows in quads of four:
///
///   pack_keys            codes, raised → [step][16 cells][64 dimensions]
///   score_cells          sums of 16 cells, or 8; a lane is a digit of a row. Four dimensions of a key go to all lanes → scores
///   finish_scores        options and softmax → probabilities [cell][row]
///   pack_stored_values   codes → [16 dimensions][four cells]
///   pack_probabilities   · scales of the cells → [digit, row][64 cells], one for each scale of a row
///   add_values           sums of 64 dimensions of a row; a lane is a dimension. Digits of four cells go to all lanes → o
///
/// One operand has no sign. Keys are raised for that, and 4-bit values are as they are stored: what it adds to a sum
/// depends on digits alone, and sums begin with its negative. For other values it is probabilities that have no sign.
///
/// The next block is prefetched while products are made, a few lines a step, so that memory never waits. What is rounded, and
/// when floats are multiplied instead, is the same as with AMX (codes.hpp), but for values with a negative scale, which only a
/// caller's own codes have.
namespace kvc::cpu::KVC_ISA_NAMESPACE {

namespace codes {

inline constexpr int32_t group_cells = 16;

/// What raising adds to a code.
template <class Type>
inline constexpr int32_t raised_by = is_nibble<Type> ? 8 : 128;

struct VnniWork : Work {
  int32_t* query_offsets;        // [quad][product][column] what sums begin with
  int32_t* probability_offsets;  // [scale][column] of a quad
};

KVC_INLINE size_t lay_out(VnniWork& work, std::byte* base, int32_t head_dim_k, int32_t head_dim_v) {
  ScratchLayout layout{base};
  lay_out_shared(work, layout, head_dim_k, head_dim_v);
  layout.carve(work.query_offsets, quads_max * divide_up(head_dim_k, stored::ggml_block) * columns);
  layout.carve(work.probability_offsets, divide_up(head_dim_v, stored::ggml_block) * columns);
  return layout.offset;
}

// ---- Products -------------------------------------------------------------------------------------

/// sum += unsigned · signed, added up by fours. Written in assembly, because gcc 12 copies each sum before it calls the
/// intrinsic, and then has too few registers.
KVC_INLINE void multiply_add(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}
/// Four bytes, in all lanes.
KVC_INLINE __m512i share_four(const std::byte* p) {
  __m512i x;
  asm("vpbroadcastd %1, %0" : "=v"(x) : "m"(*reinterpret_cast<const std::byte(*)[4]>(p)));
  return x;
}
KVC_INLINE __m512i load_bytes(const std::byte* p) { return _mm512_load_si512(p); }
/// What raised codes add to sums of digits, negative.
template <class Type>
KVC_INLINE __m512i offsets_of(__m512i digit_sums) {
  return _mm512_mullo_epi32(digit_sums, _mm512_set1_epi32(-raised_by<Type>));
}

// ---- Rows of codes --------------------------------------------------------------------------------

/// Lines of the next block, prefetched a few at each step of a product. Of cells that are not neighbours there are none: those are
/// prefetched as the rows of this block are packed.
struct Stream {
  const std::byte* next = nullptr;
  int32_t n_lines = 0;  // of a step

  [[gnu::always_inline]] void prefetch_some() {
    for (int32_t i = 0; i < n_lines; ++i, next += 64) prefetch_far(next);
  }
};

/// The stream of the next block's codes in so many steps. Its scales, which are few, are prefetched at once.
KVC_INLINE Stream stream_of(const TileRows& rows, const BlockCells& next, int32_t n_steps) {
  if (!next.is_run) return {};
  const stored::Row first = stored::row_of(rows, next.cell[0]);
  for (size_t byte = 0; byte < rows.scale_stride * block_cells; byte += 64)
    prefetch_far(first.scales + byte);
  return {first.codes, divide_up(static_cast<int32_t>(rows.stride * block_cells / 64), n_steps)};
}

/// The codes of a block's cells.
template <bool is_run>
struct CodeRows {
  const TileRows& rows;
  const BlockCells& next;
  const int32_t* const cell;
  const std::byte* const first;  // of a run: its first row
  const size_t stride;

  [[gnu::always_inline]] CodeRows(const TileRows& of, const BlockCells& cells,
                                  const BlockCells& next_cells)
      : rows(of),
        next(next_cells),
        cell(cells.cell),
        first(is_run ? stored::row_of(of, cells.cell[0]).codes : of.codes),
        stride(of.stride) {}
  [[gnu::always_inline]] const std::byte* operator()(int32_t i) const {
    return first + static_cast<size_t>(is_run ? i : cell[i]) * stride;
  }
  [[gnu::always_inline]] void prefetch_next(int32_t i) const {
    if (next.is_run) return;
    const stored::Row row = stored::row_of(rows, next.cell[i]);
    for (size_t at = 0; at < rows.bytes; at += 64) prefetch_far(row.codes + at);
    prefetch_far(row.scales);
  }
};

/// Codes without a sign. 4-bit ones are stored like that.
template <class Type>
KVC_INLINE __m512i raise(__m512i stored_codes) {
  if constexpr (is_nibble<Type>) return stored_codes;
  return _mm512_xor_si512(stored_codes, _mm512_set1_epi8(-128));
}

/// Packs 16 keys. `dims` is head_dim, known at compile time if it is a common one.
template <class K, class Rows>
KVC_INLINE void pack_keys_of(std::byte* to, const Rows& row, int32_t first, int32_t dims) {
#pragma GCC unroll 4
  for (int32_t i = 0; i < group_cells; ++i) {
    const std::byte* codes = row(first + i);
    std::byte* out = to + i * step_dims;
    for (int32_t step = 0; step * step_dims < dims; ++step, out += group_cells * step_dims)
      _mm512_store_si512(out, raise<K>(stored_keys<K>(codes, step, dims)));
    row.prefetch_next(first + i);
  }
}
template <class K, class Rows>
KVC_INLINE void pack_keys(std::byte* to, const Rows& row, int32_t first) {
  const int32_t dims = row.rows.head_dim;
  if (dims == 2 * step_dims) return pack_keys_of<K>(to, row, first, 2 * step_dims);
  if (dims == step_dims) return pack_keys_of<K>(to, row, first, step_dims);
  pack_keys_of<K>(to, row, first, dims);
}

/// Packs the values of a block as they are stored.
template <class V, class Rows>
[[gnu::noinline]] static void pack_stored_values(std::byte* to, const Rows& row) {
  constexpr size_t of_64 = is_nibble<V> ? 32 : 64;
  const auto pack = [&](size_t bytes) __attribute__((always_inline)) {
    pack_values<V>(
        to, bytes, row, [](__m512i x) { return x; },
        [&](int32_t i) {
          for (int32_t j = 0; j < 16; j += 4) row.prefetch_next(first_cell_of(i) + j);
        });
  };
  const size_t bytes = row.rows.bytes;
  if (bytes == 2 * of_64) return pack(2 * of_64);  // common ones, known at compile time
  if (bytes == of_64) return pack(of_64);
  pack(bytes);
}

// ---- Scores ---------------------------------------------------------------------------------------

/// Of all quads. Where keys have one scale, the first product's are those of the only sum.
template <class K>
[[gnu::noinline]] static void offset_queries(const VnniWork& work) {
  const int32_t n = work.n_products();
  for (int32_t quad = 0; quad < work.n_quads; ++quad) {
    const std::byte* tile = work.queries_of(quad);
    int32_t* to = work.query_offsets + quad * n * columns;
    __m512i sum = _mm512_setzero_si512();
    for (int32_t i = 0; i < n; ++i, tile += tile_bytes) {
      for (size_t at = 0; at < tile_bytes; at += 64)
        multiply_add(sum, _mm512_set1_epi8(1), load_bytes(tile + at));
      if (work.n_key_sums == 1) continue;
      _mm512_store_si512(to + i * columns, offsets_of<K>(sum));
      sum = _mm512_setzero_si512();
    }
    if (work.n_key_sums == 1) _mm512_store_si512(to, offsets_of<K>(sum));
  }
}

/// What the scores of some cells and a quad are made of.
struct ScoreStep {
  const std::byte* keys;     // [step][16 cells][64 dimensions]
  const std::byte* queries;  // of the quad
  int32_t n_fours;           // of dimensions
  int32_t n_blocks;          // of dimensions with a scale of their own
  const int32_t* offsets;
  const float* weight;
  const float* scales;
  int32_t scale_stride;
  float* scores;
};

/// Scores of 16 cells that have one scale each.
[[maybe_unused, gnu::noinline]] static void score_cells(const ScoreStep& of, Stream& stream) {
  Stream ahead = stream;
  const std::byte *keys = of.keys, *queries = of.queries;
  const __m512i offset = _mm512_load_si512(of.offsets);
  __m512i sum[group_cells];
#pragma GCC unroll 16
  for (__m512i& x : sum) x = offset;
  for (int32_t left = of.n_fours; left > 0;
       left -= step_dims / 4, keys += (group_cells - 1) * step_dims) {
    const int32_t n = smaller(left, step_dims / 4);
    for (int32_t i = 0; i < n; ++i, keys += 4, queries += 64) {
      const __m512i digits = load_bytes(queries);
      ahead.prefetch_some();
#pragma GCC unroll 16
      for (size_t cell = 0; cell < group_cells; ++cell)
        multiply_add(sum[cell], share_four(keys + cell * step_dims), digits);
    }
  }
  stream = ahead;
  const Vec weight = load(of.weight);
#pragma GCC unroll 4
  for (int32_t i = 0; i < group_cells; i += 4) {
    Vec x[4];
#pragma GCC unroll 4
    for (int32_t j = 0; j < 4; ++j) x[j] = to_floats(sum[i + j]) * weight;
    store(of.scores + i * quad_rows, fold_digits(x) * spread(load_quad(of.scales + i)));
  }
}

inline constexpr int32_t half_group = 8;

/// Adds `blocks` blocks of 32 dimensions, from `block` on, to the totals of 8 cells.
template <int32_t blocks>
KVC_INLINE void add_blocks(const ScoreStep& of, int32_t block, Vec (&total)[half_group],
                           Stream& ahead) {
  constexpr size_t half_tile = tile_bytes / 2;
  const std::byte *keys[blocks], *queries[blocks];
  __m512i sum[blocks][half_group];
#pragma GCC unroll 2
  for (int32_t b = 0; b < blocks; ++b) {
    const size_t at = static_cast<size_t>(block) + static_cast<size_t>(b), half = at % 2;
    keys[b] = of.keys + at / 2 * (group_cells * step_dims) + half * stored::ggml_block;
    queries[b] = of.queries + at * tile_bytes + half * half_tile;
    const __m512i offset = _mm512_load_si512(of.offsets + at * columns);
#pragma GCC unroll 8
    for (__m512i& x : sum[b]) x = offset;
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < stored::ggml_block / 4; ++i) {
    if (i % 2 == 0) ahead.prefetch_some();
#pragma GCC unroll 2
    for (int32_t b = 0; b < blocks; ++b) {
      const __m512i digits = load_bytes(queries[b] + i * 64);
#pragma GCC unroll 8
      for (size_t cell = 0; cell < half_group; ++cell)
        multiply_add(sum[b][cell], share_four(keys[b] + i * 4 + cell * step_dims), digits);
    }
  }
#pragma GCC unroll 2
  for (int32_t b = 0; b < blocks; ++b) {
#pragma GCC unroll 8
    for (int32_t cell = 0; cell < half_group; ++cell) {
      const Vec scale = broadcast(of.scales[cell * of.scale_stride + block + b]);
      total[cell] = fma(to_floats(sum[b][cell]), scale, total[cell]);
    }
  }
}

/// Scores of 8 cells that have a scale for each 32 dimensions.
[[maybe_unused, gnu::noinline]] static void score_scaled_cells(const ScoreStep& of, Stream& stream) {
  Stream ahead = stream;
  Vec total[half_group];
#pragma GCC unroll 8
  for (Vec& x : total) x = zero();
  int32_t block = 0;
  for (; block + 2 <= of.n_blocks; block += 2) add_blocks<2>(of, block, total, ahead);
  if (block < of.n_blocks) add_blocks<1>(of, block, total, ahead);
  stream = ahead;
  const Vec weight = load(of.weight);
#pragma GCC unroll 2
  for (int32_t i = 0; i < half_group; i += 4) {
    Vec x[4];
#pragma GCC unroll 4
    for (int32_t j = 0; j < 4; ++j) x[j] = total[i + j] * weight;
    store(of.scores + i * quad_rows, fold_digits(x));
  }
}

/// Steps of the products of a block's keys and a quad.
template <class K>
KVC_INLINE int32_t key_steps(const VnniWork& work) {
  if constexpr (!Codes<K>::is_scaled_by_block)
    return divide_up(work.tile->k.head_dim, 4) * (block_cells / group_cells);
  return block_cells / half_group * divide_up(work.n_key_sums, 2) * 4;
}

/// Scores of a block and all quads that see something of it.
template <class K, class Rows>
KVC_INLINE void score_block(const VnniWork& work, const Sight& sight, const Rows& row) {
  const int32_t stride = scale_stride(row.rows), n = work.n_products();
  Stream ahead = stream_of(row.rows, row.next, key_steps<K>(work)), nothing;
  for (int32_t first = 0; first < block_cells; first += group_cells) {
    pack_keys<K>(work.keys, row, first);
    for (int32_t i = 0; i < sight.n_quads; ++i) {
      const int32_t quad = sight.quad[i];
      Stream& stream = i == 0 ? ahead : nothing;
      ScoreStep step = {work.keys,
                        work.queries_of(quad),
                        divide_up(row.rows.head_dim, 4),
                        work.n_key_sums,
                        work.query_offsets + quad * n * columns,
                        work.weight + quad * columns,
                        work.key_scales + first * stride,
                        stride,
                        work.scores_of(quad) + first * quad_rows};
      if constexpr (!Codes<K>::is_scaled_by_block) {
        score_cells(step, stream);
      } else {
        score_scaled_cells(step, stream);
        step.keys += half_group * step_dims;
        step.scales += half_group * stride;
        step.scores += half_group * quad_rows;
        score_scaled_cells(step, stream);
      }
    }
  }
}

// ---- Values ---------------------------------------------------------------------------------------

/// Of the probabilities of a quad, for each scale.
template <class V>
KVC_INLINE void offset_probabilities(const VnniWork& work, int32_t quad) {
  const std::byte* row = work.probabilities_of(quad);
  int32_t* to = work.probability_offsets;
  for (int32_t s = 0; s < work.n_value_scales; ++s, to += columns) {
    Vec sum[step_cells][4];  // in f32, which holds them exactly
    for (int32_t column = 0; column < columns; ++column, row += 64) {
      __m512i x = _mm512_setzero_si512();
      multiply_add(x, _mm512_set1_epi8(1), load_bytes(row));
      sum[column / 4][column % 4] = to_floats(x);
    }
    alignas(64) float all[columns];
    store_sums(all, sum);
    _mm512_store_si512(to, offsets_of<V>(_mm512_maskz_cvtps_epi32(0xffff, load(all))));
  }
}

/// Four tiles of values, and the probabilities of a row that two tiles each are multiplied with.
struct ValueStep {
  const std::byte* tiles;
  const std::byte* digits[2];  // [digit][four rows][64 cells]
  const int32_t* offsets[2];   // [digit][four rows]
  float unit;                  // what an integer counts for
  float* o;
  int32_t n_tiles;  // of which as many count
};

template <class V>
[[gnu::noinline]] static void add_values(const ValueStep& of, Stream& stream) {
  constexpr int32_t n_digits = digits::count;
  Stream ahead = stream;
  __m512i sum[4][n_digits];
#pragma GCC unroll 4
  for (int32_t t = 0; t < 4; ++t) {
#pragma GCC unroll 4
    for (int32_t digit = 0; digit < n_digits; ++digit) {
      sum[t][digit] = is_nibble<V> ? _mm512_set1_epi32(of.offsets[t / 2][digit * quad_rows])
                                   : _mm512_setzero_si512();
    }
  }
  const std::byte *tiles = of.tiles, *low = of.digits[0], *high = of.digits[1];
  for (int32_t i = 0; i < block_cells / 4; ++i, tiles += 64, low += 4, high += 4) {
    __m512i v[4];
#pragma GCC unroll 4
    for (size_t t = 0; t < 4; ++t) v[t] = load_bytes(tiles + t * tile_bytes);
    ahead.prefetch_some();
#pragma GCC unroll 4
    for (size_t digit = 0; digit < n_digits; ++digit) {
      const __m512i p = share_four(low + digit * quad_rows * 64);
      const __m512i q = Codes<V>::is_scaled_by_block ? share_four(high + digit * quad_rows * 64) : p;
#pragma GCC unroll 4
      for (size_t t = 0; t < 4; ++t) {
        const __m512i weight = t < 2 ? p : q;
        if constexpr (is_nibble<V>)
          multiply_add(sum[t][digit], v[t], weight);
        else
          multiply_add(sum[t][digit], weight, v[t]);
      }
    }
  }
  stream = ahead;
#pragma GCC unroll 4
  for (int32_t t = 0; t < 4; ++t) {
    if (t >= of.n_tiles) return;
    Vec x = to_floats(sum[t][0]) * broadcast(of.unit);
#pragma GCC unroll 4
    for (int32_t digit = 1; digit < n_digits; ++digit)
      x = fma(to_floats(sum[t][digit]), broadcast(of.unit * static_cast<float>(1 << (8 * digit))), x);
    float* o = of.o + t * tile_dims;
    store(o, load(o) + x);
  }
}

/// Adds a block's values to the rows of a quad.
template <class V>
KVC_INLINE void add_block_values(const VnniWork& work, int32_t quad_index, float unit, Stream& stream) {
  const Tile& tile = *work.tile;
  const RowQuad& quad = work.quad[quad_index];
  for (int32_t first = 0; first < work.n_value_tiles; first += 4) {
    const int32_t low = work.n_value_scales == 1 ? 0 : first / 2;
    const int32_t scale[2] = {low, smaller(low + 1, work.n_value_scales - 1)};
    for (int32_t r = 0; r < quad.n_rows; ++r) {
      ValueStep step = {};
      step.tiles = work.values + static_cast<size_t>(first) * tile_bytes;
      for (int32_t i = 0; i < 2; ++i) {
        step.digits[i] = work.probabilities_of(quad_index) +
                         static_cast<size_t>(scale[i]) * tile_bytes + r * 64;
        step.offsets[i] = work.probability_offsets + scale[i] * columns + r;
      }
      step.unit = unit;
      step.o = tile.o + static_cast<size_t>(quad.row + r) * static_cast<size_t>(tile.o_stride) +
               first * tile_dims;
      step.n_tiles = work.n_value_tiles - first;
      add_values<V>(step, stream);
    }
  }
}

/// Whether this kernel is the fastest for a tile, as measured. A quad takes as long with fewer than four rows, a step of values
/// as long with fewer than 64 dimensions, and in larger heads other kernels spread their overhead further. What is asked is how many
/// query heads there are, not how many rows, so that a token has the same bits alone and beside others.
KVC_INLINE bool is_fastest_for(const Tile& tile) {
  constexpr int32_t head_dim_max = 128;
  const int32_t quads_of_group = divide_up(tile.group, quad_rows);
  return 4 * tile.group >= 3 * quad_rows * quads_of_group && tile.k.head_dim <= head_dim_max &&
         tile.v.head_dim <= head_dim_max && tile.v.head_dim % 32 == 0;
}

// ---- The walk -------------------------------------------------------------------------------------

/// The cells of a block.
struct Block {
  BlockCells k, v;
};

/// Calls `use` with the rows of one side.
template <class Use>
KVC_INLINE void with_code_rows(const TileRows& rows, const BlockCells& cells,
                               const BlockCells& next, Use use) {
  if (cells.is_run) return use(CodeRows<true>(rows, cells, next));
  use(CodeRows<false>(rows, cells, next));
}

template <class K, class V>
[[gnu::noinline]] static void process_block(VnniWork& work, int32_t begin, const Block& block,
                                            const Block& next) {
  const Tile& tile = *work.tile;
  Sight sight;
  look(work, begin, sight);
  if (sight.n_quads == 0) return;
  const float key_scale = place_scales<K>(work.key_scales, tile.k, block.k).largest();
  with_code_rows(tile.k, block.k, next.k,
                 [&](const auto& rows) { score_block<K>(work, sight, rows); });
  const Magnitudes value_scales = place_scales<V>(work.value_scales, tile.v, block.v);
  const bool has_digits = have_digits(value_scales, sight.is_mixed) &&
                          (is_nibble<V> || !value_scales.has_negative());
  float unit = 0;
  if (has_digits) {
    unit = order_value_scales(work, value_scales.largest());
    with_code_rows(tile.v, block.v, next.v,
                   [&](const auto& rows) { pack_stored_values<V>(work.values, rows); });
  }
  const int32_t value_steps = divide_up(work.n_value_tiles, 4) * work.quad[sight.quad[0]].n_rows *
                              (block_cells / 4);
  Stream ahead = stream_of(tile.v, next.v, value_steps), nothing;
  for (int32_t i = 0; i < sight.n_quads; ++i) {
    const int32_t index = sight.quad[i];
    const RowQuad& quad = work.quad[index];
    correct_scores<K>(work, index, block.k.cell, key_scale);
    finish_scores<block_cells>(tile, quad, quad.scored, begin, work.scores_of(index));
    if (!has_digits) {
      add_values_plainly<V>(work, index, block.v.cell, begin);
      continue;
    }
    pack_probabilities<is_nibble<V>>(work, index);
    if constexpr (is_nibble<V>) offset_probabilities<V>(work, index);
    add_block_values<V>(work, index, unit, i == 0 ? ahead : nothing);
  }
}

/// The walk, for up to rows_max rows.
template <class K, class V>
[[gnu::noinline]] static void process_rows(VnniWork& work) {
  const Tile& tile = *work.tile;
  pack_queries(work);
  offset_queries<K>(work);
  Block blocks[2];
  const auto locate = [&](int32_t begin) {
    Block& block = blocks[begin / block_cells % 2];
    block.k.locate(tile.k, tile.n_cells, begin);
    block.v.locate(tile.v, tile.n_cells, begin);
  };
  locate(0);
  for (int32_t begin = 0; begin < tile.n_cells; begin += block_cells) {
    const int32_t i = begin / block_cells % 2;
    locate(begin + block_cells);
    process_block<K, V>(work, begin, blocks[i], blocks[1 - i]);
  }
}

}  // namespace codes

// NOLINTBEGIN(misc-definitions-in-headers): isa_vnni.cpp alone includes them
size_t codes_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  codes::VnniWork work = {};
  return codes::scratch_bytes_with(codes::lay_out(work, nullptr, head_dim_k, head_dim_v),
                                   head_dim_k, head_dim_v);
}

/// The same contract as process_narrow_tile, which does what has no integer codes, and what it is faster for.
void process_codes_tile(const Tile& tile) {
  codes::VnniWork work = {};
  work.tile = &tile;
  codes::lay_out(work, tile.scratch, tile.k.head_dim, tile.v.head_dim);
  const bool is_done = codes::is_fastest_for(tile) &&
                       codes::with_rows(
                           work, [&]<class K, class V>(K, V) { codes::process_rows<K, V>(work); });
  if (!is_done) avx512_kernels.process_narrow_tile(tile);
}

/// The same contract as process_medium_tile, likewise; that is faster for more than three quads.
void process_medium_codes_tile(const Tile& tile) {
  if (tile.n_rows <= 3 * quad_rows && codes::is_fastest_for(tile) && codes::have_codes(tile))
    return process_codes_tile(tile);
  avx512_kernels.process_medium_tile(tile);
}

// NOLINTEND(misc-definitions-in-headers)

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
