#pragma once
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/quad_softmax.hpp"
#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/step_rows.hpp"
#include "kernels/cpu/tile.hpp"

/// The narrow kernel, for few rows: decode, drafts, short prompts.
///
/// It walks a tile in blocks of twelve cells, and its rows in quads of four. A step takes four
/// cells (three, with fewer registers) and one quad and keeps all its sums in registers, so a group
/// of four query heads reads K and V once. Further quads go over the same block while it is in the
/// first-level cache. Iteration t of the walk, for one quad:
///
///   K, block t       score ─┐      ┌─ score ─┐      ┌─ score ─┐
///   V, block t − 1          └ value ┘        └ value ┘        └ value   then softmax of block t
///
///               rows read     prefetched into L1   prefetched into L2
///   K           block t       block t + 1          block t + 2
///   V           block t − 1   block t              block t + 1
///               all quads     line by line as the first quad reads, or as rows are decoded
///
///   registers   4 × 4 (cells × rows)   for each vector of dimensions
///   score       sums                   4 of K, 1 of q
///   value       probabilities          4 of V, 1 of o (loaded, summed up, stored)
///
/// Score steps and value steps alternate so that K and V are two steady streams from memory. One
/// after the other they would be two bursts, each waiting for the other.
///
/// A step reads rows in place, codes too, where their dimension is a multiple of what its
/// instructions take at once (step_rows.hpp), or they are numbers and its instructions take parts of
/// vectors, too. Other rows, and nf4 with a scale for each 16 values,
/// are decoded first, those of a step at a time, into a piece of scratch that stays in the
/// first-level cache; all quads then read them there.
///
/// Hidden cells are excluded twice: their scores are replaced (not added to), and in a block that
/// some row sees only in part, values are added cell by cell (0 · NaN would not be 0).
namespace kvc::cpu::KVC_ISA_NAMESPACE {

inline constexpr int32_t block_cells = 12;
inline constexpr int32_t row_quads_max = tile_rows_max / quad_rows;
/// Where the rows of a block's cells lie, in bytes from the first row. Cells past the last one
/// repeat it.
struct RowOffsets {
  size_t codes[block_cells];
  size_t scales[block_cells];
};
struct BlockRows {
  RowOffsets k;
  RowOffsets v;
};

/// How far ahead rows are prefetched: two blocks into the second-level cache, one block from there
/// into the first. A prefetch from memory straight into the first level would hold one of its few
/// miss buffers for too long.
inline constexpr int32_t blocks_near = 1;
inline constexpr int32_t blocks_far = 2;
inline constexpr int32_t blocks_kept = 8;  // ring: the block of the values to the farthest one

/// What a tile needs beside K, V, q and o, in the thread's scratch.
struct Scratch {
  RowQuad* quad;       // [row_quads_max]
  float* probability;  // [row_quads_max][2][block_cells][quad_rows]
  float* k;            // [step_cells][q_stride] rows of a step, decoded
  float* v;            // [step_cells][o_stride]
  float* k_scales;     // of rows that are read in place, as spread_scales lays them out
  float* v_scales;
};

/// Probabilities begin in the middle of a page, where neither q nor o does
/// (attention_workspace.cpp).
inline constexpr size_t quads_bytes = row_quads_max * sizeof(RowQuad) + 2048;
static_assert(quads_bytes % 4096 == 2048);
inline constexpr int32_t block_scores = block_cells * quad_rows;
inline constexpr size_t probability_bytes = row_quads_max * 2 * block_scores * sizeof(float);

KVC_INLINE size_t padded_row_bytes(int32_t head_dim) {
  return static_cast<size_t>((head_dim + 15) / 16 * 16) * sizeof(float);
}
KVC_INLINE int32_t chunks_of(int32_t head_dim) { return (head_dim + chunk_dims - 1) / chunk_dims; }
KVC_INLINE size_t row_scale_bytes(int32_t head_dim) {
  return static_cast<size_t>(chunks_of(head_dim) * chunk_scales) * sizeof(float);
}

[[maybe_unused]] static size_t narrow_tile_scratch_bytes(int32_t head_dim_k, int32_t head_dim_v) {
  const size_t k = padded_row_bytes(head_dim_k) + row_scale_bytes(head_dim_k);
  const size_t v = padded_row_bytes(head_dim_v) + row_scale_bytes(head_dim_v);
  return quads_bytes + probability_bytes + step_cells * (k + v);
}

KVC_INLINE Scratch lay_out_scratch(const Tile& tile) {
  Scratch scratch;
  std::byte* next = tile.scratch;
  const auto take = [&next](size_t bytes) {
    float* const taken = reinterpret_cast<float*>(next);
    next += bytes;
    return taken;
  };
  scratch.quad = reinterpret_cast<RowQuad*>(take(quads_bytes));
  scratch.probability = take(probability_bytes);
  scratch.k = take(step_cells * padded_row_bytes(tile.k.head_dim));
  scratch.v = take(step_cells * padded_row_bytes(tile.v.head_dim));
  scratch.k_scales = take(step_cells * row_scale_bytes(tile.k.head_dim));
  scratch.v_scales = take(step_cells * row_scale_bytes(tile.v.head_dim));
  return scratch;
}

/// The rows that a step reads, and where those lie that it prefetches meanwhile.
struct StepRows {
  const std::byte* row[step_cells];
  const float* scales;     // as spread_scales lays them out
  const std::byte* codes;  // that the offsets below count from
  const size_t* near;
  const size_t* far;
  int32_t head_dim;
  bool prefetches;
};

template <class Type>
inline constexpr bool is_partial = false;
#if defined(__AVX512F__)
template <class Type>
inline constexpr bool is_partial<Partial<Type>> = true;
#endif

template <class Type>
struct Step {
  using Codes = StepType<Type>;
  static constexpr int32_t unit = Codes::unit_vectors;
  static constexpr size_t unit_dims = unit * lanes;

