#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/device.hpp"
#include "kvc/operators.h"

namespace kvc::capi {

/// One call of a caller's operator: what the function gets, and what kvc_call_mask() and kvc_call_positions() read. They work while
/// the object lives, on its thread, and know it by the address of its call.
class CallInProgress {
 public:
  CallInProgress(const AttentionParams& params, const DeviceInfo& device);
  ~CallInProgress();
  CallInProgress(const CallInProgress&) = delete;
  CallInProgress& operator=(const CallInProgress&) = delete;

  /// BUSY where too many threads are in calls.
  Status begin();
  const kvc_operator_call* call() const { return &call_; }

  /// The object of a call that runs on this thread; null: it runs no longer, or elsewhere.
  static const CallInProgress* find(const kvc_operator_call* call);

  const AttentionParams& params() const { return params_; }
  const DeviceInfo& device() const { return device_; }

 private:
  const kvc_tensor* view(const Tensor& tensor, int32_t token_dim, kvc_tensor* out) const;
  const kvc_tensor* stored(const Tensor& rows, kvc_tensor* out) const;
  void describe();

  const AttentionParams& params_;
  const DeviceInfo& device_;
  kvc_operator_call call_ = KVC_OPERATOR_CALL_INIT;
  kvc_tensor q_, k_, k_scales_, v_, v_scales_, bias_, mask_, out_, lse_, weights_;
  int32_t slot_ = -1;
};

}  // namespace kvc::capi
