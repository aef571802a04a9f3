#pragma once
#include <cstdint>
#include <memory>

#include "core/base/states.hpp"
#include "core/caches/booked_cache.hpp"
#include "core/cells/state_book.hpp"
#include "core/device.hpp"

namespace kvc {

class Digest;

/// As the caller asks: 0 is the default, −1 is off.
struct RecurrentRequest {
  bool approximate = false;
  int64_t state_size = 0;
  int32_t conv_channels = 0;
  int32_t conv_dim = 0;
  StorageType type_conv = StorageType::f32;
  StorageType type_state = StorageType::f32;
  int32_t checkpoints = 0;
  int32_t checkpoint_interval = 0;
  int32_t checkpoint_min_pos = 0;
  int32_t draft_states = 0;
};

struct RecurrentSettings {
  int32_t conv_channels = 0;  // 0: no such part
  int32_t conv_dim = 0;
  int64_t state_size = 0;  // 0: no such part
  StorageType type_conv = StorageType::f32;
  StorageType type_state = StorageType::f32;
  StateRules rules;
};

/// The cache of recurrent layers (semantics §4). A slot holds a state: its layers one after another, each with its parts. The
/// book knows which slot is whose; slot 0 holds zeros and is never written, and lies in pages of its own.
///
/// The files: recurrent.cpp (creation, checkpoints, watching), recurrent_pass.cpp (the pass, get, put, the states in place).
class RecurrentCache final : public LabelledCache<StateBook>,
                             public RecurrentStates,
                             public Checkpoints {
 public:
  /// Parts of a state by the numbers of the ABI.
  static constexpr int32_t conv = 1, recurrent = 2;

  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const RecurrentRequest& request,
                        RecurrentSettings* settings);
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const RecurrentSettings& settings, uint64_t* bytes);
  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const RecurrentSettings& settings, std::shared_ptr<Cache>* out);

  RecurrentStates* recurrent_states() override { return this; }
  const RecurrentStates* recurrent_states() const override { return this; }
  Checkpoints* checkpoints() override { return this; }
  const Checkpoints* checkpoints() const override { return this; }

  const Cache& holder() const override { return *this; }
  Status check_part(int32_t layer, int32_t part) const override;
  Status ready_for_part(int32_t layer, int32_t part) const override;
  StateShape part_shape(int32_t part) const override;
  int32_t n_batch_sequences() const override;
  int32_t n_batch_rows() const override;
  Status layout(int32_t capacity, StateSequence* sequences, int32_t* n, int32_t* order) const override;
  Status row_slots(int32_t capacity, int32_t* slot, int32_t* n) const override;
  Status get_states(int32_t layer, int32_t part, const Tensor& into) override;
  Status put_states(int32_t layer, int32_t part, const Tensor& from) override;
  Status put_conv(int32_t layer, const Tensor& x) override;
  Status view_states(int32_t layer, int32_t part, const StateShape& dims, Tensor* slots) override;
  Status states_done(int32_t layer, int32_t part) override;
  Status check_place(int32_t sequence, int32_t at) const override;
  Status find_state(int32_t sequence, int32_t at) const override;
  Status gather_state(int32_t layer, int32_t part, int32_t sequence, int32_t at,
                      const Tensor& into) override;

  Status check_checkpoint(int32_t sequence) const override;
  Status take_checkpoint(int32_t sequence) override;
  Status list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at, int32_t* n) const override;

  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;
  Status check() const override;

 private:
  friend BookedCache<StateBook>;  // creates it
  RecurrentCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                 const RecurrentSettings& settings);
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  Status attach();
  Status too_large() const;

  // A pass.
  Status open_pass(const Batch& batch) override;
  Status check_kept_tokens(int32_t sequence, int32_t keep) const override;
  Status settle_unput() override;
  Status clear_freed() override;
  StateSequence reserved_sequence(int32_t index) const;
  StatePart part_at(int32_t layer, int32_t part) const;
  bool has_part(int32_t part) const { return part_elements(part) > 0; }
  int64_t part_elements(int32_t part) const;
  bool was_put(int32_t layer, int32_t part) const {
    return (was_put_[layer] & uint32_t{1} << part) != 0;
  }
  void note_put(int32_t layer, int32_t part);
  int32_t slot_at(int32_t layer, int32_t part, int32_t sequence, int32_t at) const;

  // Watching.
  template <class PerPiece>
  Status read_slot(int32_t slot, int32_t layer, int32_t part, PerPiece per_piece) const;
  Status add_state(int32_t slot, Digest& digest) const;
  Status add_pass(int32_t sequence, Digest& digest) const;

  const RecurrentSettings settings_;
  std::unique_ptr<CacheDevice> on_device_;

  std::byte* workspace_ = nullptr;  // of no bytes: a recurrent cache has no attention
  std::byte* slots_ = nullptr;      // on the device: slot 0
  uint64_t part_offset_[3] = {};    // of a part from the start of its layer
  uint64_t layer_bytes_ = 0;
  uint64_t slot_bytes_ = 0;

  // The open pass.
  uint8_t* was_put_ = nullptr;     // [n_layers] a bit per part
  int32_t* read_slots_ = nullptr;  // [max_sequences] by order in the batch
  int32_t* kept_slots_ = nullptr;  // [max_sequences] while parts that were not put are copied
  int32_t* order_ = nullptr;       // [max_batch] tokens sequence by sequence, then padding
  ConvRow* conv_rows_ = nullptr;   // [max_batch]
};

}  // namespace kvc
