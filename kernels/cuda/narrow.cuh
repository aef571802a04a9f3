#pragma once
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/narrow_layout.cuh"

/// Attention of few columns by tensor cores.
///
/// K and V go from memory to registers, and never through shared memory. That works because the order of a product's inner dimension
/// is free, as long as both factors have it:
///
///   scores   S' = K · Q'   K is the left factor: lane (g, t) needs rows g and g + 8. Q lies in shared memory in the order that matches.
///   values   O' = V' · P'  V' is the left factor: lane (g, t) needs four tokens. P' is S' transposed by halves of 8 × 8.
///
/// `Keys` and `Values` know how they are stored, and hold what a lane has loaded: narrow_numbers.cuh, narrow_codes.cuh.
/// Columns are multiplied in eights: a tile has one or two, and what is loaded is multiplied with each.
///
/// So a row may lie anywhere, every load is whole sectors, nothing is swizzled, and there is no barrier in the loop. While one
/// step of 16 tokens is multiplied, the next is on its way.
///
/// A tensor core multiplies 16-bit numbers. Q and P are sums of `parts` of them, which keeps the accuracy of f32. Tensor cores
/// cut off when they add, so each step's product with V starts at zero, and a multiply-add, which also lets older sums fade, adds it.
namespace kvc::cuda {

template <class Keys, class Values>
class Narrow {
  using T = typename Keys::Factor;
  using Layout = NarrowLayout<Keys, Values>;
  static constexpr int parts = Layout::parts;
  static constexpr int n_warps = Layout::n_warps;
  static constexpr int eights = Layout::eights;

 public:
  KVC_DEVICE explicit Narrow(const AttentionArguments& a)
      : item_{a},
        a_(a),
        lane_{thread_index() % 32, thread_index() % 32 / 4, thread_index() % 4},
        warp_(uniform(thread_index() / 32)),
        keys_(a.k, lane_),
        values_(a.v, lane_) {}

  /// The index-th task of the launch.
  KVC_DEVICE void attend(int64_t index) {
    item_.begin([&] { return Task::of_launch(a_, index); });
    const Task& task = Item::task();
    const int64_t first_cell = task.tile.n_seen > 0 ? task.list.first_cell : 0;
    keys_.begin(task, first_cell);
    values_.begin(task, first_cell);
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
      KVC_UNROLL for (int c = 0; c < 2; ++c) {
        top_[eight][c] = -infinity();
        weight_[eight][c] = 0;
      }
    }
    const int begin = task.begin(), end = task.end();
    if (begin < end) {
      item_.for_each_segment(begin, end, [this](int offset, int from, int to) {
        const bool turns = offset != 0 && a_.rope_dims > 0;
        sync_block();
        if (turns) item_.stage_rotation(rotation(), offset);
        if (turns) sync_block();
        stage_queries(turns ? rotation() : nullptr);
        sync_block();
        stage_fragments();
        sync_block();
        run(from, to);
      });
    }
    gather_warps();
    item_.finish(rows(), Layout::row_floats, merged(), merged() + Layout::columns, flag());
  }

 private:
  KVC_DEVICE static uint32_t* fragments() {
    return reinterpret_cast<uint32_t*>(shared_memory() + Layout::fragments_at);
  }
  KVC_DEVICE static double* rotation() {
    return reinterpret_cast<double*>(shared_memory() + Layout::rotation_at);
  }
  /// [columns][query_floats]
  KVC_DEVICE static float* queries() {
    return reinterpret_cast<float*>(shared_memory() + Layout::queries_at);
  }
  /// [n_rows][row_floats]: results of the columns, and of warps.
  KVC_DEVICE static float* rows() { return reinterpret_cast<float*>(shared_memory() + Layout::rows_at); }
  /// [n_rows][2] weight and top.
  KVC_DEVICE static float* of_warps() {
    return reinterpret_cast<float*>(shared_memory() + Layout::of_warps_at);
  }
  KVC_DEVICE static float* merged() { return reinterpret_cast<float*>(shared_memory() + Layout::merged_at); }
  KVC_DEVICE static int32_t* flag() { return reinterpret_cast<int32_t*>(shared_memory() + Layout::flag_at); }
  KVC_DEVICE static Worker all() { return {thread_index(), n_threads()}; }

  // ---- Queries -----------------------------------------------------------------------------------------------------------------

