#include "kernels/cuda/lightning.hpp"

#include <algorithm>

#include "kernels/cuda/lightning_launches.hpp"
#include "kernels/cuda/row_views.hpp"

namespace kvc::cuda {
namespace {

Error clear_padding(const LightningParams& params, const Launcher& launcher) {
  PaddingLaunch launch = padding_launch(params);
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
  KeepLaunch launch = keep_launch(params);
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
        launch_(decay_launch(params, in_blocks)) {}

  /// Segments in rounds: the next one of a row begins at what the one before wrote.
  Error run() {
    bool has_more = true;
    for (int32_t first = 0; has_more; first += segment_tokens) {
      has_more = false;
      for (const LightningRow* row = params_.row; row < params_.row + params_.n_rows; ++row) {
        const bool steps = is_step(params_, *row);
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
    segment = {first == 0 ? row.from : row.to, row.to, n_blocks_, 0, is_cut ? 1 : 0};
    if (has_tokens) {
      for_blocks(params_, row, first, n, [&](int32_t at, int32_t n_tokens, int32_t gap) {
        launch_.block[n_blocks_++] = {n_tokens_, n_tokens, gap};
        for (int32_t t = at; t < at + n_tokens; ++t)
          launch_.token[n_tokens_++] = token_of(params_, row, t);
      });
    } else {
      const int32_t last = params_.token[row.first_token + row.n_tokens - 1].position;
      launch_.block[n_blocks_++] = {n_tokens_, 0, last + 1 - row.next};
    }
    segment.n_blocks = n_blocks_ - segment.first_block;
    return Error::none;
  }

  Error flush() {
    const Error e = launch_all_heads(params_, in_blocks_, launch_.n_segments, launch_, launcher_);
    launch_.n_segments = n_blocks_ = n_tokens_ = 0;
    return e;
  }

  const LightningParams& params_;
  const Launcher& launcher_;
  const bool in_blocks_;
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
