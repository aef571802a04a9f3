#include "kernels/cuda/lightning_launches.hpp"

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

}  // namespace

/// Token `index` of a row.
DecayToken token_of(const LightningParams& params, const LightningRow& row, int32_t index) {
  const LightningToken& token = params.token[row.first_token + index];
  const int32_t kept = row.first_kept + index;
  return {static_cast<uint32_t>(token.index) * 2 + (token.is_masked ? 1 : 0),
          row.is_drafted ? ~kept : kept};
}

KeepLaunch keep_launch(const LightningParams& params) {
  KeepLaunch launch;
  launch.k = keys_of(params);
  launch.v = values_of(params);
  launch.k_rows = view_of(params.k);
  launch.v_rows = view_of(params.v);
  launch.n_heads = params.bounds.n_heads;
  return launch;
}

PaddingLaunch padding_launch(const LightningParams& params) {
  PaddingLaunch launch;
  launch.out = view_of(params.out);
  launch.n_heads = params.n_q_heads;
  launch.dim = params.bounds.head_dim_v;
  return launch;
}

DecayLaunch decay_launch(const LightningParams& params, bool in_blocks) {
  DecayLaunch launch;
  launch.states = reinterpret_cast<char*>(params.states.data);
  launch.slot_bytes = static_cast<int64_t>(params.states.slot_bytes);
  launch.k = keys_of(params);
  launch.v = values_of(params);
  launch.padded_v = static_cast<int32_t>(padded_to_vectors(params.bounds.head_dim_v));
  launch.writes = params.writes_states ? 1 : 0;
  if (params.input == LightningInput::tensors && !in_blocks) {
    launch.put_k = view_of(params.k);
    launch.put_v = view_of(params.v);
  }
  if (params.q.data == nullptr) return launch;
  launch.q = view_of(params.q);
  launch.out = view_of(params.out);
  launch.group = params.n_q_heads / params.bounds.n_heads;
  launch.scale = params.scale;
  return launch;
}

Error launch_all_heads(const LightningParams& params, bool in_blocks, int32_t n_segments,
                       DecayLaunch& launch, const Launcher& launcher) {
  const LightningBounds& bounds = params.bounds;
  const Kernel kernel = in_blocks ? decay_blocks_kernel() : decay_step_kernel();
  const int32_t shared = in_blocks ? blocks_shared_bytes(bounds.head_dim_k)
                                   : step_shared_bytes(bounds.head_dim_k);
  const int32_t panel = in_blocks ? decay_tile : step_columns;
  const int64_t panels = (launch.padded_v + panel - 1) / panel;
  for (int32_t head = 0; head < bounds.n_heads && n_segments > 0; head += launch_heads) {
    launch.first_head = head;
    launch.n_heads = std::min(launch_heads, bounds.n_heads - head);
    std::copy_n(params.slopes + head, launch.n_heads, launch.slope);
    const int64_t n_items = n_segments * launch.n_heads * panels;
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>(n_items, launcher.most_blocks));
    const Error e = runtime::launch(kernel, {blocks, decay_threads, static_cast<size_t>(shared)},
                                    &launch, launcher.stream);
    if (e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
