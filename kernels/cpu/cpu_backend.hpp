#pragma once
#include <memory>

#include "core/backend.hpp"
#include "core/base/allocator.hpp"
#include "core/base/thread_pool.hpp"

namespace kvc::cpu {

/// The caches' device when it is this machine. One pool of threads serves every cache that shares the backend; a call
/// that finds it busy does its own work.
class CpuBackend final : public Backend {
 public:
  /// `n_threads` counts the caller, 0 means what the process is allowed. `allocator` may be null (pages of the system,
  /// huge ones asked for); otherwise it is copied, and its functions are called until the backend is destroyed.
  static Status create(int32_t n_threads, const Allocator* allocator,
                       std::unique_ptr<Backend>& out) noexcept;

  /// Name of the instruction set that the kernels use: "portable", "avx2" or "avx512".
  static const char* instruction_set() noexcept;

  ~CpuBackend() override;
  CpuBackend(const CpuBackend&) = delete;
  CpuBackend& operator=(const CpuBackend&) = delete;

  void* allocate(size_t bytes, bool prefault) noexcept override;
  void release(void* block, size_t bytes) noexcept override;
  size_t attention_workspace_bytes(const AttentionBounds& bounds) const noexcept override;
  Status store(const StoreParams& params) noexcept override;
  Status load(const LoadParams& params) noexcept override;
  Status move(const MoveParams& params) noexcept override;
  Status clear(const ClearParams& params) noexcept override;
  Status attention(const AttentionParams& params) noexcept override;

 private:
  CpuBackend(ThreadPool* pool, const Allocator& allocator) : pool_(pool), allocator_(allocator) {}

  ThreadPool* pool_;
  Allocator allocator_;  // alloc is null: the system's pages
};

}  // namespace kvc::cpu