  const std::byte* row[step_cells];
  const float* scales;
  const std::byte* codes;
  const size_t* near;
  const size_t* far;
  const int32_t head_dim;

  [[gnu::always_inline]] explicit Step(const StepRows& rows)
      : scales(rows.scales), codes(rows.codes), near(rows.near), far(rows.far), head_dim(rows.head_dim) {
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i) row[i] = rows.row[i];
  }

  /// Prefetches at the first dimension of each cache line.
  [[gnu::always_inline]] void prefetch_ahead(size_t chunk, size_t d) const {
    const size_t byte = chunk * Codes::chunk_bytes + d * Codes::chunk_bytes / chunk_dims;
    if (byte % 64 != 0) return;
    const std::byte* column = codes + byte;
    keep_in_register(column);  // else gcc keeps the addresses of all rows in vector registers
#pragma GCC unroll 4
    for (int32_t i = 0; i < step_cells; ++i) {
      prefetch(column + near[i]);
      prefetch_far(column + far[i]);
    }
  }
  [[gnu::always_inline]] void load(Vec (&x)[step_cells][unit], size_t chunk, size_t d) const {
    if constexpr (is_partial<Type>) {
      const int32_t left = head_dim - static_cast<int32_t>(chunk * chunk_dims + d);
      const auto mask = static_cast<uint16_t>(left >= lanes ? 0xffff : (1 << left) - 1);
#pragma GCC unroll 4
      for (int32_t i = 0; i < step_cells; ++i)
        Codes::load(x[i], row[i] + chunk * Codes::chunk_bytes, static_cast<int32_t>(d), mask);
      return;
    } else {
      const float* scale = scales + chunk * (step_cells * chunk_scales) + d / 32;
#pragma GCC unroll 4
      for (int32_t i = 0; i < step_cells; ++i) {
        Codes::load(x[i], row[i] + chunk * Codes::chunk_bytes, static_cast<int32_t>(d),
                    scale + i * chunk_scales);
      }
    }
  }
};

