#pragma once
#include <cstddef>
#include <cstdint>

/// Numbers of the ABI in words, for messages.
namespace kvc::capi {

/// A text that lives as long as the expression it stands in.
struct Words {
  char text[192];
};

/// A storage or element type that the header names, "bf16"; null if it names none.
const char* dtype_name(uint32_t dtype);

/// Any element type: "f64", "u16", "f32 in 4 lanes", "untyped (0)".
Words words_for_dtype(uint32_t dtype);

/// A list of extents or strides: "[2, 4, 8]".
Words words_for_list(const int64_t* values, int32_t n);

/// "cpu", "cuda:1", "DLPack's device type 10, id 0".
Words words_for_device(int32_t type, int32_t id);

/// "causal"; "unknown".
const char* kind_name(uint32_t kind);

}  // namespace kvc::capi
