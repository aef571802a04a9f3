#pragma once
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/narrow_factors.cuh"

/// K and V in f16 or bf16 as narrow kernels multiply them (narrow.cuh).
///
///   keys     lane (g, t) needs row g, and takes 16 bytes of it (dims 32j + 8t …) as columns of two products
///   values   lane (g, t) needs four tokens and takes dims 64c + 8g … of each; pairs of tokens are made by byte permutes
///
/// Where a head has no whole 32 (K) or 64 (V) dims left, lanes still take 16 bytes, of fewer rows each, and trade what they have
/// too much of for what they lack.
namespace kvc::cuda {

/// The same lane of two groups of lanes, `mask` apart, has four words of the first row or of the second. Each gives the other half of
/// them: both get words k, of the first row and of the second, and words k + 1; k is 0 in the first group and 2 in the second.
KVC_DEVICE Word4 trade(const Word4& own, bool is_second, int mask) {
  Word4 result;
  KVC_UNROLL for (int i = 0; i < 2; ++i) {
    const uint32_t kept = is_second ? own.w[i + 2] : own.w[i];
    const uint32_t taken = shuffle_xor(is_second ? own.w[i] : own.w[i + 2], mask);
    result.w[2 * i] = is_second ? taken : kept;
    result.w[2 * i + 1] = is_second ? kept : taken;
  }
  return result;
}

template <class T, int size>
class NumberKeys {
  static_assert(size % 16 == 0);
  static constexpr int parts = parts_of<T>;
  static constexpr int loads = size / 32;  // of 16 bytes, per row and lane
  static constexpr bool has_rest = size % 32 != 0;  // 16 dims

 public:
  using Factor = T;
  static constexpr int dim = size;
  static constexpr int steps = dim / 16;  // products per part; what a lane holds is as many words of 16 bytes
  static constexpr bool are_codes = false;
  static constexpr bool may_be_rotated = false;

  KVC_DEVICE NumberKeys(const Numbers& numbers, Lane lane) : numbers_(numbers), lane_(lane) {}

  KVC_DEVICE void begin(const Task& task, int64_t first_cell) {
    data_ = numbers_.data + task.kv_head * numbers_.head_stride + first_cell * numbers_.row_stride +
            16 * lane_.t;
  }

  /// The e-th of the four dims that lane (g, t) has for a step.
  KVC_DEVICE static int dim_of(int step, int t, int e) {
    if (step == 2 * loads) return step * 16 + t % 2 * 8 + t / 2 * 4 + e;
    return step / 2 * 32 + t * 8 + step % 2 * 4 + e;
  }

  /// Tokens g and g + 8 of a step.
  KVC_DEVICE void load(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const char* const from = row(cells, first_lane + lane_.g + 8 * r);
      KVC_UNROLL for (int j = 0; j < loads; ++j) words_[r * loads + j] = load_stream(from + 64 * j);
    }
    if constexpr (has_rest) {  // of row g, or in lanes (g, 2) and (g, 3) of row g + 8
      const char* const from = row(cells, first_lane + lane_.g + lane_.t / 2 * 8);
      words_[steps - 1] = load_stream(from + 64 * loads - lane_.t / 2 * 32);
    }
  }

