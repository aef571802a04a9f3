#pragma once
#include <cstdint>
#include <memory>

#include "core/attention/plan.hpp"
#include "core/attention/visibility.hpp"
#include "core/caches/kv_cache.hpp"
#include "core/cells/book.hpp"
#include "core/device.hpp"

namespace kvc {

class DigestSum;

/// What makes a causal cache: window, chunk, how much is remembered. Raised and resolved by CausalCache::resolve().
struct CausalSettings {
  Visibility visibility;
  int32_t memory = 0;    // positions kept behind the lowest of a batch; meaningless when unlimited
  bool limited = false;  // else nothing ever slides
  bool position_free = false;  // keys carry no rotation
  int32_t cell_padding = 1;
  DType mask_dtype = DType::f32;
};

/// As the caller asks: 0 is the default, −1 is "unlimited" for memory.
struct CausalRequest {
  int32_t reach = 0, memory = 0, chunk = 0, keep_first = 0, cell_padding = 0;
  bool position_free = false;
  DType mask_dtype = DType::f32;
};

/// The causal family: causal, sliding window, window with memory, chunked. One class, four set-ups. The book knows which cell
/// holds which token, the plan what each token of the open pass sees; this class adds K and V.
///
/// The files: causal.cpp (creation), causal_pass.cpp (begin … abort), causal_sequences.cpp (remove, copies),
/// causal_shift.cpp (a caller's shift function), causal_attention.cpp (constants, attention), causal_reading.cpp (get, mask,
/// gather, runs), causal_copy.cpp (get_codes, get_copy), causal_watching.cpp (stats, digest, check).
class CausalCache final : public TokenCache<BookedCache<CellBook>, PassPlan>, public PositionedKeys {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const CausalRequest& request, CausalSettings* settings);

  /// Bytes of the two blocks that a cache takes from its device.
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const CausalSettings& settings, uint64_t* bytes);

  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const CausalSettings& settings, std::shared_ptr<Cache>* out);

  PositionedKeys* positioned_keys() override { return this; }

  Status check_removal(int32_t sequence, int32_t begin, int32_t end) const override;
  Status prepare_removal(int32_t sequence, int32_t begin, int32_t end) override;
  Status apply_removal() override;
  Status cancel_removal() override;

  Status check_scales(bool of_k, bool of_v) const override;
  Status check_rope(const RopeSettings& settings) const override;
  void bind_rope(int32_t layer_begin, int32_t layer_end, const RopeSettings& settings) override;
  Status bind_shift(const KeyShift& shift) override;
  Status get(int32_t layer, Tensor* k, Tensor* v) override;
  Status get_codes(int32_t layer, Codes* codes) override;
  Status prepare_copy(int32_t layer) override;
  Status get_copy(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status history(int32_t layer, int32_t* first, int32_t* cells) override;
  DType mask_dtype() const override { return settings_.mask_dtype; }
  Status mask(int32_t layer, const Tensor& into) override;
  Status gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) override;
  Status runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs, int32_t* n) const override;

  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;

  const CellBook& book() const { return book_; }

 private:
  friend BookedCache<CellBook>;  // creates it
  CausalCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
              const CausalSettings& settings);
  AttentionBounds attention_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  Status attach();
  Status check_rope_dims(const RopeSettings& settings) const;
  Status check_keys_may_rotate() const;  // not if the cache was created position-free

  // A pass (causal_pass.cpp).
  Status open_pass(const Batch& batch) override;
  PassRecorder* pass_recorder() const override { return on_device_->recorder(); }
  Status replan() override { return make_plan(); }
  Status check_kept_tokens(int32_t sequence, int32_t n) const override;
  Status settle_unput() override;
  Status follow_book() override;

  // Sequences (causal_sequences.cpp, causal_shift.cpp).
  Status plan_removal(int32_t sequence, int32_t begin, int32_t end, Removal* removal) const;
  Status check_shift_room(const Removal& removal) const;
  Status make_shifted_copies(const Removal& removal);
  Status shift_copies(int32_t layer, const Removal& removal);
  void use_copies();

  // Reading (causal_reading.cpp).
  static constexpr int32_t tokens_per_move = 256;
  struct Moves {
    int32_t from[tokens_per_move], to[tokens_per_move], offset[tokens_per_move];
    int32_t n = 0;
  };
  Status prepare(int32_t layer, const AttentionTensors& tensors, const AttentionOperator** op,
                 AttentionParams* params) override;
  Status pay_rotations(const AttentionOperator& op, AttentionParams* params);
  Status make_plan();  // unless it is made, and tells the device
  template <class Visit>
  void for_each_pending(Visit visit);
  Status rotate_pending();
  template <class Split>
  void for_each_split(Split split);
  void apply(Moves& moves);
  Status span(PassPlan::Span* range);

  // Watching (causal_watching.cpp).
  Status digest_tokens(int32_t sequence, DigestSum& sum) const;

  const CausalSettings settings_;
  KeyShift shift_;
  // Of a removal that is prepared.
  Removal removal_;
  CellBook::Copies copies_;
};

}  // namespace kvc