/// Whether products and probabilities are multiplied with something for each cell.
template <class Type>
inline constexpr bool has_step_scales = Step<Type>::Codes::has_one_scale || step_factor<Type> != 1;
template <class Type>
KVC_INLINE Quad scales_of(const Step<Type>& step) {
  if constexpr (Step<Type>::Codes::has_one_scale) return load_quad(step.scales);
  return Quad{} + step_factor<Type>;
}

/// Calls `use(chunk, d)` for each unit of a row of `stride` floats.
template <size_t unit_dims, class Use>
KVC_INLINE void for_each_unit(size_t stride, Use use) {
  size_t chunk = 0;
  for (; (chunk + 1) * chunk_dims <= stride; ++chunk) {
#pragma GCC unroll 16
    for (size_t d = 0; d < chunk_dims; d += unit_dims) use(chunk, d);
  }
  for (size_t d = 0; chunk * chunk_dims + d < stride; d += unit_dims) use(chunk, d);
}

/// Scores of ROWS queries, [ROWS][stride], and of one step's cells: scores[cell][row].
template <class K, int32_t ROWS>
static void score_step(const float* q, size_t stride, const StepRows& rows, float* scores) {
  const Step<K> step(rows);
  const bool prefetches = rows.prefetches;
  Vec sum[step_cells][4];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) {
#pragma GCC unroll 4
    for (int32_t r = 0; r < 4; ++r) sum[i][r] = zero();
  }
  for_each_unit<Step<K>::unit_dims>(
      stride, [&](size_t chunk, size_t d) __attribute__((always_inline)) {
        if (prefetches) step.prefetch_ahead(chunk, d);
        Vec x[step_cells][Step<K>::unit];
        step.load(x, chunk, d);
        const float* from = q + chunk * chunk_dims + d;
#pragma GCC unroll 2
        for (int32_t u = 0; u < Step<K>::unit; ++u) {
#pragma GCC unroll 4
          for (int32_t r = 0; r < ROWS; ++r) {
            const Vec y = load(from + static_cast<size_t>(r) * stride + u * lanes);
#pragma GCC unroll 4
            for (int32_t i = 0; i < step_cells; ++i) sum[i][r] = fma(y, x[i][u], sum[i][r]);
          }
        }
      });
  store_sums(scores, sum);
  if constexpr (has_step_scales<K>) scale_sums(scores, scales_of<K>(step));
}

/// Adds the values of one step's cells, weighted with probability[cell][row], to ROWS rows of o.
template <class V, int32_t ROWS>
static void value_step(const Tile& tile, const RowQuad& quad, const StepRows& rows,
                       const float* probability) {
  const Step<V> step(rows);
  const size_t stride = static_cast<size_t>(tile.o_stride);
  float* o = tile.o + static_cast<size_t>(quad.row) * stride;
  const bool prefetches = rows.prefetches;
  alignas(64) float scaled[step_cells * quad_rows];
  if constexpr (has_step_scales<V>) {
    __builtin_memcpy(scaled, probability, sizeof scaled);
    scale_sums(scaled, scales_of<V>(step));
    probability = scaled;
    // Else gcc broadcasts from a register, by shuffles, what loads broadcast for nothing.
    keep_in_register(probability);
  }
  Vec p[step_cells][ROWS];
#pragma GCC unroll 4
  for (int32_t i = 0; i < step_cells; ++i) {
#pragma GCC unroll 4
    for (int32_t r = 0; r < ROWS; ++r) p[i][r] = broadcast(probability[i * quad_rows + r]);
  }
  for_each_unit<Step<V>::unit_dims>(
      stride, [&](size_t chunk, size_t d) __attribute__((always_inline)) {
        if (prefetches) step.prefetch_ahead(chunk, d);
        Vec x[step_cells][Step<V>::unit];
        step.load(x, chunk, d);
#pragma GCC unroll 2
        for (int32_t u = 0; u < Step<V>::unit; ++u) {
#pragma GCC unroll 4
          for (int32_t r = 0; r < ROWS; ++r) {
            float* to = o + static_cast<size_t>(r) * stride + chunk * chunk_dims + d + u * lanes;
            Vec sum = load(to);
#pragma GCC unroll 4
            for (int32_t i = 0; i < step_cells; ++i) sum = fma(p[i][r], x[i][u], sum);
            store(to, sum);
          }
        }
      });
}

