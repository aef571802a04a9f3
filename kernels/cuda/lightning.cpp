#include "kernels/cuda/lightning.hpp"

#include <algorithm>

#include "kernels/cuda/lightning_params.hpp"
#include "kernels/cuda/row_views.hpp"

namespace kvc::cuda {
namespace {

/// K, or V.
KeptView kept_view(const KeptTokens& last, const KeptTokens& drafted, bool is_k, int32_t dim) {
  const DType type = is_k ? last.k_type : last.v_type;
  KeptView view;
  view.last = reinterpret_cast<char*>(is_k ? last.k : last.v);
  view.drafted = reinterpret_cast<char*>(is_k ? drafted.k : drafted.v);
  view.row_bytes = static_cast<int32_t>(KeptTokens::row_bytes(dim, type));
  view.last_head = last.n_tokens * view.row_bytes;
  view.drafted_head = drafted.n_tokens * view.row_bytes;
  view.dim = dim;
  view.element = element_of(type);
  return view;
}
KeptView keys_of(const LightningParams& params) {
  return kept_view(params.last_layer, params.drafted, true, params.bounds.head_dim_k);
}
KeptView values_of(const LightningParams& params) {
  return kept_view(params.last_layer, params.drafted, false, params.bounds.head_dim_v);
}

/// Token `index` of a row.
DecayToken token_of(const LightningParams& params, const LightningRow& row, int32_t index) {
  const LightningToken& token = params.token[row.first_token + index];
  const int32_t kept = row.first_kept + index;
  return {static_cast<uint32_t>(token.index) * 2 + (token.is_masked ? 1 : 0),
          row.is_drafted ? ~kept : kept};
}

Error clear_padding(const LightningParams& params, const Launcher& launcher) {
  PaddingLaunch launch;
  launch.out = view_of(params.out);
  launch.n_heads = params.n_q_heads;
  launch.dim = params.bounds.head_dim_v;
  for (int32_t first = 0; first < params.n_padding; first += kept_tokens) {
    launch.n_tokens = std::min(kept_tokens, params.n_padding - first);
    std::copy_n(params.padding + first, launch.n_tokens, launch.token);
    const int64_t n_rows = int64_t{launch.n_tokens} * launch.n_heads;
    if (Error e = launcher.launch_rows(padding_kernel(), n_rows, &launch); e != Error::none)
      return e;
  }
  return Error::none;
}

/// Of sequences of several tokens: a single one is kept where its state is made.
Error keep(const LightningParams& params, const Launcher& launcher) {
  KeepLaunch launch;
  launch.k = keys_of(params);
  launch.v = values_of(params);
  launch.k_rows = view_of(params.k);
  launch.v_rows = view_of(params.v);
  launch.n_heads = params.bounds.n_heads;
  const auto flush = [&]() -> Error {
    const int64_t n_rows = int64_t{launch.n_tokens} * launch.n_heads;
    const Error e = launcher.launch_rows(keep_kernel(), n_rows, &launch);
    launch.n_tokens = 0;
    return e;
  };
  for (const LightningRow* row = params.row; row < params.row + params.n_rows; ++row) {
    for (int32_t i = 0; i < row->n_tokens && row->n_tokens > 1; ++i) {
      if (launch.n_tokens == kept_tokens) {
        if (Error e = flush(); e != Error::none) return e;
      }
      launch.token[launch.n_tokens++] = token_of(params, *row, i);
    }
  }
  return flush();
}

/// Launches of one of the two kernels that compute states and outputs.
class DecayLaunches {
 public:
  DecayLaunches(const LightningParams& params, const Launcher& launcher, bool in_blocks)
      : params_(params),
        launcher_(launcher),
        in_blocks_(in_blocks),
        block_(std::min(params.bounds.block == 0 ? decay_tile : params.bounds.block, decay_tile)) {
    launch_.states = reinterpret_cast<char*>(params.states.data);
    launch_.slot_bytes = static_cast<int64_t>(params.states.slot_bytes);
    launch_.k = keys_of(params);
    launch_.v = values_of(params);
    launch_.padded_v = static_cast<int32_t>(padded_to_vectors(params.bounds.head_dim_v));
    if (params.input == LightningInput::tensors && !in_blocks) {
      launch_.put_k = view_of(params.k);
      launch_.put_v = view_of(params.v);
    }
    if (params.q.data == nullptr) return;
    launch_.q = view_of(params.q);
    launch_.out = view_of(params.out);
    launch_.group = params.n_q_heads / params.bounds.n_heads;
    launch_.scale = params.scale;
  }

  /// Segments in rounds: the next one of a row begins at what the one before wrote.
  Error run() {
    bool has_more = true;
    for (int32_t first = 0; has_more; first += segment_tokens) {
      has_more = false;
      for (const LightningRow* row = params_.row; row < params_.row + params_.n_rows; ++row) {
        const bool steps = row->n_tokens == 1 || params_.input == LightningInput::none;
        if (steps == in_blocks_ || first >= row->n_tokens || (steps && first > 0)) continue;
        if (Error e = add(*row, first); e != Error::none) return e;
        has_more |= row->n_tokens - first > segment_tokens && !steps;
      }
      if (Error e = flush(); e != Error::none) return e;
    }
    return Error::none;
  }