  /// Products of tokens g and g + 8 with columns 2t and 2t + 1 of each eight. A chain of products per part; the small ones are
  /// added first.
  template <int eights>
  KVC_DEVICE void multiply(const uint32_t* fragments, float (&s)[eights][4]) {
    if constexpr (has_rest) words_[steps - 1] = trade(words_[steps - 1], lane_.t >= 2, 2);
    float sums[eights][parts][4] = {};
    KVC_UNROLL for (int step = 0; step < steps; ++step) {
      const bool is_rest = step == 2 * loads;
      const Word4& a = words_[is_rest ? step : step / 2];
      const Word4& b = words_[is_rest ? step : loads + step / 2];
      const uint32_t left[4] = {a.w[step % 2 * 2], b.w[is_rest ? 1 : step % 2 * 2],
                                a.w[is_rest ? 2 : step % 2 * 2 + 1], b.w[is_rest ? 3 : step % 2 * 2 + 1]};
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
        const uint32_t* const right = fragments + fragment_at<T>(eight * steps + step, lane_.index, 0);
        const Word4 two = *reinterpret_cast<const Word4*>(right);
        mma_16x8x16<T>(sums[eight][0], left, {two.w[0], two.w[1]});
        mma_16x8x16<T>(sums[eight][1], left, {two.w[2], two.w[3]});
        if (parts > 2) {
          const Word2 third = *reinterpret_cast<const Word2*>(
              fragments + fragment_at<T>(eight * steps + step, lane_.index, 2));
          mma_16x8x16<T>(sums[eight][parts - 1], left, {third.w[0], third.w[1]});
        }
      }
    }
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
      KVC_UNROLL for (int e = 0; e < 4; ++e) {
        float x = sums[eight][parts - 1][e];
        KVC_UNROLL for (int part = parts - 2; part >= 0; --part) x += sums[eight][part][e];
        s[eight][e] = T::has_small_range ? x * Item::column(column_of(eight, lane_, e % 2)).unscale : x;
      }
    }
  }

 private:
  KVC_DEVICE const char* row(int cells, int lane) const {
    return data_ + shuffle(cells, lane) * numbers_.row_stride;
  }

  const Numbers& numbers_;
  const Lane lane_;
  const char* data_;    // where this lane reads of row 0
  Word4 words_[steps];  // rows g and g + 8 of a step
};

template <class T, int size, int n_eights = 1>
class NumberValues {
  static_assert(size % 16 == 0);
  static constexpr int parts = parts_of<T>;
  static constexpr int loads = size / 64;  // of 16 bytes, per row and lane
  static constexpr bool has_half = size % 64 >= 32;
  static constexpr bool has_rest = size % 32 != 0;  // 16 dims, behind the half
  static constexpr int half = 4 * loads;            // the first step of the half
  static constexpr int rest = size / 16 - 1;
  using Weights = uint32_t[parts][2];  // of eight columns

 public:
  static constexpr int eights = n_eights;
  static constexpr int dim = size;
  static constexpr int steps = dim / 16;  // products per part; what a lane holds is as many words of 16 bytes
  static constexpr bool may_be_rotated = false;

  KVC_DEVICE NumberValues(const Numbers& numbers, Lane lane) : numbers_(numbers), lane_(lane) {}

