#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/general_layout.hpp"
#include "kernels/cuda/launcher.hpp"
#include "kernels/cuda/schedule.hpp"

/// Attention on the device: what a cache's CacheDevice calls.
namespace kvc::cuda {

/// Head dimensions, of K and of V, that the shared memory which a block has unasked has room for.
inline constexpr int32_t head_dim_max = 576;
static_assert(GeneralLayout{head_dim_max, head_dim_max, head_dim_max}.bytes() <= 48 << 10);

/// The attention calls of one cache. run() takes no memory and waits for nothing.
class Attention {
 public:
  /// Bytes of device memory, aligned to 256, that run() works in.
  static size_t memory_bytes(const AttentionBounds& bounds);

  /// The same of host memory.
  static size_t host_bytes(const AttentionBounds& bounds) { return Schedule::host_bytes(bounds); }

  /// `memory` holds zeros. Blocks may have `shared_bytes_max` of shared memory.
  Attention(const AttentionBounds& bounds, size_t shared_bytes_max, std::byte* memory,
            std::byte* on_host);

  /// A plan begins, or has changed.
  void forget() { schedule_.forget(); }

  /// One call, with its weights. What `params` refers to on the host is read before run() returns.
  Error run(const AttentionParams& params, const DeviceTokens& tokens, const Launcher& launcher);

 private:
  Error upload_schedule(const AttentionParams& params, bool has_wide, const Launcher& launcher);
  Error upload_constants(const AttentionParams& params, AttentionArguments& a,
                         const Launcher& launcher) const;

  Schedule schedule_;
  size_t shared_bytes_max_;
  std::byte* block_;      // of the schedule
  std::byte* constants_;  // slopes, sinks, frequencies, scales of f8 heads
  int32_t* counters_;
  float* partial_;
  int32_t max_q_heads_, head_dim_k_;
};

}  // namespace kvc::cuda
