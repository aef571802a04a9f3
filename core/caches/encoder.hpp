#pragma once
#include <cstdint>
#include <memory>

#include "core/caches/kv_cache.hpp"
#include "core/cells/input_book.hpp"
#include "core/device.hpp"

namespace kvc {

class DigestSum;

/// As the caller asks: 0 is the default.
struct EncoderRequest {
  int32_t inputs = 0;
  DType mask_dtype = DType::f32;
};

struct EncoderSettings {
  int32_t n_slots = 0;
  DType mask_dtype = DType::f32;
};

/// The cache of an encoder's keys and values, for cross attention (semantics §3). A slot holds one input: slot i is the cells
/// [i · capacity, (i + 1) · capacity), and the input lies at its start. The book knows who holds which slot.
///
/// The files: encoder.cpp (creation, sequences, watching), encoder_pass.cpp (begin … abort, put, share),
/// encoder_attention.cpp (the plan, attention, reading).
class EncoderCache final : public KvCache<LabelledCache<InputBook>>, public EncoderInputs {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const EncoderRequest& request, EncoderSettings* settings);
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const EncoderSettings& settings, uint64_t* bytes);
  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const EncoderSettings& settings, std::shared_ptr<Cache>* out);

  EncoderInputs* encoder_inputs() override { return this; }
  const EncoderInputs* encoder_inputs() const override { return this; }

  Status ready_to_put(int32_t layer) const override;
  Status rows_to_put(int64_t offered, int64_t* rows) const override;
  void expect_rows(int64_t rows) override;
  Status put(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status put_codes(int32_t layer, const Codes& codes) override;
  Status check_binding(const AttentionConstants& constants) const override;
  Status check_scales(bool of_k, bool of_v) const override;
  Status get(int32_t layer, Tensor* k, Tensor* v) override;
  Status get_codes(int32_t layer, Codes* codes) override;
  Status prepare_copy(int32_t layer) override { return ready_for_layer(layer, true); }
  Status get_copy(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status history(int32_t layer, int32_t* first, int32_t* cells) override;
  DType mask_dtype() const override { return settings_.mask_dtype; }
  Status mask(int32_t layer, const Tensor& into) override;
  Status gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) override;
  Status runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs, int32_t* n) const override;

  Status ready_to_put_input(int32_t layer, int32_t sequence) const override;
  Status rows_of_input(int32_t sequence, int64_t offered, int64_t* rows) const override;
  Status put_input(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) override;
  Status share(int32_t sequence, int32_t source) override;
  Status input_of(int32_t sequence, int32_t* position, int32_t* length) const override;

  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;

 private:
  friend BookedCache<InputBook>;  // creates it
  EncoderCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
               const EncoderSettings& settings);
  AttentionBounds attention_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  Status attach();

  // A pass (encoder_pass.cpp).
  Status open_pass(const Batch& batch) override;
  PassRecorder* pass_recorder() const override { return on_device_->recorder(); }
  Status check_replayed(const Batch& batch) const override;
  Status settle_unput() override;
  Status follow_book() override;
  int32_t only_carrying() const;
  uint8_t& was_put(int32_t carrying, int32_t layer) const {
    return was_put_[int64_t{carrying} * bounds_.n_layers + layer];
  }
  bool any_put(int32_t sequence) const;
  void note_one_less_missing(int32_t layer);
  template <class Store>
  Status put_rows(int32_t layer, int32_t sequence, int64_t rows, Store store);
  void set_length(int32_t slot, int32_t length);
  LayerStorage storage_at(int32_t layer, int32_t slot) const;
  Status clear(int32_t layer, int32_t slot, int32_t n);

  // The plan and what reads it (encoder_attention.cpp).
  Status make_plan();
  Status prepare(int32_t layer, const AttentionTensors& tensors, const AttentionOperator** op,
                 AttentionParams* params) override;
  void span(int32_t* first, int32_t* cells) const;  // needs a plan
  bool is_stored(int32_t layer, int32_t slot) const;
  Status digest_input(int32_t sequence, const Input& input, int32_t tag, DigestSum& sum) const;

  const EncoderSettings settings_;

  // What was put in the open pass, per input that a sequence carries and does not share.
  int32_t n_carrying_ = 0;
  int32_t* carrying_ = nullptr;       // [max_sequences] index of what the sequence carries
  int32_t* carrying_slot_ = nullptr;  // [max_carrying] the slot that it lies in, −1: it is shared
  uint8_t* was_put_ = nullptr;        // [max_carrying][n_layers]
  int32_t* missing_ = nullptr;  // [n_layers] inputs of the pass that have no K and V in the layer

  // The plan. A list is the input in a slot; the lists share their entries, which count from the slot's first cell.
  int32_t* entries_ = nullptr;    // [capacity] 0, 1, 2, …
  int32_t* list_of_ = nullptr;    // [n_slots] while a plan is made
  int32_t* list_end_ = nullptr;   // [max_batch] rows of each list
  AttentionRow* rows_ = nullptr;  // [max_batch]
  TokenList* lists_ = nullptr;    // [max_batch]
  int32_t* padding_ = nullptr;    // [max_batch] tokens that see nothing
  AttentionPlan plan_;
  bool is_planned_ = false;
  bool has_one_each_ = false;      // each sequence of the pass has one token
  bool entries_are_told_ = false;  // to a device that follows them
};

}  // namespace kvc
