#pragma once
#include <cstddef>

#include "core/attention/params.hpp"
#include "core/base/thread_pool.hpp"
#include "kernels/cpu/attention_plan.hpp"
#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {

/// How the last call was cut into work. Calls over the same plan and workspace with as many query heads share the cut, so that
/// it is made once per pass and not once per layer.
class Schedule {
 public:
  /// The plan has changed.
  void forget() { n_q_heads_ = 0; }

 private:
  friend class Call;
  WorkPlan work_;
  int32_t n_q_heads_ = 0;  // 0: nothing is cut
  OperatorSettings settings_;
  const KernelTable* kernels_ = nullptr;
};

/// One attention call on the CPU. Everything it needs lies in params.workspace; it allocates nothing.
void attention(const AttentionParams& params, ThreadPool& pool, Schedule& schedule) noexcept;

inline void attention(const AttentionParams& params, ThreadPool& pool) noexcept {
  Schedule once;
  attention(params, pool, once);
}

/// What padding tokens get: zeros, and the log-sum-exp of nothing.
void write_padding(const AttentionParams& params) noexcept;

/// Bytes of workspace for calls within these bounds, served by a pool of n_threads.
size_t attention_workspace_bytes(const AttentionBounds& bounds, int32_t n_threads) noexcept;

}  // namespace kvc::cpu
