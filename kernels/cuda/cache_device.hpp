#pragma once
#include <memory>
#include <mutex>

#include "core/base/carver.hpp"
#include "core/device.hpp"
#include "kernels/cuda/attention.hpp"
#include "kernels/cuda/launcher.hpp"
#include "kernels/cuda/state_params.hpp"

namespace kvc::cuda {

/// What all caches of a device share.
struct DeviceShape {
  int32_t device = 0;
  int32_t n_multiprocessors = 1;
  Abilities abilities;
};

/// What a cache has in device memory beside keys and values.
struct CacheWorkspace {
  int32_t* cell = nullptr;         // [n_token_entries] copies of the token arrays
  int32_t* position = nullptr;     // likewise
  uint64_t* seen = nullptr;        // [max_batch][seen_words] of the pass
  std::byte* staging = nullptr;    // [staging_bytes] rows on their way to the host or from there
  int32_t* planned = nullptr;      // of a pass that a graph does: StoreLaunch::planned
  std::byte* attention = nullptr;  // Attention::memory_bytes()

  static constexpr size_t staging_bytes = size_t{256} << 10;

  void carve(const AttentionBounds& bounds, Carver& carver);
};

/// One cache on a device. All of its work is in one order, that of the pass's stream. When a pass comes on another stream than the
/// one before, an event makes the new stream wait for the old one; calls outside a pass go where the last pass went. So a cell
/// that the host gives to another token is read by nobody who should still see the first.
///
/// CUDA tells of a fault at some later call, whichever cache makes it, and for ever: each such call returns DEVICE.
class CudaCacheDevice final : public CacheDevice, public PassRecorder {
 public:
  /// The current device is that of the shape.
  static Status create(const DeviceShape& shape, const AttentionBounds& bounds,
                       const WorkspaceBlocks& workspace, std::unique_ptr<CacheDevice>* out);
  ~CudaCacheDevice() override;
  CudaCacheDevice(const CudaCacheDevice&) = delete;
  CudaCacheDevice& operator=(const CudaCacheDevice&) = delete;

  Status begin_pass(const AttentionPlan& plan, const TokenChanges& changes,
                    void* stream) noexcept override;
  Status store(const StoreParams& params) noexcept override;
  Status store_codes(const StoreCodesParams& params) noexcept override;
  Status load(const LoadParams& params) noexcept override;
  Status move(const MoveParams& params) noexcept override;
  Status copy(const CopyParams& params, const CacheDevice& source) noexcept override;
  Status clear(const ClearParams& params) noexcept override;
  Status attention(const AttentionOperator& op, const AttentionParams& params) noexcept override;
  /// What the operators of the device run.
  Status attend(const AttentionParams& params) noexcept;
  Status write_mask(const MaskParams& params) noexcept override;
  /// These two wait. So does whoever comes while another thread is in the first.
  Status read_rows(const RowBytes& rows) const noexcept override;
  Status write_rows(const RowBytes& rows) noexcept override;

  Status store_states(const StateRows& params) noexcept override;
  Status load_states(const StateRows& params) noexcept override;
  Status store_conv(const ConvRows& params) noexcept override;
  Status copy_states(const StateCopies& params, const CacheDevice& source) noexcept override;
  Status finish_copies() noexcept override;
  Status clear_states(const StateClears& params) noexcept override;

  Status lightning(const LightningParams& params) noexcept override;
  Status load_lightning(const LightningState& state) const noexcept override;
  Status store_lightning(const LightningState& state) noexcept override;

  // Graphs (recording.cpp).
  PassRecorder* recorder() noexcept override { return this; }
  void begin_recording(int32_t n_tokens, void* stream) noexcept override;
  void end_recording() noexcept override;
  Status record_store(const StoreParams& params) noexcept override;
  Status record_store_codes(const StoreCodesParams& params) noexcept override;
  Status check_recorded(const AttentionParams& params) const noexcept override;
  Status record_attention(const AttentionParams& params) noexcept override;
  void place_states(std::byte* memory, int32_t n) noexcept override;
  Status record_load_states(const StateRows& params) noexcept override;
  Status record_store_states(const StateRows& params) noexcept override;
  Status record_conv(const ConvRows& params) noexcept override;
  Status record_lightning(const LightningParams& params) noexcept override;
  Status check_replay(int32_t n_tokens) const noexcept override;
  Status replay(const AttentionPlan& plan, const int32_t* cell, int32_t n_tokens) noexcept override;
  Status replay_states(const StatePass& pass) noexcept override;
  Status replay_lightning(const LightningParams& params) noexcept override;

 private:
  CudaCacheDevice(const DeviceShape& shape, const AttentionBounds& bounds,
                  const CacheWorkspace& workspace, std::byte* on_host);

  Launcher launcher() const;
  Error show_all(const AttentionPlan& plan, int32_t n_tokens, const Launcher& launcher);
  /// What is given to `behind` from now on begins after what `before` was given.
  Error order(Stream before, Stream behind) const;
  /// Work goes to this stream from now on.
  Error go_to(Stream stream);
  Status says(const char* what, Error error) const noexcept;
  DeviceTokens tokens() const { return {workspace_.cell, workspace_.position, workspace_.seen}; }
  /// Calls call(launcher) while the device is current.
  template <class Call>
  Status run(const char* what, Call call) const noexcept {
    const CurrentDevice current(shape_.device);
    const Error e = current.error() == Error::none ? call(launcher()) : current.error();
    return e == Error::none ? Status::ok : says(what, e);
  }

  // Between device memory and pinned memory.
  Status copy_out(const StateCopies& params) noexcept;
  Status copy_in(const StateCopies& params) noexcept;
  Error behind_copies(Stream stream) const;

  template <class Call>
  Status beside(const char* what, const CacheDevice& source, Call call) noexcept;

  const DeviceShape shape_;
  const CacheWorkspace workspace_;
  Attention attention_;
  Stream stream_ = nullptr;
  Event event_ = nullptr;
  // States on their way to pinned memory, beside the work of the next pass.
  Stream copies_ = nullptr;  // null: the cache has no pinned memory
  Event copied_ = nullptr;
  bool is_copying_ = false;  // there may be work on copies_ that stream_ does not wait for

  struct {
    int32_t n_tokens = 0;
    Stream stream = nullptr;
  } recording_;                  // that is open
  int32_t recorded_tokens_ = 0;  // of the largest
  int32_t n_all_seen_ = 0;  // first tokens whose bits are all set: what graphs read where rows say what is seen
  PlannedStates states_;
  mutable std::mutex staging_;
};

}  // namespace kvc::cuda
