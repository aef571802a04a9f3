#pragma once
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/wide_layout.hpp"

/// Attention of many columns by tensor cores, over K and V in f16 or bf16, of up to D dimensions.
///
/// The warps of a block have 16 columns each and walk the same steps of tokens, whose K and V they share:
///
///   step s      its K and V are in shared memory │ scores S = Q · K' │ weights P │ values O += P · V
///   step s + 1  copies of its K and V are on their way there
///   step s + 2  its cells are on their way from the token arrays
///
/// Rows lie in shared memory with chunks of 16 bytes exchanged, so that eight of them are read at a time without a conflict. Q lies
/// there in the order of the left factor's registers, S becomes the left factor P where it is, in registers.
///
/// Q and P are sums of `parts` 16-bit numbers, which keeps the accuracy of f32; queries in the type of K that owe no rotation are
/// one, and the scale is left to their products. Tensor cores cut off when they add: small parts have a sum of their own, and each
/// 16 tokens' products with V start at zero. Where factors may be rounded, parts is 1, and those of a step do.
namespace kvc::cuda {

template <class T, int D, int parts>
class Wide {
  using Layout = WideLayout<D>;
  static constexpr int tokens = Layout::tokens;
  static constexpr int k_steps = D / 16;       // products with 16 dims of K
  static constexpr int v_steps = tokens / 16;  // products with 16 tokens of V
  static constexpr int eights = tokens / 8;    // of tokens: what a product has columns for
  static constexpr int chunks = D / 8;         // of 16 bytes, of a row
  // Parts of f16 would underflow: queries are multiplied with a power of two of their own, weights with this one.
  static constexpr bool is_scaled = T::has_small_range;
  static constexpr Element element = is_scaled ? Element::f16 : Element::bf16;
  static constexpr float weight_scale = is_scaled ? 16384.0f : 1.0f;
  using Scores = float[eights][4];  // tokens 8i + 2t, + 1, of columns g and g + 8
  using Weights = uint32_t[v_steps][parts][4];

 public:
  KVC_DEVICE explicit Wide(const AttentionArguments& a)
      : item_{a},
        a_(a),
        lane_(thread_index() % 32),
        g_(lane_ / 4),
        t_(lane_ % 4),
        warp_(uniform(thread_index() / 32)),
        // The rows and chunks that this lane names of matrices of K and V.
        of_k_((lane_ % 8 + lane_ / 16 * 8) * Layout::row_bytes + (lane_ / 8 % 2 ^ lane_ % 8) * 16),
        of_v_(lane_ % 16 * Layout::row_bytes + (lane_ / 16 ^ lane_ % 8) * 16) {}

  /// The index-th task of the launch.
  KVC_DEVICE void attend(int64_t index) {
    item_.begin([&] { return Task::of_launch(a_, index); });
    const Task& task = Item::task();
    const int64_t first_cell = task.tile.n_seen > 0 ? task.list.first_cell : 0;
    k_ = a_.k.data + task.kv_head * a_.k.head_stride + first_cell * a_.k.row_stride;
    v_ = a_.v.data + task.kv_head * a_.v.head_stride + first_cell * a_.v.row_stride;
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      top_[r] = -infinity();
      weight_[r] = 0;
    }
    KVC_UNROLL for (int i = 0; i < D / 8; ++i) KVC_UNROLL for (int e = 0; e < 4; ++e) o_[i][e] = 0;
    const int begin = task.begin(), end = task.end();
    if (begin < end) {
      item_.for_each_segment(begin, end, [this](int offset, int from, int to) {
        sync_block();  // fragments and stages are not read any more
        stage_queries(offset);
        run(from, to);
      });
    }
    sync_block();
    write_rows();
    sync_block();
    item_.finish(rows(), Layout::row_floats, merged(), merged() + wide_columns, flag());
  }

 private:
  KVC_DEVICE static int32_t* cells(int step) {
    return reinterpret_cast<int32_t*>(shared_memory() + Layout::notes_at) +
           step % Layout::n_notes * 2 * tokens;
  }
  KVC_DEVICE static int32_t* positions(int step) { return cells(step) + tokens; }
  KVC_DEVICE static uint32_t k_plane(int step) {
    return shared_address() + Layout::stages_at + step % Layout::n_stages * 2 * Layout::plane_bytes;
  }
  KVC_DEVICE static uint32_t v_plane(int step) { return k_plane(step) + Layout::plane_bytes; }
  KVC_DEVICE static double* rotation() {
    return reinterpret_cast<double*>(shared_memory() + Layout::rotation_at);
  }
  /// 16 dims of a part of the queries of a warp's columns, as its lanes' registers.
  KVC_DEVICE static Word4* fragment(int part, int warp, int step) {
    return reinterpret_cast<Word4*>(shared_memory() + Layout::fragments_at) +
           ((part * Layout::n_warps + warp) * k_steps + step) * 32;
  }
  KVC_DEVICE static float* rows() { return reinterpret_cast<float*>(shared_memory() + Layout::rows_at); }
  KVC_DEVICE static float* merged() { return reinterpret_cast<float*>(shared_memory() + Layout::merged_at); }
  KVC_DEVICE static int32_t* flag() { return reinterpret_cast<int32_t*>(shared_memory() + Layout::flag_at); }

