#pragma once
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// The kernel for few rows: decode, drafts, short prompts.
///
/// A tile is walked in strips of twelve cells, its rows in blocks of four. A step of three cells by four rows keeps
/// twelve sums in registers, so a group of four query heads reads K and V once. The scores of strip t and the weighted
/// values of strip t − 1 are computed in turn, step by step: K and V are then two steady streams from memory, each asked
/// for `cells_ahead` cells early, where one after the other they would be two bursts that wait for each other. More
/// than four rows run over the same strip while it is in the first-level cache.
///
/// What a row does not see is kept out twice: its score is replaced (not added to), and in strips where some row sees
/// less than all, values are added cell by cell (0 · NaN would not be 0).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

inline constexpr int32_t strip_cells = 12;
inline constexpr int32_t step_cells = 3;
inline constexpr int32_t block_rows = 4;
inline constexpr int32_t cells_ahead = 24;
inline constexpr int32_t narrow_blocks_max = 48;
inline constexpr float minus_infinity = -__builtin_inff();

enum class View : int32_t { none, all, mixed };

/// Where twelve cells lie, and those that will be needed next. Rows past n_cells repeat the last one.
struct Strip {
  const std::byte* row[strip_cells];
  const std::byte* ahead[strip_cells];
  int32_t begin;
  int32_t n_cells;
};

/// Four rows of the tile; the last block may have fewer.
struct alignas(64) Block {
  float slope[block_rows];
  int32_t position[block_rows];
  int32_t first_end[block_rows];  // a row sees [0, first_end) and [begin, end)
  int32_t begin[block_rows];
  int32_t end[block_rows];
  int32_t first_end_min, first_end_max, begin_min, begin_max, end_min, end_max;
  int32_t row;
  int32_t n_rows;
  View view;  // of the strip whose probabilities are waiting for their values
};

/// What one tile needs beside K, V, q and o, placed by hand in the thread's scratch.
struct Scratch {
  Block* block;          // [narrow_blocks_max]
  float* probability;    // [narrow_blocks_max][2][strip_cells][block_rows]
  float* k;              // [strip_cells][q_stride] only for dimensions that are no multiple of 16
  float* v;              // [strip_cells][o_stride]
};

inline constexpr size_t block_bytes = narrow_blocks_max * sizeof(Block);
inline constexpr int32_t strip_scores = strip_cells * block_rows;
inline constexpr size_t probability_bytes = narrow_blocks_max * 2 * strip_scores * sizeof(float);

KVC_INLINE size_t padded_row_bytes(int32_t head_dim) {
  return static_cast<size_t>((head_dim + 15) / 16 * 16) * sizeof(float);
}

[[maybe_unused]] static size_t narrow_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  return block_bytes + probability_bytes + strip_cells * (padded_row_bytes(head_dim_k) + padded_row_bytes(head_dim_v));
}

KVC_INLINE Scratch lay_out_scratch(const Tile& tile) {
  Scratch scratch;
  std::byte* next = tile.scratch;
  scratch.block = reinterpret_cast<Block*>(next);
  scratch.probability = reinterpret_cast<float*>(next += block_bytes);
  scratch.k = reinterpret_cast<float*>(next += probability_bytes);
  scratch.v = reinterpret_cast<float*>(next += strip_cells * padded_row_bytes(tile.head_dim_k));
  return scratch;
}

KVC_INLINE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
KVC_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

KVC_INLINE void describe_block(const Tile& tile, int32_t index, Block& block) {
  block.row = index * block_rows;
  block.n_rows = smaller(block_rows, tile.n_rows - block.row);
  block.view = View::none;
  block.first_end_min = block.begin_min = block.end_min = INT32_MAX;
  block.first_end_max = block.begin_max = block.end_max = 0;
  for (int32_t i = 0; i < block_rows; ++i) {
    const int32_t row = block.row + smaller(i, block.n_rows - 1);
    const TileToken& token = tile.token[row / tile.group];
    const bool one_range = token.first_end >= token.begin;
    const int32_t first_end = one_range ? 0 : token.first_end;
    const int32_t begin = one_range ? 0 : token.begin;
    const int32_t end = larger(begin, token.end);
    block.slope[i] = tile.slope ? tile.slope[row % tile.group] : 0.0f;
    block.position[i] = token.position;
    block.first_end[i] = first_end;
    block.begin[i] = begin;
    block.end[i] = end;
    block.first_end_min = smaller(block.first_end_min, first_end);
    block.first_end_max = larger(block.first_end_max, first_end);
    block.begin_min = smaller(block.begin_min, begin);
    block.begin_max = larger(block.begin_max, begin);
    block.end_min = smaller(block.end_min, end);
    block.end_max = larger(block.end_max, end);
  }
}

