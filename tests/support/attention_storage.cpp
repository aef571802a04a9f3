#include "attention_rig.hpp"

/// Storage types as options of attention.
namespace support {
namespace {

bool is_plain(uint32_t dtype) { return dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BF16; }
bool is_f8(uint32_t dtype) { return dtype == KVC_F8_E4M3 || dtype == KVC_F8_E5M2; }

void set_type(AttentionOptions& options, uint32_t dtype) {
  options.dtype_k = options.dtype_v = dtype;
}

int32_t up_to_multiple(int32_t dim, int32_t of) { return (dim + of - 1) / of * of; }

/// One side: a dimension that the type takes, and a type that can be rotated.
void reconcile(uint32_t& dtype, int32_t& dim, int32_t& block, bool rotated) {
  if (rotated && (is_plain(dtype) || is_f8(dtype))) dtype = KVC_INT8;
  if (dtype != KVC_NF4) block = 0;
  if (dtype == KVC_Q8_0 || dtype == KVC_Q4_0) dim = up_to_multiple(dim, 32);
  if (dtype == KVC_NF4) dim = up_to_multiple(dim, block == 0 ? 16 : block);
  if (rotated) dim = up_to_multiple(dim, 2);
}

}  // namespace

AttentionOptions reconciled(AttentionOptions options) {
  if (options.interleaved) {
    options.rotated = options.v_in_k = false;
    if (!is_plain(options.dtype_k)) options.dtype_k = KVC_F16;
    options.dtype_v = options.dtype_k;
  }
  if (options.v_in_k) {  // no block of storage or rotation is cut, and 32 dims may turn
    options.head_dim_k = 96;
    options.v_first = 32;
    options.head_dim_v = 64;
    if (options.block_k > 32) options.block_k = 32;
  }
  reconcile(options.dtype_k, options.head_dim_k, options.block_k, options.rotated);
  if (!options.v_in_k)
    reconcile(options.dtype_v, options.head_dim_v, options.block_v, options.rotated);
  return options;
}

const std::vector<StorageOption>& storage_options() {
  static const std::vector<StorageOption> all = {
      {"f8", [](auto& o) { o.dtype_k = KVC_F8_E4M3, o.dtype_v = KVC_F8_E5M2; }},
      {"q8_0", [](auto& o) { set_type(o, KVC_Q8_0); }},
      {"q4_0", [](auto& o) { set_type(o, KVC_Q4_0); }},
      {"int8", [](auto& o) { set_type(o, KVC_INT8); }},
      {"nf4", [](auto& o) { set_type(o, KVC_NF4); }},
      {"nf4 of 128 and 16", [](auto& o) { set_type(o, KVC_NF4), o.block_k = 128, o.block_v = 16; }},
      {"rotated", [](auto& o) { o.rotated = true; }},
      {"k q4_0 v f8", [](auto& o) { o.dtype_k = KVC_Q4_0, o.dtype_v = KVC_F8_E4M3; }},
      {"interleaved", [](auto& o) { o.interleaved = true; }},
      {"V in K", [](auto& o) { o.v_in_k = true; }},
  };
  return all;
}

}  // namespace support
