#pragma once
#include "core/base/states.hpp"
#include "core/base/thread_pool.hpp"

/// Writes states into slots, reads, copies and clears them: what recurrent caches call.
namespace kvc::cpu {

void store_states(const StateRows& params, ThreadPool& pool) noexcept;
void load_states(const StateRows& params, ThreadPool& pool) noexcept;
void store_conv(const ConvRows& params, ThreadPool& pool) noexcept;
void copy_states(const StateCopies& params, ThreadPool& pool) noexcept;
void clear_states(const StateClears& params, ThreadPool& pool) noexcept;

}  // namespace kvc::cpu
