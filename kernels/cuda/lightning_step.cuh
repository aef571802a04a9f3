#pragma once
#include "kernels/cuda/lightning.cuh"

/// A token of a sequence, or nothing but time: the state is read once and written once, and makes the outputs on its way.
///
/// A thread takes four columns, and every so many rows of the state; the sums of the threads of a column are added in their order.
namespace kvc::cuda {

class DecayStep {
 public:
  KVC_DEVICE DecayStep(const DecayLaunch& params, const DecayWork& work, const DecayItem& item)
      : params_(params),
        item_(item),
        segment_(work.segment[item.segment]),
        block_(work.block[segment_.first_block]),
        token_(work.token + block_.first_token),
        key_(reinterpret_cast<float*>(shared_memory())),
        queries_(key_ + params.k.dim),
        sums_(queries_ + step_queries * params.k.dim) {
    const int left = params.padded_v - item.first_column;
    n_vectors_ = (left < step_columns ? left : step_columns) / 4;
    n_walks_ = decay_threads / n_vectors_;
    column_ = item.first_column + thread_index() % n_vectors_ * 4;
    walk_ = thread_index() / n_vectors_;
  }

  KVC_DEVICE void run() {
    const float slope = params_.slope[item_.head - params_.first_head];
    const DecayFactor factor = in_two_floats(decay_of(slope, int64_t{block_.gap} + block_.n));
    float value[4];
    load_token(value);
    for (int first = 0; first == 0 || first < params_.group; first += step_queries) {
      const int left = params_.group - first;
      const int n_queries = left < step_queries ? left : step_queries;
      for (int i = thread_index(); i < n_queries * params_.k.dim; i += decay_threads)
        queries_[i] = query(first + i / params_.k.dim, i % params_.k.dim);
      sync_block();  // the key is there, too, and the sums before are read
      float sums[step_queries][4] = {};
      if (walk_ < n_walks_) walk(factor, value, n_queries, first == 0 && params_.writes != 0, sums);
      if (n_queries > 0) write_outputs(first, n_queries, sums);
    }
    sync_block();  // before the next item's key
  }

 private:
  KVC_DEVICE const DecayToken& token() const { return *token_; }

  /// The key, and the values of this thread's columns. The block of the first columns keeps them where they are put.
  KVC_DEVICE void load_token(float (&value)[4]) {
    const bool has_token = block_.n > 0 && !is_masked(token());
    for (int d = thread_index(); d < params_.k.dim; d += decay_threads)
      key_[d] = has_token ? number(params_.k, params_.put_k, d) : 0.0f;
    for (int i = 0; i < 4; ++i)
      value[i] = has_token && column_ + i < params_.v.dim
                     ? number(params_.v, params_.put_v, column_ + i)
                     : 0.0f;
    if (!has_token || params_.put_k.data == nullptr || item_.first_column > 0) return;
    keep_row(params_.k, params_.put_k, item_.head, token(), thread_index(), decay_threads);
    keep_row(params_.v, params_.put_v, item_.head, token(), thread_index(), decay_threads);
  }

  KVC_DEVICE float number(const KeptView& kept, const RowsView& put, int dim) const {
    if (put.data == nullptr) return kept_number(kept, item_.head, token(), dim);
    const ElementRow row = tensor_row(put, item_.head, index_of(token()));
    return load_element(row.data, row.element, dim * row.stride);
  }

  /// Times the scale. `head` counts from the state head's first.
  KVC_DEVICE float query(int head, int dim) const {
    const ElementRow row = tensor_row(params_.q, item_.head * params_.group + head, index_of(token()));
    return load_element(row.data, row.element, dim * row.stride) * params_.scale;
  }

  KVC_DEVICE void walk(const DecayFactor& factor, const float (&value)[4], int n_queries, bool writes,
                       float (&sums)[step_queries][4]) {
    constexpr int ahead = 4;
    const float* const from = state_of(params_, segment_.from, item_.head) + column_;
    float* const to = state_of(params_, segment_.to, item_.head) + column_;
    for (int first = walk_; first < params_.k.dim; first += ahead * n_walks_) {
      Word4 before[ahead] = {};
      KVC_UNROLL for (int i = 0; i < ahead; ++i) {
        const int d = first + i * n_walks_;
        if (d < params_.k.dim) before[i] = load_stream(from + int64_t{d} * params_.padded_v);
      }
      KVC_UNROLL for (int i = 0; i < ahead; ++i) {
        const int d = first + i * n_walks_;
        if (d >= params_.k.dim) continue;
        Word4 after;
        KVC_UNROLL for (int c = 0; c < 4; ++c) {
          const float state = decayed(float_of(before[i].w[c]), factor, key_[d] * value[c]);
          after.w[c] = bits_of(state);
          KVC_UNROLL for (int q = 0; q < step_queries; ++q)
            if (q < n_queries)
              sums[q][c] = multiply_add(queries_[q * params_.k.dim + d], state, sums[q][c]);
        }
        if (writes) *reinterpret_cast<Word4*>(to + int64_t{d} * params_.padded_v) = after;
      }
    }
  }

  KVC_DEVICE void write_outputs(int first, int n_queries, const float (&sums)[step_queries][4]) {
    const int columns = n_vectors_ * 4;
    if (walk_ < n_walks_) {
      float* const own = sums_ + (walk_ * step_queries) * columns + column_ - item_.first_column;
      KVC_UNROLL for (int q = 0; q < step_queries; ++q)
        KVC_UNROLL for (int c = 0; c < 4; ++c) own[q * columns + c] = sums[q][c];
    }
    sync_block();
    for (int i = thread_index(); i < n_queries * columns; i += decay_threads) {
      const int q = i / columns, column = i % columns;
      if (item_.first_column + column >= params_.v.dim) continue;
      float sum = 0;
      for (int walk = 0; walk < n_walks_; ++walk)
        sum += sums_[(walk * step_queries + q) * columns + column];
      const int head = item_.head * params_.group + first + q;
      const ElementRow row = tensor_row(params_.out, head, index_of(token()));
      store_element(row.data, row.element, (item_.first_column + column) * row.stride, sum);
    }
  }

  const DecayLaunch& params_;
  const DecayItem item_;
  const DecaySegment& segment_;
  const DecayBlock& block_;
  const DecayToken* const token_;
  float* const key_;      // [head_dim_k]
  float* const queries_;  // [step_queries][head_dim_k]
  float* const sums_;     // [walks][step_queries][columns]
  int n_vectors_ = 0;     // of four columns
  int n_walks_ = 0;       // down the rows, side by side
  int column_ = 0, walk_ = 0;
};

KVC_GLOBAL void KVC_LAUNCH_BOUNDS(decay_threads, 6)
    decay_step(KVC_PARAMS(DecayLaunch) params) {
  const DecayWork work = work_of(params, true);
  for (int64_t i = block_index(); i < n_items(params, work, step_columns); i += n_blocks())
    DecayStep(params, work, item_at(params, i, step_columns)).run();
}

}  // namespace kvc::cuda
