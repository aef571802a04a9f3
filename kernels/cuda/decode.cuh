#pragma once
#include "kernels/cuda/coding.hpp"
#include "kernels/cuda/elements.cuh"

/// From codes to numbers (docs/SEMANTICS.md, section 9), with the bits of the caches on the CPU.
namespace kvc::cuda {

inline constexpr int ggml_block = 32;

KVC_TABLE uint32_t nf4_bits[16] = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};

/// A row of a head.
struct CodedRow {
  const char* codes;
  const char* scales;  // without meaning where none is stored
  float head_scale;    // of f8
};

/// An exponent of four bits lies in the upper part of f32's; its bias is seven.
KVC_DEVICE float e4m3_number(uint32_t code) {
  const uint32_t magnitude = code & 0x7fu, sign = (code & 0x80u) << 24;
  if (magnitude == 0x7fu) return float_of(sign | 0x7fc00000u);
  return float_of(sign | bits_of(float_of(magnitude << 20) * 0x1p120f));
}
/// The upper half of an f16.
KVC_DEVICE float e5m2_number(uint32_t code) { return f16_bits_to_f32(code << 8); }
KVC_DEVICE float int8_number(uint32_t code) {
  return static_cast<float>(static_cast<int8_t>(static_cast<uint8_t>(code)));
}
KVC_DEVICE float q4_0_number(uint32_t code) { return static_cast<float>(static_cast<int>(code) - 8); }
KVC_DEVICE float nf4_number(uint32_t code) { return float_of(nf4_bits[code]); }

/// What the numbers from `dim` on are multiplied with, up to the next block.
KVC_DEVICE float scale_at(const Coding& coding, const CodedRow& row, int dim) {
  if (coding.block == 0) return row.head_scale;
  const int index = dim / coding.block;
  const bool is_half = coding.type == StorageType::q8_0 || coding.type == StorageType::q4_0;
  return load_element(row.scales, is_half ? Element::f16 : Element::f32, index);
}

/// Where the code of a number lies.
struct CodePlace {
  int byte;
  int shift;  // of the four bits of a type that has no more
};
KVC_DEVICE CodePlace place_of(StorageType type, int dim) {
  if (type == StorageType::nf4) return {dim / 2, dim % 2 == 0 ? 4 : 0};
  if (type != StorageType::q4_0) return {dim, 0};
  const int in_block = dim % ggml_block, half = ggml_block / 2;
  return {dim / ggml_block * half + in_block % half, in_block < half ? 0 : 4};
}

/// Of a code as place_of() finds it; four bits may have others above them.
KVC_DEVICE float number_of(StorageType type, uint32_t code) {
  switch (type) {
    case StorageType::f8_e4m3: return e4m3_number(code);
    case StorageType::f8_e5m2: return e5m2_number(code);
    case StorageType::q4_0: return q4_0_number(code & 15u);
    case StorageType::nf4: return nf4_number(code & 15u);
    default: return int8_number(code);  // q8_0 and int8
  }
}

/// One number of a row, as it is stored: rotated where that is.
KVC_DEVICE float decode_number(const Coding& coding, const CodedRow& row, int dim) {
  const CodePlace place = place_of(coding.type, dim);
  const auto code = static_cast<uint8_t>(row.codes[place.byte]);
  return multiply_rounded(number_of(coding.type, uint32_t{code} >> place.shift),
                          scale_at(coding, row, dim));
}

}  // namespace kvc::cuda
