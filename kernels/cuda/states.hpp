#pragma once
#include "core/base/states.hpp"
#include "kernels/cuda/launcher.hpp"
#include "kernels/cuda/state_params.hpp"

/// Writes states into slots, reads, copies and clears them: what caches of states call (see CacheDevice). Slots and the order of
/// tokens are read before a call returns; tensors have to stay until the stream has come so far.
namespace kvc::cuda {

Error store_states(const StateRows& params, const Launcher& launcher);
Error load_states(const StateRows& params, const Launcher& launcher);
Error store_conv(const ConvRows& params, const Launcher& launcher);
Error copy_states(const StateCopies& params, const Launcher& launcher);
Error clear_states(const StateClears& params, const Launcher& launcher);

// Of graphs (see PassRecorder).
Error record_states(const StateRows& params, bool loads, const PlannedStates& planned,
                    const Launcher& launcher);
Error record_conv(const ConvRows& params, const PlannedStates& planned, const Launcher& launcher);
Error replay_states(const StatePass& pass, const PlannedStates& planned, const Launcher& launcher);

}  // namespace kvc::cuda
