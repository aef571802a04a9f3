#pragma once
#include "core/attention/lightning.hpp"
#include "core/base/thread_pool.hpp"

/// Linear attention with decay: what lightning caches call.
namespace kvc::cpu {

/// Bytes that lightning() needs at most under these bounds.
size_t lightning_workspace_bytes(const LightningBounds& bounds, int32_t n_threads) noexcept;

void lightning(const LightningParams& params, ThreadPool& pool) noexcept;

/// States to and from tensors. `load` multiplies as lightning() does where nothing but time passes.
void load_lightning(const LightningState& state) noexcept;
void store_lightning(const LightningState& state) noexcept;

}  // namespace kvc::cpu
