#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/attention/lightning.hpp"
#include "core/attention/operator.hpp"
#include "core/attention/params.hpp"
#include "core/base/states.hpp"
#include "core/base/status.hpp"
#include "core/pass_recorder.hpp"

namespace kvc {

/// Where memory is. A cache has a block in each place: the book, the plan and constants of the model on the host; K, V, states
/// and the workspace of attention on the device; checkpoints that are not to take the device's memory in host memory that is
/// pinned, which the device reads and writes in the order of its work. Core never reads or writes the second and the third:
/// it computes addresses in them.
enum class Place : uint8_t { host, device, pinned };

struct DeviceInfo {
  int32_t type = 1;  // DLPack's number: 1 is the CPU
  int32_t id = 0;
  bool takes_stream = false;
  /// begin_pass() comes with the begin of the pass. Else it comes before the first call that reads the plan, and not at all
  /// in a pass without one.
  bool plans_ahead = false;
  /// begin_pass() names what changed in the token arrays.
  bool follows_tokens = false;
  /// Plans name prefixes that sequences share from this length on.
  int32_t least_shared_prefix = 0;
  bool pins_memory = false;   // there is Place::pinned
  int32_t read_bytes = 4096;  // that read_rows() is worth calling for, where there are as many
  int32_t n_threads = 1;      // that share the work of a call, the caller's included
  const char* instruction_set = "";
};

/// What a cache asks of its device, or attention without one.
struct CacheNeeds {
  const char* kind = "";      // as messages call it
  RowFormat row_k, row_v;     // of keys and values
  LightningBounds lightning;  // of linear attention; n_heads 0: it has none
};

/// What a cache gives its device to work in. All of it outlives the device's side of the cache.
struct WorkspaceBlocks {
  std::byte* on_device = nullptr;  // [Device::workspace_bytes()]
  std::byte* on_host = nullptr;    // [Device::host_workspace_bytes()]
  bool has_pinned = false;         // states are copied to Place::pinned and back

  WorkspaceBlocks() = default;
  WorkspaceBlocks(std::byte* on_the_device, std::byte* on_the_host = nullptr)
      : on_device(on_the_device), on_host(on_the_host) {}
};

/// The device's side of one cache. Its calls follow the cache's own exclusion: const ones may overlap each other, any other
/// runs alone. A call either succeeds or has changed nothing that a reader can see; a status other than ok poisons the
/// cache. Work that a call begins is ordered behind the work of earlier calls, on the pass's stream.
class CacheDevice {
 public:
  virtual ~CacheDevice() = default;

  /// The plan of the open pass, before attention() or write_mask() read it: once per pass, and again when the except set or
  /// cells of tokens have changed. What the shape of the pass decides can so be computed once per pass, not once per layer.
  /// The plan stays where it is until the pass ends; that of a cache of states is empty. `changes` names what differs in the token
  /// arrays since the last call, for a device that keeps its own (follows_tokens); it is empty for others.
  virtual Status begin_pass(const AttentionPlan& plan, const TokenChanges& changes,
                            void* stream) noexcept = 0;

  virtual Status store(const StoreParams& params) noexcept = 0;
  virtual Status store_codes(const StoreCodesParams& params) noexcept = 0;
  virtual Status load(const LoadParams& params) noexcept = 0;
  virtual Status move(const MoveParams& params) noexcept = 0;
  /// `source` has the cells that are read: the side of another cache of the same device, or this one.
  virtual Status copy(const CopyParams& params, const CacheDevice& source) noexcept = 0;
  virtual Status clear(const ClearParams& params) noexcept = 0;
  /// Runs an operator of this device. The cache has checked that it can do what the call needs.
  virtual Status attention(const AttentionOperator& op, const AttentionParams& params) noexcept = 0;
  virtual Status write_mask(const MaskParams& params) noexcept = 0;

  // Linear attention with decay, and its states.
  virtual Status lightning(const LightningParams& params) noexcept = 0;
  virtual Status load_lightning(const LightningState& state) const noexcept = 0;
  virtual Status store_lightning(const LightningState& state) noexcept = 0;

  // States of recurrent caches.
  virtual Status store_states(const StateRows& params) noexcept = 0;
  virtual Status load_states(const StateRows& params) noexcept = 0;
  virtual Status store_conv(const ConvRows& params) noexcept = 0;
  /// `source` has the slots that are read: the side of another cache of the same device, or this one. What goes to Place::pinned
  /// may be late: others of this cache's calls find it there, but nothing may write the slots that it comes from
  /// before finish_copies().
  virtual Status copy_states(const StateCopies& params, const CacheDevice& source) noexcept = 0;
  /// Later work comes behind the copies that are late.
  virtual Status finish_copies() noexcept { return Status::ok; }
  virtual Status clear_states(const StateClears& params) noexcept = 0;

  /// Null: the device records nothing.
  virtual PassRecorder* recorder() noexcept { return nullptr; }

  /// Copies stored bytes to or from the host. Returns when they are there.
  virtual Status read_rows(const RowBytes& rows) const noexcept = 0;
  virtual Status write_rows(const RowBytes& rows) noexcept = 0;
};

/// What a device must do for the caches. Kernels implement it, caches call it, capi introduces them to each other. The same
/// device serves several caches at once, from several threads.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceInfo info() const noexcept = 0;

  /// ok, or NOT_SUPPORTED with what it lacks, before a cache asks for memory. Some devices have everything.
  virtual Status check(const CacheNeeds&) const noexcept { return Status::ok; }

  /// Waits for the work of all caches and of everybody else, and says what went wrong with it. Some devices are never behind.
  virtual Status synchronize() noexcept { return Status::ok; }

  /// Whether what is given to a stream becomes part of a graph, instead of being done.
  virtual Status is_recording(void*, bool* records) const noexcept {
    *records = false;
    return Status::ok;
  }

  /// A block of zeros, aligned to 4096 (2 MiB when it is that large); null when there is none. What pinned memory holds is not
  /// defined.
  virtual void* allocate(Place place, size_t bytes, bool prefault) noexcept = 0;
  virtual void release(Place place, void* block, size_t bytes) noexcept = 0;

  /// The operators that this device offers, null past the last; the first is what a cache uses.
  virtual const AttentionOperator* attention_operator(int32_t index) const noexcept = 0;

  /// Bytes of device memory that any of them needs at most under these bounds.
  virtual size_t workspace_bytes(const AttentionBounds& bounds) const noexcept = 0;

  /// The same of host memory.
  virtual size_t host_workspace_bytes(const AttentionBounds&) const noexcept { return 0; }

  /// Bytes of device memory for PassRecorder::place_states().
  virtual size_t replayed_states_bytes(int32_t) const noexcept { return 0; }

  /// Bytes of device memory that linear attention needs at most under these bounds.
  virtual size_t lightning_workspace_bytes(const LightningBounds& bounds) const noexcept = 0;

  /// The device's side of a cache with these bounds. A cache without attention over keys has bounds of zeros.
  virtual Status attach(const AttentionBounds& bounds, const WorkspaceBlocks& workspace,
                        std::unique_ptr<CacheDevice>* out) noexcept = 0;
};

}  // namespace kvc
