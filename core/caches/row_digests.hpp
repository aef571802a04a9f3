#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/digest.hpp"
#include "core/base/health.hpp"
#include "core/caches/kv_layers.hpp"
#include "core/device.hpp"

namespace kvc {

/// Hashes of the stored bytes of some rows at a time, so that one call reads several from the device. Bytes come through a buffer
/// on the stack, because const calls may overlap; a longer row comes in parts.
class RowDigests {
 public:
  static constexpr int32_t rows_max = 16;

  RowDigests(const CacheDevice& device, const Health& health) : device_(device), health_(health) {}

  /// The hash of row i, which lies in cell[i].
  Digest& operator[](int32_t row) { return digest_[row]; }
  int32_t cell[rows_max] = {};

  /// Adds the n rows of a layer to their hashes.
  Status add_layer(int32_t layer, const LayerStorage& storage, int32_t n);
  /// Adds the hashes to the sum and begins n new ones.
  void finish(int32_t n, DigestSum& sum);

 private:
  Status add_rows(const Plane& plane, int32_t head, int32_t n);

  const CacheDevice& device_;
  const Health& health_;
  Digest digest_[rows_max];
  std::byte buffer_[4096];
};

}  // namespace kvc
