#pragma once
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// The kernel for few rows: decode, drafts, short prompts.
///
/// A tile is walked in strips of twelve cells, its rows in blocks of four. A step of three cells (four, with more
/// registers) by four rows keeps all its sums in registers, so a group of four query heads reads K and V once. The scores of strip t and the weighted
/// values of strip t − 1 are computed in turn, step by step: K and V are then two steady streams from memory, each asked
/// for early, where one after the other they would be two bursts that wait for each other. More
/// than four rows run over the same strip while it is in the first-level cache.
///
/// What a row does not see is kept out twice: its score is replaced (not added to), and in strips where some row sees
/// less than all, values are added cell by cell (0 · NaN would not be 0).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

inline constexpr int32_t strip_cells = 12;
inline constexpr int32_t block_rows = 4;
inline constexpr int32_t narrow_blocks_max = tile_rows_max / block_rows;
inline constexpr size_t chunk = 64;  // dimensions per turn of the inner loops
inline constexpr float minus_infinity = -__builtin_inff();

enum class View : int32_t { none, all, mixed };

/// Where twelve cells lie, in bytes from the first row of K and of V. Cells past the last one repeat it.
struct Strip {
  size_t k[strip_cells];
  size_t v[strip_cells];
};

/// How early rows are asked for: into the second-level cache two strips ahead, into the first-level one a strip ahead.
/// Asked for straight from memory, lines hold the few miss buffers of the first level for too long.
inline constexpr int32_t strips_near = 1;
inline constexpr int32_t strips_far = 2;
inline constexpr int32_t strips_kept = 8;  // of a ring: the strip of the values to the farthest one asked for

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
  Block* block;        // [narrow_blocks_max]
  float* probability;  // [narrow_blocks_max][2][strip_cells][block_rows]
  float* k;            // [strip_cells][q_stride] only for dimensions that are no multiple of 16
  float* v;            // [strip_cells][o_stride]
};

/// Probabilities begin in the middle of a page, where neither q nor o does (attention_workspace.cpp).
inline constexpr size_t block_bytes = narrow_blocks_max * sizeof(Block) + 2048;
static_assert(block_bytes % 4096 == 2048);
inline constexpr int32_t strip_scores = strip_cells * block_rows;
inline constexpr size_t probability_bytes = narrow_blocks_max * 2 * strip_scores * sizeof(float);

KVC_INLINE size_t padded_row_bytes(int32_t head_dim) {
  return static_cast<size_t>((head_dim + 15) / 16 * 16) * sizeof(float);
}

[[maybe_unused]] static size_t narrow_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  return block_bytes + probability_bytes +
         strip_cells * (padded_row_bytes(head_dim_k) + padded_row_bytes(head_dim_v));
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
  if (begin >= block.first_end_max && (end <= block.begin_min || begin >= block.end_max))
    return View::none;
  return View::mixed;
}

/// What a block does in one turn of the walk.
struct Turn {
  const std::byte* k;  // first row of K, or of the widened strip
  const std::byte* v;
  const Strip* score_strip;
  const Strip* value_strip;
  const Strip* k_near;
  const Strip* k_far;
  const Strip* v_near;
  const Strip* v_far;
  float* scores;             // of score_strip; null: the block sees nothing of it
  const float* probability;  // of value_strip
  int32_t n_values;          // cells of value_strip
  int32_t value_begin;       // its first cell
  bool ask_ahead;
};

/// Rows that one step reads, and where those lie that it asks for meanwhile.
template <class Storage>
struct Step {
  using Element = typename Storage::Element;
  const Element* row[step_cells];
  const std::byte* rows;
  const size_t* near;
  const size_t* far;

  [[gnu::always_inline]] Step(const std::byte* from, const size_t* at, const size_t* at_near,
                              const size_t* at_far)
      : rows(from), near(at_near), far(at_far) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i)
      row[i] = reinterpret_cast<const Element*>(from + at[i]);
  }
  [[gnu::always_inline]] void ask(size_t d) const {
    const size_t byte = d * sizeof(Element);
    if (byte % 64 != 0) return;
    const std::byte* column = rows + byte;
    keep_in_register(column);  // or the addresses of all rows would wait in vector registers
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i) {
      prefetch(column + near[i]);
      prefetch_far(column + far[i]);
    }
  }
};