  KVC_DEVICE int column_of(int r) const { return 16 * warp_ + g_ + 8 * r; }

  // ---- Queries -----------------------------------------------------------------------------------------------------------------

  /// Of a segment whose keys owe a rotation by `offset`.
  KVC_DEVICE void stage_queries(int offset) {
    const bool turns = offset != 0 && a_.rope_dims > 0;
    const bool is_exact = a_.q.element == element && !turns;
    query_parts_ = is_exact ? 1 : parts;
    if (turns) item_.stage_rotation(rotation(), offset);
    if (is_scaled) scale_queries(is_exact);
    if (turns || is_scaled) sync_block();
    stage_fragments(turns ? rotation() : nullptr);
  }

  /// What is already f16 stays as it was.
  KVC_DEVICE void scale_queries(bool is_exact) const {
    for (int c = warp_; c < Item::task().n_used; c += Layout::n_warps) {
      const float undone = item_.unscale_of(Item::column(c), lane_);
      if (lane_ == 0) Item::column(c).unscale = is_exact ? a_.q_factor : undone;
    }
  }

  KVC_DEVICE void stage_fragments(const double* table) const {
    for (int i = thread_index(); i < Layout::n_warps * k_steps * 32; i += Layout::threads) {
      const int to = i % 32, step = i / 32 % k_steps, warp = i / 32 / k_steps;
      KVC_UNROLL for (int word = 0; word < 4; ++word) {
        const int c = 16 * warp + to / 4 + word % 2 * 8;
        const int dim = 16 * step + to % 4 * 2 + word / 2 * 8;
        const bool is_there = c < Item::task().n_used && dim < a_.k.dim;
        float x = 0, y = 0;
        if (is_there) {
          const Column& column = Item::column(c);
          const float scale = 1.0f / column.unscale;  // powers of two
          x = item_.turned_query(column, dim, table) * scale;
          y = item_.turned_query(column, dim + 1, table) * scale;
        }
        for (int part = 0; part < query_parts_; ++part) {
          const uint32_t pair = T::pack(x, y);
          fragment(part, warp, step)[to].w[word] = pair;
          x -= T::low(pair);
          y -= T::high(pair);
        }
      }
    }
  }

  // ---- A step --------------------------------------------------------------------------------------------------------------------

  /// The seen coordinates [begin, end), a step at a time. Tokens behind the end are read from the last one, which somebody sees.
  KVC_DEVICE void run(int begin, int end) {
    const int n_steps = (end - begin + tokens - 1) / tokens;
    const bool has_token = thread_index() < tokens;
    int cell = 0, position = 0;
    const auto fetch = [&](int step) {
      if (!has_token || step >= n_steps) return;
      const int seen = begin + step * tokens + thread_index();
      const int64_t entry = Item::entry(seen < end ? seen : end - 1);
      cell = a_.cells[entry];
      position = Item::task().list.first_position + a_.positions[entry];
    };
    const auto note = [&](int step) {
      if (!has_token || step >= n_steps) return;
      cells(step)[thread_index()] = cell;
      positions(step)[thread_index()] = position;
    };
    fetch(0);
    note(0);
    fetch(1);
    note(1);
    sync_block();
    copy_rows(0);
    KVC_NO_UNROLL for (int step = 0; step < n_steps; ++step) {
      wait_for_copies<0>();
      sync_block();
      fetch(step + 2);
      if (step + 1 < n_steps) copy_rows(step + 1);
      if (16 * warp_ < Item::task().n_used) multiply(step, begin + step * tokens, end);
      note(step + 2);
    }
  }

