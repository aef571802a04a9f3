#include "kernels/cuda/attention.hpp"

#include <algorithm>
#include <utility>

#include "kernels/cuda/pass.hpp"

namespace kvc::cuda {
namespace {

constexpr size_t alignment = 256;
/// What a multiprocessor reads in the two microseconds that a launch takes, in tokens of a KV head of 128 dims: 64 KB.
constexpr int64_t tokens_of_a_launch = 128;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

struct ConstantBytes {
  size_t on_device, on_host;
};
ConstantBytes constants_bytes(const AttentionBounds& bounds) {
  Carver on_device, on_host;
  LayerConstants().carve(bounds, on_device, on_host);
  return {aligned(on_device.used().value()), on_host.used().value()};
}
size_t counters_bytes(const AttentionBounds& bounds) {
  return static_cast<size_t>(Schedule::n_slots(bounds)) * sizeof(int32_t);
}
size_t waves_bytes(const AttentionBounds& bounds) {
  const auto n = widths.size() * static_cast<size_t>(Schedule::most_waves(bounds));
  return (n * sizeof(LaunchedParts) + 15) / 16 * 16;
}
size_t partial_bytes(const AttentionBounds& bounds) {
  return static_cast<size_t>(Schedule::n_slots(bounds)) * tile_columns *
         (static_cast<size_t>(bounds.head_dim_v) + 2) * sizeof(float);
}

Error launch(const AttentionKernel& what, const AttentionArguments& a, int64_t n_items,
             const Launcher& launcher) {
  const auto blocks = static_cast<uint32_t>(std::min<int64_t>(n_items, launcher.most_blocks));
  return launch(what, a, blocks, launcher.stream);
}

}  // namespace

size_t Attention::memory_bytes(const AttentionBounds& bounds) {
  return aligned(Schedule::block_bytes(bounds)) + constants_bytes(bounds).on_device +
         aligned(counters_bytes(bounds)) + aligned(waves_bytes(bounds)) +
         aligned(partial_bytes(bounds));
}

size_t Attention::host_bytes(const AttentionBounds& bounds) {
  return aligned(Schedule::host_bytes(bounds) + waves_bytes(bounds)) + constants_bytes(bounds).on_host;
}

Attention::Attention(const AttentionBounds& bounds, const Abilities& abilities,
                     int32_t n_multiprocessors, std::byte* memory, std::byte* on_host)
    : bounds_(bounds),
      schedule_(bounds, on_host),
      waves_(reinterpret_cast<LaunchedParts*>(on_host + Schedule::host_bytes(bounds))),
      abilities_(abilities),
      n_multiprocessors_(n_multiprocessors),
      block_(memory) {
  std::byte* const constants = memory + aligned(Schedule::block_bytes(bounds));
  Carver on_device(constants),
      host(on_host + aligned(Schedule::host_bytes(bounds) + waves_bytes(bounds)));
  constants_.carve(bounds, on_device, host);
  counters_ = reinterpret_cast<int32_t*>(constants + constants_bytes(bounds).on_device);
  std::byte* const launched = reinterpret_cast<std::byte*>(counters_) +
                              aligned(counters_bytes(bounds));
  launched_ = reinterpret_cast<LaunchedParts*>(launched);
  partial_ = reinterpret_cast<float*>(launched + aligned(waves_bytes(bounds)));
}

/// Weights are written tile by tile, so each has to see all that its rows do.
Cut Attention::cut_of(const AttentionParams& params) const {
  const int32_t n_kv_heads = params.storage.k.n_heads;
  const AttentionArguments a = arguments_of(params, {});
  const AttentionKernel* const wide = wide_kernel_for(a, abilities_);
  return {.narrow = {n_kv_heads, params.constants.n_q_heads / n_kv_heads},
          .has_medium = medium_kernel_for(a) != nullptr,
          .wide = wide != nullptr ? wide->columns : 0,
          .least_saved = params.tensors.weights.data != nullptr
                             ? shares_nothing
                             : n_multiprocessors_ * tokens_of_a_launch};
}

/// Only what is used of each array.
Error Attention::upload_schedule(const Launcher& launcher) {
  for (const Schedule::Array& array : schedule_.arrays()) {
    const Error e = upload(block_ + array.at, schedule_.block() + array.at, array.bytes, launcher);
    if (e != Error::none) {
      schedule_.forget();
      return e;
    }
  }
  return Error::none;
}

/// `turns`: some key may owe a rotation.
Error Attention::bring_constants(const AttentionParams& params, bool turns, bool is_captured,
                                 AttentionArguments& a, const Launcher& launcher) {
  const AttentionConstants& given = params.constants;
  const auto bring = [&](Constants& of, const auto* array, int32_t n, const auto*& there) -> Error {
    if (array == nullptr) return Error::none;
    const std::byte* at = nullptr;
    const Error e = of.bring(array, static_cast<size_t>(n) * sizeof *array, is_captured, launcher,
                             &at);
    there = reinterpret_cast<decltype(array)>(at);
    return e;
  };
  const int32_t n_heads = given.n_q_heads;
  if (Error e = bring(constants_.slopes, given.slopes, n_heads, a.slopes); e != Error::none)
    return e;
  const float* const sinks = params.tensors.leaves_sinks_out ? nullptr : given.sinks;
  if (Error e = bring(constants_.sinks, sinks, n_heads, a.sinks); e != Error::none) return e;
  const Slab &k = params.storage.k, &v = params.storage.v;
  if (Error e = bring(constants_.k_scales, k.head_scale, k.n_heads, a.k.head_scale); e != Error::none)
    return e;
  if (Error e = bring(constants_.v_scales, v.head_scale, v.n_heads, a.v.head_scale); e != Error::none)
    return e;
  if (!turns || given.rope.n_dims == 0) return Error::none;
  a.rope_dims = given.rope.n_dims;
  a.rope_first = given.rope.first_dim;
  a.rope_halves = given.rope.halves ? 1 : 0;
  return bring(constants_.frequencies, given.rope.frequency, a.rope_dims / 2, a.frequency);
}

AttentionArguments Attention::placed(const AttentionParams& params, const DeviceTokens& tokens) const {
  AttentionArguments a = arguments_of(params, tokens);
  place_schedule(a, schedule_, block_);
  a.partial = partial_;
  a.counters = counters_;
  return a;
}

/// The first call of a pass uploads its schedule, and so does one that cuts in another way.
Error Attention::run(const AttentionParams& params, const DeviceTokens& tokens,
                     const Launcher& launcher) {
  const Cut cut = cut_of(params);
  if (!schedule_.is_cut_for(cut)) {
    schedule_.cut(params.plan, cut);
    if (Error e = upload_schedule(launcher); e != Error::none) return e;
  }
  AttentionArguments a = placed(params, tokens);
  const bool turns = std::any_of(params.plan.lists, params.plan.lists + params.plan.n_lists,
                                 [](const TokenList& list) { return list.has_pending; });
  if (Error e = bring_constants(params, turns, false, a, launcher); e != Error::none) return e;
  for (int32_t i = 0; i < schedule_.n_waves(); ++i) {
    place_wave(a, schedule_, i);
    const AttentionKernel& kernel = kernel_for(a, schedule_.wave(i).width, abilities_);
    const int64_t n_items = int64_t{a.n_parts} * a.shape.turns();
    if (Error e = launch(kernel, a, n_items, launcher); e != Error::none) return e;
  }
  if (a.weights.data == nullptr) return Error::none;
  return launch(weights_kernel_for(a), a, int64_t{a.n_tiles} * a.shape.turns(), launcher);
}

// ---- Graphs -------------------------------------------------------------------------------------------------------------------

bool Attention::can_record(const AttentionParams& params) const {
  return recorded_.narrow.n_kv_heads == 0 || recorded_ == cut_of(params);
}

/// Grids are as large as the device has use for: what there is to do is not known.
Error Attention::record(const AttentionParams& params, const DeviceTokens& tokens, int32_t n_tokens,
                        const Launcher& launcher) {
  recorded_ = cut_of(params);
  AttentionArguments a = placed(params, tokens);
  a.seen = params.plan.seen_words > 0 ? tokens.seen : nullptr;
  if (Error e = bring_constants(params, true, true, a, launcher); e != Error::none) return e;
  for (const Width width : widths) {
    place_width(a, recorded_.shape_of(width), width);
    for (int32_t i = 0; i < most_waves(width, n_tokens); ++i) {
      a.launched = launched_ + first_wave(width) + i;
      const AttentionKernel& kernel = kernel_for(a, width, abilities_);
      if (Error e = launch(kernel, a, launcher.most_blocks, launcher); e != Error::none) return e;
    }
  }
  if (a.weights.data == nullptr) return Error::none;
  return launch(weights_kernel_for(a), a, launcher.most_blocks, launcher);
}

Error Attention::replay(const AttentionPlan& plan, const Launcher& launcher) {
  if (recorded_.narrow.n_kv_heads == 0) return Error::none;  // graphs only put
  schedule_.cut(plan, recorded_);
  if (Error e = upload_schedule(launcher); e != Error::none) return e;
  const int32_t n = first_wave(widths.back()) + most_waves(widths.back(), bounds_.max_batch);
  std::fill_n(waves_, n, LaunchedParts{0, 0, schedule_.n_tiles()});
  for (int32_t i = 0, of_width = 0; i < schedule_.n_waves(); ++i) {
    const Wave& wave = schedule_.wave(i);
    of_width = i > 0 && schedule_.wave(i - 1).width == wave.width ? of_width + 1 : 0;
    waves_[first_wave(wave.width) + of_width] = {wave.first_part, wave.n_parts, schedule_.n_tiles()};
  }
  return upload(reinterpret_cast<std::byte*>(launched_), waves_,
                static_cast<size_t>(n) * sizeof(LaunchedParts), launcher);
}

int32_t Attention::most_waves(Width width, int32_t n_tokens) const {
  return Schedule::most_waves(bounds_, recorded_, width, n_tokens);
}

/// Those of a width lie behind those of wider ones, as in a schedule.
int32_t Attention::first_wave(Width width) const {
  int32_t n = 0;
  for (const Width wider : widths)
    if (wider < width) n += most_waves(wider, bounds_.max_batch);
  return n;
}

}  // namespace kvc::cuda
