#include "kernels/cuda/attention.hpp"

#include <algorithm>
#include <utility>

#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/pass.hpp"

namespace kvc::cuda {
namespace {

constexpr size_t alignment = 256;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

size_t constants_bytes(const AttentionBounds& bounds) {
  return aligned(static_cast<size_t>(bounds.max_q_heads) * 4) * 2 +
         aligned(static_cast<size_t>(bounds.head_dim_k) * 4) +
         aligned(static_cast<size_t>(bounds.n_kv_heads) * 4) * 2;
}
size_t counters_bytes(const AttentionBounds& bounds) {
  return static_cast<size_t>(Schedule::n_slots(bounds)) * sizeof(int32_t);
}
size_t partial_bytes(const AttentionBounds& bounds) {
  return static_cast<size_t>(Schedule::n_slots(bounds)) * tile_columns *
         (static_cast<size_t>(bounds.head_dim_v) + 2) * sizeof(float);
}

}  // namespace

size_t Attention::memory_bytes(const AttentionBounds& bounds) {
  return aligned(Schedule::block_bytes(bounds)) + constants_bytes(bounds) +
         aligned(counters_bytes(bounds)) + aligned(partial_bytes(bounds));
}

Attention::Attention(const AttentionBounds& bounds, size_t shared_bytes_max, std::byte* memory,
                     std::byte* on_host)
    : schedule_(bounds, on_host),
      shared_bytes_max_(shared_bytes_max),
      block_(memory),
      constants_(block_ + aligned(Schedule::block_bytes(bounds))),
      counters_(reinterpret_cast<int32_t*>(constants_ + constants_bytes(bounds))),
      partial_(reinterpret_cast<float*>(reinterpret_cast<std::byte*>(counters_) +
                                        aligned(counters_bytes(bounds)))),
      max_q_heads_(bounds.max_q_heads),
      head_dim_k_(bounds.head_dim_k) {}

/// Only what is used of each array, and of all arrays the first call of a pass.
Error Attention::upload_schedule(const AttentionParams& params, bool has_wide,
                                 const Launcher& launcher) {
  const TileShape shape = {params.storage.k.n_heads,
                           params.constants.n_q_heads / params.storage.k.n_heads};
  if (schedule_.is_cut_for(shape, has_wide)) return Error::none;
  schedule_.cut(params.plan, shape, has_wide);
  for (const Schedule::Array& array : schedule_.arrays()) {
    const Error e = upload(block_ + array.at, schedule_.block() + array.at, array.bytes, launcher);
    if (e != Error::none) {
      schedule_.forget();
      return e;
    }
  }
  return Error::none;
}

Error Attention::upload_constants(const AttentionParams& params, AttentionArguments& a,
                                  const Launcher& launcher) const {
  const AttentionConstants& constants = params.constants;
  const size_t heads_bytes = static_cast<size_t>(constants.n_q_heads) * sizeof(float);
  std::byte* const slopes = constants_;
  std::byte* const sinks = slopes + aligned(static_cast<size_t>(max_q_heads_) * 4);
  std::byte* const frequency = sinks + aligned(static_cast<size_t>(max_q_heads_) * 4);
  if (constants.slopes != nullptr) {
    if (Error e = upload(slopes, constants.slopes, heads_bytes, launcher); e != Error::none)
      return e;
    a.slopes = reinterpret_cast<const float*>(slopes);
  }
  if (constants.sinks != nullptr && !params.tensors.leaves_sinks_out) {
    if (Error e = upload(sinks, constants.sinks, heads_bytes, launcher); e != Error::none) return e;
    a.sinks = reinterpret_cast<const float*>(sinks);
  }
  std::byte* head_scale = frequency + aligned(static_cast<size_t>(head_dim_k_) * 4);
  const auto upload_scales = [&](const Slab& slab, Numbers& numbers) -> Error {
    if (slab.head_scale == nullptr) return Error::none;
    const size_t bytes = static_cast<size_t>(slab.n_heads) * sizeof(float);
    numbers.head_scale = reinterpret_cast<const float*>(head_scale);
    std::byte* const to = std::exchange(head_scale, head_scale + aligned(bytes));
    return upload(to, slab.head_scale, bytes, launcher);
  };
  if (Error e = upload_scales(params.storage.k, a.k); e != Error::none) return e;
  if (Error e = upload_scales(params.storage.v, a.v); e != Error::none) return e;
  const bool has_pending = std::any_of(params.plan.lists, params.plan.lists + params.plan.n_lists,
                                       [](const TokenList& list) { return list.has_pending; });
  if (!has_pending || constants.rope.n_dims == 0) return Error::none;
  a.rope_dims = constants.rope.n_dims;
  a.rope_first = constants.rope.first_dim;
  a.rope_halves = constants.rope.halves ? 1 : 0;
  a.frequency = reinterpret_cast<const double*>(frequency);
  return upload(frequency, constants.rope.frequency,
                static_cast<size_t>(constants.rope.n_dims / 2) * sizeof(double), launcher);
}

Error Attention::run(const AttentionParams& params, const DeviceTokens& tokens,
                     const Launcher& launcher) {
  AttentionArguments a = arguments_of(params, tokens);
  const AttentionKernel& narrow = kernel_for(a);
  const AttentionKernel* const wide = wide_kernel_for(a, shared_bytes_max_);
  if (Error e = upload_schedule(params, wide != nullptr, launcher); e != Error::none) return e;
  if (Error e = upload_constants(params, a, launcher); e != Error::none) return e;
  place_schedule(a, schedule_, block_);
  a.partial = partial_;
  a.counters = counters_;
  const auto launch = [&](const AttentionKernel& what, int64_t n_items) {
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>(n_items, launcher.most_blocks));
    return runtime::launch(what.kernel, {blocks, what.threads, what.shared_bytes(a)}, &a,
                           launcher.stream);
  };
  for (int32_t i = 0; i < schedule_.n_waves(); ++i) {
    place_wave(a, schedule_, i);
    const AttentionKernel& kernel = schedule_.wave(i).is_wide ? *wide : narrow;
    if (Error e = launch(kernel, int64_t{a.n_parts} * a.shape.turns()); e != Error::none) return e;
  }
  if (a.weights.data == nullptr) return Error::none;
  return launch(weights_kernel_for(a), int64_t{a.n_tiles} * a.shape.turns());
}

}  // namespace kvc::cuda
