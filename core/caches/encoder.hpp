#pragma once
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/base/health.hpp"
#include "core/caches/cache.hpp"
#include "core/caches/kv_layers.hpp"
#include "core/caches/memory.hpp"
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
class EncoderCache final : public Cache, public KeyValues, public EncoderInputs {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const EncoderRequest& request, EncoderSettings* settings);
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const EncoderSettings& settings, uint64_t* bytes);
  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const EncoderSettings& settings, std::shared_ptr<Cache>* out);

  const CacheBounds& bounds() const override { return bounds_; }
  const Health& health() const override { return health_; }
  const DeviceInfo& device() const override { return device_info_; }
  KeyValues* key_values() override { return this; }
  const KeyValues* key_values() const override { return this; }
  EncoderInputs* encoder_inputs() override { return this; }
  const EncoderInputs* encoder_inputs() const override { return this; }

  Status begin(const Batch& batch, bool reserve) override;
  Status fits(const Batch& batch) const override;
  int32_t n_tokens() const override { return pass_.n_tokens(); }
  Status commit() override;
  Status commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep) override;
  Status abort() override;

  Status can_resume(int32_t sequence, int32_t want, int32_t* best) const override;
  Status resume(int32_t sequence, int32_t want, int32_t* got) override;
  Status copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) override;
  Status reorder(int32_t n, const int32_t* destination, const int32_t* source) override;
  Status can_remove(int32_t sequence, int32_t begin, int32_t end) const override;
  Status remove(int32_t sequence, int32_t begin, int32_t end) override;
  Status sequence_info(int32_t sequence, SequenceInfo* info) const override;

  Status ready_for_layer(int32_t layer, bool needs_put) const override;
  Status ready_to_put(int32_t layer) const override;
  Status rows_to_put(int64_t offered, int64_t* rows) const override;
  void expect_rows(int64_t rows) override;
  Status put(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status attention(int32_t layer, const AttentionTensors& tensors) override;
  Status put_attention(int32_t layer, const Tensor& k, const Tensor& v,
                       const AttentionTensors& tensors) override;
  Status bind_attention(int32_t layer_begin, int32_t layer_end,
                        const AttentionConstants& constants) override;
  int32_t bound_q_heads(int32_t layer) const override { return layers_[layer].constants.n_q_heads; }
  Status get(int32_t layer, Tensor* k, Tensor* v) override;
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
  Status check() const override;

 private:
  EncoderCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
               const EncoderSettings& settings);
  AttentionBounds attention_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  Status measure();

  // A pass (encoder_pass.cpp).
  Status plan_batch(const Batch& batch) const;
  int32_t only_carrying() const;
  uint8_t& was_put(int32_t carrying, int32_t layer) const {
    return was_put_[int64_t{carrying} * bounds_.n_layers + layer];
  }
  bool any_put(int32_t sequence) const;
  void note_one_less_missing(int32_t layer);
  void set_length(int32_t slot, int32_t length);
  LayerStorage storage_at(int32_t layer, int32_t slot) const;
  Status clear(int32_t layer, int32_t slot, int32_t n);
  Status clear_missing_layers();
  Status clear_freed();
  Status keep_pass();  // ends the open pass, if there is one
  Status check_removal(int32_t sequence, int32_t begin, int32_t end) const;

  // The plan and what reads it (encoder_attention.cpp).
  Status make_plan();
  Status prepare(int32_t layer, const AttentionTensors& tensors, AttentionParams* params);
  void span(int32_t* first, int32_t* cells) const;  // needs a plan
  bool is_stored(int32_t layer, int32_t slot) const;
  Status digest_input(int32_t sequence, const Input& input, int32_t tag, DigestSum& sum) const;

  std::shared_ptr<Device> device_;
  const CacheBounds bounds_;
  const EncoderSettings settings_;
  const DeviceInfo device_info_;
  const AttentionOperator* operator_;
  CacheMemory memory_;
  std::unique_ptr<CacheDevice> on_device_;
  Health health_;
  mutable std::mutex planning_;  // const calls plan in the book's scratch, and may overlap

  PassState pass_;
  InputBook book_;
  KvLayers layers_;
  void* stream_ = nullptr;          // of the open pass
  std::byte* workspace_ = nullptr;  // on the device

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
  bool entries_are_told_ = false;  // to a device that follows them
};

}  // namespace kvc
