#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "core/base/health.hpp"
#include "core/caches/cache.hpp"

namespace kvc {

/// Several caches that move as one (semantics §5). It holds no K, V or state: it asks all of its children, and when none
/// refuses, all do. It knows nothing of their kinds but the facets that they have.
///
/// Calls on one layer are not here: whoever makes them goes to the child that owns the layer (place_of), which others may use
/// at the same time.
class WrapperCache final : public Cache, public Causality, public Checkpoints, public Rows {
 public:
  static constexpr int32_t max_children = 16;

  struct LayerPlace {
    int32_t child, layer;
  };

  /// The children are idle and empty, and on one device.
  WrapperCache(std::vector<std::shared_ptr<Cache>> children, std::vector<LayerPlace> layers);

  int32_t n_children() const { return static_cast<int32_t>(children_.size()); }
  Cache& child(int32_t index) const { return *children_[static_cast<size_t>(index)]; }
  const LayerPlace& place_of(int32_t layer) const { return layers_[static_cast<size_t>(layer)]; }

  const CacheBounds& bounds() const override { return bounds_; }
  const DeviceInfo& device() const override { return child(0).device(); }
  /// A poisoned child poisons the wrapper.
  const Health& health() const override;
  Causality* causality() override;
  Checkpoints* checkpoints() override { return has_checkpoints() ? this : nullptr; }
  const Checkpoints* checkpoints() const override { return has_checkpoints() ? this : nullptr; }

  /// Where all children take rows, as many.
  Rows* rows() override { return has_rows() ? this : nullptr; }
  const Rows* rows() const override { return has_rows() ? this : nullptr; }
  bool takes_lists() const override;

  Status fits(const Batch& batch, bool reserve) const override;
  int32_t n_tokens() const override { return child(0).n_tokens(); }

  /// Its own state and passes. What children hold others may change at the same time, so they count that themselves.
  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;
  Status check() const override;

  Status need_pass() const override { return child(0).need_pass(); }
  Status need_fully_put() const override;
  KnownFlags known_flags() const override {
    return {flag_bits_, flag_bits_ == 0 ? nullptr : flag_names_};
  }
  Status can_begin(const Batch& batch, bool reserve) const override;
  Status check_stream(const Batch& batch, bool reserve) const override;
  Status need_no_recording(const char* call) const override;
  Status check_end(const char* call) const override;
  Status check_distinct(int32_t n, const int32_t* sequence) const override;
  Status check_kept(int32_t sequence, int32_t keep) const override;
  int32_t best_continuation(int32_t sequence, int32_t want) const override;
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const override;
  Status check_removal(int32_t sequence, int32_t begin, int32_t end) const override;
  SequenceInfo info(int32_t sequence) const override;

  Status open(const Batch& batch, bool reserve) override;
  void keep_added(int32_t sequence, int32_t keep) override;
  Status end_pass() override;
  Status drop_pass() override;
  Status cut(int32_t sequence, int32_t position) override;
  Status copy(int32_t source, int32_t destination, int32_t position) override;
  Status apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) override;
  Status prepare_removal(int32_t sequence, int32_t begin, int32_t end) override;
  Status apply_removal() override;
  Status cancel_removal() override;

  Status set_causal(int32_t n_except, const int32_t* except) override;
  Status check_checkpoint(int32_t sequence) const override;
  Status take_checkpoint(int32_t sequence) override;

  int32_t q_len() const override { return child(0).rows()->q_len(); }
  bool has_starts() const override;
  int32_t starts(int32_t row) const override;
  Status check_set(int32_t row_begin, int32_t n, const int32_t* index,
                   const int32_t* starts) const override;
  Status apply_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) override;
  Status check_insert(const Cache& other, int32_t slot) const override;
  Status apply_insert(const Cache& other, int32_t slot) override;

 private:
  template <class Ask>
  Status ask_all(Ask ask) const;
  template <class Do>
  Status do_all(Do work);
  Status check_tokens(const Batch& batch) const;
  bool has_checkpoints() const;
  bool has_rows() const;
  const int32_t* starts_for(const Cache& of_child, const int32_t* starts) const;
  const Cache* twin_of(const WrapperCache& other, const Cache& child) const;

  const std::vector<std::shared_ptr<Cache>> children_;
  const std::vector<LayerPlace> layers_;
  CacheBounds bounds_;      // of what all children have; else 0
  int32_t narrowest_ = 0;   // the child with the fewest sequences
  uint32_t flag_bits_ = 0;  // that some child knows
  char flag_names_[160] = {};
  Health health_;  // its own
  CacheState state_ = CacheState::idle;
  uint64_t n_committed_ = 0;
};

}  // namespace kvc