template <class K, int32_t ROWS>
KVC_INLINE void score_dims(const Step<K>& step, const float* q, size_t stride, size_t d,
                           Vec (&sum)[step_cells][4]) {
  Vec x[step_cells];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) x[i] = load_as<K>(step.row[i] + d);
#pragma GCC unroll 4
  for (int32_t r = 0; r < ROWS; ++r) {
    const Vec y = load(q + static_cast<size_t>(r) * stride + d);
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i) sum[i][r] = fma(y, x[i], sum[i][r]);
  }
}

/// Scores of ROWS rows and of one step's cells, the strip's from `first` on: scores[cell][row].
template <class K, int32_t ROWS>
static void score_step(const Tile& tile, const Block& block, const Turn& turn, int32_t first) {
  const Step<K> step(turn.k, turn.score_strip->k + first, turn.k_near->k + first,
                     turn.k_far->k + first);
  const size_t stride = static_cast<size_t>(tile.q_stride);
  const float* q = tile.q + static_cast<size_t>(block.row) * stride;
  const bool ask_ahead = turn.ask_ahead;
  Vec sum[step_cells][4];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) {
#pragma GCC unroll 4
    for (int32_t r = 0; r < 4; ++r) sum[i][r] = zero();
  }
  size_t d = 0;
  for (; d + chunk <= stride; d += chunk) {
#pragma GCC unroll 16
    for (size_t j = 0; j < chunk; j += lanes) {
      if (ask_ahead) step.ask(d + j);
      score_dims<K, ROWS>(step, q, stride, d + j, sum);
    }
  }
  for (; d < stride; d += lanes) {
    if (ask_ahead) step.ask(d);
    score_dims<K, ROWS>(step, q, stride, d, sum);
  }
  store_sums(turn.scores + first * block_rows, sum);
}

template <class V, int32_t ROWS>
KVC_INLINE void value_dims(const Step<V>& step, float* o, size_t stride, size_t d,
                           const Vec (&p)[step_cells][ROWS]) {
  Vec x[step_cells];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) x[i] = load_as<V>(step.row[i] + d);
#pragma GCC unroll 4
  for (int32_t r = 0; r < ROWS; ++r) {
    float* to = o + static_cast<size_t>(r) * stride + d;
    Vec sum = load(to);
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i) sum = fma(p[i][r], x[i], sum);
    store(to, sum);
  }
}

/// Adds the values of one step's cells, weighted with probability[cell][row], to ROWS rows of o.
template <class V, int32_t ROWS>
static void value_step(const Tile& tile, const Block& block, const Turn& turn, int32_t first) {
  const Step<V> step(turn.v, turn.value_strip->v + first, turn.v_near->v + first,
                     turn.v_far->v + first);
  const size_t stride = static_cast<size_t>(tile.o_stride);
  float* o = tile.o + static_cast<size_t>(block.row) * stride;
  const float* probability = turn.probability + first * block_rows;
  const bool ask_ahead = turn.ask_ahead;
  Vec p[step_cells][ROWS];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) {
#pragma GCC unroll 4
    for (int32_t r = 0; r < ROWS; ++r) p[i][r] = broadcast(probability[i * block_rows + r]);
  }
  size_t d = 0;
  for (; d + chunk <= stride; d += chunk) {
#pragma GCC unroll 16
    for (size_t j = 0; j < chunk; j += lanes) {
      if (ask_ahead) step.ask(d + j);
      value_dims<V, ROWS>(step, o, stride, d + j, p);
    }
  }
  for (; d < stride; d += lanes) {
    if (ask_ahead) step.ask(d);
    value_dims<V, ROWS>(step, o, stride, d, p);
  }
}

