#include "capi/src/words.hpp"

#include <cinttypes>
#include <cstdio>

#include "kvc/kvc.h"

namespace kvc::capi {
namespace {

/// How the numeric types of DLPack's codes begin; null: a code that is not numeric, or of a later DLPack.
const char* prefix_of(uint32_t code) {
  switch (code) {
    case 0: return "i";
    case 1: return "u";
    case 2: return "f";
    case 4: return "bf";
    case 5: return "complex";
    case 6: return "bool";
    default: return nullptr;
  }
}

}  // namespace

const char* dtype_name(uint32_t dtype) {
  switch (dtype) {
    case KVC_F64: return "f64";
    case KVC_F32: return "f32";
    case KVC_F16: return "f16";
    case KVC_BF16: return "bf16";
    case KVC_I32: return "i32";
    case KVC_I8: return "i8";
    case KVC_U8: return "u8";
    case KVC_BOOL: return "bool";
    case KVC_F8_E4M3: return "f8_e4m3";
    case KVC_F8_E5M2: return "f8_e5m2";
    case KVC_Q8_0: return "q8_0";
    case KVC_Q4_0: return "q4_0";
    case KVC_INT8: return "int8";
    case KVC_NF4: return "nf4";
    default: return nullptr;
  }
}

Words words_for_dtype(uint32_t dtype) {
  Words words;
  const uint32_t code = dtype & 0xff, bits = dtype >> 8 & 0xff, lanes = dtype >> 16;
  const char* prefix = prefix_of(code);
  if (const char* name = dtype_name(dtype)) {
    std::snprintf(words.text, sizeof words.text, "%s", name);
  } else if (dtype == 0) {
    std::snprintf(words.text, sizeof words.text, "untyped (0)");
  } else if (prefix == nullptr || bits == 0 || lanes == 0) {
    std::snprintf(words.text, sizeof words.text,
                  "of an unknown type (DLPack's code %u, %u bits, %u lanes)", code, bits, lanes);
  } else if (lanes == 1) {
    std::snprintf(words.text, sizeof words.text, "%s%u", prefix, bits);
  } else {
    std::snprintf(words.text, sizeof words.text, "%s%u in %u lanes", prefix, bits, lanes);
  }
  return words;
}

Words words_for_list(const int64_t* values, int32_t n) {
  Words words = {"["};
  size_t used = 1;
  for (int32_t i = 0; i < n; ++i) {  // eight numbers of 20 characters fit
    used += static_cast<size_t>(std::snprintf(words.text + used, sizeof words.text - used,
                                              "%s%" PRId64, i > 0 ? ", " : "", values[i]));
  }
  std::snprintf(words.text + used, sizeof words.text - used, "]");
  return words;
}

Words words_for_device(int32_t type, int32_t id) {
  Words words;
  if (type == KVC_CPU && id == 0)
    std::snprintf(words.text, sizeof words.text, "cpu");
  else if (type == KVC_CPU || type == KVC_CUDA)
    std::snprintf(words.text, sizeof words.text, "%s:%d", type == KVC_CPU ? "cpu" : "cuda", id);
  else
    std::snprintf(words.text, sizeof words.text, "DLPack's device type %d, id %d", type, id);
  return words;
}

const char* kind_name(uint32_t kind) {
  switch (kind) {
    case KVC_CAUSAL: return "causal";
    case KVC_ENCODER: return "encoder";
    case KVC_RECURRENT: return "recurrent";
    case KVC_WRAPPER: return "wrapper";
    case KVC_TRANSFORMER: return "transformer";
    case KVC_LIGHTNING: return "lightning";
    default: return "unknown";
  }
}

}  // namespace kvc::capi
