#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/params.hpp"
#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/constants.hpp"
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
  static size_t host_bytes(const AttentionBounds& bounds);

  /// `memory` holds zeros. Blocks lie on so many multiprocessors.
  Attention(const AttentionBounds& bounds, const Abilities& abilities, int32_t n_multiprocessors,
            std::byte* memory, std::byte* on_host);

  /// A plan begins, or has changed.
  void forget() { schedule_.forget(); }

  /// One call, with its weights. What `params` refers to on the host is read before run() returns.
  Error run(const AttentionParams& params, const DeviceTokens& tokens, const Launcher& launcher);

  // Of graphs: the launches of a call are captured, and read what replay() says of the plan of a pass.

  /// Whether record() may follow: one cut serves all calls that were recorded.
  bool can_record(const AttentionParams& params) const;
  /// A call for passes of at most n_tokens tokens.
  Error record(const AttentionParams& params, const DeviceTokens& tokens, int32_t n_tokens,
               const Launcher& launcher);
  Error replay(const AttentionPlan& plan, const Launcher& launcher);

 private:
  Cut cut_of(const AttentionParams& params) const;
  /// Launches of one width that a recorded call has for passes of so many tokens.
  int32_t most_waves(Width width, int32_t n_tokens) const;
  /// Where they are told what to do.
  int32_t first_wave(Width width) const;
  Error upload_schedule(const Launcher& launcher);
  Error bring_constants(const AttentionParams& params, bool turns, bool is_captured,
                        AttentionArguments& a, const Launcher& launcher);
  AttentionArguments placed(const AttentionParams& params, const DeviceTokens& tokens) const;

  const AttentionBounds bounds_;
  Schedule schedule_;
  LaunchedParts* waves_;  // [widths][most_waves] of recorded calls, on the host: what replay() uploads
  LaunchedParts* launched_;  // likewise on the device
  Cut recorded_;             // of the calls that were; none where n_kv_heads is 0
  const Abilities abilities_;
  int32_t n_multiprocessors_;
  std::byte* block_;  // of the schedule
  LayerConstants constants_;
  int32_t* counters_;
  float* partial_;
};

}  // namespace kvc::cuda
