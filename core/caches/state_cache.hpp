#pragma once
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/base/states.hpp"
#include "core/caches/booked_cache.hpp"
#include "core/cells/state_book.hpp"
#include "core/device.hpp"

namespace kvc {

class Digest;

/// As the caller asks: 0 is the default, −1 is off.
struct CheckpointRequest {
  int32_t checkpoints = 0;
  int32_t checkpoint_interval = 0;
  int32_t checkpoint_min_pos = 0;
  bool on_host = false;  // where the device has other memory
};

/// What caches share whose sequences have states of fixed size in place of keys and values. A slot holds a state: its layers one
/// after another, each with its parts. The book knows which slot is whose; slot 0 holds zeros and is never written, and lies in
/// pages of its own. Slots of checkpoints may lie apart, in pinned memory; then states are copied there and back.
class StateCache : public LabelledCache<StateBook>, public Checkpoints, public ListedCheckpoints {
 public:
  Checkpoints* checkpoints() final { return this; }
  const Checkpoints* checkpoints() const final { return this; }
  const ListedCheckpoints* listed_checkpoints() const final { return this; }

  Status check_checkpoint(int32_t sequence) const final;
  Status take_checkpoint(int32_t sequence) final;
  Status list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at, int32_t* n) const final;

  CacheStats stats() const final;
  Status digest(uint64_t out[2]) const final;
  Status check() const final;

 protected:
  /// For messages.
  struct Words {
    PassState::Words pass;
    const char* descriptor = "";
  };

  /// `parts`: a bit for each part that a layer has. Checkpoints lie apart only where the device pins memory.
  StateCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
             const StateRules& rules, uint8_t parts, const Words& words);

  static Status check_checkpoints(const CheckpointRequest& request);
  static void resolve_checkpoints(const CheckpointRequest& request, StateRules* rules);
  /// Slots for zeros, states, checkpoints and the rows of a pass.
  static int64_t slots_for(const StateRules& rules, int64_t rows);
  /// How many slots there are, and which of them are apart.
  static void place_slots(const CheckpointRequest& request, int64_t n_slots, StateRules* rules);

  void carve_book(Carver& carver);
  void carve_workspace(Carver& carver);
  void carve_slots(Carver& carver, CheckedSize slot);
  void carve_pinned(Carver& carver);  // behind carve_slots()
  /// The device's side, which has no attention over keys.
  Status attach_states();

  /// A part of the slots of states.
  virtual StatePart part_at(int32_t layer, int32_t part) const = 0;
  /// The same part where a slot is: of those slots, or of those that checkpoints have apart. Numbers are those of the book.
  StatePart where(StatePart part, int32_t slot) const;
  /// All parts of all layers.
  StatePart whole_slots() const;
  bool has_part(int32_t part) const { return (parts_ & 1u << part) != 0; }
  bool was_put(int32_t layer, int32_t part) const { return (was_put_[layer] & 1u << part) != 0; }
  void note_put(int32_t layer, int32_t part);
  /// Opens a pass: nothing is put, or everything by a graph.
  void open_puts(bool replays);
  /// Tells a device that wants to know of every pass which stream this one has.
  Status tell_device();
  Status follow_book() final;

  std::unique_ptr<CacheDevice> on_device_;
  const StateRules rules_;
  std::byte* slots_ = nullptr;  // on the device: slot 0
  uint64_t slot_bytes_ = 0;

 private:
  Status copy_slots();
  Status clear(const StateBook::FreeSlots& free);
  template <class PerPart>
  Status for_each_part(PerPart per_part) const;
  template <class PerPiece>
  Status read_slot(int32_t slot, int32_t layer, int32_t part, PerPiece per_piece) const;
  Status add_slot(int32_t slot, int32_t layer, int32_t part, Digest& digest) const;
  Status add_state(int32_t slot, Digest& digest) const;
  Status add_pass(int32_t sequence, Digest& digest) const;

  const uint8_t parts_;
  const char* const descriptor_;
  std::byte* workspace_ = nullptr;    // on the device
  std::byte* checkpoints_ = nullptr;  // pinned: where slot 0 would be before those of checkpoints
  std::byte* read_ = nullptr;         // [read_bytes of the device] what read_slot() reads
  mutable std::mutex reading_;        // const calls may overlap
  uint8_t* was_put_ = nullptr;        // [n_layers] a bit per part
};

}  // namespace kvc
