#pragma once
#include "kernels/cuda/item.cuh"

/// What a warp does with the products of 16 columns of a tile: scores become weights, weights and values become results.
namespace kvc::cuda {

/// 16 columns, of which a lane has columns g and g + 8, with V in T of up to D dimensions and `tokens` tokens a step. Weights are
/// sums of `parts` numbers of T.
template <class T, int D, int parts, int tokens>
class WarpColumns {
 public:
  static constexpr int v_steps = tokens / 16;  // products with 16 tokens of V
  static constexpr int eights = tokens / 8;    // of tokens: what a product has columns for
  static_assert(eights <= 16);
  // Parts of f16 would underflow: queries are multiplied with a power of two of their own, weights with this one.
  static constexpr bool is_scaled = T::has_small_range;
  static constexpr float weight_scale = is_scaled ? 16384.0f : 1.0f;
  using Scores = float[eights][4];  // tokens 8i + 2t, + 1, of columns g and g + 8
  using Weights = uint32_t[v_steps][parts][4];
  using Seen = uint32_t[2];  // bit 2i + e of tokens 8i + 2t + e, of columns g and g + 8

  /// `first`: the warp's first column of the tile.
  KVC_DEVICE explicit WarpColumns(int first)
      : lane_(thread_index() % 32), g_(lane_ / 4), t_(lane_ % 4), first_(first) {}

  KVC_DEVICE void clear() {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      top_[r] = -infinity();
      weight_[r] = 0;
    }
    KVC_UNROLL for (int i = 0; i < D / 8; ++i) KVC_UNROLL for (int e = 0; e < 4; ++e) sums[i][e] = 0;
  }

  KVC_DEVICE int first() const { return first_; }
  KVC_DEVICE int column_of(int r) const { return first_ + g_ + 8 * r; }