/// Adds one cell's value to one row of o.
template <class V>
KVC_INLINE void add_value(const Tile& tile, float* o, const std::byte* row, float probability) {
  const auto* v = reinterpret_cast<const typename V::Element*>(row);
  const Vec p = broadcast(probability);
  for (int32_t d = 0; d < tile.o_stride; d += lanes)
    store(o + d, fma(p, load_as<V>(v + d), load(o + d)));
}

/// Whether the tile's bias hides a cell from a row.
KVC_INLINE bool is_hidden(const Tile& tile, int32_t cell, int32_t row) {
  return tile.bias[static_cast<size_t>(cell) * static_cast<size_t>(tile.bias_stride) +
                   static_cast<size_t>(row)] == minus_infinity;
}

/// Values of the cells from `first` on, one cell and row at a time: of a strip of which not every row sees every cell,
/// or of the last cells, too few for a step.
template <class V>
static void add_values_singly(const Tile& tile, const Block& block, const Turn& turn, int32_t first) {
  const size_t stride = static_cast<size_t>(tile.o_stride);
  float* o = tile.o + static_cast<size_t>(block.row) * stride;
  for (int32_t i = first; i < turn.n_values; ++i) {
    const int32_t cell = turn.value_begin + i;
    for (int32_t r = 0; r < block.n_rows; ++r) {
      const bool seen = cell < block.first_end[r] || (cell >= block.begin[r] && cell < block.end[r]);
      if (!seen || (tile.bias && is_hidden(tile, cell, block.row + r))) continue;
      add_value<V>(tile, o + static_cast<size_t>(r) * stride, turn.v + turn.value_strip->v[i],
                   turn.probability[i * block_rows + r]);
    }
  }
}

/// What depends on how K is stored and what on how V is, picked once per tile. Pairs of types would be as many instances
/// as their product; a step is long enough to be called through a pointer.
using StepFunction = void (*)(const Tile&, const Block&, const Turn&, int32_t first);
struct Steps {
  StepFunction score[block_rows];  // [rows − 1]
  StepFunction value[block_rows];
  StepFunction value_singly;
};

/// Rows widened to f32 are read as such, whatever their storage.
KVC_INLINE Steps steps_for(StorageType type_k, StorageType type_v) {
  Steps steps;
  with_storage(type_k, [&](auto storage) {
    using K = decltype(storage);
    steps.score[0] = score_step<K, 1>;
    steps.score[1] = score_step<K, 2>;
    steps.score[2] = score_step<K, 3>;
    steps.score[3] = score_step<K, 4>;
  });
  with_storage(type_v, [&](auto storage) {
    using V = decltype(storage);
    steps.value[0] = value_step<V, 1>;
    steps.value[1] = value_step<V, 2>;
    steps.value[2] = value_step<V, 3>;
    steps.value[3] = value_step<V, 4>;
    steps.value_singly = add_values_singly<V>;
  });
  return steps;
}

/// One block: scores of one strip, values of the strip before it, step by step in turn.
KVC_INLINE void advance(const Tile& tile, const Steps& steps, const Block& block, const Turn& turn) {
  const StepFunction score = steps.score[block.n_rows - 1];
  const StepFunction value = steps.value[block.n_rows - 1];
  const int32_t n_values = block.view == View::all ? turn.n_values : 0;
  for (int32_t i = 0; i < strip_cells; i += step_cells) {
    if (turn.scores) score(tile, block, turn, i);
    if (i + step_cells <= n_values) value(tile, block, turn, i);
  }
  if (block.view != View::none && n_values < strip_cells)
    steps.value_singly(tile, block, turn, n_values - n_values % step_cells);
}

KVC_INLINE void apply_cap(const Tile& tile, float* scores) {
  const Vec cap = broadcast(tile.cap);
  for (int32_t i = 0; i < strip_scores; i += lanes)
    store(scores + i, cap * tanh(load_sums(scores + i)));
}