/// What the rows of a block see of the cells [begin, end). "Mixed" may be said of a strip that is none or all.
KVC_INLINE View view_of(const Block& block, int32_t begin, int32_t end) {
  if (end <= block.first_end_min) return View::all;
  if (begin >= block.begin_max && end <= block.end_min) return View::all;
  if (begin >= block.first_end_max && (end <= block.begin_min || begin >= block.end_max)) return View::none;
  return View::mixed;
}

/// Scores of three cells and ROWS rows: scores[cell][row].
template <class K, int32_t ROWS>
KVC_INLINE void score_step(const Tile& tile, const float* q, const Strip& strip, int32_t first, bool ask_ahead,
                           float* scores) {
  using Element = typename K::Element;
  const auto* k0 = reinterpret_cast<const Element*>(strip.row[first]);
  const auto* k1 = reinterpret_cast<const Element*>(strip.row[first + 1]);
  const auto* k2 = reinterpret_cast<const Element*>(strip.row[first + 2]);
  const auto* ahead0 = reinterpret_cast<const Element*>(strip.ahead[first]);
  const auto* ahead1 = reinterpret_cast<const Element*>(strip.ahead[first + 1]);
  const auto* ahead2 = reinterpret_cast<const Element*>(strip.ahead[first + 2]);
  const size_t stride = static_cast<size_t>(tile.q_stride);
  Vec sum0[block_rows], sum1[block_rows], sum2[block_rows];
#pragma GCC unroll 4
  for (int32_t r = 0; r < block_rows; ++r) sum0[r] = sum1[r] = sum2[r] = zero();
  for (size_t d = 0; d < stride; d += lanes) {
    if (ask_ahead && d % (64 / sizeof(Element)) == 0) {
      prefetch(ahead0 + d);
      prefetch(ahead1 + d);
      prefetch(ahead2 + d);
    }
    const Vec x0 = load_as<K>(k0 + d), x1 = load_as<K>(k1 + d), x2 = load_as<K>(k2 + d);
#pragma GCC unroll 4
    for (int32_t r = 0; r < ROWS; ++r) {
      const Vec y = load(q + static_cast<size_t>(r) * stride + d);
      sum0[r] = fma(y, x0, sum0[r]);
      sum1[r] = fma(y, x1, sum1[r]);
      sum2[r] = fma(y, x2, sum2[r]);
    }
  }
  store_quad(scores, sum_each(sum0[0], sum0[1], sum0[2], sum0[3]));
  store_quad(scores + 4, sum_each(sum1[0], sum1[1], sum1[2], sum1[3]));
  store_quad(scores + 8, sum_each(sum2[0], sum2[1], sum2[2], sum2[3]));
}

