#pragma once
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/narrow_layout.hpp"

/// Attention of few columns by tensor cores, over K and V in f16 or bf16.
///
/// K and V go from memory to registers, 16 bytes per lane, and never through shared memory. That works because the order of a
/// product's inner dimension is free, as long as both factors have it:
///
///   scores   S' = K · Q'   K is the left factor. Lane (g, t) needs row g, and takes 16 bytes of it (dims 32j + 8t …) as columns of
///                          two products; Q lies in shared memory in the order that matches.
///   values   O' = V' · P'  V' is the left factor. Lane (g, t) needs four tokens and takes dims 64c + 8g … of each; pairs of tokens
///                          are made by byte permutes. P' is S' transposed by halves of 8 × 8.
///
/// Where a head has no whole 32 (K) or 64 (V) dims left, lanes still take 16 bytes, of fewer rows each, and trade what they have
/// too much of for what they lack.
///
/// So a row may lie anywhere, every load is whole sectors, nothing is swizzled, and there is no barrier in the loop. While one
/// step of 16 tokens is multiplied, the next is on its way.
///
/// A tensor core multiplies 16-bit numbers. Q and P are sums of `parts` of them, which keeps the accuracy of f32. Tensor cores
/// cut off when they add, so each step's product with V starts at zero, and a multiply-add, which also lets older sums fade, adds it.
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

template <class T, int DK, int DV>
class Narrow {
  static_assert(DK % 16 == 0 && DV % 16 == 0);
  using Layout = NarrowLayout<DK, DV, T::has_small_range>;
  static constexpr int parts = Layout::parts;
  static constexpr int n_warps = Layout::n_warps;
  static constexpr int k_steps = DK / 16;  // products per part; what a lane holds of K's rows is as many words of 16 bytes
  static constexpr int v_steps = DV / 16;  // the same of V
  static constexpr int k_loads = DK / 32;  // of 16 bytes, per row of K and lane
  static constexpr int v_loads = DV / 64;  // per row of V and lane
  static constexpr bool has_k_rest = DK % 32 != 0;  // 16 dims
  static constexpr bool has_v_half = DV % 64 >= 32;
  static constexpr bool has_v_rest = DV % 32 != 0;  // 16 dims, behind the half
  static constexpr int v_half = 4 * v_loads;        // the first step of the half
  static constexpr int v_rest = v_steps - 1;
  // Parts of f16 would underflow: queries are multiplied with a power of two of their own, weights with this one.
  static constexpr bool is_scaled = T::has_small_range;
  static constexpr float weight_scale = is_scaled ? 16384.0f : 1.0f;

 public:
  KVC_DEVICE explicit Narrow(const AttentionArguments& a)
      : item_{a},
        a_(a),
        lane_(thread_index() % 32),
        g_(lane_ / 4),
        t_(lane_ % 4),
        warp_(uniform(thread_index() / 32)) {}