  /// Products become scores of the tokens from u0 on. Returns whether one of them is hidden.
  KVC_DEVICE bool finish_scores(const Item& item, Scores& s, const int32_t* cells,
                                const int32_t* positions, int u0, int end) const {
    const int n_used = Item::task().n_used;
    const bool changes = item.a.changes_scores();
    if (changes) {
      // In a loop, for its code is large: eight tokens are the first of the registers, and go to the end.
      KVC_NO_UNROLL for (int i = 0; i < eights; ++i) {
        float x[4];
        KVC_UNROLL for (int e = 0; e < 4; ++e) {
          const int token = 8 * i + 2 * t_ + e % 2, c = column_of(e / 2);
          x[e] = s[0][e];
          if (c < n_used) x[e] = item.score(Item::column(c), x[e], cells[token], positions[token]);
        }
        KVC_UNROLL for (int j = 0; j + 1 < eights; ++j)
          KVC_UNROLL for (int e = 0; e < 4; ++e) s[j][e] = s[j + 1][e];
        KVC_UNROLL for (int e = 0; e < 4; ++e) s[eights - 1][e] = x[e];
      }
    }
    if (!changes && !is_boundary(u0, end)) return false;
    bool hides = false;
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const Column& column = Item::column(column_of(r));
      const bool is_used = column_of(r) < n_used;
      const int first_end = column.first_end < end ? column.first_end : end;
      const int last_end = column.end < end ? column.end : end;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        KVC_UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
          const int u = u0 + 8 * i + 2 * t_ + e % 2;
          if (u >= first_end && (u < column.begin || u >= last_end)) s[i][e] = -infinity();
          hides = hides || (is_used && s[i][e] == -infinity());
        }
      }
    }
    return any_lane(hides);
  }
  /// Whether some column may not see some token from u0 on, as far as rows decide.
  KVC_DEVICE static bool is_boundary(int u0, int end) {
    return u0 + tokens > end || !Item::all_see(u0, u0 + tokens);
  }

  /// Scores become weights, and older sums fade by what is returned. Sums of weights are this lane's tokens' alone.
  KVC_DEVICE void soften(Scores& s, float (&fade)[2]) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float top = -infinity();
      KVC_UNROLL for (int i = 0; i < eights; ++i) top = fmaxf(top, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      top = fmaxf(top, top_[r]);
      const float shift = top == -infinity() ? 0.0f : top;
      fade[r] = exp2_fast(top_[r] - shift);
      top_[r] = top;
      float sum = 0;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        KVC_UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[i][e] = exp2_fast(s[i][e] - shift);
          sum += s[i][e];
        }
      }
      weight_[r] = multiply_add(weight_[r], fade[r], sum);
    }
  }
  KVC_DEVICE void fade_sums(const float (&fade)[2]) {
    KVC_UNROLL for (int i = 0; i < D / 8; ++i)
      KVC_UNROLL for (int e = 0; e < 4; ++e) sums[i][e] *= fade[e / 2];
  }

  /// The tokens that weights are not zero for.
  KVC_DEVICE static void find_seen(const Scores& s, Seen& seen) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) seen[r] = 0;
    KVC_UNROLL for (int i = 0; i < eights; ++i) {
      KVC_UNROLL for (int e = 0; e < 4; ++e) {
        // A statement of its own: in the shift, gcc 12 with -fsanitize=bounds,shift would read s[i][e] from elsewhere.
        const uint32_t sees = s[i][e] == 0 ? 0 : 1;
        seen[e / 2] |= sees << (2 * i + e % 2);
      }
    }
  }

  /// The left factor of the products with V: columns g and g + 8, tokens 2t and 2t + 8 with the next of each.
  KVC_DEVICE static void split_weights(const Scores& s, Weights& weights) {
    KVC_UNROLL for (int j = 0; j < v_steps; ++j) {
      KVC_UNROLL for (int word = 0; word < 4; ++word) {
        const float* const pair_of = s[2 * j + word / 2] + word % 2 * 2;
        float x = pair_of[0] * weight_scale, y = pair_of[1] * weight_scale;
        KVC_UNROLL for (int part = 0; part < parts; ++part) {
          const uint32_t pair = T::pack(x, y);
          weights[j][part][word] = pair;
          x -= T::low(pair);
          y -= T::high(pair);
        }
      }
    }
  }

  // `load_values(words, j, i)` gets tokens 16j … and dims 16i … of V, as load_matrices_transposed() does.

  template <class LoadValues>
  KVC_DEVICE static bool has_infinite_values(LoadValues load_values) {
    constexpr uint32_t exponent = is_scaled ? 0x7c00u : 0x7f80u;
    bool found = false;
    KVC_NO_UNROLL for (int at = 0; at < v_steps * (D / 16); ++at) {
      uint32_t values[4];
      load_values(values, at / (D / 16), at % (D / 16));
      KVC_UNROLL for (int word = 0; word < 4; ++word) {
        const uint32_t pair = values[word];
        found = found || (pair & exponent) == exponent || (pair >> 16 & exponent) == exponent;
      }
    }
    return any_lane(found);
  }

  template <class LoadValues>
  KVC_DEVICE void add_values(const Weights& weights, int dims, LoadValues load_values) {
    add_values_as<false>(weights, {}, 0, dims, load_values);
  }
  /// Column by column, without the values that it does not see, because they may be infinite.
  template <class LoadValues>
  KVC_DEVICE void add_values_apart(const Seen& seen, const Weights& weights, int dims,
                                   LoadValues load_values) {
    KVC_NO_UNROLL for (int c = 0; c < 16; ++c) {
      uint32_t keep[v_steps][2];
      see_as(c, seen, keep);
      add_values_as<true>(weights, keep, c, dims, load_values);
    }
  }

  /// To `rows` [columns][row_floats], and of all lanes' tokens the sum of weights and the maximum.
  KVC_DEVICE void write(float* rows, int row_floats, float* weights, float* tops) const {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float sum = weight_[r];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int c = column_of(r);
      KVC_UNROLL for (int i = 0; i < D / 8; ++i)
        KVC_UNROLL for (int e = 0; e < 2; ++e)
          rows[c * row_floats + 8 * i + 2 * t_ + e] = sums[i][2 * r + e] * (1.0f / weight_scale);
      if (t_ != 0) continue;
      weights[c] = sum;
      tops[c] = top_[r];
    }
  }

  float sums[D / 8][4];  // of values: columns g and g + 8, dims 8i + 2t and the next

 private:
  /// Which of this lane's tokens column c of the warp sees, as bits of the words that load_values() gets of them.
  KVC_DEVICE void see_as(int c, const Seen& seen, uint32_t (&keep)[v_steps][2]) const {
    const uint32_t bits = shuffle(c < 8 ? seen[0] : seen[1], c % 8 * 4 + t_);
    KVC_UNROLL for (int i = 0; i < eights; ++i)
      keep[i / 2][i % 2] = (bits >> 2 * i & 1u) * 0xffffu | (bits >> (2 * i + 1) & 1u) * 0xffff0000u;
  }

  /// `apart`: of column c alone, what `keep` keeps.
  template <bool apart, class LoadValues>
  KVC_DEVICE void add_values_as(const Weights& weights, const uint32_t (&keep)[v_steps][2], int c,
                                int dims, LoadValues load_values) {
    KVC_UNROLL for (int i = 0; i < D / 16; ++i) {
      // The branch also keeps the compiler from loading more values ahead than there are registers for.
      if (16 * i >= dims) continue;
      float all[2][4] = {};
      KVC_UNROLL for (int j = 0; j < v_steps; ++j) {
        uint32_t values[4];
        load_values(values, j, i);
        KVC_UNROLL for (int word = 0; word < 4; ++word) if (apart) values[word] &= keep[j][word % 2];
        KVC_UNROLL for (int h = 0; h < 2; ++h) {
          if (parts == 1) {
            mma_16x8x16<T>(all[h], weights[j][0], {values[2 * h], values[2 * h + 1]});
            continue;
          }
          float sum[4] = {};
          KVC_UNROLL for (int part = parts - 1; part >= 0; --part)
            mma_16x8x16<T>(sum, weights[j][part], {values[2 * h], values[2 * h + 1]});
          KVC_UNROLL for (int e = 0; e < 4; ++e) all[h][e] += sum[e];
        }
      }
      KVC_UNROLL for (int h = 0; h < 2; ++h)
        KVC_UNROLL for (int e = 0; e < 4; ++e)
          if (!apart || (g_ == c % 8 && e / 2 == c / 8)) sums[2 * i + h][e] += all[h][e];
    }
  }

  const int lane_, g_, t_, first_;
  float top_[2], weight_[2];  // of columns g and g + 8
};

}  // namespace kvc::cuda