  /// As keys are stored: turned back by what they owe, and rotated like them.
  KVC_DEVICE void stage_queries(const double* rotation) const {
    const auto at = [](int c, int dim) -> float& { return queries()[c * Layout::query_floats + dim]; };
    const int n = Item::task().n_used;
    for (int i = thread_index(); i < n * Keys::dim; i += n_warps * 32) {
      const int c = i / Keys::dim, dim = i % Keys::dim;
      at(c, dim) = item_.turned_query(Item::column(c), dim, rotation);
    }
    if (Keys::may_be_rotated && a_.k.coding.rotation != 0)
      rotate(n, Keys::dim, a_.k.coding.rotation, false, all(), at, sync_block);
    if (!T::has_small_range) return;
    sync_block();
    for (int c = warp_; c < n; c += n_warps) {
      const float undone = Item::unscale_of(Keys::dim, lane_.index, [&](int dim) { return at(c, dim); });
      if (lane_.index == 0) Item::column(c).unscale = undone;
    }
  }

  /// The right factor of the products with K, part by part.
  KVC_DEVICE void stage_fragments() const {
    for (int i = thread_index(); i < eights * Keys::steps * 32; i += n_warps * 32) {
      const int to = i % 32, step = i / 32 % Keys::steps, c = i / (Keys::steps * 32) * tile_columns + to / 4;
      const bool is_used = c < Item::task().n_used;
      float x[4];
      KVC_UNROLL for (int e = 0; e < 4; ++e) {
        x[e] = is_used ? queries()[c * Layout::query_floats + Keys::dim_of(step, to % 4, e)] : 0.0f;
        if (T::has_small_range) x[e] *= 1.0f / Item::column(c).unscale;  // powers of two
      }
      KVC_UNROLL for (int part = 0; part < parts; ++part) {
        uint32_t* const words = fragments() + fragment_at<T>(i / 32, to, part);
        KVC_UNROLL for (int h = 0; h < 2; ++h) {
          words[h] = T::pack(x[2 * h], x[2 * h + 1]);
          x[2 * h] -= T::low(words[h]);
          x[2 * h + 1] -= T::high(words[h]);
        }
      }
    }
  }

  // ---- A step of 16 tokens --------------------------------------------------------------------------------------------------------