  /// The index-th task of the launch.
  KVC_DEVICE void attend(int64_t index) {
    item_.begin([&] { return Task::of_launch(a_, index); });
    const Task& task = Item::task();
    const int64_t first_cell = task.tile.n_seen > 0 ? task.list.first_cell : 0;
    k_ = a_.k.data + task.kv_head * a_.k.head_stride + first_cell * a_.k.row_stride + 16 * t_;
    v_ = a_.v.data + task.kv_head * a_.v.head_stride + first_cell * a_.v.row_stride + 16 * g_;
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      top_[c] = -infinity();
      weight_[c] = 0;
    }
    KVC_UNROLL for (int i = 0; i < v_steps; ++i) KVC_UNROLL for (int e = 0; e < 4; ++e) o_[i][e] = 0;
    const int begin = task.begin(), end = task.end();
    if (begin < end) {
      if (is_scaled) scale_queries();
      item_.for_each_segment(begin, end, [this](int offset, int from, int to) {
        const bool turns = offset != 0 && a_.rope_dims > 0;
        sync_block();
        if (turns) item_.stage_rotation(rotation(), offset);
        if (turns) sync_block();
        stage_fragments(turns ? rotation() : nullptr);
        sync_block();
        run(from, to);
      });
    }
    gather_warps();
    item_.finish(rows(), Layout::row_floats, merged(), merged() + tile_columns, flag());
  }

 private:
  KVC_DEVICE static uint32_t* fragments() {
    return reinterpret_cast<uint32_t*>(shared_memory() + Layout::fragments_at);
  }
  KVC_DEVICE static double* rotation() {
    return reinterpret_cast<double*>(shared_memory() + Layout::rotation_at);
  }
  KVC_DEVICE static float* rows() { return reinterpret_cast<float*>(shared_memory() + Layout::rows_at); }
  /// [n_warps][tile_columns][2] weight and top.
  KVC_DEVICE static float* of_warps() {
    return reinterpret_cast<float*>(shared_memory() + Layout::of_warps_at);
  }
  KVC_DEVICE static float* merged() { return reinterpret_cast<float*>(shared_memory() + Layout::merged_at); }
  KVC_DEVICE static int32_t* flag() { return reinterpret_cast<int32_t*>(shared_memory() + Layout::flag_at); }

  // ---- Queries -----------------------------------------------------------------------------------------------------------------

  /// The first of the four dims of K that lane (g, t) has for a step.
  KVC_DEVICE static int key_dim(int step, int t) {
    if (step == 2 * k_loads) return step * 16 + t % 2 * 8 + t / 2 * 4;
    return step / 2 * 32 + t * 8 + step % 2 * 4;
  }

  KVC_DEVICE void scale_queries() const {
    for (int c = warp_; c < Item::task().n_used; c += n_warps) {
      const float undone = item_.unscale_of(Item::column(c), lane_);
      if (lane_ == 0) Item::column(c).unscale = undone;
    }
  }

  /// The right factor of the products with K, part by part, two words each: parts 0 and 1 of a lane side by side, part 2 behind
  /// those of all lanes.
  KVC_DEVICE void stage_fragments(const double* rotation) const {
    for (int i = thread_index(); i < k_steps * 32; i += n_warps * 32) {
      const int to = i % 32, step = i / 32;
      const Column& column = Item::column(to / 4);
      const int dim = key_dim(step, to % 4);
      const bool is_used = to / 4 < Item::task().n_used;
      float x[4];
      KVC_UNROLL for (int e = 0; e < 4; ++e) {
        x[e] = is_used ? item_.turned_query(column, dim + e, rotation) : 0.0f;
        if (is_scaled) x[e] *= 1.0f / column.unscale;  // powers of two
      }
      uint32_t* const of_step = fragments() + step * 32 * 2 * parts;
      KVC_UNROLL for (int part = 0; part < parts; ++part) {
        uint32_t* const words = part < 2 ? of_step + to * 4 + 2 * part : of_step + 128 + to * 2;
        KVC_UNROLL for (int h = 0; h < 2; ++h) {
          words[h] = T::pack(x[2 * h], x[2 * h + 1]);
          x[2 * h] -= T::low(words[h]);
          x[2 * h + 1] -= T::high(words[h]);
        }
      }
    }
  }

  // ---- A step of 16 tokens --------------------------------------------------------------------------------------------------------

  KVC_DEVICE const char* k_row(int cells, int lane) const {
    return k_ + shuffle(cells, lane) * a_.k.row_stride;
  }
  KVC_DEVICE const char* v_row(int cells, int lane) const {
    return v_ + shuffle(cells, lane) * a_.v.row_stride;
  }

  KVC_DEVICE void load_k(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const char* const row = k_row(cells, first_lane + g_ + 8 * r);
      KVC_UNROLL for (int j = 0; j < k_loads; ++j) k_words_[r * k_loads + j] = load_stream(row + 64 * j);
    }
    if constexpr (has_k_rest) {  // of row g, or in lanes (g, 2) and (g, 3) of row g + 8
      const char* const row = k_row(cells, first_lane + g_ + t_ / 2 * 8);
      k_words_[k_steps - 1] = load_stream(row + 64 * k_loads - t_ / 2 * 32);
    }
  }
  KVC_DEVICE void load_v(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 4; ++r) {
      const char* const row = v_row(cells, first_lane + v_token(r));
      KVC_UNROLL for (int c = 0; c < v_loads; ++c) v_words_[r * v_loads + c] = load_stream(row + 128 * c);
    }
    if constexpr (has_v_half) {  // four lanes have all dims: the upper ones take the later two tokens
      KVC_UNROLL for (int r = 0; r < 2; ++r) {
        const char* const row = v_row(cells, first_lane + v_token(r + g_ / 4 * 2));
        v_words_[v_half + r] = load_stream(row + 128 * v_loads - g_ / 4 * 64);
      }
    }
    if constexpr (has_v_rest) {  // two lanes have all dims
      const char* const row = v_row(cells, first_lane + v_token(g_ / 2));
      v_words_[v_rest] = load_stream(row + 32 * (v_rest - g_ / 2));
    }
  }
  /// The r-th of the tokens whose values this lane multiplies.
  KVC_DEVICE int v_token(int r) const { return 2 * t_ + r % 2 + r / 2 * 8; }

  /// What was loaded of fewer rows becomes the left factor of a product.
  KVC_DEVICE void trade_k() {
    if constexpr (has_k_rest) k_words_[k_steps - 1] = trade(k_words_[k_steps - 1], t_ >= 2, 2);
  }
  /// What was loaded of fewer tokens becomes a word of each of four tokens.
  KVC_DEVICE void trade_v() {
    if constexpr (has_v_half) {
      const Word4 even = trade(v_words_[v_half], g_ >= 4, 16), odd = trade(v_words_[v_half + 1], g_ >= 4, 16);
      KVC_UNROLL for (int i = 0; i < 2; ++i)
        v_words_[v_half + i] = {even.w[2 * i], odd.w[2 * i], even.w[2 * i + 1], odd.w[2 * i + 1]};
    }
    if constexpr (has_v_rest)
      v_words_[v_rest] = trade(trade(v_words_[v_rest], g_ >= 4, 16), g_ / 2 % 2 != 0, 8);
  }

  /// Products of tokens g and g + 8 with columns 2t and 2t + 1. A chain of products per part; the small ones are added first.
  KVC_DEVICE void multiply_k(float (&s)[4]) const {
    float sums[parts][4] = {};
    KVC_UNROLL for (int step = 0; step < k_steps; ++step) {
      const bool is_rest = step == 2 * k_loads;
      const Word4& a = k_words_[is_rest ? step : step / 2];
      const Word4& b = k_words_[is_rest ? step : k_loads + step / 2];
      const uint32_t left[4] = {a.w[step % 2 * 2], b.w[is_rest ? 1 : step % 2 * 2],
                                a.w[is_rest ? 2 : step % 2 * 2 + 1], b.w[is_rest ? 3 : step % 2 * 2 + 1]};
      const uint32_t* const of_step = fragments() + step * 32 * 2 * parts;
      const Word4 two = *reinterpret_cast<const Word4*>(of_step + lane_ * 4);
      mma_16x8x16<T>(sums[0], left, {two.w[0], two.w[1]});
      mma_16x8x16<T>(sums[1], left, {two.w[2], two.w[3]});
      if (parts > 2) {
        const Word2 third = *reinterpret_cast<const Word2*>(of_step + 128 + lane_ * 2);
        mma_16x8x16<T>(sums[parts - 1], left, {third.w[0], third.w[1]});
      }
    }
    KVC_UNROLL for (int e = 0; e < 4; ++e) {
      float x = sums[parts - 1][e];
      KVC_UNROLL for (int part = parts - 2; part >= 0; --part) x += sums[part][e];
      s[e] = is_scaled ? x * Item::column(2 * t_ + e % 2).unscale : x;
    }
  }

  /// Products become scores of tokens u0 + g and u0 + g + 8. Returns whether one of them is hidden.
  KVC_DEVICE bool finish_scores(float (&s)[4], int u0, int end, int cells, int positions,
                                int first_lane) const {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const int cell = shuffle(cells, first_lane + g_ + 8 * r);
      const int position = shuffle(positions, first_lane + g_ + 8 * r);
      KVC_UNROLL for (int c = 0; c < 2; ++c) {
        const int column = 2 * t_ + c;
        if (column < Item::task().n_used)
          s[2 * r + c] = item_.score(Item::column(column), s[2 * r + c], cell, position);
      }
    }
    if (u0 + 16 > end || !Item::all_see(u0, u0 + 16)) {
      KVC_UNROLL for (int e = 0; e < 4; ++e) {
        const int u = u0 + g_ + e / 2 * 8;
        if (u >= end || !Item::sees(Item::column(2 * t_ + e % 2), u)) s[e] = -infinity();
      }
    }
    bool hides = false;
    KVC_UNROLL for (int e = 0; e < 4; ++e)
      hides = hides || (s[e] == -infinity() && 2 * t_ + e % 2 < Item::task().n_used);
    return any_lane(hides);
  }

  /// Scores become weights. `fade` is what older sums are worth now. Sums of weights are this lane's tokens' alone.
  KVC_DEVICE void soften(float (&s)[4], float (&fade)[2]) {
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      float top = fmaxf(s[c], s[c + 2]);
      top = fmaxf(top, shuffle_xor(top, 4));
      top = fmaxf(top, shuffle_xor(top, 8));
      top = fmaxf(top, shuffle_xor(top, 16));
      top = fmaxf(top, top_[c]);
      const float shift = top == -infinity() ? 0.0f : top;
      fade[c] = exp2_fast(top_[c] - shift);
      top_[c] = top;
      s[c] = exp2_fast(s[c] - shift);
      s[c + 2] = exp2_fast(s[c + 2] - shift);
      weight_[c] = multiply_add(weight_[c], fade[c], s[c] + s[c + 2]);
    }
  }

  KVC_DEVICE void split_weights(const float (&s)[4], uint32_t (&weights)[parts][2]) const {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float x = s[2 * r] * weight_scale, y = s[2 * r + 1] * weight_scale;
      KVC_UNROLL for (int part = 0; part < parts; ++part) {
        const uint32_t pair = T::pack(x, y);
        x -= T::low(pair);
        y -= T::high(pair);
        weights[part][r] = transpose_8x8(pair);
      }
    }
  }

  /// Sixteen dims of the step's values times its weights, for all columns. Bits of `keep` name words of which tokens count.
  KVC_DEVICE void multiply_v(int i, const uint32_t (&weights)[parts][2], const uint32_t (&keep)[4],
                             float (&sum)[4]) const {
    uint32_t x[4];
    KVC_UNROLL for (int r = 0; r < 4; ++r)
      x[r] = (i < v_half ? v_words_[r * v_loads + i / 4].w[i % 4] : v_words_[i].w[r]) & keep[r];
    const uint32_t left[4] = {permute(x[0], x[1], 0x5410), permute(x[0], x[1], 0x7632),
                              permute(x[2], x[3], 0x5410), permute(x[2], x[3], 0x7632)};
    KVC_UNROLL for (int e = 0; e < 4; ++e) sum[e] = 0;
    KVC_UNROLL for (int part = parts - 1; part >= 0; --part) mma_16x8x16<T>(sum, left, weights[part]);
  }

  KVC_DEVICE void add_values(const float (&s)[4], const float (&fade)[2]) {
    constexpr uint32_t all[4] = {~0u, ~0u, ~0u, ~0u};
    uint32_t weights[parts][2];
    split_weights(s, weights);
    KVC_UNROLL for (int i = 0; i < v_steps; ++i) {
      float sum[4];
      multiply_v(i, weights, all, sum);
      KVC_UNROLL for (int e = 0; e < 4; ++e) o_[i][e] = multiply_add(o_[i][e], fade[e % 2], sum[e]);
    }
  }

  /// The same column by column, each without the values that it does not see: what is hidden may be infinite.
  KVC_DEVICE void add_values_apart(const float (&s)[4], const float (&fade)[2]) {
    uint32_t weights[parts][2];
    split_weights(s, weights);
    KVC_NO_UNROLL for (int c = 0; c < tile_columns; ++c) {
      uint32_t keep[4];
      KVC_UNROLL for (int r = 0; r < 4; ++r) {
        // Lane (g, c / 2) has the weight of token g in s[c % 2], that of token g + 8 two further.
        const float even = r < 2 ? s[0] : s[2], odd = r < 2 ? s[1] : s[3];
        keep[r] = shuffle(c % 2 == 0 ? even : odd, (2 * t_ + r % 2) * 4 + c / 2) == 0 ? 0u : ~0u;
      }
      KVC_UNROLL for (int i = 0; i < v_steps; ++i) {
        float sum[4];
        multiply_v(i, weights, keep, sum);
        KVC_UNROLL for (int e = 0; e < 4; ++e)
          if (2 * t_ + e % 2 == c) o_[i][e] = multiply_add(o_[i][e], fade[e % 2], sum[e]);
      }
    }
  }

  KVC_DEVICE bool has_infinite_values() const {
    constexpr uint32_t exponent = T::has_small_range ? 0x7c00u : 0x7f80u;
    bool found = false;
    KVC_UNROLL for (int i = 0; i < v_steps; ++i) {
      KVC_UNROLL for (int j = 0; j < 4; ++j) {
        const uint32_t pair = v_words_[i].w[j];
        found = found || (pair & exponent) == exponent || (pair >> 16 & exponent) == exponent;
      }
    }
    return any_lane(found);
  }

  /// This warp's share of the seen coordinates [begin, end): every n_warps-th 32 of them, 16 at a time. Tokens behind the
  /// end are read from the last one, which somebody sees.
  KVC_DEVICE void run(int begin, int end) {
    constexpr int stride = 32 * n_warps;
    int u = begin + 32 * warp_;
    if (u >= end) return;
    int cells = 0, positions = 0, next_cells = 0, next_positions = 0;
    const auto fetch = [&](int first, int& cell, int& position) {
      const int64_t entry = Item::entry(first + lane_ < end ? first + lane_ : end - 1);
      cell = a_.cells[entry];
      position = Item::task().list.first_position + a_.positions[entry];
    };
    fetch(u, cells, positions);
    load_k(cells, 0);
    load_v(cells, 0);
    fetch(u + stride, next_cells, next_positions);
    for (int half = 0;; half ^= 16) {
      const int u0 = u + half;
      const bool has_more = half == 0 ? u0 + 16 < end : u + stride < end;
      const int more_cells = half == 0 ? cells : next_cells;
      float s[4], fade[2];
      trade_k();
      multiply_k(s);
      if (has_more) load_k(more_cells, 16 - half);
      const bool hides = finish_scores(s, u0, end, cells, positions, half);
      soften(s, fade);
      trade_v();
      if (hides && has_infinite_values()) {
        add_values_apart(s, fade);
      } else {
        add_values(s, fade);
      }
      if (!has_more) break;
      load_v(more_cells, 16 - half);
      if (half == 0) continue;
      u += stride;
      cells = next_cells;
      positions = next_positions;
      fetch(u + stride, next_cells, next_positions);
    }
  }

  // ---- Results --------------------------------------------------------------------------------------------------------------------

  /// The first of the two dims that this lane has of a step.
  KVC_DEVICE int value_dim(int i) const {
    if (i < v_half) return i / 4 * 64 + 8 * g_ + i % 4 * 2;
    if (has_v_rest && i == v_rest) return 16 * i + g_ % 2 * 8 + g_ / 2 * 2;
    return 16 * v_half + g_ % 4 * 8 + g_ / 4 * 4 + (i - v_half) * 2;
  }

  /// Adds up the results of the warps, in their order, in the rows of the first.
  KVC_DEVICE void gather_warps() const {
    sync_block();  // fragments are not read any more
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      const int column = 2 * t_ + c;
      float sum = weight_[c];
      sum += shuffle_xor(sum, 4);
      sum += shuffle_xor(sum, 8);
      sum += shuffle_xor(sum, 16);
      const int at = warp_ * tile_columns + column;
      float* const row = rows() + at * Layout::row_floats;
      KVC_UNROLL for (int i = 0; i < v_steps; ++i) {
        const int dim = value_dim(i);
        row[dim] = o_[i][c] * (1.0f / weight_scale);
        row[dim + 1] = o_[i][c + 2] * (1.0f / weight_scale);
      }
      if (g_ == 0) {
        of_warps()[2 * at] = sum;
        of_warps()[2 * at + 1] = top_[c];
      }
    }
    sync_block();
    for (int i = thread_index(); i < Item::task().n_used * DV; i += n_warps * 32) add_warps(i / DV, i % DV);
    sync_block();
  }

  KVC_DEVICE void add_warps(int column, int dim) const {
    float highest = -infinity();
    for (int w = 0; w < n_warps; ++w)
      highest = fmaxf(highest, of_warps()[2 * (w * tile_columns + column) + 1]);
    const float shift = highest == -infinity() ? 0.0f : highest;
    float x = 0, sum = 0;
    for (int w = 0; w < n_warps; ++w) {
      const int at = w * tile_columns + column;
      const float factor = exp2_fast(of_warps()[2 * at + 1] - shift);
      sum = multiply_add(of_warps()[2 * at], factor, sum);
      x = multiply_add(rows()[at * Layout::row_floats + dim], factor, x);
    }
    rows()[column * Layout::row_floats + dim] = x;
    if (dim != 0) return;
    merged()[column] = sum;
    merged()[tile_columns + column] = highest;
  }

  const Item item_;
  const AttentionArguments& a_;
  const int lane_, g_, t_, warp_;
  const char *k_, *v_;  // where this lane reads of row 0

  Word4 k_words_[k_steps];    // rows g and g + 8 of a step
  Word4 v_words_[v_steps];    // tokens 2t, 2t + 1, 2t + 8 and 2t + 9
  float o_[v_steps][4];       // sums of values: dims by columns
  float top_[2], weight_[2];  // of columns 2t and 2t + 1
};

template <class T, int DK, int DV>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(128, (NarrowLayout<DK, DV, T::has_small_range>::blocks))
    attend_narrow(KVC_PARAMS(AttentionArguments) a) {
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  Narrow<T, DK, DV> narrow(a);
  for (int64_t i = block_index(); i < n; i += n_blocks()) narrow.attend(i);
}

}  // namespace kvc::cuda