  KVC_DEVICE void begin(const Task& task, int64_t first_cell) {
    data_ = numbers_.data + task.kv_head * numbers_.head_stride + first_cell * numbers_.row_stride +
            16 * lane_.g;
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight)
      KVC_UNROLL for (int i = 0; i < steps; ++i)
        KVC_UNROLL for (int e = 0; e < 4; ++e) sums_[eight][i][e] = 0;
  }

  /// Tokens 2t, 2t + 1, 2t + 8 and 2t + 9 of a step.
  KVC_DEVICE void load(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 4; ++r) {
      const char* const from = row(cells, first_lane + value_token(lane_, r));
      KVC_UNROLL for (int c = 0; c < loads; ++c) words_[r * loads + c] = load_stream(from + 128 * c);
    }
    if constexpr (has_half) {  // four lanes have all dims: the upper ones take the later two tokens
      KVC_UNROLL for (int r = 0; r < 2; ++r) {
        const char* const from = row(cells, first_lane + value_token(lane_, r + lane_.g / 4 * 2));
        words_[half + r] = load_stream(from + 128 * loads - lane_.g / 4 * 64);
      }
    }
    if constexpr (has_rest) {  // two lanes have all dims
      const char* const from = row(cells, first_lane + value_token(lane_, lane_.g / 2));
      words_[rest] = load_stream(from + 32 * (rest - lane_.g / 2));
    }
  }

  /// Adds the step's values times its weights; what was added before fades. `hides`: a weight is 0.
  KVC_DEVICE void add(const float (&s)[eights][4], const float (&fade)[eights][2], bool hides) {
    trade_words();
    Weights weights[eights];
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight)
      split_weights<T>(s[eight], weight_scale<T>, weights[eight]);
    constexpr uint32_t all[4] = {~0u, ~0u, ~0u, ~0u};
    if (hides && are_infinite()) {  // each column without the values that it does not see
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
        KVC_NO_UNROLL for (int c = 0; c < 8; ++c) {
          uint32_t keep[4];
          seen_by(c, s[eight], lane_, keep);
          add_steps(weights, keep, fade, eight, c);
        }
      }
    } else {
      add_steps(weights, all, fade, -1, -1);
    }
  }

  /// One of the two dims that this lane has of a step.
  KVC_DEVICE int dim_of(int i, int which) const {
    const int g = lane_.g;
    if (i < half) return i / 4 * 64 + 8 * g + i % 4 * 2 + which;
    if (has_rest && i == rest) return 16 * i + g % 2 * 8 + g / 2 * 2 + which;
    return 16 * half + g % 4 * 8 + g / 4 * 4 + (i - half) * 2 + which;
  }
  /// Its sum for column 2t or 2t + 1 of an eight.
  KVC_DEVICE float sum(int eight, int i, int which, int column) const {
    return sums_[eight][i][2 * which + column] * (1.0f / weight_scale<T>);
  }

 private:
  KVC_DEVICE const char* row(int cells, int lane) const {
    return data_ + shuffle(cells, lane) * numbers_.row_stride;
  }

  /// What was loaded of fewer tokens becomes a word of each of four tokens.
  KVC_DEVICE void trade_words() {
    if constexpr (has_half) {
      const Word4 even = trade(words_[half], lane_.g >= 4, 16), odd = trade(words_[half + 1], lane_.g >= 4, 16);
      KVC_UNROLL for (int i = 0; i < 2; ++i)
        words_[half + i] = {even.w[2 * i], odd.w[2 * i], even.w[2 * i + 1], odd.w[2 * i + 1]};
    }
    if constexpr (has_rest)
      words_[rest] = trade(trade(words_[rest], lane_.g >= 4, 16), lane_.g / 2 % 2 != 0, 8);
  }

  /// Sixteen dims of the step's values times its weights at a time. Bits of `keep` name words of which tokens count; `lone`: the one
  /// column of `lone_eight` whose sums change, −1: all.
  KVC_DEVICE void add_steps(const Weights (&weights)[eights], const uint32_t (&keep)[4],
                            const float (&fade)[eights][2], int lone_eight, int lone) {
    KVC_UNROLL for (int i = 0; i < steps; ++i) {
      uint32_t x[4];
      KVC_UNROLL for (int r = 0; r < 4; ++r)
        x[r] = (i < half ? words_[r * loads + i / 4].w[i % 4] : words_[i].w[r]) & keep[r];
      const uint32_t left[4] = {permute(x[0], x[1], 0x5410), permute(x[0], x[1], 0x7632),
                                permute(x[2], x[3], 0x5410), permute(x[2], x[3], 0x7632)};
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
        if (lone_eight >= 0 && lone_eight != eight) continue;
        float sum[4] = {};
        KVC_UNROLL for (int part = parts - 1; part >= 0; --part)
          mma_16x8x16<T>(sum, left, weights[eight][part]);
        float (&all)[4] = sums_[eight][i];
        KVC_UNROLL for (int e = 0; e < 4; ++e) {
          if (lone < 0 || 2 * lane_.t + e % 2 == lone)
            all[e] = multiply_add(all[e], fade[eight][e % 2], sum[e]);
        }
      }
    }
  }

  KVC_DEVICE bool are_infinite() const {
    constexpr uint32_t exponent = T::has_small_range ? 0x7c00u : 0x7f80u;
    bool found = false;
    KVC_UNROLL for (int i = 0; i < steps; ++i) {
      KVC_UNROLL for (int j = 0; j < 4; ++j) {
        const uint32_t pair = words_[i].w[j];
        found = found || (pair & exponent) == exponent || (pair >> 16 & exponent) == exponent;
      }
    }
    return any_lane(found);
  }

  const Numbers& numbers_;
  const Lane lane_;
  const char* data_;    // where this lane reads of row 0
  Word4 words_[steps];  // tokens 2t, 2t + 1, 2t + 8 and 2t + 9
  float sums_[eights][steps][4];  // dims by columns
};

}  // namespace kvc::cuda
