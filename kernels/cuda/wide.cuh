#pragma once
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/warp_columns.cuh"
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
  using Columns = WarpColumns<T, D, parts, tokens>;
  static constexpr int v_steps = Columns::v_steps;
  static constexpr int eights = Columns::eights;
  static constexpr int chunks = D / 8;         // of 16 bytes, of a row
  static constexpr bool is_scaled = Columns::is_scaled;
  static constexpr Element element = is_scaled ? Element::f16 : Element::bf16;
  using Scores = typename Columns::Scores;

 public:
  KVC_DEVICE explicit Wide(const AttentionArguments& a)
      : item_{a},
        a_(a),
        lane_(thread_index() % 32),
        warp_(uniform(thread_index() / 32)),
        // The rows and chunks that this lane names of matrices of K and V.
        of_k_((lane_ % 8 + lane_ / 16 * 8) * Layout::row_bytes + (lane_ / 8 % 2 ^ lane_ % 8) * 16),
        of_v_(lane_ % 16 * Layout::row_bytes + (lane_ / 16 ^ lane_ % 8) * 16),
        columns_(16 * warp_) {}

  /// The index-th task of the launch.
  KVC_DEVICE void attend(int64_t index) {
    item_.begin([&] { return Task::of_launch(a_, index); });
    const Task& task = Item::task();
    const int64_t first_cell = task.tile.n_seen > 0 ? task.list.first_cell : 0;
    k_ = a_.k.data + task.kv_head * a_.k.head_stride + first_cell * a_.k.row_stride;
    v_ = a_.v.data + task.kv_head * a_.v.head_stride + first_cell * a_.v.row_stride;
    columns_.clear();
    const int begin = task.begin(), end = task.end();
    if (begin < end) {
      item_.for_each_segment(begin, end, [this](int offset, int from, int to) {
        sync_block();  // fragments and stages are not read any more
        stage_queries(offset);
        run(from, to);
      });
    }
    sync_block();
    columns_.write(rows(), Layout::row_floats, merged(), merged() + wide_columns);
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
    const bool hides = columns_.finish_scores(item_, s, cells(step), positions(step), u0, end);
    float fade[2];
    columns_.soften(s, fade);
    columns_.fade_sums(fade);
    typename Columns::Weights weights;
    Columns::split_weights(s, weights);
    // Of tokens 16j … and dims 16i … .
    const auto load_values = [&](uint32_t (&values)[4], int j, int i) {
      load_matrices_transposed(values, (v_plane(step) + j * 16 * Layout::row_bytes + of_v_) ^ 32 * i);
    };
    if (hides && Columns::has_infinite_values(load_values)) {
      typename Columns::Seen seen;
      Columns::find_seen(s, seen);
      columns_.add_values_apart(seen, weights, a_.v.dim, load_values);
    } else {
      columns_.add_values(weights, a_.v.dim, load_values);
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
      const float factor = a_.score_factor * Item::column(columns_.column_of(e / 2)).unscale;
      KVC_UNROLL for (int i = 0; i < eights; ++i) {
        const float x = chains > 1 ? sums[chains - 1][i][e] + sums[0][i][e] : sums[0][i][e];
        s[i][e] = x * factor;
      }
    }
  }

  const Item item_;
  const AttentionArguments& a_;
  const int lane_, warp_;
  const uint32_t of_k_, of_v_;
  const char *k_, *v_;  // row 0 of the KV head
  int query_parts_;
  Columns columns_;
};

template <class T, int D, int parts>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(128, (WideLayout<D>::blocks))
    attend_wide(KVC_PARAMS(AttentionArguments) a) {
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  Wide<T, D, parts> wide(a);
  for (int64_t i = block_index(); i < n; i += n_blocks()) wide.attend(i);
}

}  // namespace kvc::cuda
