#pragma once
#include <cstdint>

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
  feature_grouped = 2048,      // fewer KV heads than query heads
  feature_dims_differ = 4096,  // of K and V
  feature_shifted = 8192,      // keys with a pending rotation
};
using FeatureSet = uint32_t;

constexpr uint32_t storage_bit(StorageType type) { return uint32_t{1} << static_cast<int>(type); }

/// An algorithm for attention, by name. A device offers one or more; how one picks kernels by the number of rows is its own
/// business.
struct AttentionOperator {
  const char* name = nullptr;
  FeatureSet features = 0;
  uint32_t storage = 0;  // storage_bit() of each type that it reads

  /// Device memory that its calls need at most under these bounds.
  size_t (*workspace_bytes)(const AttentionBounds& bounds, int32_t n_threads) noexcept = nullptr;
  /// One call. `device` is the CacheDevice that the operator belongs to.
  Status (*run)(const AttentionParams& params, CacheDevice& device) noexcept = nullptr;
};

/// What a call needs. `visibility` and `sees_later` speak of the pass.
FeatureSet needed_features(const AttentionParams& params, const Visibility& visibility,
                           bool sees_later);

/// ok, or NOT_SUPPORTED with a message that names the first thing that the operator lacks.
Status check_operator(const AttentionOperator& op, FeatureSet needed, const LayerStorage& storage);

}  // namespace kvc