  /// Products become scores of tokens u0 + g and u0 + g + 8. Returns whether one of them is hidden.
  KVC_DEVICE bool finish_scores(float (&s)[eights][4], int u0, int end, int cells, int positions,
                                int first_lane) const {
    const int n_used = Item::task().n_used;
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      const int cell = shuffle(cells, first_lane + lane_.g + 8 * r);
      const int position = shuffle(positions, first_lane + lane_.g + 8 * r);
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
        KVC_UNROLL for (int c = 0; c < 2; ++c) {
          const int column = column_of(eight, lane_, c);
          float& x = s[eight][2 * r + c];
          if (column < n_used) x = item_.score(Item::column(column), x, cell, position);
        }
      }
    }
    if (u0 + 16 > end || !Item::all_see(u0, u0 + 16)) {
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
        KVC_UNROLL for (int e = 0; e < 4; ++e) {
          const int u = u0 + lane_.g + e / 2 * 8;
          if (u >= end || !Item::sees(Item::column(column_of(eight, lane_, e % 2)), u))
            s[eight][e] = -infinity();
        }
      }
    }
    bool hides = false;
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight)
      KVC_UNROLL for (int e = 0; e < 4; ++e)
        hides = hides || (s[eight][e] == -infinity() && column_of(eight, lane_, e % 2) < n_used);
    return any_lane(hides);
  }

  /// Scores of eight columns become weights. `fade` is what older sums are worth now. Sums of weights are this lane's tokens' alone.
  KVC_DEVICE void soften(int eight, float (&s)[4], float (&fade)[2]) {
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      float top = fmaxf(s[c], s[c + 2]);
      top = fmaxf(top, shuffle_xor(top, 4));
      top = fmaxf(top, shuffle_xor(top, 8));
      top = fmaxf(top, shuffle_xor(top, 16));
      top = fmaxf(top, top_[eight][c]);
      const float shift = top == -infinity() ? 0.0f : top;
      fade[c] = exp2_fast(top_[eight][c] - shift);
      top_[eight][c] = top;
      s[c] = exp2_fast(s[c] - shift);
      s[c + 2] = exp2_fast(s[c + 2] - shift);
      weight_[eight][c] = multiply_add(weight_[eight][c], fade[c], s[c] + s[c + 2]);
    }
  }

  /// This warp's share of the seen coordinates [begin, end): every n_warps-th 32 of them, 16 at a time. Tokens behind the
  /// end are read from the last one, which somebody sees.
  KVC_DEVICE void run(int begin, int end) {
    constexpr int stride = 32 * n_warps;
    int u = begin + 32 * warp_;
    if (u >= end) return;
    int cells = 0, positions = 0, next_cells = 0, next_positions = 0;
    const auto fetch = [&](int first, int& cell, int& position) {
      const int64_t entry = Item::entry(first + lane_.index < end ? first + lane_.index : end - 1);
      cell = a_.cells[entry];
      position = Item::task().list.first_position + a_.positions[entry];
    };
    fetch(u, cells, positions);
    keys_.load(cells, 0);
    values_.load(cells, 0);
    fetch(u + stride, next_cells, next_positions);
    for (int half = 0;; half ^= 16) {
      const int u0 = u + half;
      const bool has_more = half == 0 ? u0 + 16 < end : u + stride < end;
      const int more_cells = half == 0 ? cells : next_cells;
      float s[eights][4], fade[eights][2];
      keys_.multiply(fragments(), s);
      if (has_more) keys_.load(more_cells, 16 - half);
      const bool hides = finish_scores(s, u0, end, cells, positions, half);
      KVC_UNROLL for (int eight = 0; eight < eights; ++eight) soften(eight, s[eight], fade[eight]);
      values_.add(s, fade, hides);
      if (!has_more) break;
      values_.load(more_cells, 16 - half);
      if (half == 0) continue;
      u += stride;
      cells = next_cells;
      positions = next_positions;
      fetch(u + stride, next_cells, next_positions);
    }
  }

  // ---- Results --------------------------------------------------------------------------------------------------------------------

  /// Adds up the results of the warps, in their order, eight columns at a time, in the rows of the first.
  KVC_DEVICE void gather_warps() const {
    const int n = Item::task().n_used;
    KVC_UNROLL for (int eight = 0; eight < eights; ++eight) {
      sync_block();  // fragments are not read any more, nor is what was added up before
      write_sums(eight);
      sync_block();
      const int first = eight * tile_columns, end = n < first + tile_columns ? n : first + tile_columns;
      for (int i = first * Values::dim + thread_index(); i < end * Values::dim; i += n_warps * 32)
        add_warps(i / Values::dim, i % Values::dim);
    }
    sync_block();
    if (!Values::may_be_rotated || a_.v.coding.rotation == 0) return;
    const auto at = [](int c, int dim) -> float& { return rows()[c * Layout::row_floats + dim]; };
    rotate(n, Values::dim, a_.v.coding.rotation, true, all(), at, sync_block);
  }

  /// What this warp has summed up for eight columns.
  KVC_DEVICE void write_sums(int eight) const {
    KVC_UNROLL for (int c = 0; c < 2; ++c) {
      const int at = warp_ * tile_columns + column_of(eight, lane_, c);
      float sum = weight_[eight][c];
      sum += shuffle_xor(sum, 4);
      sum += shuffle_xor(sum, 8);
      sum += shuffle_xor(sum, 16);
      float* const row = rows() + at * Layout::row_floats;
      KVC_UNROLL for (int i = 0; i < Values::steps; ++i) {
        KVC_UNROLL for (int which = 0; which < 2; ++which)
          row[values_.dim_of(i, which)] = values_.sum(eight, i, which, c);
      }
      if (lane_.g == 0) {
        of_warps()[2 * at] = sum;
        of_warps()[2 * at + 1] = top_[eight][c];
      }
    }
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
    merged()[Layout::columns + column] = highest;
  }

  const Item item_;
  const AttentionArguments& a_;
  const Lane lane_;
  const int warp_;
  Keys keys_;
  Values values_;
  float top_[eights][2], weight_[eights][2];  // of columns 2t and 2t + 1
};

template <class Keys, class Values>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(128, (NarrowLayout<Keys, Values>::blocks))
    attend_narrow(KVC_PARAMS(AttentionArguments) a) {
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  Narrow<Keys, Values> narrow(a);
  for (int64_t i = block_index(); i < n; i += n_blocks()) narrow.attend(i);
}

}  // namespace kvc::cuda
