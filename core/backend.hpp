#pragma once
#include <cstddef>

#include "core/attention/params.hpp"
#include "core/base/status.hpp"

namespace kvc {

/// What a device must do for the caches. Kernels implement it, caches call it, capi introduces them to each other.
/// A call either succeeds or has changed nothing that a reader can see. The same backend serves several caches at once,
/// from several threads.
class Backend {
 public:
  virtual ~Backend() = default;

  /// A block of zeros, aligned to 4096 (2 MiB when it is that large); null when there is none to be had.
  virtual void* allocate(size_t bytes, bool prefault) noexcept = 0;
  virtual void release(void* block, size_t bytes) noexcept = 0;

  /// Bytes that attention() needs at most under these bounds; does not depend on the call.
  virtual size_t attention_workspace_bytes(const AttentionBounds& bounds) const noexcept = 0;

  virtual Status store(const StoreParams& params) noexcept = 0;
  virtual Status load(const LoadParams& params) noexcept = 0;
  virtual Status move(const MoveParams& params) noexcept = 0;
  virtual Status clear(const ClearParams& params) noexcept = 0;
  virtual Status attention(const AttentionParams& params) noexcept = 0;
};

}  // namespace kvc