/// Adds the values of three cells, weighted with probability[cell][row], to ROWS rows of o.
template <class V, int32_t ROWS>
KVC_INLINE void value_step(const Tile& tile, float* o, const Strip& strip, int32_t first, bool ask_ahead,
                           const float* probability) {
  using Element = typename V::Element;
  const auto* v0 = reinterpret_cast<const Element*>(strip.row[first]);
  const auto* v1 = reinterpret_cast<const Element*>(strip.row[first + 1]);
  const auto* v2 = reinterpret_cast<const Element*>(strip.row[first + 2]);
  const auto* ahead0 = reinterpret_cast<const Element*>(strip.ahead[first]);
  const auto* ahead1 = reinterpret_cast<const Element*>(strip.ahead[first + 1]);
  const auto* ahead2 = reinterpret_cast<const Element*>(strip.ahead[first + 2]);
  const size_t stride = static_cast<size_t>(tile.o_stride);
  Vec p0[ROWS], p1[ROWS], p2[ROWS];
#pragma GCC unroll 4
  for (int32_t r = 0; r < ROWS; ++r) {
    p0[r] = broadcast(probability[r]);
    p1[r] = broadcast(probability[4 + r]);
    p2[r] = broadcast(probability[8 + r]);
  }
  for (size_t d = 0; d < stride; d += lanes) {
    if (ask_ahead && d % (64 / sizeof(Element)) == 0) {
      prefetch(ahead0 + d);
      prefetch(ahead1 + d);
      prefetch(ahead2 + d);
    }
    const Vec x0 = load_as<V>(v0 + d), x1 = load_as<V>(v1 + d), x2 = load_as<V>(v2 + d);
#pragma GCC unroll 4
    for (int32_t r = 0; r < ROWS; ++r) {
      float* to = o + static_cast<size_t>(r) * stride + d;
      store(to, fma(p2[r], x2, fma(p1[r], x1, fma(p0[r], x0, load(to)))));
    }
  }
}

/// Adds one cell's value to one row of o.
template <class V>
KVC_INLINE void add_value(const Tile& tile, float* o, const std::byte* row, float probability) {
  const auto* v = reinterpret_cast<const typename V::Element*>(row);
  const Vec p = broadcast(probability);
  for (int32_t d = 0; d < tile.o_stride; d += lanes) store(o + d, fma(p, load_as<V>(v + d), load(o + d)));
}

/// One block: scores of one strip, values of the strip before it, step by step in turn.
template <class K, class V, int32_t ROWS>
static void advance(const Tile& tile, const Block& block, const Strip& k, const Strip& v, bool ask_ahead,
                    float* scores, const float* probability) {
  const float* q = tile.q + static_cast<size_t>(block.row) * static_cast<size_t>(tile.q_stride);
  float* o = tile.o + static_cast<size_t>(block.row) * static_cast<size_t>(tile.o_stride);
  const int32_t n_scores = scores ? k.n_cells : 0;
  const int32_t n_values = block.view == View::all ? v.n_cells : 0;
  int32_t i = 0;
  for (; i + step_cells <= strip_cells; i += step_cells) {
    if (i < n_scores) score_step<K, ROWS>(tile, q, k, i, ask_ahead, scores + i * block_rows);
    if (i + step_cells <= n_values) value_step<V, ROWS>(tile, o, v, i, ask_ahead, probability + i * block_rows);
  }
  for (i = n_values - n_values % step_cells; i < n_values; ++i) {
    for (int32_t r = 0; r < ROWS; ++r) {
      add_value<V>(tile, o + static_cast<size_t>(r) * static_cast<size_t>(tile.o_stride), v.row[i],
                   probability[i * block_rows + r]);
    }
  }
  if (block.view != View::mixed) return;
  for (i = 0; i < v.n_cells; ++i) {
    const int32_t cell = v.begin + i;
    for (int32_t r = 0; r < ROWS; ++r) {
      const bool seen = cell < block.first_end[r] || (cell >= block.begin[r] && cell < block.end[r]);
      if (!seen) continue;
      add_value<V>(tile, o + static_cast<size_t>(r) * static_cast<size_t>(tile.o_stride), v.row[i],
                   probability[i * block_rows + r]);
    }
  }
}

KVC_INLINE void apply_cap(const Tile& tile, float* scores) {
  const Vec cap = broadcast(tile.cap);
  for (int32_t i = 0; i < strip_scores; i += lanes) store(scores + i, cap * tanh(load(scores + i)));
}

KVC_INLINE void apply_slopes(const Tile& tile, const Block& block, int32_t begin, int32_t n_cells, float* scores) {
  const QuadInt own = load_quad(block.position);
  const Quad slope = load_quad(block.slope);
  for (int32_t i = 0; i < n_cells; ++i) {
    const QuadInt difference = own - tile.position[begin + i];
    const QuadInt distance = difference < 0 ? -difference : difference;
    float* to = scores + i * block_rows;
    store_quad(to, load_quad(to) - slope * __builtin_convertvector(distance, Quad));
  }
}