 private:
  Error add(const LightningRow& row, int32_t first) {
    const bool has_tokens = params_.input != LightningInput::none;
    const int32_t n = has_tokens ? std::min(segment_tokens, row.n_tokens - first) : 0;
    if (launch_.n_segments == launch_segments || n_tokens_ + n > segment_tokens) {
      if (Error e = flush(); e != Error::none) return e;
    }
    DecaySegment& segment = launch_.segment[launch_.n_segments++];
    const bool is_cut = in_blocks_ && row.n_tokens > segment_tokens;
    segment = {first == 0 ? row.from : row.to, row.to, n_blocks_, 0,
               params_.writes_states || is_cut ? 1 : 0};
    if (has_tokens) {
      add_blocks(row, first, n);
    } else {
      const int32_t last = params_.token[row.first_token + row.n_tokens - 1].position;
      launch_.block[n_blocks_++] = {n_tokens_, 0, last + 1 - row.next};
    }
    segment.n_blocks = n_blocks_ - segment.first_block;
    return Error::none;
  }

  void add_blocks(const LightningRow& row, int32_t first, int32_t n) {
    const LightningToken* const token = params_.token + row.first_token;
    for (int32_t i = first, end = 0; i < first + n; i = end) {
      const int32_t next = i == 0 ? row.next : token[i - 1].position + 1;
      const int32_t most = std::min(first + n, i + block_);
      for (end = i + 1; end < most && token[end].position == token[i].position + end - i;) ++end;
      launch_.block[n_blocks_++] = {n_tokens_, end - i, token[i].position - next};
      for (int32_t t = i; t < end; ++t) launch_.token[n_tokens_++] = token_of(params_, row, t);
    }
  }

  Error flush() {
    const int32_t n_heads = params_.bounds.n_heads;
    for (int32_t head = 0; head < n_heads && launch_.n_segments > 0; head += launch_heads) {
      launch_.first_head = head;
      launch_.n_heads = std::min(launch_heads, n_heads - head);
      std::copy_n(params_.slopes + head, launch_.n_heads, launch_.slope);
      if (Error e = launch(); e != Error::none) return e;
    }
    launch_.n_segments = n_blocks_ = n_tokens_ = 0;
    return Error::none;
  }

  Error launch() const {
    const int32_t panel = in_blocks_ ? decay_tile : step_columns;
    const int64_t n_items = int64_t{launch_.n_segments} * launch_.n_heads *
                            ((launch_.padded_v + panel - 1) / panel);
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>(n_items, launcher_.most_blocks));
    const int32_t dim_k = params_.bounds.head_dim_k;
    const int32_t shared = in_blocks_ ? blocks_shared_bytes(dim_k) : step_shared_bytes(dim_k);
    const Kernel kernel = in_blocks_ ? decay_blocks_kernel() : decay_step_kernel();
    return runtime::launch(kernel, {blocks, decay_threads, static_cast<size_t>(shared)}, &launch_,
                           launcher_.stream);
  }

  const LightningParams& params_;
  const Launcher& launcher_;
  const bool in_blocks_;
  const int32_t block_;  // tokens at most
  DecayLaunch launch_;
  int32_t n_blocks_ = 0, n_tokens_ = 0;
};

Error copy_state(const LightningState& state, bool stores, const Launcher& launcher) {
  const LightningBounds& bounds = state.bounds;
  const Tensor& t = state.tensor;  // [heads, head_dim_k, head_dim_v]
  DecayedStateLaunch launch;
  launch.state = reinterpret_cast<char*>(state.states.slot(state.slot));
  launch.rows = {static_cast<char*>(t.data), t.stride[1], t.stride[0], t.stride[2], 0, 0,
                 element_of(t.dtype)};
  launch.dim_k = bounds.head_dim_k;
  launch.dim_v = bounds.head_dim_v;
  launch.padded_v = static_cast<int32_t>(padded_to_vectors(bounds.head_dim_v));
  launch.passed = state.passed;
  launch.stores = stores ? 1 : 0;
  for (int32_t head = 0; head < bounds.n_heads; head += launch_heads) {
    launch.first_head = head;
    launch.n_heads = std::min(launch_heads, bounds.n_heads - head);
    std::copy_n(state.slopes + head, launch.n_heads, launch.slope);
    const int64_t n_rows = int64_t{launch.n_heads} * launch.dim_k;
    if (Error e = launcher.launch_rows(decayed_state_kernel(), n_rows, &launch); e != Error::none)
      return e;
  }
  return Error::none;
}

}  // namespace

Error prepare_lightning() {
  int32_t blocks = 0;
  return runtime::prepare(
      decay_blocks_kernel(),
      {1, decay_threads, static_cast<size_t>(blocks_shared_bytes(decay_dim_max))}, &blocks);
}

Error lightning(const LightningParams& params, const Launcher& launcher) {
  if (params.q.data != nullptr) {
    if (Error e = clear_padding(params, launcher); e != Error::none) return e;
  }
  if (params.input == LightningInput::tensors) {
    if (Error e = keep(params, launcher); e != Error::none) return e;
  }
  for (const bool in_blocks : {false, true}) {
    if (Error e = DecayLaunches(params, launcher, in_blocks).run(); e != Error::none) return e;
  }
  return Error::none;
}

Error load_lightning(const LightningState& state, const Launcher& launcher) {
  return copy_state(state, false, launcher);
}
Error store_lightning(const LightningState& state, const Launcher& launcher) {
  return copy_state(state, true, launcher);
}

}  // namespace kvc::cuda
