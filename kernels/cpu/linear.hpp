#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm.hpp"
#include "kernels/cpu/lightning_block.hpp"
#include "kernels/cpu/linear_rows.hpp"
#include "kernels/cpu/pack.hpp"
#include "kernels/cpu/simd.hpp"

/// Linear attention with decay: a token at a time, and in blocks of tokens.
///
///   lightning_step     state' = λ state + kᵀ v; out = q state'       the state is read and written once
///
///   for each block of tokens
///     lightning_pack     k → columns; k · λ^(n−1−j)
///     for each query head: lightning_attend
///       weights_of       q · columns, times λ^(i−j) → weights
///       outputs_of       λ^(i+1) · q state + weights · v → out
///     lightning_advance  λ^n state + (decayed k)ᵀ v → state
///
/// What a token does not see takes no part, not even times 0: 0 · NaN is NaN.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear {

/// Sums at once: rows × vectors. As in the wide kernel they fill the registers with the fewest loads for a multiply-add.
inline constexpr int32_t vectors_max = value_vectors;
inline constexpr int32_t panel_width = vectors_max * lanes;

/// Calls `use.template operator()<rows, vectors>()` with the numbers as constants.
template <int32_t rows, class Use>
KVC_INLINE void with_vectors(int32_t vectors, Use use) {
  if (vectors == 1) return use.template operator()<rows, 1>();
  if constexpr (vectors_max > 2) {
    if (vectors == 3) return use.template operator()<rows, 3>();
    if (vectors == 4) return use.template operator()<rows, 4>();
  }
  return use.template operator()<rows, 2>();
}

template <class Use>
KVC_INLINE void with_sums(int32_t rows, int32_t vectors, Use use) {
  switch (rows) {
    case 1: return with_vectors<1>(vectors, use);
    case 2: return with_vectors<2>(vectors, use);
    case 4: return with_vectors<4>(vectors, use);
    default: return with_vectors<6>(vectors, use);
  }
}