  KVC_DEVICE void copy_rows(int step) const {
    KVC_UNROLL for (int i = 0; i < tokens * chunks / Layout::threads; ++i) {
      const int index = i * Layout::threads + thread_index();
      const int row = index / chunks, of_row = index % chunks;
      const int64_t cell = cells(step)[row];
      const bool has_k = 8 * of_row < a_.k.dim, has_v = 8 * of_row < a_.v.dim;
      const int at = row * Layout::row_bytes + (of_row ^ row % 8) * 16;
      copy_async(k_plane(step) + at,
                 k_ + (has_k ? cell * a_.k.row_stride + 16 * of_row : 0), has_k);
      copy_async(v_plane(step) + at,
                 v_ + (has_v ? cell * a_.v.row_stride + 16 * of_row : 0), has_v);
    }
    end_copy_group();
  }

  /// What this warp's columns make of the tokens from u0 on.
  KVC_DEVICE void multiply(int step, int u0, int end) {
    Scores s;
    multiply_k(k_plane(step), s);
    const bool hides = finish_scores(s, step, u0, end);
    soften(s);
    Weights weights;
    split_weights(s, weights);
    if (hides && has_infinite_values(v_plane(step))) {
      KVC_NO_UNROLL for (int c = 0; c < 16; ++c) {
        uint32_t keep[v_steps][2];
        see_as(c, s, keep);
        add_values<true>(v_plane(step), weights, keep, c);
      }
    } else {
      add_values<false>(v_plane(step), weights, {}, 0);
    }
  }

