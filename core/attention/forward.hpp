#pragma once
#include <cstdint>
#include <memory>

#include "core/attention/operator.hpp"
#include "core/attention/visibility.hpp"
#include "core/base/carver.hpp"
#include "core/caches/memory.hpp"
#include "core/device.hpp"

namespace kvc {

/// Bounds of calls without a cache.
struct ForwardBounds {
  int32_t max_rows = 0, max_q_len = 0, max_kv_len = 0;
  int32_t n_kv_heads = 0, max_q_heads = 0;
  int32_t head_dim_k = 0, head_dim_v = 0;
};

/// One call without a cache: rows of queries, each over its own keys. Key j has position j.
struct ForwardCall {
  int32_t n_rows = 0, q_len = 0, kv_len = 0;
  int32_t first_position = 0;  // of query 0; below 0 where there are fewer keys than queries
  bool causal = false;
  Visibility visibility;
  Tensor k;  // [n_rows · kv_len, n_kv_heads, head_dim_k]
  Tensor v;
  AttentionConstants constants;
  AttentionTensors tensors;  // columns are keys
  int32_t layer = 0;         // of dropout
};

/// What an operator needs to attend without a cache: all of its room is taken when it is made. K and V are stored as a cache would
/// store them, in the type that they come in, so every operator reads them from where it expects them.
class Forward {
 public:
  static Status create(const std::shared_ptr<Device>& device, const ForwardBounds& bounds,
                       std::unique_ptr<Forward>* out);

  const ForwardBounds& bounds() const { return bounds_; }
  Status run(const ChosenOperator& op, const ForwardCall& call);

 private:
  Forward(const std::shared_ptr<Device>& device, const ForwardBounds& bounds);
  AttentionBounds attention_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  LayerStorage storage_for(const ForwardCall& call) const;
  void make_plan(const ForwardCall& call);
  Status store(const ForwardCall& call, const LayerStorage& storage);

  const std::shared_ptr<Device> device_;
  const ForwardBounds bounds_;
  CacheMemory memory_;
  std::unique_ptr<CacheDevice> on_device_;
  int32_t* entries_ = nullptr;  // [max_rows · max_kv_len] 0, 1, 2, …: cells, and positions of each row's keys
  AttentionRow* rows_ = nullptr;  // [max_rows · max_q_len]
  TokenList* lists_ = nullptr;    // [max_rows]
  int32_t* padding_ = nullptr;    // [max_rows · max_q_len] queries that see nothing
  std::byte* k_ = nullptr;        // [n_kv_heads] planes of f32 at most
  std::byte* v_ = nullptr;
  size_t k_head_bytes_ = 0, v_head_bytes_ = 0;
  WorkspaceBlocks workspace_;
  AttentionPlan plan_;
  bool entries_are_told_ = false;  // to a device that follows them
};

}  // namespace kvc