KVC_INLINE int32_t rows_of(int32_t left) {
  return left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// ---- A token ----------------------------------------------------------------------------------------------------------------

/// Vectors of a state's row that go through at once.
inline constexpr int32_t step_vectors = lanes == 16 ? 8 : 4;

enum class To { nowhere, caches, memory };

/// Elements of an array that may have none to hold.
constexpr int32_t at_least_one(int32_t n) { return n < 1 ? 1 : n; }

/// `vectors` vectors of every row of the state.
template <int32_t n_q, int32_t vectors, To to>
KVC_INLINE void step_columns(const LightningStep& s, int32_t column, int32_t first_q) {
  Vec v[vectors], out[at_least_one(n_q)][vectors];
  for (int32_t j = 0; j < vectors; ++j) v[j] = load(s.v + column + j * lanes);
  if constexpr (n_q > 0) clear_sums(out);
  const Vec high = broadcast(s.decay.high), low = broadcast(s.decay.low);
  const auto stride = static_cast<size_t>(s.dims_v);
  const float* from = s.from + column;
  [[maybe_unused]] float* into = s.to + (to == To::nowhere ? 0 : column);
  const float* q[at_least_one(n_q)];
  for (int32_t i = 0; i < n_q; ++i)
    q[i] = s.q + static_cast<size_t>(first_q + i) * static_cast<size_t>(s.dims_k);
  for (int32_t d = 0; d < s.depth; ++d, from += stride) {
    const Vec k = broadcast(s.k[d]);
#pragma GCC unroll 8
    for (int32_t j = 0; j < vectors; ++j) {
      const Vec before = load(from + j * lanes);
      const Vec x = fma(before, high, fma(before, low, k * v[j]));
      if constexpr (to == To::caches) store(into + j * lanes, x);
      if constexpr (to == To::memory) stream_as<F32>(into + j * lanes, x);
#pragma GCC unroll 4
      for (int32_t i = 0; i < n_q; ++i) out[i][j] = fma(broadcast(q[i][d]), x, out[i][j]);
    }
    if constexpr (to != To::nowhere) into += stride;
  }
  if constexpr (n_q > 0) {
    float* at = s.out + static_cast<size_t>(first_q) * stride + column;
    write_sums(out, at, stride);
  }
}

template <int32_t n_q, To to>
[[gnu::noinline]] static void step_rows(const LightningStep& s, int32_t first_q) {
  constexpr int32_t at_once = n_q > 1 ? step_vectors / 2 : step_vectors;
  const int32_t vectors = s.dims_v / lanes;
  int32_t at = 0;
  for (; at + at_once <= vectors; at += at_once)
    step_columns<n_q, at_once, to>(s, at * lanes, first_q);
  if constexpr (at_once > 4) {
    if (at + 4 <= vectors) step_columns<n_q, 4, to>(s, at * lanes, first_q), at += 4;
  }
  if constexpr (at_once > 2) {
    if (at + 2 <= vectors) step_columns<n_q, 2, to>(s, at * lanes, first_q), at += 2;
  }
  if (at < vectors) step_columns<n_q, 1, to>(s, at * lanes, first_q);
}

template <To to>
KVC_INLINE void step_queries(const LightningStep& s, int32_t n, int32_t first_q) {
  switch (n) {
    case 0: return step_rows<0, to>(s, first_q);
    case 1: return step_rows<1, to>(s, first_q);
    case 2: return step_rows<2, to>(s, first_q);
    case 3: return step_rows<3, to>(s, first_q);
    default: return step_rows<4, to>(s, first_q);
  }
}

// ---- A block ------------------------------------------------------------------------------------------------------------------

/// Keys as columns lie in strips of panel_width tokens, each [dims_k][width of the strip].
KVC_INLINE int32_t width_of_strip(int32_t n, int32_t begin) {
  return smaller(rounded_up(n - begin, lanes), panel_width);
}

/// A line of each of a few rows at a time, as soon as so many are due.
KVC_INLINE void prefetch_some(LightningAhead& ahead) {
  if (ahead.at >= ahead.n) return;
  ahead.due += ahead.lines_at_once;
  if (ahead.due < rows_ahead) return;
  ahead.due -= rows_ahead;
  for (int32_t i = ahead.at; i < smaller(ahead.at + rows_ahead, ahead.n); ++i) {
    const std::byte* line = ahead.row[i] + ahead.byte;
    if (ahead.into_first_level) {
      prefetch(line);
    } else {
      prefetch_far(line);
    }
  }
  ahead.byte += 64;
  if (ahead.byte < ahead.row_bytes) return;
  ahead.byte = 0;
  ahead.at += rows_ahead;
}

constexpr int32_t weights_stride(int32_t n) { return rounded_up(n, 16); }

/// weights[i][j] = (q_i · k_j) λ^(i−j) for rows [row, row + rows) and the strip's first vectors.
template <int32_t rows, int32_t vectors>
[[gnu::noinline]] static void weights_of(const LightningBlock& b, int32_t row, int32_t strip,
                                         int32_t width) {
  const auto q_stride = static_cast<size_t>(b.q_stride);
  const float* q = b.q + static_cast<size_t>(row) * q_stride;
  const float* columns = b.key_columns + static_cast<size_t>(strip) * static_cast<size_t>(b.dims_k);
  Vec c[rows][vectors];
  clear_sums(c);
  multiply_add_rows(c, q, q_stride, columns, static_cast<size_t>(width), b.depth,
                    [&] { prefetch_some(*b.ahead); });
  float* to = b.weights + row * weights_stride(b.n) + strip;
#pragma GCC unroll 8
  for (int32_t i = 0; i < rows; ++i, to += weights_stride(b.n)) {
    const float* decay = b.reversed + (b.n - 1 - row - i) + strip;
#pragma GCC unroll 4
    for (int32_t j = 0; j < vectors; ++j)
      store(to + j * lanes, c[i][j] * load_unaligned(decay + j * lanes));
  }
}

template <class Storage, int32_t rows, int32_t vectors>
KVC_INLINE void write_rows(const Vec (&c)[rows][vectors], const LightningOutputs& outputs,
                           int32_t row, int32_t column) {
#pragma GCC unroll 8
  for (int32_t i = 0; i < rows; ++i) {
    auto* to = reinterpret_cast<typename Storage::Element*>(outputs.row[row + i]) + column;
#pragma GCC unroll 4
    for (int32_t j = 0; j < vectors; ++j) {
      if (outputs.past_caches) {
        stream_as<Storage>(to + j * lanes, c[i][j]);
      } else {
        store_as<Storage>(to + j * lanes, c[i][j]);
      }
    }
  }
}

/// out[i] = from_decay[i] · q_i state + Σ_{j ≤ i} weights[i][j] v_j, for rows [row, row + rows) and a panel.
template <int32_t rows, int32_t vectors>
[[gnu::noinline]] static void outputs_of(const LightningBlock& b, int32_t row, int32_t column) {
  const auto q_stride = static_cast<size_t>(b.q_stride), dims_v = static_cast<size_t>(b.dims_v);
  const auto stride = static_cast<size_t>(weights_stride(b.n));
  Vec c[rows][vectors];
  clear_sums(c);
  multiply_add_rows(c, b.q + static_cast<size_t>(row) * q_stride, q_stride,
                    b.state + static_cast<size_t>(column) * static_cast<size_t>(b.depth),
                    vectors * lanes, b.depth, [&] { prefetch_some(*b.ahead); });
#pragma GCC unroll 8
  for (int32_t i = 0; i < rows; ++i) {
    const Vec decay = broadcast(b.from_decay[row + i]);
#pragma GCC unroll 4
    for (int32_t j = 0; j < vectors; ++j) c[i][j] = c[i][j] * decay;
  }
  constexpr size_t width = vectors * lanes;
  const float* weights = b.weights + static_cast<size_t>(row) * stride;
  const float* v = b.v + static_cast<size_t>(column) * static_cast<size_t>(b.n);
  multiply_add_rows(c, weights, stride, v, width, row + 1, [&] { prefetch_some(*b.ahead); });
  // The first of the rows sees no more, each other one its predecessors among them and itself.
  weights += row + 1;
  v += static_cast<size_t>(row + 1) * width;
#pragma GCC unroll 8
  for (int32_t later = 1; later < rows; ++later, v += width, ++weights) {
#pragma GCC unroll 4
    for (int32_t j = 0; j < vectors; ++j) {
      const Vec value = load(v + j * lanes);
#pragma GCC unroll 8
      for (int32_t i = later; i < rows; ++i)
        c[i][j] = fma(broadcast(weights[static_cast<size_t>(i) * stride]), value, c[i][j]);
    }
  }
  if (b.outputs == nullptr)
    return write_sums(c, b.out + static_cast<size_t>(row) * dims_v + column, dims_v);
  switch (b.outputs->type) {
    case DType::f32: return write_rows<F32>(c, *b.outputs, row, column);
    case DType::f16: return write_rows<F16>(c, *b.outputs, row, column);
    case DType::bf16: return write_rows<Bf16>(c, *b.outputs, row, column);
    default: __builtin_unreachable();
  }
}

/// state = λ^n state + (decayed keys)ᵀ v, for rows [row, row + rows) of a panel of the state.
template <int32_t rows, int32_t vectors>
[[gnu::noinline]] static void advance_rows(const LightningBlock& b, int32_t row, int32_t column) {
  constexpr size_t width = vectors * lanes;
  Vec c[rows][vectors];
  clear_sums(c);
  multiply_add_columns(c, b.decayed_keys + row, static_cast<size_t>(b.dims_k),
                       b.v + static_cast<size_t>(column) * static_cast<size_t>(b.n), width, b.n,
                       [&] { prefetch_some(*b.ahead); });
  float* state = b.state + static_cast<size_t>(column) * static_cast<size_t>(b.depth) +
                 static_cast<size_t>(row) * width;
  const Vec high = broadcast(b.state_decay.high), low = broadcast(b.state_decay.low);
#pragma GCC unroll 8
  for (int32_t i = 0; i < rows; ++i, state += width) {
#pragma GCC unroll 4
    for (int32_t j = 0; j < vectors; ++j) {
      const Vec before = load(state + j * lanes);
      store(state + j * lanes, fma(before, high, fma(before, low, c[i][j])));
    }
  }
}

// ---- What a table names -------------------------------------------------------------------------------------------------------

[[maybe_unused]] static void lightning_step(const LightningStep& step) {
  // Further query heads make the state once more, from what the second-level cache still has.
  for (int32_t first_q = 0, n = 0; first_q == 0 || first_q < step.n_q; first_q += n) {
    n = smaller(step.n_q - first_q, 4);
    if (first_q > 0 || step.to == nullptr) {
      step_queries<To::nowhere>(step, n, first_q);
    } else if (step.streams) {
      step_queries<To::memory>(step, n, first_q);
    } else {
      step_queries<To::caches>(step, n, first_q);
    }
    if (step.n_q == 0) break;
  }
  if (step.streams) finish_stores();
}

/// What the query heads of a block, and the state behind it, have in common.
[[maybe_unused]] static void lightning_pack(const LightningBlock& b, bool attends, bool advances) {
  const auto dims_k = static_cast<size_t>(b.dims_k), k_stride = static_cast<size_t>(b.k_stride);
  for (int32_t strip = 0; attends && strip < b.n; strip += panel_width) {
    const int32_t width = width_of_strip(b.n, strip);
    float* columns = b.key_columns + static_cast<size_t>(strip) * dims_k;
    for (int32_t token = 0; token < width; token += lanes)
      pack_queries(columns + token, width, b.k + static_cast<size_t>(strip + token) * k_stride,
                   k_stride, b.n - strip - token, b.dims_k);
  }
  for (int32_t i = 0; i < b.n; ++i) b.reversed[i] = b.decay[b.n - 1 - i];
  for (int32_t i = 0; i < decay_margin; ++i) b.reversed[b.n + i] = 0;
  for (int32_t i = 0; advances && i < b.n; ++i) {
    const Vec decay = broadcast(b.reversed[i]);
    const float* from = b.k + static_cast<size_t>(i) * k_stride;
    float* to = b.decayed_keys + static_cast<size_t>(i) * dims_k;
    for (int32_t d = 0; d < b.dims_k; d += lanes) store(to + d, load_unaligned(from + d) * decay);
  }
}

/// out of one query head. Needs pack().
[[maybe_unused]] static void lightning_attend(const LightningBlock& b) {
  for (int32_t row = 0, rows = 0; row < b.n; row += rows) {
    rows = rows_of(b.n - row);
    for (int32_t strip = 0; strip < row + rows; strip += panel_width) {
      const int32_t width = width_of_strip(b.n, strip);
      const int32_t seen = rounded_up(smaller(row + rows - strip, width), lanes);
      with_sums(rows, seen / lanes, [&]<int32_t n_rows, int32_t vectors>() {
        weights_of<n_rows, vectors>(b, row, strip, width);
      });
    }
  }
  for (int32_t column = 0; column < b.dims_v; column += panel_width) {
    const int32_t vectors = smaller(panel_width, b.dims_v - column) / lanes;
    for (int32_t row = 0, rows = 0; row < b.n; row += rows) {
      rows = rows_of(b.n - row);
      with_sums(rows, vectors, [&]<int32_t n_rows, int32_t n_vectors>() {
        outputs_of<n_rows, n_vectors>(b, row, column);
      });
    }
  }
  if (b.outputs != nullptr && b.outputs->past_caches) finish_stores();
}

/// The state behind the block. Needs pack().
[[maybe_unused]] static void lightning_advance(const LightningBlock& b) {
  for (int32_t column = 0; column < b.dims_v; column += panel_width) {
    const int32_t vectors = smaller(panel_width, b.dims_v - column) / lanes;
    for (int32_t row = 0, rows = 0; row < b.depth; row += rows) {
      rows = rows_of(b.depth - row);
      with_sums(rows, vectors, [&]<int32_t n_rows, int32_t n_vectors>() {
        advance_rows<n_rows, n_vectors>(b, row, column);
      });
    }
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide::linear
