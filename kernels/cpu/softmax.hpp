#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.hpp"
#include "kernels/cpu/tile.hpp"

/// Softmax of the wide and the medium kernel: from scores to probabilities. Scores lie as
/// [cell][row] with rows in the lanes, so nothing is summed across lanes, and what differs between
/// rows (limits, slopes, references) is a vector.
namespace kvc::cpu::KVC_ISA_NAMESPACE::wide {

inline constexpr float lowest = -__builtin_inff();

/// Scores may exceed their reference by this much (log2) before sums are rescaled.
inline constexpr float slack = 8.0f;

inline constexpr int32_t row_arrays = 8;

/// Per row of the tile, padded to whole strips.
struct RowState {
  float* max;
  float* sum;
  float* first_end;  // the token's limits; counts below 2^24, exact in f32
  float* begin;
  float* end;
  float* far;  // the token's position is far + near: a multiple of 2^16 and the rest, both exact in f32,
  float* near;  // so that differences of positions are rounded once
  float* slope;

  [[gnu::always_inline]] void place(float* base, const size_t (&at)[row_arrays]) {
    float** arrays[row_arrays] = {&max, &sum, &first_end, &begin, &end, &far, &near, &slope};
    for (int32_t i = 0; i < row_arrays; ++i) *arrays[i] = base + at[i];
  }

  [[gnu::always_inline]] void load_from(const Tile& tile, int32_t padded_rows) {
    for (int32_t row = 0, index = 0; row < tile.n_rows; ++index) {
      const TileToken& token = tile.token[index];
      const SplitPosition at = split(token.position);
      for (int32_t head = 0; head < tile.group && row < tile.n_rows; ++head, ++row) {
        max[row] = tile.max[row];
        sum[row] = tile.sum[row];
        first_end[row] = static_cast<float>(token.first_end);
        begin[row] = static_cast<float>(token.begin);
        end[row] = static_cast<float>(token.end);
        far[row] = at.far;
        near[row] = at.near;
        slope[row] = tile.slope != nullptr ? tile.slope[head] : 0.0f;
      }
    }
    for (int32_t row = tile.n_rows; row < padded_rows; ++row) {
      max[row] = lowest;
      sum[row] = first_end[row] = begin[row] = end[row] = 0.0f;
      far[row] = near[row] = slope[row] = 0.0f;
    }
  }

  [[gnu::always_inline]] void store_to(const Tile& tile) const {
    for (int32_t row = 0; row < tile.n_rows; ++row) {
      // A row whose scores are all NaN has no maximum; it must not look like a row that sees
      // nothing.
      const bool lost = sum[row] != sum[row] && max[row] == lowest;
      tile.max[row] = lost ? 0.0f : max[row];
      tile.sum[row] = sum[row];
    }
  }

