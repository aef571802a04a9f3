#pragma once
#include <cstdint>
#include <memory>

#include "core/attention/lightning.hpp"
#include "core/caches/state_cache.hpp"

namespace kvc {

/// As the caller asks: 0 is the default, −1 is off.
struct LightningRequest {
  bool approximate = false;
  bool is_fused = false;
  int32_t block = 0;
  CheckpointRequest checkpoints;
  int32_t draft_states = 0;
};

struct LightningSettings {
  int32_t block = 0;      // 0: the kernel's own
  bool is_fused = false;  // attention alone is not wanted, so put keeps no K and V
  int32_t draft_states = 0;  // a pass with up to so many tokens of a sequence, and one, keeps K and V of every layer
  StateRules rules;
};

/// The cache of linear attention with decay (semantics §7). A slot holds a state: of each layer [n_kv_heads, head_dim_k,
/// head_dim_v], rows padded to whole vectors. Time is the position, so states also decay over positions without a token.
///
/// A pass leaves one state per sequence, behind its last token. For commit_prefix the cache keeps K and V of sequences with few
/// tokens, and computes the state behind those that stay when the pass ends.
///
/// The files: lightning.cpp (creation, constants), lightning_pass.cpp (the pass, put, attention), lightning_graphs.cpp (passes
/// that graphs do), lightning_states.cpp (states that come and go, rows).
class LightningCache final : public StateCache,
                             public LayerAttention,
                             public DecayedStates,
                             public Rows {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const LightningRequest& request,
                        LightningSettings* settings);
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const LightningSettings& settings, uint64_t* bytes);
  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const LightningSettings& settings, std::shared_ptr<Cache>* out);

  LayerAttention* layer_attention() override { return this; }
  const LayerAttention* layer_attention() const override { return this; }
  DecayedStates* decayed_states() override { return this; }
  const DecayedStates* decayed_states() const override { return this; }
  Rows* rows() override { return this; }
  const Rows* rows() const override { return this; }
  const Cache& holder() const override { return *this; }

  Status ready_for_layer(int32_t layer, bool needs_put) const override;
  Status ready_to_put(int32_t layer) const override;
  Status rows_to_put(int64_t offered, int64_t* rows) const override;
  Status put(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status attention(int32_t layer, const AttentionTensors& tensors) override;
  Status put_attention(int32_t layer, const Tensor& k, const Tensor& v,
                       const AttentionTensors& tensors) override;
  Status history(int32_t layer, int32_t* first, int32_t* cells) override;
  Status check_binding(const AttentionConstants& constants) const override;
  void bind_attention(int32_t layer_begin, int32_t layer_end,
                      const AttentionConstants& constants) override;
  int32_t bound_q_heads(int32_t layer) const override { return layers_[layer].n_q_heads; }

  Status check_decay() const override;
  void bind_decay(int32_t layer_begin, int32_t layer_end, const float* slopes) override;
  Status check_states(int32_t layer, int32_t first, int32_t n) const override;
  Status read_states(int32_t layer, int32_t first, const Tensor& into) const override;
  Status check_write(int32_t layer, int32_t first, int32_t n) const override;
  Status write_states(int32_t layer, int32_t first, const Tensor& from) override;

  int32_t q_len() const override { return pass_.n_tokens() > 0 ? tokens_per_row_ : 0; }
  bool has_starts() const override { return false; }
  int32_t starts(int32_t) const override { return 0; }
  Status check_set(int32_t row_begin, int32_t n, const int32_t* index,
                   const int32_t* starts) const override;
  Status apply_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) override;
  Status check_insert(const Cache& other, int32_t slot) const override;
  Status apply_insert(const Cache& other, int32_t slot) override;

 private:
  friend BookedCache<StateBook>;  // creates it
  struct Layer {
    int32_t n_q_heads = 0;  // 0: never bound
    float scale = 1;
    bool has_slopes = false;
    DType k_type = DType::f32;  // of what was put in the open pass
    DType v_type = DType::f32;
    bool is_captured = false;  // its put: of these types
    DType captured_k = DType::f32;
    DType captured_v = DType::f32;
  };

  LightningCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                 const LightningSettings& settings);
  LightningBounds lightning_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  KeptTokens carve_kept(Carver& carver, int64_t layers, int64_t n_tokens) const;
  Status attach();
  Status too_large() const;
  int32_t in_pass() const;  // sequences of a pass at most
  int32_t drafted_tokens() const;

  // A pass.
  Status open_pass(const Batch& batch) override;
  PassRecorder* pass_recorder() const override { return on_device_->recorder(); }
  void forget_pass() override { last_put_ = -1; }
  Status check_kept_tokens(int32_t sequence, int32_t keep) const override;
  Status settle_unput() override;
  LightningParams params_for(int32_t layer) const;
  Status attend_kept(int32_t layer, const AttentionTensors& tensors);
  Status run_put(int32_t layer, const Tensor& k, const Tensor& v, LightningParams* params);
  LightningState state_at(int32_t layer, int32_t slot) const;
  Status need_slopes(int32_t layer) const;
  Status place_attention(int32_t layer, const AttentionTensors& tensors, LightningParams* params) const;
  Status record_put(int32_t layer, const Tensor& k, const Tensor& v, LightningParams* params);
  Status record_attention(int32_t layer, LightningParams* params);
  Status record(LightningParams* params);
  Status replay();
  Status run(int32_t layer, LightningParams* params);
  StatePart part_at(int32_t layer, int32_t part) const override;
  Status check_same(const LightningCache& other) const;
  Status copy_adopted(const LightningCache& from, int32_t n);
  bool is_drafted(int32_t n_tokens) const {
    return settings_.draft_states > 0 && n_tokens <= settings_.draft_states + 1;
  }

  static constexpr int32_t whole = 0;  // the only part of a layer

  const LightningSettings settings_;

  // Host memory.
  Layer* layers_ = nullptr;  // [n_layers]
  float* slopes_ = nullptr;  // [n_layers][n_kv_heads] zeros where a layer has none: its states are zeros
  int32_t* slots_from_ = nullptr;  // [1 + checkpoints] that rows are inserted from, and the slots that they come to
  int32_t* slots_to_ = nullptr;

  // On the device.
  std::byte* decay_workspace_ = nullptr;
  uint64_t layer_bytes_ = 0;
  KeptTokens kept_;     // [max_batch] of the layer that was put last, unless the cache is fused
  KeptTokens drafted_;  // [n_layers][drafted_tokens()] of sequences with few tokens, for commit_prefix

  // The open pass.
  LightningToken* tokens_ = nullptr;  // [max_batch] sequence by sequence
  LightningRow* rows_ = nullptr;      // [in_pass()] by order in the batch
  LightningRow* settled_ = nullptr;   // [in_pass()] while a pass ends
  int32_t* padding_ = nullptr;        // [max_batch]
  int32_t n_padding_ = 0;
  int32_t last_put_ = -1;  // the layer whose K and V are in kept_
};

}  // namespace kvc
