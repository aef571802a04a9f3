#pragma once
#include <cstdint>

#include "core/attention/operator.hpp"
#include "core/device.hpp"
#include "kvc/operators.h"

/// Operators as the ABI describes them.
namespace kvc::capi {

/// `name` is what the operator was called.
kvc_operator_info info_of(const AttentionOperator& op, const char* name, const DeviceInfo& device);

/// f64, f32, f16 or bf16 as a Precision; 0 is f32.
Status read_precision(const char* name, uint32_t dtype, uint32_t* precision);
uint32_t dtype_of_precision(uint32_t precision);

/// A storage type that the operator reads.
StorageType first_storage(const AttentionOperator& op);

}  // namespace kvc::capi
