#pragma once
#include "core/base/states.hpp"
#include "kernels/cuda/launcher.hpp"

/// Writes states into slots, reads, copies and clears them: what caches of states call (see CacheDevice). Slots and the order of
/// tokens are read before a call returns; tensors have to stay until the stream has come so far.
namespace kvc::cuda {

Error store_states(const StateRows& params, const Launcher& launcher);
Error load_states(const StateRows& params, const Launcher& launcher);
Error store_conv(const ConvRows& params, const Launcher& launcher);
Error copy_states(const StateCopies& params, const Launcher& launcher);
Error clear_states(const StateClears& params, const Launcher& launcher);

}  // namespace kvc::cuda