/// Adds one cell's value to one row of o.
template <class V>
KVC_INLINE void add_value(const Tile& tile, float* o, const std::byte* row, float probability) {
  const auto* v = reinterpret_cast<const typename V::Element*>(row);
  const Vec p = broadcast(probability);
  for (int32_t d = 0; d < tile.o_stride; d += lanes)
    store(o + d, fma(p, load_as<V>(v + d), load(o + d)));
}

/// Adds one cell's value, weighted with probability[row], to the rows of a quad that see it.
template <class V>
static void add_value_singly(const Tile& tile, const RowQuad& quad, const std::byte* row,
                             int32_t cell, const float* probability) {
  const size_t stride = static_cast<size_t>(tile.o_stride);
  float* o = tile.o + static_cast<size_t>(quad.row) * stride;
  for (int32_t r = 0; r < quad.n_rows; ++r) {
    if (!sees(tile, quad, cell, r)) continue;
    add_value<V>(tile, o + static_cast<size_t>(r) * stride, row, probability[r]);
  }
}

/// K or V of a tile: rows that are read in place, or decoded in scratch.
struct Side {
  const TileRows& rows;
  const bool partial;  // read in place, but for the last vector of a row
  const bool in_place;
  const int32_t stride;  // floats of a decoded row
  float* const decoded;  // [step_cells][stride]
  float* const scales;
  const DecodeRow decode_row;
  const SpreadScales spread_scales;

  /// Decoded rows are padded to the stride with zeros, which are written once.
  [[gnu::always_inline]] Side(const TileRows& of, int32_t padded, float* row_scratch,
                              float* scale_scratch, bool decodes = false)
      : rows(of),
        partial(loads_partial_vectors && is_plain(of.type) && of.head_dim % 16 != 0),
        in_place(partial || (!decodes && of.head_dim % unit_dims_of(of) == 0 && of.block != 16)),
        stride(padded),
        decoded(row_scratch),
        scales(scale_scratch),
        decode_row(decoder_for(of)),
        spread_scales(spreader_for(of)) {
    if (in_place && !partial) return;
    for (int32_t i = 0; i < step_cells; ++i) {
      for (int32_t d = stride - 16; d < stride; d += lanes) store(decoded + i * stride + d, zero());
    }
  }

  /// Whether row() is what is stored.
  [[gnu::always_inline]] bool lends_rows() const {
    return in_place && !partial && is_plain(rows.type);
  }

  /// Decodes a row, to place `i`.
  [[gnu::always_inline]] const std::byte* decode(const RowOffsets& at, int32_t from, int32_t i) const {
    float* to = decoded + i * stride;
    decode_row(to, rows, {rows.codes + at.codes[from], rows.scales + at.scales[from]});
    return reinterpret_cast<const std::byte*>(to);
  }

  /// The block's row `i` alone.
  [[gnu::always_inline]] const std::byte* row(const RowOffsets& at, int32_t i) const {
    return lends_rows() ? rows.codes + at.codes[i] : decode(at, i, 0);
  }

  /// The block's rows from `first` on, as many as a step takes.
  [[gnu::always_inline]] StepRows step(const RowOffsets& at, const RowOffsets& near,
                                       const RowOffsets& far, int32_t first) const {
    StepRows step;
    step.codes = rows.codes;
    step.near = near.codes + first;
    step.far = far.codes + first;
    step.head_dim = rows.head_dim;
    step.prefetches = in_place;
    step.scales = scales;
    for (int32_t i = 0; i < step_cells; ++i)
      step.row[i] = in_place ? rows.codes + at.codes[first + i] : decode(at, first + i, i);
    if (rows.scales != nullptr && in_place) spread_scales(scales, rows, at.scales + first, stride);
    prefetch_rest(near, far, first);
    return step;
  }

