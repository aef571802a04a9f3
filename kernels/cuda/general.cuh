#pragma once
#include "kernels/cuda/general_rows.cuh"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/kernel.cuh"

/// Attention by multiply-adds in f32: any head dimension, K and V of any types, rows wherever they lie.
///
/// A block walks its part in steps of as many tokens as it has threads:
///
///   scores    a thread computes its token's products with the queries of all columns
///   weights   a warp turns the scores of its columns into weights, and says by how much older sums fade
///   values    a thread adds the values of the step in its dimensions, for all columns
///
/// Queries are rotated as keys are stored, and sums rotated back from how values are.
///
/// Queries lie in shared memory [dim][column], scores and weights [token][column]: threads read them together.
namespace kvc::cuda {

/// The steps of a tile.
template <bool codes>
class General {
 public:
  /// `next` makes the task.
  template <class Next>
  KVC_DEVICE General(const AttentionArguments& a, Next next)
      : item_{a},
        a_(a),
        kv_head_(begin(next)),
        k_(a.k, kv_head_),
        v_(a.v, kv_head_) {
    const GeneralLayout layout = {a_.k.dim, a_.v.dim, a_.rope_dims};
    char* const shared = shared_memory();
    queries_ = reinterpret_cast<float*>(shared + layout.queries());
    scores_ = reinterpret_cast<float*>(shared + layout.scores());
    sums_ = reinterpret_cast<float*>(shared + layout.sums());
    cells_ = reinterpret_cast<int32_t*>(shared + layout.cells());
    weight_ = reinterpret_cast<float*>(shared + layout.weights());
    rotation_ = reinterpret_cast<double*>(shared + layout.rotation());
    if (thread_index() < tile_columns) {
      weight_[thread_index()] = 0;
      top()[thread_index()] = -infinity();
    }
  }

  /// Attends the part and finishes it.
  KVC_DEVICE void attend() {
    for (int i = thread_index(); i < tile_columns * a_.v.dim; i += n_threads()) sums_[i] = 0;
    walk(Item::task().begin(), Item::task().end(), [this](int from, int n) {
      score(from, n);
      sync_block();
      soften(n);
      sync_block();
      add_values(n);
    });
    sync_block();
    rotate_sums_back();
    item_.finish(sums_, a_.v.dim, weight_, top(), flag());
  }

  /// Writes the weights of all columns, over all parts.
  KVC_DEVICE void write_weights() {
    for (int64_t i = thread_index(); i < Item::task().n_used * a_.n_columns; i += n_threads())
      weight_at(Item::column(static_cast<int>(i / a_.n_columns)), i % a_.n_columns) = 0;
    walk(0, Item::task().tile.n_seen, [this](int from, int n) {
      score(from, n);
      sync_block();
      soften(n);
    });
    walk(0, Item::task().tile.n_seen, [this](int from, int n) {
      score(from, n);
      if (thread_index() >= n) return;
      for (int c = 0; c < Item::task().n_used; ++c) {
        const float x = scores_[thread_index() * tile_columns + c];
        if (x == -infinity()) continue;
        const float total = item_.total(Item::column(c), weight_[c], top()[c]);
        weight_at(Item::column(c), item_.tensor_column(cells_[thread_index()])) =
            exp2_fast(x - top()[c]) / total;
      }
    });
  }

 private:
  /// The KV head of the task.
  template <class Next>
  KVC_DEVICE int begin(Next next) const {
    item_.begin(next);
    return Item::task().kv_head;
  }

  KVC_DEVICE float* top() const { return weight_ + tile_columns; }
  KVC_DEVICE float* fade() const { return weight_ + 2 * tile_columns; }
  KVC_DEVICE int32_t* flag() const {
    return reinterpret_cast<int32_t*>(weight_ + 3 * tile_columns);
  }

  KVC_DEVICE float& weight_at(const Column& column, int64_t at) const {
    return reinterpret_cast<float*>(a_.weights.data)[column.head * a_.weights.head +
                                                     token_offset(a_.weights, column.token) +
                                                     at * a_.weights.last];
  }

  /// Calls step(from, n) for the steps of the seen coordinates [first, last), with queries turned by what the keys of the step owe.
  /// Between two steps is a barrier.
  template <class Step>
  KVC_DEVICE void walk(int first, int last, Step step) {
    if (first >= last) return;
    item_.for_each_segment(first, last, [&](int offset, int from, int to) {
      const bool turns = offset != 0 && a_.rope_dims > 0;
      sync_block();
      if (turns) item_.stage_rotation(rotation_, offset);
      if (turns) sync_block();
      stage_queries(turns ? rotation_ : nullptr);
      rotate_queries();
      for (; from < to; from += general_threads) {
        sync_block();
        step(from, to - from < general_threads ? to - from : general_threads);
      }
    });
  }

  KVC_DEVICE void stage_queries(const double* rotation) const {
    const int dims = padded_dim(a_.k.dim);
    for (int i = thread_index(); i < dims * tile_columns; i += n_threads()) {
      const int c = i / dims, dim = i % dims;
      const bool is_there = c < Item::task().n_used && dim < a_.k.dim;
      queries_[dim * tile_columns + c] =
          is_there ? item_.turned_query(Item::column(c), dim, rotation) : 0.0f;
    }
  }

