#pragma once
#include <cstdint>
#include <memory>

#include "core/attention/params.hpp"
#include "core/attention/visibility.hpp"
#include "core/base/status.hpp"
#include "core/base/storage.hpp"

namespace kvc {

class CacheDevice;

/// What an attention operator may have, and a call may need. Bits of a set; the numbers are the ABI's.
enum Feature : uint32_t {
  feature_mask = 1,
  feature_bias = 2,
  feature_window = 4,
  feature_chunk = 8,
  feature_not_causal = 16,
  feature_softcap = 32,
  feature_alibi = 64,
  feature_sinks = 128,
  feature_lse = 256,
  feature_weights = 512,
  feature_dropout = 1024,
  feature_grouped = 2048,      // fewer KV heads than query heads
  feature_dims_differ = 4096,  // of K and V
  feature_shifted = 8192,      // keys with a pending rotation
  feature_rotated = 1 << 14,   // keys or values stored rotated by a Hadamard matrix
  feature_transformer = 1 << 15,
  feature_lightning = 1 << 16,
  feature_forward = 1 << 17,  // without a cache
  feature_block_q = 1 << 18,  // settings that it heeds
  feature_block_k = 1 << 19,
  feature_block_b = 1 << 20,
  feature_scan = 1 << 21,
};
using FeatureSet = uint32_t;
inline constexpr FeatureSet all_features = (1 << 22) - 1;

/// What attention is called for; the numbers are the ABI's.
enum Mode : uint32_t {
  mode_train = 1,
  mode_prefill = 2,
  mode_autoregressive = 4,
  mode_insert = 8,  // no operator runs
};
using ModeSet = uint32_t;
inline constexpr ModeSet modes_that_attend = mode_train | mode_prefill | mode_autoregressive;

constexpr uint32_t storage_bit(StorageType type) { return uint32_t{1} << static_cast<int>(type); }
inline constexpr uint32_t every_storage = (uint32_t{1} << n_storage_types) - 1;

/// What an operator is wanted for.
struct OperatorNeeds {
  Mode mode = mode_prefill;
  FeatureSet features = 0;
  StorageType type_k = StorageType::f32, type_v = StorageType::f32;
  int32_t n_q_heads = 0, n_kv_heads = 0, head_dim_k = 0, head_dim_v = 0;  // 0: any
  uint32_t runtime_type = in_f32, softmax_type = in_f32;
};

/// An algorithm for attention, by name. A device offers one or more; how one picks kernels by the number of rows is its own
/// business.
struct AttentionOperator {
  const char* name = nullptr;
  const char* const* aliases = nullptr;  // ends with null; null: none
  FeatureSet features = 0;
  ModeSet modes = modes_that_attend;
  uint32_t storage = 0;                                // storage_bit() of each type that it reads
  uint32_t runtime_types = in_f32 | in_f16 | in_bf16;  // Precision that may be asked of it: a floor
  uint32_t softmax_types = in_f32 | in_f16 | in_bf16;
  int32_t head_dim_min = 0, head_dim_max = 0, head_dim_multiple = 0;  // 0: any
  int32_t block_q_multiple = 0, block_k_multiple = 0;  // of features block_q and block_k
  int32_t block_q_max = 0, block_k_max = 0;

  bool is_callers = false;  // its calls run a caller's function, whose refusals poison nothing

  /// Device memory that its calls need at most under these bounds.
  size_t (*workspace_bytes)(const AttentionBounds& bounds, int32_t n_threads) noexcept = nullptr;
  /// One call. `device` is the CacheDevice that the operator belongs to. Null: only caches that attend by themselves have it.
  Status (*run)(const AttentionOperator& self, const AttentionParams& params,
                CacheDevice& device) noexcept = nullptr;
  /// What else it has to say about needs that it has the features for; null: nothing.
  Status (*supports)(const AttentionOperator& self, const OperatorNeeds& needs) noexcept = nullptr;
};

/// An operator as a caller created it. Caches keep it while layers are bound to it.
struct ChosenOperator {
  std::shared_ptr<const AttentionOperator> op;
  OperatorSettings settings;
  float scale = 0;  // 0: that of the layer
  float dropout_probability = 0;
  uint32_t softmax_type = in_f32;
  int32_t device_type = 0, device_id = 0;
};

/// What a layer has bound and stores needs.
FeatureSet features_of(const AttentionConstants& constants, const LayerStorage& storage);

FeatureSet features_of(const Visibility& visibility);

/// What a call needs. `visibility` and `sees_later` speak of the pass.
FeatureSet needed_features(const AttentionParams& params, const Visibility& visibility,
                           bool sees_later);

/// ok, or NOT_SUPPORTED with a message that names the first thing that the operator lacks.
Status check_operator(const AttentionOperator& op, FeatureSet needed, const LayerStorage& storage);
Status check_operator(const AttentionOperator& op, const OperatorNeeds& needs);
/// Whether it computes a softmax over keys.
Status check_softmax(const AttentionOperator& op);
Status check_modes(const AttentionOperator& op, ModeSet modes);
Status check_head_dims(const AttentionOperator& op, int32_t head_dim_k, int32_t head_dim_v);

/// How messages call a Precision.
const char* precision_name(uint32_t precision);

}  // namespace kvc