 private:
  /// Prefetches what is not prefetched when rows are read: scales, and codes that are decoded first.
  [[gnu::always_inline]] void prefetch_rest(const RowOffsets& near, const RowOffsets& far,
                                            int32_t first) const {
    for (int32_t i = first; i < first + step_cells && !in_place; ++i) {
      for (size_t byte = 0; byte < rows.bytes; byte += 64) {
        prefetch(rows.codes + near.codes[i] + byte);
        prefetch_far(rows.codes + far.codes[i] + byte);
      }
    }
    if (rows.scales == nullptr) return;
    for (int32_t i = first; i < first + step_cells; ++i) prefetch_far(rows.scales + far.scales[i]);
  }
};

/// The functions for the storage types of K and of V, picked once per tile. A step is long enough
/// for a call through a pointer, and instances of pairs of types would multiply.
struct Steps {
  void (*score[quad_rows])(const float*, size_t, const StepRows&, float*);  // [rows − 1]
  void (*value[quad_rows])(const Tile&, const RowQuad&, const StepRows&, const float*);
  void (*value_singly)(const Tile&, const RowQuad&, const std::byte*, int32_t, const float*);
};

/// Calls `use` with what steps take the rows for: their type, or F32 where they are decoded first.
template <class Use>
KVC_INLINE void with_step_type(const Side& side, Use use) {
  if (!side.in_place) return use(F32{});
#if defined(__AVX512F__)
  if (side.partial)
    return with_storage(side.rows.type, [&]<class Type>(Type) { use(Partial<Type>{}); });
#endif
  stored::with_reader(side.rows, [&]<class Type>(stored::Reader<Type>) { use(Type{}); });
}

KVC_INLINE Steps steps_for(const Side& k, const Side& v) {
  Steps steps;
  with_step_type(k, [&]<class K>(K) {
    steps.score[0] = score_step<K, 1>;
    steps.score[1] = score_step<K, 2>;
    steps.score[2] = score_step<K, 3>;
    steps.score[3] = score_step<K, 4>;
  });
  with_step_type(v, [&]<class V>(V) {
    steps.value[0] = value_step<V, 1>;
    steps.value[1] = value_step<V, 2>;
    steps.value[2] = value_step<V, 3>;
    steps.value[3] = value_step<V, 4>;
  });
  with_storage(v.lends_rows() ? v.rows.type : StorageType::f32,
               [&](auto storage) { steps.value_singly = add_value_singly<decltype(storage)>; });
  return steps;
}

KVC_INLINE void locate_rows(const TileRows& rows, int32_t begin, int32_t n_cells, RowOffsets& offsets) {
  size_t cell[block_cells];
  for (int32_t i = 0; i < block_cells; ++i)
    cell[i] = static_cast<size_t>(rows.cell[smaller(begin + i, n_cells - 1)]);
  for (int32_t i = 0; i < block_cells; ++i) offsets.codes[i] = cell[i] * rows.stride;
  if (rows.scales == nullptr) return;
  for (int32_t i = 0; i < block_cells; ++i) offsets.scales[i] = cell[i] * rows.scale_stride;
}

KVC_INLINE void locate_block(const Tile& tile, int32_t begin, BlockRows& block) {
  locate_rows(tile.k, begin, tile.n_cells, block.k);
  locate_rows(tile.v, begin, tile.n_cells, block.v);
}

/// Whether a query's product with codes may leave f32 although its product with the key does not.
KVC_INLINE bool needs_keys(const Tile& tile) {
  if (tile.k.type != StorageType::int8) return false;
  Vec largest = zero();
  for (int32_t i = 0; i < tile.n_rows * tile.q_stride; i += lanes)
    largest = maximum(absolute(load(tile.q + i)), largest);
  const Quad folded = fold_maximum(largest);
  return any(folded > one_scale_query_max);
}

