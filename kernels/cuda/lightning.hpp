#pragma once
#include "core/attention/lightning.hpp"
#include "kernels/cuda/launcher.hpp"

/// Linear attention with decay (semantics §7): what lightning caches call (see CacheDevice). Rows, tokens and slopes are read before a call
/// returns; tensors have to stay until the stream has come so far. It works in the states and in what is kept.
namespace kvc::cuda {

/// Before the first of these calls on a device.
Error prepare_lightning();

/// No slot of `to` is one of `from`. Where an attention without a put comes to a row that is cut into several launches, the
/// state behind the row is written again, with the same bits.
Error lightning(const LightningParams& params, const Launcher& launcher);

// Of graphs (see PassRecorder). They read passes in the workspace of calls, as large as this.
size_t lightning_workspace_bytes(const LightningBounds& bounds);
Error record_lightning(const LightningParams& params, int32_t n_tokens, const Launcher& launcher);
Error replay_lightning(const LightningParams& params, const Launcher& launcher);

Error load_lightning(const LightningState& state, const Launcher& launcher);
Error store_lightning(const LightningState& state, const Launcher& launcher);

}  // namespace kvc::cuda
