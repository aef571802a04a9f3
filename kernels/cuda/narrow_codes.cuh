#pragma once
#include "kernels/cuda/narrow_coded_rows.cuh"

/// K and V as codes, as narrow kernels multiply them (narrow.cuh). A code is decoded by the one lane that multiplies it.
///
/// A row is read by groups of 32 bytes, by the lanes that have it in common: a lane has 8 bytes of a group of K, 4 of a group of V. So
/// the numbers of a row that meet in a product are of one block, and its scale is one factor: of the product with K, and of the
/// weight before the product with V. A group of q4_0 is two blocks: lanes trade until each has half as many bytes of both.
///
/// Numbers are f16 (narrow_decode.cuh). A weight times a scale may be beyond f16, so it is multiplied with a power of two that brings
/// the largest scale that a column has met to 2^13; sums are carried over where that grows.
namespace kvc::cuda {

/// The same lane of two groups of lanes, 2 apart, has two words of the first block or of the second. Each gives the other one of them.
KVC_DEVICE Word2 trade(const Word2& own, bool is_second) {
  const uint32_t kept = is_second ? own.w[1] : own.w[0];
  const uint32_t taken = shuffle_xor(is_second ? own.w[0] : own.w[1], 2);
  return {is_second ? taken : kept, is_second ? kept : taken};
}

template <StorageType type, int size>
class CodedKeys : public CodedRows<type, size> {
  using Rows = CodedRows<type, size>;
  using Rows::factor_, Rows::groups, Rows::lane_, Rows::per_byte;
  static constexpr int parts = CodeWord<type>::parts;

 public:
  using Factor = F16;
  using Rows::dim, Rows::steps;
  static constexpr bool are_codes = true;
  static constexpr bool may_be_rotated = Rows::has_scales;

  KVC_DEVICE CodedKeys(const Numbers& numbers, Lane lane) : Rows(numbers, lane) {}
  KVC_DEVICE void begin(const Task& task, int64_t first_cell) {
    Rows::begin_rows(task, first_cell, 8 * lane_.t);
  }

  /// The e-th of the four dims that lane (g, t) has for a step.
  KVC_DEVICE static int dim_of(int step, int t, int e) {
    const int word = step / per_byte, of_group = word / 2 * 32, byte = e % 2 * 2 + e / 2;
    const int at = Rows::trades ? of_group + word % 2 * 16 + (t % 2 * 2 + t / 2) * 4
                                : of_group + t * 8 + word % 2 * 4;
    return dim_of_code(type, at + byte, step % per_byte);
  }

  /// Tokens g and g + 8 of a step.
  KVC_DEVICE void load(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const char* const from = Rows::row(cells, first_lane + lane_.g + 8 * r);
      KVC_UNROLL for (int j = 0; j < groups; ++j) words_[r][j] = load_stream_8(from + 32 * j);
    }
    Rows::load_scales(cells, first_lane);
  }

  /// Products of tokens g and g + 8 with columns 2t and 2t + 1 of each eight.
  template <int eights>
  KVC_DEVICE void multiply(const uint32_t* fragments, float (&s)[eights][4]) {
    trade_words();
    float sums[eights][2][4];  // of a block: the small ones, and the others
    float factor[eights][2];
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
      KVC_UNROLL for (int c = 0; c < 2; ++c)
        factor[eight][c] = Item::column(column_of(eight, lane_, c)).unscale * factor_;
      KVC_UNROLL for (int e = 0; e < 4; ++e) s[eight][e] = 0;
    }
    KVC_UNROLL for (int word = 0; word < 2 * groups; ++word) {
      uint32_t x[2][parts][per_byte][2];
      KVC_UNROLL for (int r = 0; r < 2; ++r) Rows::word_.decode(words_[r][word / 2].w[word % 2], x[r]);
      KVC_UNROLL for (int n = 0; n < per_byte; ++n) {
        const int step = word * per_byte + n;
        KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
          float (&of_block)[2][4] = sums[eight];
          if (step * 16 % Rows::block == 0)
            KVC_UNROLL for (int e = 0; e < 4; ++e) of_block[0][e] = of_block[1][e] = 0;
          const Word4 right = *reinterpret_cast<const Word4*>(
              fragments + fragment_at<F16>(eight * steps + step, lane_.index, 0));
          KVC_UNROLL for (int part = parts - 1; part >= 0; --part) {
            const uint32_t left[4] = {x[0][part][n][0], x[1][part][n][0], x[0][part][n][1], x[1][part][n][1]};
            if (part == 0) mma_16x8x16<F16>(of_block[0], left, {right.w[2], right.w[3]});
            mma_16x8x16<F16>(of_block[part == 0 ? 1 : 0], left, {right.w[0], right.w[1]});
          }
          if ((step + 1) * 16 % Rows::block == 0)
            finish_block(step * 16 / Rows::block, of_block, factor[eight], s[eight]);
        }
      }
    }
  }

 private:
  /// Lanes t and t + 2 have eight bytes of the first or the second block of a group; then both have four of each.
  KVC_DEVICE void trade_words() {
    if constexpr (Rows::trades) {
      KVC_UNROLL for (int r = 0; r < 2; ++r)
        KVC_UNROLL for (int j = 0; j < groups; ++j) words_[r][j] = trade(words_[r][j], lane_.t >= 2);
    }
  }

  KVC_DEVICE void finish_block(int of_block, const float (&sums)[2][4], const float (&factor)[2],
                               float (&s)[4]) const {
    KVC_UNROLL for (int e = 0; e < 4; ++e) {
      const float x = sums[0][e] + sums[1][e];
      if constexpr (Rows::has_scales) {
        s[e] = multiply_add(x, Rows::scale(e / 2, of_block) * factor[e % 2], s[e]);
      } else {
        // Infinite for what is no number (CodeWord), and then no number either.
        s[e] = type == StorageType::f8_e4m3 ? multiply_add(x, 0, x) * factor[e % 2] : x * factor[e % 2];
      }
    }
  }

  Word2 words_[2][groups];  // of rows g and g + 8
};