/// Prefetches the blocks that come too early for the walk to prefetch them.
KVC_INLINE void prefetch_first_blocks(const Tile& tile, const BlockRows* blocks) {
  for (int32_t t = 0; t < blocks_far && t * block_cells < tile.n_cells; ++t) {
    const int32_t n_cells = smaller(block_cells, tile.n_cells - t * block_cells);
    for (int32_t i = 0; i < n_cells; ++i) {
      const size_t k = blocks[t].k.codes[i], v = blocks[t].v.codes[i];
      for (size_t b = 0; b < tile.k.bytes; b += 64) prefetch(tile.k.codes + k + b);
      for (size_t b = 0; b < tile.v.bytes; b += 64) prefetch_far(tile.v.codes + v + b);
    }
  }
}

/// The walk over one tile.
class Walk {
 public:
  [[gnu::always_inline]] explicit Walk(const Tile& tile)
      : tile_(tile),
        scratch_(lay_out_scratch(tile)),
        n_quads_((tile.n_rows + quad_rows - 1) / quad_rows),
        k_(tile.k, tile.q_stride, scratch_.k, scratch_.k_scales, needs_keys(tile)),
        v_(tile.v, tile.o_stride, scratch_.v, scratch_.v_scales),
        steps_(steps_for(k_, v_)) {
    for (int32_t i = 0; i < n_quads_; ++i) describe_quad(tile, i, scratch_.quad[i]);
    for (int32_t t = 0; t < blocks_far; ++t) locate_block(tile, t * block_cells, rows_of(t));
    prefetch_first_blocks(tile, blocks_);
  }

  /// Iteration t: scores of block t, where there is one, and values of block t − 1.
  [[gnu::always_inline]] void iterate(int32_t t) {
    const int32_t begin = t * block_cells;
    locate_block(tile_, begin + blocks_far * block_cells, rows_of(t + blocks_far));
    const int32_t n_scores = smaller(block_cells, tile_.n_cells - begin);
    const int32_t n_values = t == 0 ? 0 : smaller(block_cells, n_scores + block_cells);
    const Work work = look(t);
    for (int32_t i = 0; i < block_cells; i += step_cells) {
      if (work.scores && i < n_scores) score(t, i);
      if (work.values && i + step_cells <= n_values) add_values(t, i);
    }
    if (work.single_values || (work.values && n_values < block_cells)) add_singly(t, n_values);
    for (int32_t i = 0; i < n_quads_; ++i) {
      RowQuad& quad = scratch_.quad[i];
      quad.visibility = quad.scored;
      if (quad.scored != Visibility::none)
        finish_scores<block_cells>(tile_, quad, quad.scored, begin, scores_of(t, i));
    }
  }

 private:
  /// What some quad has to do in an iteration.
  struct Work {
    bool scores = false;
    bool values = false;         // whole steps of them
    bool single_values = false;  // of a block that some row sees only in part
  };

  [[gnu::always_inline]] BlockRows& rows_of(int32_t t) { return blocks_[t % blocks_kept]; }
  [[gnu::always_inline]] const BlockRows& value_rows_of(int32_t t) {
    return rows_of(t + blocks_kept - 1);
  }

  /// Scores of block t and quad i, later its probabilities.
  [[gnu::always_inline]] float* scores_of(int32_t t, int32_t i) const {
    return scratch_.probability + (i * 2 + (t & 1)) * block_scores;
  }

  [[gnu::always_inline]] Work look(int32_t t) {
    const int32_t begin = t * block_cells;
    const int32_t end = smaller(begin + block_cells, tile_.n_cells);
    Work work;
    for (int32_t i = 0; i < n_quads_; ++i) {
      RowQuad& quad = scratch_.quad[i];
      quad.scored = begin < end ? visibility_of(quad, begin, end) : Visibility::none;
      if (tile_.bias) quad.scored = visibility_with_bias(tile_, quad, quad.scored, begin, end);
      work.scores |= quad.scored != Visibility::none;
      work.values |= quad.visibility == Visibility::all;
      work.single_values |= quad.visibility == Visibility::mixed;
    }
    return work;
  }