  KVC_DEVICE void rotate_queries() const {
    if constexpr (codes) {
      if (a_.k.coding.rotation == 0) return;
      const auto at = [this](int c, int dim) -> float& {
        return queries_[dim * tile_columns + c];
      };
      rotate(Item::task().n_used, a_.k.dim, a_.k.coding.rotation, false, all(), at, sync_block);
    }
  }
  KVC_DEVICE void rotate_sums_back() const {
    if constexpr (codes) {
      if (a_.v.coding.rotation == 0) return;
      const auto at = [this](int c, int dim) -> float& { return sums_[c * a_.v.dim + dim]; };
      rotate(Item::task().n_used, a_.v.dim, a_.v.coding.rotation, true, all(), at, sync_block);
    }
  }
  KVC_DEVICE static Worker all() { return {thread_index(), n_threads()}; }

  /// Scores of this thread's token, of n.
  KVC_DEVICE void score(int from, int n) const {
    if (thread_index() >= n) return;
    const int seen = from + thread_index();
    const int64_t entry = Item::entry(seen);
    const int cell = a_.cells[entry];
    const int position = Item::task().list.first_position + a_.positions[entry];
    cells_[thread_index()] = cell;
    float x[tile_columns] = {};
    multiply(cell_of(cell), x);
    const bool is_plain = !a_.changes_scores();
    KVC_UNROLL for (int c = 0; c < tile_columns; ++c) {
      if (!Item::sees(Item::column(c), seen)) {
        x[c] = -infinity();
      } else if (!is_plain) {
        x[c] = item_.score(Item::column(c), x[c], cell, position);
      }
      scores_[thread_index() * tile_columns + c] = x[c];
    }
  }

  KVC_DEVICE static int64_t cell_of(int of_list) {
    return Item::task().list.first_cell + int64_t{of_list};
  }

  KVC_DEVICE void multiply(int64_t cell, float (&x)[tile_columns]) const {
    for (int first = 0; first < a_.k.dim; first += general_chunk) {
      float key[general_chunk];
      k_.chunk(cell, first, key);
      float sum[tile_columns] = {};
      KVC_UNROLL for (int i = 0; i < general_chunk; ++i) {
        const float* const query = queries_ + (first + i) * tile_columns;
        KVC_UNROLL for (int c = 0; c < tile_columns; ++c)
          sum[c] = multiply_add(query[c], key[i], sum[c]);
      }
      KVC_UNROLL for (int c = 0; c < tile_columns; ++c) x[c] += sum[c];
    }
  }

  /// Scores of n tokens become weights.
  KVC_DEVICE void soften(int n) const {
    const int lane = thread_index() % 32;
    for (int c = uniform(thread_index() / 32); c < Item::task().n_used; c += general_threads / 32) {
      float highest = top()[c];
      for (int token = lane; token < n; token += 32)
        highest = fmaxf(highest, scores_[token * tile_columns + c]);
      KVC_UNROLL for (int mask = 16; mask > 0; mask /= 2)
        highest = fmaxf(highest, shuffle_xor(highest, mask));
      const float shift = highest == -infinity() ? 0.0f : highest;
      float sum = 0;
      for (int token = lane; token < n; token += 32) {
        float& x = scores_[token * tile_columns + c];
        x = exp2_fast(x - shift);
        sum += x;
      }
      KVC_UNROLL for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      if (lane != 0) continue;
      fade()[c] = exp2_fast(top()[c] - shift);
      weight_[c] = multiply_add(weight_[c], fade()[c], sum);
      top()[c] = highest;
    }
  }

  /// What is hidden counts nothing, whatever its value is.
  KVC_DEVICE void add_values(int n) const {
    for (int dim = thread_index(); dim < a_.v.dim; dim += n_threads()) {
      float sum[tile_columns] = {};
      for (int token = 0; token < n; ++token) {
        const float value = v_.number(cell_of(cells_[token]), dim);
        const float* const weight = scores_ + token * tile_columns;
        KVC_UNROLL for (int c = 0; c < tile_columns; ++c)
          sum[c] = weight[c] == 0 ? sum[c] : multiply_add(weight[c], value, sum[c]);
      }
      KVC_UNROLL for (int c = 0; c < tile_columns; ++c) {
        if (c >= Item::task().n_used) continue;
        float& all = sums_[c * a_.v.dim + dim];
        all = multiply_add(all, fade()[c], sum[c]);
      }
    }
  }

  const Item item_;
  const AttentionArguments& a_;
  const int kv_head_;
  const HeadRows<codes> k_, v_;
  float* queries_;     // [padded dim of K][tile_columns]
  float* scores_;      // [general_threads][tile_columns], weights after soften()
  float* sums_;        // [tile_columns][dim of V]
  int32_t* cells_;     // [general_threads] as the token arrays name them
  float* weight_;      // [tile_columns], then top and fade
  double* rotation_;   // [rope_dims / 2][2]
};

template <bool codes>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(general_threads, 4)
    attend_general(KVC_PARAMS(AttentionArguments) a) {
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  for (int64_t i = block_index(); i < n; i += n_blocks()) General<codes>(a, [&] { return Task::of_launch(a, i); }).attend();
}

template <bool codes>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(general_threads, 4)
    write_weights(KVC_PARAMS(AttentionArguments) a) {
  const int32_t turns = a.shape.turns();
  const int64_t n = int64_t{launched(a).n_tiles} * turns;
  for (int64_t i = block_index(); i < n; i += n_blocks())
    General<codes>(a, [&] {
      return Task(a, static_cast<int32_t>(i / turns), 0, static_cast<int32_t>(i % turns));
    }).write_weights();
}

}  // namespace kvc::cuda
