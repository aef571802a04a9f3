#pragma once
#include <cstdint>
#include <memory>

#include "core/base/states.hpp"
#include "core/caches/state_cache.hpp"

namespace kvc {

/// As the caller asks: 0 is the default, −1 is off.
struct RecurrentRequest {
  bool approximate = false;
  int64_t state_size = 0;
  int32_t conv_channels = 0;
  int32_t conv_dim = 0;
  StorageType type_conv = StorageType::f32;
  StorageType type_state = StorageType::f32;
  CheckpointRequest checkpoints;
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

/// The cache of recurrent layers (semantics §4).
///
/// The files: recurrent.cpp (creation), recurrent_pass.cpp (the pass, get, put, the states in place).
class RecurrentCache final : public StateCache, public RecurrentStates {
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
  StateSequence reserved_sequence(int32_t index) const;
  PassRecorder* pass_recorder() const override { return on_device_->recorder(); }
  StatePart part_at(int32_t layer, int32_t part) const override;
  int64_t part_elements(int32_t part) const;
  int32_t slot_at(int32_t layer, int32_t part, int32_t sequence, int32_t at) const;

  const RecurrentSettings settings_;

  uint64_t part_offset_[3] = {};  // of a part from the start of its layer
  uint64_t layer_bytes_ = 0;

  // The open pass.
  int32_t* read_slots_ = nullptr;  // [max_sequences] by order in the batch
  int32_t* kept_slots_ = nullptr;  // [max_sequences] while parts that were not put are copied
  std::byte* replayed_ = nullptr;  // on the device: what graphs read of a pass
  int32_t* order_ = nullptr;       // [max_batch] tokens sequence by sequence, then padding
  ConvRow* conv_rows_ = nullptr;   // [max_batch]
};

}  // namespace kvc