/// Replaces the scores of what rows do not see, and those past the last cell, by −infinity.
KVC_INLINE void hide(const Block& block, View view, int32_t begin, int32_t n_cells, float* scores) {
  const Quad hidden = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  for (int32_t i = n_cells; i < strip_cells; ++i) store_quad(scores + i * block_rows, hidden);
  if (view != View::mixed) return;
  const QuadInt first_end = load_quad(block.first_end);
  const QuadInt range_begin = load_quad(block.begin);
  const QuadInt range_end = load_quad(block.end);
  for (int32_t i = 0; i < n_cells; ++i) {
    const QuadInt cell = QuadInt{} + (begin + i);
    const QuadInt seen = (cell < first_end) | ((cell >= range_begin) & (cell < range_end));
    float* to = scores + i * block_rows;
    store_quad(to, seen ? load_quad(to) : hidden);
  }
}

/// Scores to probabilities. When a row's maximum grows its sum and its o shrink to match.
KVC_INLINE void soften(const Tile& tile, const Block& block, float* scores) {
  const Quad minus_infinities = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  Vec top = repeat(minus_infinities);
  for (int32_t i = 0; i < strip_scores; i += lanes) top = maximum(load(scores + i), top);  // NaN is passed over
  const Quad before = load_quad(tile.max + block.row);
  const Quad strip_top = fold_maximum(top);
  const Quad after = strip_top > before ? strip_top : before;
  const Quad base = after > minus_infinities ? after : Quad{};  // nothing seen yet: 2^(−∞ − 0) = 0
  const Vec base_all = repeat(base);
  Vec sum = zero();
  for (int32_t i = 0; i < strip_scores; i += lanes) {
    const Vec p = exp2(load(scores + i) - base_all);
    store(scores + i, p);
    sum = sum + p;
  }
  Quad total = load_quad(tile.sum + block.row);
  const QuadInt grown = after > before;
  if ((grown[0] | grown[1] | grown[2] | grown[3]) != 0) {
    alignas(64) float shrink[16];
    store(shrink, exp2(repeat(before - base)));
    total *= load_quad(shrink);
    store_quad(tile.max + block.row, after);
    for (int32_t r = 0; r < block.n_rows; ++r) {
      if (grown[r] == 0) continue;
      const Vec factor = broadcast(shrink[r]);
      float* o = tile.o + static_cast<size_t>(block.row + r) * static_cast<size_t>(tile.o_stride);
      for (int32_t d = 0; d < tile.o_stride; d += lanes) store(o + d, factor * load(o + d));
    }
  }
  store_quad(tile.sum + block.row, total + fold_sum(sum));
}

/// A row of any length in f32, its padding zero. Reads nothing past its end.
template <class Storage>
KVC_INLINE void widen_row(float* to, const std::byte* from, int32_t n, int32_t padded) {
  using Element = typename Storage::Element;
  const auto* row = reinterpret_cast<const Element*>(from);
  int32_t d = 0;
  for (; d + lanes <= n; d += lanes) store(to + d, load_as<Storage>(row + d));
  for (; d < padded; d += lanes) {
    Element rest[16] = {};
    for (int32_t i = d; i < n; ++i) rest[i - d] = row[i];
    store(to + d, load_as<Storage>(rest));
  }
}

KVC_INLINE void locate_strip(const Tile& tile, const std::byte* rows, size_t row_bytes, int32_t begin, Strip& strip) {
  strip.begin = begin;
  strip.n_cells = smaller(strip_cells, tile.n_cells - begin);
  for (int32_t i = 0; i < strip_cells; ++i) {
    const int32_t cell = tile.cell[smaller(begin + i, tile.n_cells - 1)];
    const int32_t ahead = tile.cell[smaller(begin + i + cells_ahead, tile.n_cells - 1)];
    strip.row[i] = rows + static_cast<size_t>(cell) * row_bytes;
    strip.ahead[i] = rows + static_cast<size_t>(ahead) * row_bytes;
  }
}

