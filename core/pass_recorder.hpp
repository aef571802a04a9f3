#pragma once
#include <cstdint>

#include "core/attention/lightning.hpp"
#include "core/attention/params.hpp"
#include "core/base/states.hpp"
#include "core/base/status.hpp"

namespace kvc {

/// The facet of a CacheDevice that can record what a pass does, as a graph that its caller captures from a stream, and that does it
/// again for other passes. A recording names no tokens: where they lie and what they see is what replay() says of a pass, just
/// before the caller launches the graph.
///
/// Calls follow the rules of CacheDevice.
class PassRecorder {
 public:
  virtual ~PassRecorder() = default;

  /// From now on the caller's graph records, for at most n_tokens tokens, what is given to `stream`. Until end_recording() no call
  /// but those below reaches the device.
  virtual void begin_recording(int32_t n_tokens, void* stream) noexcept = 0;
  virtual void end_recording() noexcept = 0;
  /// `params` name no cells.
  virtual Status record_store(const StoreParams& params) noexcept = 0;
  virtual Status record_store_codes(const StoreCodesParams& params) noexcept = 0;
  /// Whether record_attention() may follow. All calls that a cache records cut the plan of a pass in the same way.
  virtual Status check_recorded(const AttentionParams& params) const noexcept = 0;
  /// The plan of `params` has no rows.
  virtual Status record_attention(const AttentionParams& params) noexcept = 0;

  /// Memory for what a graph reads of a pass of states, of `n` tokens at most and as many rows and sequences: [Device::
  /// replayed_states_bytes(n)], aligned to 256. Before the calls on states below.
  virtual void place_states(std::byte* memory, int32_t n) noexcept = 0;
  // `params` name no slots. A pass has at most as many rows, or sequences, as they have.
  virtual Status record_load_states(const StateRows& params) noexcept = 0;
  virtual Status record_store_states(const StateRows& params) noexcept = 0;
  virtual Status record_conv(const ConvRows& params) noexcept = 0;
  /// Of linear attention. `params` name no tokens, and n_rows is the most that a pass has.
  virtual Status record_lightning(const LightningParams& params) noexcept = 0;

  /// Whether a pass of so many tokens may be replayed: what was recorded may have had more, not fewer.
  virtual Status check_replay(int32_t n_tokens) const noexcept = 0;
  /// Behind begin_pass() of the same plan: what recordings read. `cell` [n_tokens] as StoreParams has them, or null: nothing is put.
  virtual Status replay(const AttentionPlan& plan, const int32_t* cell, int32_t n_tokens) noexcept = 0;
  /// The same for a cache of states.
  virtual Status replay_states(const StatePass& pass) noexcept = 0;
  /// The same for a cache of linear attention: rows and tokens of `params`, and padding.
  virtual Status replay_lightning(const LightningParams& params) noexcept = 0;
};

}  // namespace kvc