  struct SplitPosition {
    float far, near;
  };
  [[gnu::always_inline]] static SplitPosition split(int32_t position) {
    return {static_cast<float>(position & ~0xffff), static_cast<float>(position & 0xffff)};
  }
};

/// The scores of one strip in one block.
struct Scores {
  const Tile* tile;
  const RowState* rows;
  float* at;
  int32_t block_begin;
  int32_t first_row;
};

/// score = cap · tanh(score · inverse). A product that overflows is an infinity, whose tanh is ±1.
[[maybe_unused, gnu::noinline]] static void apply_cap(float cap, float inverse, float* scores,
                                                      const float* end) {
  const Vec limit = broadcast(cap), shrink = broadcast(inverse);
  for (; scores < end; scores += lanes) store(scores, limit * tanh(load(scores) * shrink));
}

/// ALiBi. Cells past the tile's last one get its position; they are hidden later.
template <int32_t vectors>
[[gnu::noinline]] static void apply_slopes(const Scores& scores, int32_t begin, int32_t end) {
  const Tile& tile = *scores.tile;
  Vec slope[vectors], far[vectors], near[vectors];
  for (int32_t v = 0; v < vectors; ++v) {
    slope[v] = zero() - load(scores.rows->slope + scores.first_row + v * lanes);
    far[v] = load(scores.rows->far + scores.first_row + v * lanes);
    near[v] = load(scores.rows->near + scores.first_row + v * lanes);
  }
  for (int32_t cell = begin; cell < end; ++cell) {
    const int32_t index = scores.block_begin + cell;
    const int32_t known = index < tile.n_cells ? index : tile.n_cells - 1;
    const RowState::SplitPosition other = RowState::split(tile.position[known]);
    const Vec other_far = broadcast(other.far), other_near = broadcast(other.near);
    float* s = scores.at + cell * vectors * lanes;
    for (int32_t v = 0; v < vectors; ++v) {
      const Vec distance = absolute((far[v] - other_far) + (near[v] - other_near));
      store(s + v * lanes, fma(slope[v], distance, load(s + v * lanes)));
    }
  }
}

/// Adds the bias. Minus infinity replaces the score, which may be NaN. Cells past the tile's last
/// one get its bias; they are hidden later.
template <int32_t vectors>
[[gnu::noinline]] static void apply_bias(const Scores& scores, int32_t begin, int32_t end) {
  const Tile& tile = *scores.tile;
  const Vec hidden = broadcast(lowest), least = broadcast(-__FLT_MAX__);
  for (int32_t cell = begin; cell < end; ++cell) {
    const int32_t index = scores.block_begin + cell;
    const int32_t known = index < tile.n_cells ? index : tile.n_cells - 1;
    const float* bias = tile.bias +
                        static_cast<size_t>(known) * static_cast<size_t>(tile.bias_stride) +
                        scores.first_row;
    float* s = scores.at + cell * vectors * lanes;
    for (int32_t v = 0; v < vectors; ++v) {
      const Vec b = load(bias + v * lanes);
      store(s + v * lanes, select_less(b, least, hidden, load(s + v * lanes) + b));
    }
  }
}

/// Applies the tile's options.
template <int32_t vectors>
KVC_INLINE void adjust(const Scores& scores, int32_t begin, int32_t end) {
  const Tile& tile = *scores.tile;
  constexpr int32_t width = vectors * lanes;
  if (tile.cap != 0.0f) {
    apply_cap(tile.cap, tile.cap_inverse, scores.at + begin * width, scores.at + end * width);
  }
  if (tile.slope != nullptr) apply_slopes<vectors>(scores, begin, end);
  if (tile.bias != nullptr) apply_bias<vectors>(scores, begin, end);
}

/// Replaces the scores of hidden cells by −infinity. Cells in [0, first_all) and [begin_all,
/// end_all) are visible to every row and left alone.
template <int32_t vectors>
[[gnu::noinline]] static void hide(const Scores& scores, int32_t begin, int32_t end,
                                   int32_t first_all, int32_t begin_all, int32_t end_all) {
  const Vec hidden = broadcast(lowest);
  for (int32_t cell = begin; cell < end;) {
    if (cell < first_all) {
      cell = first_all;
      continue;
    }
    if (cell >= begin_all && cell < end_all) {
      cell = end_all;
      continue;
    }
    const Vec index = broadcast(static_cast<float>(scores.block_begin + cell));
    float* s = scores.at + cell * vectors * lanes;
    for (int32_t v = 0; v < vectors; ++v) {
      const int32_t row = scores.first_row + v * lanes;
      const Vec score = load(s + v * lanes);
      Vec x = select_less(index, load(scores.rows->end + row), score, hidden);
      x = select_less(index, load(scores.rows->begin + row), hidden, x);
      store(s + v * lanes, select_less(index, load(scores.rows->first_end + row), score, x));
    }
    ++cell;
  }
}

/// Raises `highest` to the largest score of each row, NaN skipped. end − begin is even.
template <int32_t vectors>
[[gnu::noinline]] static void find_highest(const Scores& scores, int32_t begin, int32_t end,
                                           Vec (&highest)[vectors]) {
  Vec second[vectors];
  for (int32_t v = 0; v < vectors; ++v) second[v] = highest[v];
  const float* s = scores.at + begin * vectors * lanes;
  for (int32_t cell = begin; cell < end; cell += 2, s += 2 * vectors * lanes) {
    for (int32_t v = 0; v < vectors; ++v) {
      highest[v] = maximum(load(s + v * lanes), highest[v]);
      second[v] = maximum(load(s + (vectors + v) * lanes), second[v]);
    }
  }
  for (int32_t v = 0; v < vectors; ++v) highest[v] = maximum(second[v], highest[v]);
}

/// Computes the reference that is subtracted from a row's scores: the old one as long as no score
/// exceeds it by more than the slack, 0 for a row that has seen nothing. `rescale` is the factor
/// for the row's earlier sums, mostly 1.
template <int32_t vectors>
KVC_INLINE void raise_reference(const Scores& scores, const Vec (&highest)[vectors], float* rescale,
                                Vec (&reference)[vectors]) {
  for (int32_t v = 0; v < vectors; ++v) {
    float* max = scores.rows->max + scores.first_row + v * lanes;
    const Vec old = load(max);
    const Vec raised = select_less(old + broadcast(slack), highest[v], highest[v], old);
    reference[v] = select_less(broadcast(lowest), raised, raised, zero());
    store(rescale + v * lanes, exp2(old - reference[v]));
    store(max, raised);
  }
}

/// Turns scores into probabilities and adds them to `sums`.
template <int32_t vectors>
[[gnu::noinline]] static void exponentiate(const Scores& scores, int32_t begin, int32_t end,
                                           const Vec (&reference)[vectors], Vec (&sums)[vectors]) {
  float* s = scores.at + begin * vectors * lanes;
  for (int32_t cell = begin; cell < end; ++cell, s += vectors * lanes) {
#pragma GCC unroll 4
    for (int32_t v = 0; v < vectors; ++v) {
      const Vec p = exp2(load(s + v * lanes) - reference[v]);
      sums[v] = sums[v] + p;
      store(s + v * lanes, p);
    }
  }
}

template <int32_t vectors>
KVC_INLINE void add_sums(const Scores& scores, const float* rescale, const Vec (&sums)[vectors]) {
  for (int32_t v = 0; v < vectors; ++v) {
    float* sum = scores.rows->sum + scores.first_row + v * lanes;
    store(sum, fma(load(sum), load(rescale + v * lanes), sums[v]));
  }
}

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::wide