KVC_INLINE void apply_slopes(const Tile& tile, const Block& block, int32_t begin, int32_t n_cells,
                             float* scores) {
  const QuadInt own = load_quad(block.position);
  const Vec slope = repeat(load_quad(block.slope));
  const int32_t* position = tile.position + begin;
  int32_t last[strip_cells] = {};
  if (n_cells < strip_cells) {  // nothing is read past the end
    for (int32_t i = 0; i < n_cells; ++i) last[i] = position[i];
    position = last;
  }
  for (int32_t i = 0; i < strip_scores; i += lanes) {
    store(scores + i, load_sums(scores + i) - slope * distances(own, position + i / block_rows));
  }
}

/// A strip of which the bias hides something is "mixed".
KVC_INLINE View view_with_bias(const Tile& tile, const Block& block, View view, int32_t begin,
                               int32_t end) {
  if (view != View::all) return view;
  for (int32_t cell = begin; cell < end; ++cell) {
    for (int32_t r = 0; r < block.n_rows; ++r) {
      if (is_hidden(tile, cell, block.row + r)) return View::mixed;
    }
  }
  return View::all;
}

KVC_INLINE void apply_bias(const Tile& tile, const Block& block, int32_t begin, int32_t n_cells,
                           float* scores) {
  const Quad hidden = {minus_infinity, minus_infinity, minus_infinity, minus_infinity};
  for (int32_t i = 0; i < n_cells; ++i, scores += block_rows) {
    const Quad bias = load_quad(
        tile.bias + static_cast<size_t>(begin + i) * static_cast<size_t>(tile.bias_stride) +
        block.row);
    store_quad(scores, bias == hidden ? hidden : load_quad(scores) + bias);
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
  for (int32_t i = 0; i < strip_scores; i += lanes)
    top = maximum(load_sums(scores + i), top);  // NaN is passed over
  const Quad before = load_quad(tile.max + block.row);
  const Quad strip_top = fold_maximum(top);
  const Quad after = strip_top > before ? strip_top : before;
  const Quad base = after > minus_infinities ? after : Quad{};  // nothing seen yet: 2^(−∞ − 0) = 0
  const Vec base_all = repeat(base);
  Vec sum = zero();
  for (int32_t i = 0; i < strip_scores; i += lanes) {
    const Vec p = exp2(load_sums(scores + i) - base_all);
    store(scores + i, p);
    sum = sum + p;
  }
  Quad total = load_quad(tile.sum + block.row);
  const QuadInt grown = after > before;
  if (any(grown)) {
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

KVC_INLINE void locate_strip(const Tile& tile, int32_t begin, Strip& strip) {
  for (int32_t i = 0; i < strip_cells; ++i) {
    const auto cell = static_cast<size_t>(tile.cell[smaller(begin + i, tile.n_cells - 1)]);
    strip.k[i] = cell * tile.k_row_bytes;
    strip.v[i] = cell * tile.v_row_bytes;
  }
}

/// Asks for the strips that come before the walk asks by itself.
KVC_INLINE void ask_for_first_strips(const Tile& tile, const Strip* strips) {
  for (int32_t t = 0; t < strips_far && t * strip_cells < tile.n_cells; ++t) {
    const int32_t n_cells = smaller(strip_cells, tile.n_cells - t * strip_cells);
    for (int32_t i = 0; i < n_cells; ++i) {
      for (size_t b = 0; b < tile.k_row_bytes; b += 64) prefetch(tile.k + strips[t].k[i] + b);
      for (size_t b = 0; b < tile.v_row_bytes; b += 64) prefetch_far(tile.v + strips[t].v[i] + b);
    }
  }
}

/// Copies a strip's rows into f32 scratch, row i to to[i].
[[gnu::noinline]] static void widen_strip(float* to, StorageType type, const std::byte* rows,
                                          const size_t* offset, int32_t head_dim, int32_t stride) {
  with_storage(type, [&](auto storage) {
    for (int32_t i = 0; i < strip_cells; ++i) {
      widen_row<decltype(storage)>(to + static_cast<size_t>(i) * static_cast<size_t>(stride),
                                   rows + offset[i], head_dim, stride);
    }
  });
}

/// Scores of one strip to probabilities, once the block's options are applied.
KVC_INLINE void finish_scores(const Tile& tile, const Block& block, View view, int32_t begin,
                              float* scores) {
  const int32_t n_cells = smaller(strip_cells, tile.n_cells - begin);
  if (tile.cap != 0) apply_cap(tile, scores);
  if (tile.slope) apply_slopes(tile, block, begin, n_cells, scores);
  if (tile.bias) apply_bias(tile, block, begin, n_cells, scores);
  if (view == View::mixed || n_cells < strip_cells) hide(block, view, begin, n_cells, scores);
  soften(tile, block, scores);
}

/// Walks a tile. Rows are read in place or (head dimensions that are no multiple of 16) widened strip by strip.
[[maybe_unused]] static void process_narrow_tile(const Tile& tile) {
  const bool widen = tile.head_dim_k != tile.q_stride || tile.head_dim_v != tile.o_stride;
  const Steps steps = steps_for(widen ? StorageType::f32 : tile.type_k,
                                widen ? StorageType::f32 : tile.type_v);
  const Scratch scratch = lay_out_scratch(tile);
  const int32_t n_blocks = (tile.n_rows + block_rows - 1) / block_rows;
  for (int32_t b = 0; b < n_blocks; ++b) describe_block(tile, b, scratch.block[b]);

  Strip widened;
  for (size_t i = 0; i < strip_cells; ++i) {
    widened.k[i] = i * static_cast<size_t>(tile.q_stride) * sizeof(float);
    widened.v[i] = i * static_cast<size_t>(tile.o_stride) * sizeof(float);
  }
  Strip strips[strips_kept];
  for (int32_t i = 0; i < strips_far; ++i) locate_strip(tile, i * strip_cells, strips[i]);
  if (!widen) ask_for_first_strips(tile, strips);
  for (int32_t t = 0; (t - 1) * strip_cells < tile.n_cells; ++t) {
    const int32_t begin = t * strip_cells;
    const Strip& k = strips[t % strips_kept];
    const Strip& v = strips[(t + strips_kept - 1) % strips_kept];
    locate_strip(tile, begin + strips_far * strip_cells, strips[(t + strips_far) % strips_kept]);
    const bool has_scores = begin < tile.n_cells;
    if (widen && has_scores)
      widen_strip(scratch.k, tile.type_k, tile.k, k.k, tile.head_dim_k, tile.q_stride);
    if (widen && t > 0)
      widen_strip(scratch.v, tile.type_v, tile.v, v.v, tile.head_dim_v, tile.o_stride);
    Turn turn;
    turn.k = widen ? reinterpret_cast<const std::byte*>(scratch.k) : tile.k;
    turn.v = widen ? reinterpret_cast<const std::byte*>(scratch.v) : tile.v;
    turn.score_strip = widen ? &widened : &k;
    turn.value_strip = widen ? &widened : &v;
    turn.k_near = &strips[(t + strips_near) % strips_kept];
    turn.k_far = &strips[(t + strips_far) % strips_kept];
    turn.v_near = &strips[(t + strips_near - 1) % strips_kept];
    turn.v_far = &strips[(t + strips_far - 1) % strips_kept];
    turn.value_begin = begin - strip_cells;
    turn.n_values = smaller(strip_cells, tile.n_cells - turn.value_begin);
    turn.ask_ahead = !widen;
    for (int32_t b = 0; b < n_blocks; ++b) {
      Block& block = scratch.block[b];
      float* probability = scratch.probability + b * 2 * strip_scores;
      const int32_t strip_end = smaller(begin + strip_cells, tile.n_cells);
      View view = has_scores ? view_of(block, begin, strip_end) : View::none;
      if (tile.bias) view = view_with_bias(tile, block, view, begin, strip_end);
      if (view == View::none && block.view == View::none) continue;
      turn.scores = view == View::none ? nullptr : probability + (t & 1) * strip_scores;
      turn.probability = probability + ((t & 1) ^ 1) * strip_scores;
      advance(tile, steps, block, turn);
      turn.ask_ahead = false;  // the first block has asked for all of it
      block.view = view;
      if (view != View::none) finish_scores(tile, block, view, begin, turn.scores);
    }
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
