#pragma once
#include "kernels/cuda/lightning.cuh"

/// Sequences of several tokens, as products of small matrices. Blocks of up to 32 tokens go one after another; 32 columns of a head's
/// state stay in shared memory meanwhile:
///
///   out    = λ^(i + 1) q_i state + Σ_{j ≤ i} λ^(i − j) (q_i · k_j) v_j    for each query head
///   state  = λ^n state + Σ_j λ^(n − 1 − j) k_jᵀ v_j
///
/// Keys and queries come 32 dimensions at a time. A thread has 4 rows and 2 columns of each product.
namespace kvc::cuda {

/// sums[i][j] += Σ_x a[x][i] · b[x][j]
KVC_DEVICE void multiply_tile(const float* a, const float* b, int n, float (&sums)[4][2]) {
  for (int x = 0; x < n; ++x, a += tile_stride, b += tile_stride) {
    const Word4 left = *reinterpret_cast<const Word4*>(a);
    const Word2 right = *reinterpret_cast<const Word2*>(b);
    KVC_UNROLL for (int i = 0; i < 4; ++i)
      KVC_UNROLL for (int j = 0; j < 2; ++j)
        sums[i][j] = multiply_add(float_of(left.w[i]), float_of(right.w[j]), sums[i][j]);
  }
}

class DecayBlocks {
 public:
  KVC_DEVICE DecayBlocks(const DecayLaunch& params, const DecayWork& work, const DecayItem& item)
      : params_(params),
        work_(work),
        item_(item),
        segment_(work.segment[item.segment]),
        writes_(params.writes != 0 || segment_.is_cut != 0),
        slope_(params.slope[item.head - params.first_head]),
        row_(thread_index() / 16 * 4),
        column_(thread_index() % 16 * 2),
        state_(reinterpret_cast<float*>(shared_memory())),
        keys_(state_ + params.k.dim * tile_stride),
        queries_(keys_ + decay_tile * tile_stride),
        values_(queries_ + decay_tile * tile_stride),
        weights_(values_ + decay_tile * tile_stride),
        decay_(weights_ + decay_tile * tile_stride),
        from_decay_(decay_ + decay_tile),
        n_columns_(smaller(params.padded_v - item.first_column, decay_tile)) {}

  KVC_DEVICE void run() {
    load_state();
    for (int i = thread_index(); i < decay_tile; i += decay_threads)
      decay_[i] = static_cast<float>(decay_of(slope_, i));
    for (int i = 0; i < segment_.n_blocks; ++i) {
      const DecayBlock& block = work_.block[segment_.first_block + i];
      sync_block();
      load_values(block);
      for (int head = 0; head < params_.group; ++head) attend(block, head);
      if (writes_ || i + 1 < segment_.n_blocks) advance(block);
    }
    sync_block();
    if (writes_) store_state();
    sync_block();  // before the next item's state
  }

 private:
  static KVC_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
  KVC_DEVICE const DecayToken& token(const DecayBlock& block, int i) const {
    return work_.token[block.first_token + i];
  }

  /// Calls visit(in shared memory, in the slot) for the vectors of the columns.
  template <class Visit>
  KVC_DEVICE void for_state(int32_t slot, Visit visit) {
    float* const stored = state_of(params_, slot, item_.head) + item_.first_column;
    const int vectors = n_columns_ / 4;
    for (int i = thread_index(); i < params_.k.dim * vectors; i += decay_threads) {
      const int d = i / vectors, column = i % vectors * 4;
      visit(reinterpret_cast<Word4*>(state_ + d * tile_stride + column),
            reinterpret_cast<Word4*>(stored + int64_t{d} * params_.padded_v + column));
    }
  }
  KVC_DEVICE void load_state() {
    for_state(segment_.from, [](Word4* here, const Word4* stored) { *here = *stored; });
  }
  KVC_DEVICE void store_state() {
    for_state(segment_.to, [](const Word4* here, Word4* stored) { *stored = *here; });
  }

  /// Values [token][column], and what the state counts for in each token.
  KVC_DEVICE void load_values(const DecayBlock& block) {
    for (int i = thread_index(); i < block.n * decay_tile; i += decay_threads) {
      const int which = i / decay_tile, column = i % decay_tile;
      const bool is_there = item_.first_column + column < params_.v.dim;
      values_[which * tile_stride + column] =
          is_there
              ? kept_number(params_.v, item_.head, token(block, which), item_.first_column + column)
              : 0.0f;
    }
    for (int i = thread_index(); i < block.n; i += decay_threads)
      from_decay_[i] = static_cast<float>(decay_of(slope_, int64_t{block.gap} + i + 1));
  }

  /// Dimensions [first, first + n_dims) of keys, [dim][token].
  KVC_DEVICE void load_keys(const DecayBlock& block, int first, int n_dims) {
    for (int i = thread_index(); i < block.n * decay_tile; i += decay_threads) {
      const int which = i / decay_tile, d = i % decay_tile;
      if (d < n_dims)
        keys_[d * tile_stride + which] =
            kept_number(params_.k, item_.head, token(block, which), first + d);
    }
  }
  /// Likewise of queries, times the scale.
  KVC_DEVICE void load_queries(const DecayBlock& block, int head, int first, int n_dims) {
    for (int i = thread_index(); i < block.n * decay_tile; i += decay_threads) {
      const int which = i / decay_tile, d = i % decay_tile;
      if (d >= n_dims) continue;
      const ElementRow row = tensor_row(params_.q, head, index_of(token(block, which)));
      queries_[d * tile_stride + which] =
          load_element(row.data, row.element, (first + d) * row.stride) * params_.scale;
    }
  }