  /// Scores of block t, one step from `first` on.
  [[gnu::always_inline]] void score(int32_t t, int32_t first) {
    StepRows rows = k_.step(rows_of(t).k, rows_of(t + blocks_near).k, rows_of(t + blocks_far).k,
                            first);
    const int32_t begin = t * block_cells + first;
    for (int32_t i = 0; i < n_quads_; ++i) {
      if (scratch_.quad[i].scored == Visibility::none) continue;
      float* to = scores_of(t, i) + first * quad_rows;
      if (run_of(begin) == run_of(begin + step_cells - 1)) {
        score_run(run_of(begin), i, rows, to);
      } else {
        score_several_runs(begin, i, rows, to);
      }
      rows.prefetches = false;
    }
  }

  /// The queries that a cell meets.
  [[gnu::always_inline]] int32_t run_of(int32_t cell) const {
    return tile_.run == nullptr ? 0 : tile_.run[smaller(cell, tile_.n_cells - 1)];
  }
  [[gnu::always_inline]] void score_run(int32_t run, int32_t quad_index, const StepRows& rows,
                                        float* to) const {
    const RowQuad& quad = scratch_.quad[quad_index];
    const auto stride = static_cast<size_t>(tile_.q_stride);
    const size_t row = static_cast<size_t>(run) * static_cast<size_t>(tile_.n_rows) +
                       static_cast<size_t>(quad.row);
    steps_.score[quad.n_rows - 1](tile_.q + row * stride, stride, rows, to);
  }

  /// A step whose cells meet different queries: all of it for each of them.
  [[gnu::noinline]] void score_several_runs(int32_t begin, int32_t quad_index, StepRows rows,
                                            float* to) const {
    alignas(64) float scores[step_cells * quad_rows];
    for (int32_t i = 0; i < step_cells;) {
      const int32_t run = run_of(begin + i);
      score_run(run, quad_index, rows, scores);
      rows.prefetches = false;
      for (; i < step_cells && run_of(begin + i) == run; ++i)
        store_quad(to + i * quad_rows, load_quad(scores + i * quad_rows));
    }
  }

  /// Values of block t − 1, one step from `first` on.
  [[gnu::always_inline]] void add_values(int32_t t, int32_t first) {
    StepRows rows = v_.step(value_rows_of(t).v, rows_of(t + blocks_near - 1).v,
                            rows_of(t + blocks_far - 1).v, first);
    for (int32_t i = 0; i < n_quads_; ++i) {
      const RowQuad& quad = scratch_.quad[i];
      if (quad.visibility != Visibility::all) continue;
      steps_.value[quad.n_rows - 1](tile_, quad, rows, scores_of(t - 1, i) + first * quad_rows);
      rows.prefetches = false;
    }
  }

  /// Values of block t − 1 that are added one cell and row at a time: of a block that some row sees
  /// only in part, and the last cells, too few for a step.
  [[gnu::noinline]] void add_singly(int32_t t, int32_t n_values) {
    const int32_t in_steps = n_values - n_values % step_cells;
    for (int32_t i = 0; i < n_values; ++i) {
      const std::byte* row = nullptr;
      for (int32_t j = 0; j < n_quads_; ++j) {
        const RowQuad& quad = scratch_.quad[j];
        if (quad.visibility == Visibility::none) continue;
        if (quad.visibility == Visibility::all && i < in_steps) continue;
        if (row == nullptr) row = v_.row(value_rows_of(t).v, i);
        steps_.value_singly(tile_, quad, row, (t - 1) * block_cells + i,
                            scores_of(t - 1, j) + i * quad_rows);
      }
    }
  }

  const Tile& tile_;
  const Scratch scratch_;
  const int32_t n_quads_;
  const Side k_;
  const Side v_;
  const Steps steps_;
  BlockRows blocks_[blocks_kept];
};

[[maybe_unused]] static void process_narrow_tile(const Tile& tile) {
  Walk walk(tile);
  for (int32_t t = 0; (t - 1) * block_cells < tile.n_cells; ++t) walk.iterate(t);
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE
