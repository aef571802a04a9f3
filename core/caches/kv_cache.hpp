#pragma once
#include <memory>

#include "core/attention/operator.hpp"
#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/booked_cache.hpp"
#include "core/caches/kv_layers.hpp"
#include "core/caches/planted_scales.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

/// What the caches of keys and values share above their book: the layers on their device, constants, and attention around a plan
/// that the kind makes. `Booked` is a BookedCache.
template <class Booked>
class KvCache : public Booked, public KeyValues {
 public:
  KeyValues* key_values() final { return this; }
  const KeyValues* key_values() const final { return this; }
  const Cache& holder() const final { return *this; }

  Status ready_for_layer(int32_t layer, bool needs_put) const final {
    if (Status s = pass_.need_pass(); s != Status::ok) return s;
    if (Status s = layers_.check(layer); s != Status::ok) return s;
    return needs_put ? pass_.need_put(layer) : Status::ok;
  }
  Status attention(int32_t layer, const AttentionTensors& tensors) final {
    if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
    if (Status s = pass_.need_own_work(); s != Status::ok) return s;
    if (Status s = check_attends(); s != Status::ok) return s;
    if (pass_.is_reserve() && recorder_ == nullptr) return Status::ok;
    AttentionParams params;
    const AttentionOperator* op = nullptr;
    if (Status s = prepare_call(layer, tensors, &op, &params); s != Status::ok) return s;
    return run(*op, params);
  }
  Status put_attention(int32_t layer, const Tensor& k, const Tensor& v,
                       const AttentionTensors& tensors) final {
    if (Status s = ready_to_put(layer); s != Status::ok) return s;
    if (Status s = check_attends(); s != Status::ok) return s;
    if (pass_.is_reserve() && recorder_ == nullptr) return Status::ok;
    AttentionParams params;
    const AttentionOperator* op = nullptr;
    if (Status s = prepare_call(layer, tensors, &op, &params); s != Status::ok) return s;
    if (Status s = put(layer, k, v); s != Status::ok) return s;
    return run(*op, params);
  }

  void bind_attention(int32_t layer_begin, int32_t layer_end,
                      const AttentionConstants& constants) final {
    layers_.bind_attention(layer_begin, layer_end, constants);
  }
  int32_t bound_q_heads(int32_t layer) const final { return layers_[layer].constants.n_q_heads; }
  KvLayers* layers_with_operators() final { return &layers_; }
  void bind_scales(int32_t layer_begin, int32_t layer_end, const float* k_scales,
                   const float* v_scales) final {
    layers_.bind_scales(layer_begin, layer_end, k_scales, v_scales);
  }

 protected:
  /// `always`: features that every call needs.
  template <class Rules>
  KvCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds, const Rules& rules,
          const PassState::Words& words, FeatureSet always)
      : Booked(device, bounds, rules, words),
        operator_(device->attention_operator(0)),
        layers_(this->bounds_, always) {}

  /// Whether K and V are such that attention is defined over them.
  virtual Status check_attends() const { return Status::ok; }
  /// Everything that comes before the call of the device, checks included. Of a call that is captured: KvLayers::
  /// describe_recorded().
  virtual Status prepare(int32_t layer, const AttentionTensors& tensors,
                         const AttentionOperator** op, AttentionParams* params) = 0;

  /// Behind all that the bounds depend on.
  void carve_host_workspace(Carver& carver, const AttentionBounds& bounds) {
    workspace_.on_host = carver.take<std::byte>(this->device_->host_workspace_bytes(bounds), 64);
  }

  using Booked::health_;
  using Booked::pass_;
  using Booked::recorder_;
  const AttentionOperator* operator_;  // the device's own
  std::unique_ptr<CacheDevice> on_device_;
  KvLayers layers_;
  WorkspaceBlocks workspace_;

 private:
  Status prepare_call(int32_t layer, const AttentionTensors& tensors, const AttentionOperator** op,
                      AttentionParams* params) {
    if (Status s = prepare(layer, tensors, op, params); s != Status::ok) return s;
    return recorder_ == nullptr ? Status::ok : recorder_->check_recorded(*params);
  }
  Status run(const AttentionOperator& op, const AttentionParams& params) {
    if (recorder_ != nullptr) return health_.after(recorder_->record_attention(params));
    return after_call(health_, op, on_device_->attention(op, params));
  }
};

/// One whose passes put a key and a value for each of their tokens. `Plan` knows what the tokens see.
template <class Booked, class Plan>
class TokenCache : public KvCache<Booked>, public Causality {
 public:
  Causality* causality() final { return this; }

  Status ready_to_put(int32_t layer) const final {
    if (Status s = this->ready_for_layer(layer, false); s != Status::ok) return s;
    return pass_.need_own_work();
  }
  Status rows_to_put(int64_t, int64_t* rows) const final {
    *rows = pass_.n_tokens();
    return Status::ok;
  }
  Status put(int32_t layer, const Tensor& k, const Tensor& v) final {
    if (Status s = ready_to_put(layer); s != Status::ok) return s;
    if (this->recorder_ != nullptr) {
      const StoreParams store = {layers_[layer].storage, nullptr, pass_.n_tokens(), k, v};
      return this->health_.after(this->recorder_->record_store(store));
    }
    if (pass_.is_reserve()) return Status::ok;
    if (planted(Bug::second_put_ignored) && pass_.was_put(layer)) return Status::ok;
    const StoreParams store = {layers_[layer].storage, this->book_.batch_cell(), pass_.n_tokens(),
                               k, v};
    return note_put(layer, this->on_device_->store(store));
  }
  Status put_codes(int32_t layer, const KeyValues::Codes& codes) final {
    if (Status s = ready_to_put(layer); s != Status::ok) return s;
    if (pass_.is_reserve() && this->recorder_ == nullptr) return Status::ok;
    const LayerStorage storage = with_scales_unless(Bug::codes_put_without_scales,
                                                    layers_[layer].storage);
    const bool records = this->recorder_ != nullptr;
    const StoreCodesParams store = {storage,          records ? nullptr : this->book_.batch_cell(),
                                    pass_.n_tokens(), codes.k,
                                    codes.k_scales,   codes.v,
                                    codes.v_scales};
    if (records) return this->health_.after(this->recorder_->record_store_codes(store));
    return note_put(layer, this->on_device_->store_codes(store));
  }
  Status set_causal(int32_t n_except, const int32_t* except) final {
    if (Status s = pass_.need_pass(); s != Status::ok) return s;
    if (Status s = check_arrays("n_except", n_except, {{"except", except}}); s != Status::ok)
      return s;
    for (int32_t i = 0; i < n_except; ++i) {
      if (except[i] < 0 || except[i] >= pass_.n_tokens())
        return no_index("except", i, except[i], pass_.n_tokens());
    }
    if (pass_.is_open()) plan_.set_except(n_except, except);
    return pass_.is_replay() ? replan() : Status::ok;
  }
  Status check_binding(const AttentionConstants&) const final {
    return pass_.need_no_pass("constants are bound");
  }

 protected:
  template <class Rules, class... PlanArguments>
  TokenCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds, const Rules& rules,
             const PassState::Words& words, FeatureSet always, PlanArguments... plan_arguments)
      : KvCache<Booked>(device, bounds, rules, words, always),
        plan_(this->book_, plan_arguments...) {}

  /// In a pass that a graph does: what it reads follows the plan, which has changed.
  virtual Status replan() { return Status::ok; }

  using KvCache<Booked>::layers_;
  using KvCache<Booked>::pass_;
  Plan plan_;

 private:
  Status note_put(int32_t layer, Status stored) {
    if (Status s = this->health_.after(stored); s != Status::ok) return s;
    pass_.note_put(layer);
    return Status::ok;
  }
};

}  // namespace kvc