  KVC_DEVICE void multiply_k(uint32_t plane, Scores& s) const {
    constexpr int chains = parts > 1 ? 2 : 1;
    float sums[chains][eights][4] = {};
    const bool has_small = parts > 1 && query_parts_ > 1;
    KVC_UNROLL_2 for (int i = 0; i < k_steps; ++i) {
      if (16 * i >= a_.k.dim) break;
      Word4 left[parts] = {};
      KVC_UNROLL for (int part = 0; part < parts; ++part)
        if (part == 0 || has_small) left[part] = fragment(part, warp_, i)[lane_];
      KVC_UNROLL for (int j = 0; j < v_steps; ++j) {
        uint32_t keys[4];
        load_matrices(keys, (plane + j * 16 * Layout::row_bytes + of_k_) ^ 32 * i);
        KVC_UNROLL for (int h = 0; h < 2; ++h) {
          mma_16x8x16<T>(sums[0][2 * j + h], left[0].w, {keys[2 * h], keys[2 * h + 1]});
          KVC_UNROLL for (int part = parts - 1; part > 0; --part)
            if (has_small)
              mma_16x8x16<T>(sums[chains - 1][2 * j + h], left[part].w, {keys[2 * h], keys[2 * h + 1]});
        }
      }
    }
    KVC_UNROLL for (int e = 0; e < 4; ++e) {
      const float factor = a_.score_factor * Item::column(column_of(e / 2)).unscale;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        const float x = chains > 1 ? sums[chains - 1][i][e] + sums[0][i][e] : sums[0][i][e];
        s[i][e] = x * factor;
      }
    }
  }

  /// Products become scores. Returns whether one of them is hidden.
  KVC_DEVICE bool finish_scores(Scores& s, int step, int u0, int end) const {
    const int n_used = Item::task().n_used;
    const bool changes = a_.changes_scores();
    if (changes) {
      // In a loop, for its code is large: eight tokens are the first of the registers, and go to the end.
      KVC_NO_UNROLL for (int i = 0; i < eights; ++i) {
        float x[4];
        KVC_UNROLL for (int e = 0; e < 4; ++e) {
          const int token = 8 * i + 2 * t_ + e % 2, c = column_of(e / 2);
          x[e] = s[0][e];
          if (c < n_used)
            x[e] = item_.score(Item::column(c), x[e], cells(step)[token], positions(step)[token]);
        }
        KVC_UNROLL for (int j = 0; j + 1 < eights; ++j)
          KVC_UNROLL for (int e = 0; e < 4; ++e) s[j][e] = s[j + 1][e];
        KVC_UNROLL for (int e = 0; e < 4; ++e) s[eights - 1][e] = x[e];
      }
    }
    const bool is_boundary = u0 + tokens > end || !Item::all_see(u0, u0 + tokens);
    if (!changes && !is_boundary) return false;
    bool hides = false;
    KVC_UNROLL for (int e = 0; e < 4; ++e) {
      const Column& column = Item::column(column_of(e / 2));
      const bool is_used = column_of(e / 2) < n_used;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        const int u = u0 + 8 * i + 2 * t_ + e % 2;
        if (u >= end || !Item::sees(column, u)) s[i][e] = -infinity();
        hides = hides || (is_used && s[i][e] == -infinity());
      }
    }
    return any_lane(hides);
  }

  /// Scores become weights, and older sums fade. Sums of weights are this lane's tokens' alone.
  KVC_DEVICE void soften(Scores& s) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float top = -infinity();
      KVC_UNROLL for (int i = 0; i < eights; ++i) top = fmaxf(top, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      top = fmaxf(top, top_[r]);
      const float shift = top == -infinity() ? 0.0f : top;
      const float fade = exp2_fast(top_[r] - shift);
      top_[r] = top;
      float sum = 0;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        KVC_UNROLL for (int e = 2 * r; e < 2 * r + 2; ++e) {
          s[i][e] = exp2_fast(s[i][e] - shift);
          sum += s[i][e];
        }
      }
      weight_[r] = multiply_add(weight_[r], fade, sum);
      KVC_UNROLL for (int i = 0; i < D / 8; ++i) {
        o_[i][2 * r] *= fade;
        o_[i][2 * r + 1] *= fade;
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

  /// Of tokens 16j … and dims 16i … .
  KVC_DEVICE void load_values(uint32_t (&values)[4], uint32_t plane, int j, int i) const {
    load_matrices_transposed(values, (plane + j * 16 * Layout::row_bytes + of_v_) ^ 32 * i);
  }

  KVC_DEVICE bool has_infinite_values(uint32_t plane) const {
    constexpr uint32_t exponent = is_scaled ? 0x7c00u : 0x7f80u;
    bool found = false;
    KVC_NO_UNROLL for (int at = 0; at < v_steps * k_steps; ++at) {
      uint32_t values[4];
      load_values(values, plane, at / k_steps, at % k_steps);
      KVC_UNROLL for (int word = 0; word < 4; ++word) {
        const uint32_t pair = values[word];
        found = found || (pair & exponent) == exponent || (pair >> 16 & exponent) == exponent;
      }
    }
    return any_lane(found);
  }

  /// Which of this lane's tokens column c of the warp sees, as bits of the words that load_values() loads of them.
  KVC_DEVICE void see_as(int c, const Scores& s, uint32_t (&keep)[v_steps][2]) const {
    KVC_UNROLL for (int i = 0; i < eights; ++i) {
      const float even = shuffle(c < 8 ? s[i][0] : s[i][2], c % 8 * 4 + t_);
      const float odd = shuffle(c < 8 ? s[i][1] : s[i][3], c % 8 * 4 + t_);
      keep[i / 2][i % 2] = (even == 0 ? 0u : 0xffffu) | (odd == 0 ? 0u : 0xffff0000u);
    }
  }

  /// `apart`: of column c alone, without the values that it does not see, because they may be infinite.
  template <bool apart>
  KVC_DEVICE void add_values(uint32_t plane, const Weights& weights, const uint32_t (&keep)[v_steps][2], int c) {
    KVC_UNROLL for (int i = 0; i < D / 16; ++i) {
      // The branch also keeps the compiler from loading more values ahead than there are registers for.
      if (16 * i >= a_.v.dim) continue;
      float all[2][4] = {};
      KVC_UNROLL for (int j = 0; j < v_steps; ++j) {
        uint32_t values[4];
        load_values(values, plane, j, i);
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
          if (!apart || (g_ == c % 8 && e / 2 == c / 8)) o_[2 * i + h][e] += all[h][e];
    }
  }

  // ---- Results -------------------------------------------------------------------------------------------------------------------

  KVC_DEVICE void write_rows() const {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      float sum = weight_[r];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const int c = column_of(r);
      KVC_UNROLL for (int i = 0; i < D / 8; ++i)
        KVC_UNROLL for (int e = 0; e < 2; ++e)
          rows()[c * Layout::row_floats + 8 * i + 2 * t_ + e] = o_[i][2 * r + e] * (1.0f / weight_scale);
      if (t_ != 0) continue;
      merged()[c] = sum;
      merged()[wide_columns + c] = top_[r];
    }
  }

  const Item item_;
  const AttentionArguments& a_;
  const int lane_, g_, t_, warp_;
  const uint32_t of_k_, of_v_;
  const char *k_, *v_;  // row 0 of the KV head
  int query_parts_;

  float o_[D / 8][4];           // sums of values: columns g and g + 8, dims 8i + 2t and the next
  float top_[2], weight_[2];    // of columns g and g + 8
};

template <class T, int D, int parts>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(128, (WideLayout<D>::blocks))
    attend_wide(KVC_PARAMS(AttentionArguments) a) {
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  Wide<T, D, parts> wide(a);
  for (int64_t i = block_index(); i < n; i += n_blocks()) wide.attend(i);
}

}  // namespace kvc::cuda
