#include <algorithm>

#include "kernels/cuda/cache_device.hpp"
#include "kernels/cuda/lightning.hpp"
#include "kernels/cuda/pass.hpp"
#include "kernels/cuda/row_params.hpp"
#include "kernels/cuda/rows.hpp"
#include "kernels/cuda/states.hpp"

/// Passes that graphs do. A graph is captured from the launches of one pass that has no tokens, and does others: its launches are the
/// same each time, and read how many tokens there are, which cells they go to and what they see where replay() puts it.
namespace kvc::cuda {

void CudaCacheDevice::begin_recording(int32_t n_tokens, void* stream) noexcept {
  recording_ = {n_tokens, stream};
  recorded_tokens_ = std::max(recorded_tokens_, n_tokens);
}

void CudaCacheDevice::end_recording() noexcept { recording_ = {}; }

Status CudaCacheDevice::record_store(const StoreParams& params) noexcept {
  return run("the capture of a put", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return cuda::record_store(params, workspace_.planned, launcher);
  });
}

Status CudaCacheDevice::record_store_codes(const StoreCodesParams& params) noexcept {
  return run("the capture of a put of codes", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return cuda::record_store_codes(params, workspace_.planned, launcher);
  });
}

Status CudaCacheDevice::check_recorded(const AttentionParams& params) const noexcept {
  if (attention_.can_record(params)) return Status::ok;
  return fail(
      Status::not_supported,
      "the call has %d query heads and wants %s weights, and one that was captured before is "
      "unlike it: all calls that are captured need as many query heads, and weights or none",
      params.constants.n_q_heads, params.tensors.weights.data != nullptr ? "its" : "no");
}

Status CudaCacheDevice::record_attention(const AttentionParams& params) noexcept {
  return run("the capture of attention", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return attention_.record(params, tokens(), recording_.n_tokens, launcher);
  });
}

void CudaCacheDevice::place_states(std::byte* memory, int32_t n) noexcept {
  Carver carver(memory);
  states_.carve(n, carver);
}

Status CudaCacheDevice::record_load_states(const StateRows& params) noexcept {
  return run("the capture of the reading of states", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return record_states(params, true, states_, launcher);
  });
}

Status CudaCacheDevice::record_store_states(const StateRows& params) noexcept {
  return run("the capture of a put of states", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return record_states(params, false, states_, launcher);
  });
}

Status CudaCacheDevice::record_conv(const ConvRows& params) noexcept {
  return run("the capture of a put of a convolution's inputs", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return cuda::record_conv(params, states_, launcher);
  });
}

Status CudaCacheDevice::record_lightning(const LightningParams& params) noexcept {
  return run("the capture of linear attention", [&](Launcher launcher) {
    launcher.stream = recording_.stream;
    return cuda::record_lightning(params, recording_.n_tokens, launcher);
  });
}

Status CudaCacheDevice::check_replay(int32_t n_tokens) const noexcept {
  if (recorded_tokens_ == 0) {
    return fail(
        Status::bad_state,
        "no pass of the cache has been captured: begin one with KVC_BEGIN_RESERVE while its "
        "stream is being captured");
  }
  if (n_tokens <= recorded_tokens_) return Status::ok;
  return fail(Status::invalid_argument,
              "n_tokens is %d, and the largest pass that was captured has %d", n_tokens,
              recorded_tokens_);
}

/// Launches of a graph read bits in every pass, or in none. A plan without them leaves what is seen to its rows.
Error CudaCacheDevice::show_all(const AttentionPlan& plan, int32_t n_tokens, const Launcher& launcher) {
  if (plan.seen != nullptr || n_tokens <= n_all_seen_) return Error::none;
  constexpr size_t at_once = 1024;
  uint64_t all[at_once];
  std::fill_n(all, at_once, ~uint64_t{0});
  const auto n_words = static_cast<size_t>(n_tokens) * static_cast<size_t>(plan.seen_words);
  for (size_t first = 0; first < n_words; first += at_once) {
    const size_t n = std::min(at_once, n_words - first);
    auto* const to = reinterpret_cast<std::byte*>(workspace_.seen + first);
    if (Error e = upload(to, all, n * sizeof(uint64_t), launcher); e != Error::none) return e;
  }
  n_all_seen_ = n_tokens;
  return Error::none;
}

Status CudaCacheDevice::replay(const AttentionPlan& plan, const int32_t* cell,
                               int32_t n_tokens) noexcept {
  return run("the begin of a replay", [&](const Launcher& launcher) -> Error {
    auto* const number = reinterpret_cast<std::byte*>(workspace_.planned);
    if (Error e = upload(number, &n_tokens, sizeof n_tokens, launcher); e != Error::none) return e;
    auto* const cells = reinterpret_cast<std::byte*>(workspace_.planned + planned_cells);
    const size_t n_bytes = cell == nullptr ? 0 : static_cast<size_t>(n_tokens) * sizeof(int32_t);
    if (Error e = upload(cells, cell, n_bytes, launcher); e != Error::none) return e;
    if (Error e = show_all(plan, n_tokens, launcher); e != Error::none) return e;
    return attention_.replay(plan, launcher);
  });
}

Status CudaCacheDevice::replay_states(const StatePass& pass) noexcept {
  return run("the begin of a replay",
             [&](const Launcher& launcher) { return cuda::replay_states(pass, states_, launcher); });
}

Status CudaCacheDevice::replay_lightning(const LightningParams& params) noexcept {
  return run("the begin of a replay",
             [&](const Launcher& launcher) { return cuda::replay_lightning(params, launcher); });
}

}  // namespace kvc::cuda