/// Copies a strip's rows into f32 scratch and points the strip there.
template <class Storage>
KVC_INLINE void widen_strip(Strip& strip, float* to, int32_t head_dim, int32_t stride) {
  for (int32_t i = 0; i < strip_cells; ++i) {
    float* row = to + static_cast<size_t>(i) * static_cast<size_t>(stride);
    if (i < strip.n_cells) {
      widen_row<Storage>(row, strip.row[i], head_dim, stride);
    } else {
      row = to;
    }
    strip.row[i] = reinterpret_cast<const std::byte*>(row);
  }
}

template <bool CONDITION, class Yes, class No>
struct Choose {
  using Type = Yes;
};
template <class Yes, class No>
struct Choose<false, Yes, No> {
  using Type = No;
};

/// How the rows of a tile are read: in place, or (head dimensions that are no multiple of 16) widened strip by strip.
template <class K, class V, bool WIDEN>
static void process_rows(const Tile& tile) {
  using KernelK = typename Choose<WIDEN, F32, K>::Type;
  using KernelV = typename Choose<WIDEN, F32, V>::Type;
  using Advance = void (*)(const Tile&, const Block&, const Strip&, const Strip&, bool, float*, const float*);
  static constexpr Advance advance_rows[block_rows] = {
      advance<KernelK, KernelV, 1>, advance<KernelK, KernelV, 2>, advance<KernelK, KernelV, 3>,
      advance<KernelK, KernelV, 4>};
  const Scratch scratch = lay_out_scratch(tile);
  const int32_t n_blocks = (tile.n_rows + block_rows - 1) / block_rows;
  for (int32_t b = 0; b < n_blocks; ++b) describe_block(tile, b, scratch.block[b]);

  Strip k, v;
  v.n_cells = 0;
  int32_t turn = 0;  // which half of a block's probabilities the scores go to
  for (int32_t begin = 0; begin < tile.n_cells + strip_cells; begin += strip_cells, turn ^= 1) {
    const bool has_scores = begin < tile.n_cells;
    if (has_scores) locate_strip(tile, tile.k, tile.k_row_bytes, begin, k);
    if (begin > 0) locate_strip(tile, tile.v, tile.v_row_bytes, begin - strip_cells, v);
    if (WIDEN && has_scores) widen_strip<K>(k, scratch.k, tile.head_dim_k, tile.q_stride);
    if (WIDEN && begin > 0) widen_strip<V>(v, scratch.v, tile.head_dim_v, tile.o_stride);
    bool ask_ahead = !WIDEN;
    for (int32_t b = 0; b < n_blocks; ++b) {
      Block& block = scratch.block[b];
      float* probability = scratch.probability + b * 2 * strip_scores;
      const View view = has_scores ? view_of(block, begin, begin + k.n_cells) : View::none;
      if (view == View::none && block.view == View::none) continue;
      float* scores = view == View::none ? nullptr : probability + turn * strip_scores;
      advance_rows[block.n_rows - 1](tile, block, k, v, ask_ahead, scores, probability + (turn ^ 1) * strip_scores);
      ask_ahead = false;  // the first block has asked for all of it
      block.view = view;
      if (view == View::none) continue;
      if (tile.cap != 0) apply_cap(tile, scores);
      if (tile.slope) apply_slopes(tile, block, begin, k.n_cells, scores);
      if (view == View::mixed || k.n_cells < strip_cells) hide(block, view, begin, k.n_cells, scores);
      soften(tile, block, scores);
    }
  }
}

template <class K, class V>
static void process_types(const Tile& tile) {
  const bool in_place = tile.head_dim_k == tile.q_stride && tile.head_dim_v == tile.o_stride;
  if (in_place) {
    process_rows<K, V, false>(tile);
  } else {
    process_rows<K, V, true>(tile);
  }
}

template <class K>
static void process_values(const Tile& tile) {
  switch (tile.dtype_v) {
    case DType::f32: return process_types<K, F32>(tile);
    case DType::f16: return process_types<K, F16>(tile);
    case DType::bf16: return process_types<K, Bf16>(tile);
  }
}

[[maybe_unused]] static void process_narrow_tile(const Tile& tile) {
  switch (tile.dtype_k) {
    case DType::f32: return process_values<F32>(tile);
    case DType::f16: return process_values<F16>(tile);
    case DType::bf16: return process_values<Bf16>(tile);
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
