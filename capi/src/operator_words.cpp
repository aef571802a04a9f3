#include "capi/src/operator_words.hpp"

#include <bit>
#include <cstdio>

#include "capi/src/arguments.hpp"

namespace kvc::capi {

static_assert(uint32_t{feature_dropout} == KVC_FEATURE_DROPOUT);
static_assert(uint32_t{feature_scan} == KVC_FEATURE_SCAN);
static_assert(uint32_t{feature_lightning} == KVC_FEATURE_LIGHTNING);
static_assert(uint32_t{feature_forward} == KVC_FEATURE_FORWARD);
static_assert(uint32_t{in_f64} == KVC_SET_F64 && uint32_t{in_bf16} == KVC_SET_BF16);
static_assert(storage_bit(StorageType::f32) << 1 == KVC_SET_F32);
static_assert(storage_bit(StorageType::nf4) << 1 == KVC_SET_NF4);
static_assert(uint32_t{mode_insert} == KVC_MODE_INSERT);

kvc_operator_info info_of(const AttentionOperator& op, const char* name, const DeviceInfo& device) {
  kvc_operator_info info = KVC_OPERATOR_INFO_INIT;
  info.devices = uint32_t{1} << device.type;
  info.modes = op.modes;
  info.features = op.features;
  info.storage = op.storage << 1;
  info.runtime_dtypes = op.runtime_types;
  info.softmax_dtypes = op.softmax_types;
  info.head_dim_min = op.head_dim_min;
  info.head_dim_max = op.head_dim_max;
  info.head_dim_multiple = op.head_dim_multiple;
  info.block_q_multiple = op.block_q_multiple;
  info.block_k_multiple = op.block_k_multiple;
  std::snprintf(info.name, sizeof info.name, "%s", name);
  std::snprintf(info.canonical, sizeof info.canonical, "%s", op.name);
  return info;
}

Status read_precision(const char* name, uint32_t dtype, uint32_t* precision) {
  switch (dtype) {
    case 0:
    case KVC_F32: *precision = in_f32; return Status::ok;
    case KVC_F64: *precision = in_f64; return Status::ok;
    case KVC_F16: *precision = in_f16; return Status::ok;
    case KVC_BF16: *precision = in_bf16; return Status::ok;
    default: return wrong_dtype(name, dtype, "f64, f32, f16 or bf16");
  }
}

uint32_t dtype_of_precision(uint32_t precision) {
  switch (precision) {
    case in_f64: return KVC_F64;
    case in_f16: return KVC_F16;
    case in_bf16: return KVC_BF16;
    default: return KVC_F32;
  }
}

StorageType first_storage(const AttentionOperator& op) {
  return static_cast<StorageType>(std::countr_zero(op.storage));
}

}  // namespace kvc::capi