  /// Outputs of a query head, which counts from the state head's first.
  KVC_DEVICE void attend(const DecayBlock& block, int which) {
    const int head = item_.head * params_.group + which;
    float weights[4][2] = {}, out[4][2] = {};
    for (int first = 0; first < params_.k.dim; first += decay_tile) {
      const int n_dims = smaller(params_.k.dim - first, decay_tile);
      sync_block();
      load_keys(block, first, n_dims);
      load_queries(block, head, first, n_dims);
      sync_block();
      if (row_ >= block.n) continue;
      if (column_ < block.n) multiply_tile(keys_ + row_, queries_ + column_, n_dims, weights);
      multiply_tile(queries_ + row_, state_ + first * tile_stride + column_, n_dims, out);
    }
    KVC_UNROLL for (int i = 0; i < 4; ++i)
      KVC_UNROLL for (int j = 0; j < 2; ++j) {
        const int key = row_ + i, query = column_ + j;
        if (key <= query && query < block.n)
          weights_[key * tile_stride + query] = weights[i][j] * decay_[query - key];
      }
    sync_block();
    if (row_ < block.n) add_values(block, out);
    store_outputs(block, head, out);
  }

  /// Each token sees the values up to its own: what comes later must not reach it, not even times zero.
  KVC_DEVICE void add_values(const DecayBlock& block, float (&out)[4][2]) {
    KVC_UNROLL for (int i = 0; i < 4; ++i) {
      const float factor = row_ + i < block.n ? from_decay_[row_ + i] : 0.0f;
      KVC_UNROLL for (int j = 0; j < 2; ++j) out[i][j] *= factor;
    }
    multiply_tile(weights_ + row_, values_ + column_, row_, out);
    KVC_UNROLL for (int later = 0; later < 4; ++later) {
      const int key = row_ + later;  // behind the block none of the outputs is stored
      KVC_UNROLL for (int i = later; i < 4; ++i)
        KVC_UNROLL for (int j = 0; j < 2; ++j)
          out[i][j] = multiply_add(weights_[key * tile_stride + row_ + i],
                                   values_[key * tile_stride + column_ + j], out[i][j]);
    }
  }

  KVC_DEVICE void store_outputs(const DecayBlock& block, int head, const float (&out)[4][2]) {
    KVC_UNROLL for (int i = 0; i < 4; ++i) {
      if (row_ + i >= block.n) continue;
      const ElementRow row = tensor_row(params_.out, head, index_of(token(block, row_ + i)));
      KVC_UNROLL for (int j = 0; j < 2; ++j) {
        const int column = item_.first_column + column_ + j;
        if (column < params_.v.dim)
          store_element(row.data, row.element, column * row.stride, out[i][j]);
      }
    }
  }

  /// The state behind the block. A thread writes the same columns of the state as ever, and reads no others.
  KVC_DEVICE void advance(const DecayBlock& block) {
    const DecayFactor factor = in_two_floats(decay_of(slope_, int64_t{block.gap} + block.n));
    for (int first = 0; first < params_.k.dim; first += decay_tile) {
      const int n_dims = smaller(params_.k.dim - first, decay_tile);
      sync_block();
      for (int i = thread_index(); i < block.n * decay_tile; i += decay_threads) {  // [token][dim]
        const int which = i / decay_tile, d = i % decay_tile;
        if (d < n_dims)
          keys_[which * tile_stride + d] =
              kept_number(params_.k, item_.head, token(block, which), first + d) *
              decay_[block.n - 1 - which];
      }
      sync_block();
      if (row_ >= n_dims) continue;
      float added[4][2] = {};
      multiply_tile(keys_ + row_, values_ + column_, block.n, added);
      KVC_UNROLL for (int i = 0; i < 4; ++i)
        KVC_UNROLL for (int j = 0; j < 2; ++j) {
          if (row_ + i >= n_dims || column_ + j >= n_columns_) continue;
          float& state = state_[(first + row_ + i) * tile_stride + column_ + j];
          state = decayed(state, factor, added[i][j]);
        }
    }
  }

  const DecayLaunch& params_;
  const DecayWork work_;
  const DecayItem item_;
  const DecaySegment& segment_;
  const bool writes_;  // the state behind the segment
  const float slope_;
  const int row_, column_;     // of this thread's part of a product
  float* const state_;         // [head_dim_k][column]
  float* const keys_;          // [dim][token], or [token][dim] times their decay
  float* const queries_;       // [dim][token]
  float* const values_;        // [token][column]
  float* const weights_;       // [key's token][query's token]
  float* const decay_;         // [decay_tile] λ^i
  float* const from_decay_;    // [token]
  const int n_columns_;
};

KVC_GLOBAL void KVC_LAUNCH_BOUNDS(decay_threads, 4)
    decay_blocks(KVC_PARAMS(DecayLaunch) params) {
  const DecayWork work = work_of(params, false);
  for (int64_t i = block_index(); i < n_items(params, work, decay_tile); i += n_blocks())
    DecayBlocks(params, work, item_at(params, i, decay_tile)).run();
}

}  // namespace kvc::cuda