template <StorageType type, int size, int n_eights = 1>
class CodedValues : public CodedRows<type, size> {
  using Rows = CodedRows<type, size>;
  using Rows::blocks, Rows::factor_, Rows::groups, Rows::has_scales, Rows::lane_, Rows::per_byte;
  static constexpr int parts = CodeWord<type>::parts;
  static constexpr int steps_of_block = Rows::block / 16;
  using Weights = uint32_t[2][2];  // parts of a right factor

 public:
  using Rows::dim, Rows::steps;
  static constexpr int eights = n_eights;
  static constexpr bool may_be_rotated = has_scales;

  KVC_DEVICE CodedValues(const Numbers& numbers, Lane lane) : Rows(numbers, lane) {}
  KVC_DEVICE void begin(const Task& task, int64_t first_cell) {
    Rows::begin_rows(task, first_cell, 4 * lane_.g);
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
      KVC_UNROLL for (int i = 0; i < steps; ++i)
        KVC_UNROLL for (int e = 0; e < 4; ++e) sums_[eight][i][e] = 0;
      KVC_UNROLL for (int c = 0; c < 2; ++c) exponent_[eight][c] = least_exponent;
    }
  }

  /// Tokens 2t, 2t + 1, 2t + 8 and 2t + 9 of a step.
  KVC_DEVICE void load(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 4; ++r) {
      const char* const from = Rows::row(cells, first_lane + value_token(lane_, r));
      KVC_UNROLL for (int j = 0; j < groups; ++j) words_[r][j] = load_stream_4(from + 32 * j);
    }
    Rows::load_scales(cells, first_lane);
  }

  /// Adds the step's values times its weights; what was added before fades. `hides`: a weight is 0.
  KVC_DEVICE void add(const float (&s)[eights][4], const float (&fade)[eights][2], bool hides) {
    trade_words();
    constexpr uint32_t all[4] = {~0u, ~0u, ~0u, ~0u};
    Weights weights[eights];
    if constexpr (has_scales) {
      float w[eights][4], fades[eights][2];
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight)
        weigh(s[eight], fade[eight], exponent_[eight], w[eight], fades[eight]);
      KVC_UNROLL for (int b = 0; b < blocks; ++b) {
        KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
          float x[4];  // of what is hidden, the scale may be no number
          KVC_UNROLL for (int e = 0; e < 4; ++e)
            x[e] = s[eight][e] == 0 ? 0.0f : w[eight][e] * Rows::scale(e / 2, b);
          split_weights<F16>(x, 1, weights[eight]);
        }
        add_steps(b * steps_of_block, (b + 1) * steps_of_block, weights, all, fades, -1, -1);
      }
    } else {
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight)
        split_weights<F16>(s[eight], weight_scale<F16>, weights[eight]);
      if (hides && are_infinite()) {  // each column without the values that it does not see
        KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
          KVC_NO_UNROLL for (int c = 0; c < 8; ++c) {
            uint32_t keep[4];
            seen_by(c, s[eight], lane_, keep);
            add_steps(0, steps, weights, keep, fade, eight, c);
          }
        }
      } else {
        add_steps(0, steps, weights, all, fade, -1, -1);
      }
    }
  }

  /// One of the two dims that this lane has of a step.
  KVC_DEVICE int dim_of(int i, int which) const {
    const int g = lane_.g, half = i / per_byte, of_group = half / 2 * 32;
    const int at = Rows::trades ? of_group + half % 2 * 16 + g % 4 * 4 + g / 4 * 2
                                : of_group + g * 4 + half % 2 * 2;
    return dim_of_code(type, at + which, i % per_byte);
  }
  /// Its sum for column 2t or 2t + 1 of an eight.
  KVC_DEVICE float sum(int eight, int i, int which, int column) const {
    const float x = sums_[eight][i][2 * which + column];
    const float up = has_scales ? float_of(static_cast<uint32_t>(exponent_[eight][column] - 13) << 23)
                                : 1.0f / weight_scale<F16>;
    return (type == StorageType::f8_e4m3 ? multiply_add(x, 0, x) : x) * up * factor_;
  }

 private:
  static constexpr int least_exponent = 14;  // biased, of a scale; below it sums have room enough
  static constexpr int most_exponent = 254;

  /// Lanes g and g + 4 have four bytes of the first or the second block of a group; then both have two of each.
  KVC_DEVICE void trade_words() {
    if constexpr (Rows::trades) {
      const uint32_t selector = lane_.g < 4 ? 0x5410 : 0x3276;
      KVC_UNROLL for (int r = 0; r < 4; ++r)
        KVC_UNROLL for (int j = 0; j < groups; ++j)
          words_[r][j] = permute(words_[r][j], shuffle_xor(words_[r][j], 16), selector);
    }
  }

  /// Weights of eight columns become such that they may be multiplied with scales. `fades`: what older sums are worth then.
  KVC_DEVICE void weigh(const float (&s)[4], const float (&fade)[2], int (&exponents)[2], float (&w)[4],
                        float (&fades)[2]) const {
    int of_token[2];
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float largest = 0;
      KVC_UNROLL for (int b = 0; b < blocks; ++b) largest = fmaxf(largest, fabsf(Rows::scale(r, b)));
      const int exponent = static_cast<int>(bits_of(largest) >> 23);
      of_token[r] = exponent < most_exponent ? exponent : most_exponent;
    }
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      const int before = exponents[c];
      int exponent = before;
      KVC_UNROLL for (int r = 0; r < 2; ++r)
        if (s[2 * r + c] > 0 && of_token[r] > exponent) exponent = of_token[r];
      KVC_UNROLL for (int mask = 4; mask <= 16; mask *= 2) {
        const int other = static_cast<int>(shuffle_xor(static_cast<uint32_t>(exponent), mask));
        if (other > exponent) exponent = other;
      }
      exponents[c] = exponent;
      const int lost = exponent - before;
      fades[c] = lost > 126 ? 0.0f : fade[c] * float_of(static_cast<uint32_t>(127 - lost) << 23);
      const float down = float_of(static_cast<uint32_t>(267 - exponent) << 23);
      KVC_UNROLL for (int r = 0; r < 2; ++r) w[2 * r + c] = s[2 * r + c] * down;
    }
  }

  /// Sixteen dims of the step's values times its weights at a time. Bits of `keep` name words of which tokens count; `lone`: the one
  /// column of `lone_eight` whose sums change, −1: all.
  KVC_DEVICE void add_steps(int first, int end, const Weights (&weights)[eights],
                            const uint32_t (&keep)[4], const float (&fade)[eights][2],
                            int lone_eight, int lone) {
    KVC_UNROLL for (int half = 0; half < 2 * groups; ++half) {  // of a group: two bytes of each token
      if (half * per_byte < first || half * per_byte >= end) continue;
      uint32_t x[2][parts][per_byte][2];
      KVC_UNROLL for (int i = 0; i < 2; ++i) {
        const uint32_t a = words_[2 * i][half / 2] & keep[2 * i];
        const uint32_t b = words_[2 * i + 1][half / 2] & keep[2 * i + 1];
        Rows::word_.decode(permute(a, b, half % 2 == 0 ? 0x5410 : 0x7632), x[i]);
      }
      KVC_UNROLL for (int n = 0; n < per_byte; ++n) {
        KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
          if (lone_eight >= 0 && lone_eight != eight) continue;
          float sum[4] = {};
          KVC_UNROLL for (int part = parts - 1; part >= 0; --part) {
            const uint32_t left[4] = {x[0][part][n][0], x[0][part][n][1], x[1][part][n][0], x[1][part][n][1]};
            if (part == 0) mma_16x8x16<F16>(sum, left, weights[eight][1]);
            mma_16x8x16<F16>(sum, left, weights[eight][0]);
          }
          float (&all)[4] = sums_[eight][half * per_byte + n];
          KVC_UNROLL for (int e = 0; e < 4; ++e) {
            if (lone < 0 || 2 * lane_.t + e % 2 == lone)
              all[e] = multiply_add(all[e], fade[eight][e % 2], sum[e]);
          }
        }
      }
    }
  }

  KVC_DEVICE bool are_infinite() const {
    constexpr bool is_e4m3 = type == StorageType::f8_e4m3;
    constexpr uint32_t largest = is_e4m3 ? 0x7f7f7f7fu : 0x7c7c7c7cu, one = is_e4m3 ? 0x01010101u : 0x04040404u;
    uint32_t found = 0;
    KVC_UNROLL for (int r = 0; r < 4; ++r) {
      KVC_UNROLL for (int j = 0; j < groups; ++j) found |= (words_[r][j] & largest) + one;
    }
    return any_lane((found & 0x80808080u) != 0);
  }

  uint32_t words_[4][groups];  // of tokens 2t, 2t + 1, 2t + 8 and 2t + 9
  float sums_[eights][steps][4];  // dims by columns
  int exponent_[eights][2];  // biased: of the largest scale that columns 2t and 2t + 1 have met
};

}  // namespace kvc::cuda
