#pragma once
#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/general_layout.hpp"

/// Rows of K and V as the general kernels read them: numbers as they are or, where `codes` is true, of any type.
namespace kvc::cuda {

/// Dimensions [first, first + general_chunk) of a row of `dim` numbers, as floats; zeros behind its end.
KVC_DEVICE void load_chunk(const char* row, Element element, int first, int dim,
                           float (&x)[general_chunk]) {
  const int size = element_bytes(element);
  const char* const from = row + first * size;
  if (first + general_chunk > dim || reinterpret_cast<uint64_t>(from) % sizeof(Word4) != 0) {
    KVC_UNROLL for (int i = 0; i < general_chunk; ++i)
      x[i] = first + i < dim ? load_element(row, element, first + i) : 0.0f;
    return;
  }
  Word4 words[4] = {};
  KVC_UNROLL for (int i = 0; i < 4; ++i)
    if (i < size) words[i] = load_stream(from + i * sizeof(Word4));
  KVC_UNROLL for (int i = 0; i < general_chunk; ++i) {
    if (element == Element::f32) {
      x[i] = float_of(words[i / 4].w[i % 4]);
    } else {
      const uint32_t pair = words[i / 8].w[i / 2 % 4];
      if (element == Element::f16) {
        x[i] = i % 2 == 0 ? F16::low(pair) : F16::high(pair);
      } else {
        x[i] = i % 2 == 0 ? Bf16::low(pair) : Bf16::high(pair);
      }
    }
  }
}

/// The codes of a chunk: a byte a number or, where two share one, half as many.
KVC_DEVICE Word4 load_codes(const char* from, bool has_pairs) {
  Word4 words = {};
  if (!has_pairs && reinterpret_cast<uint64_t>(from) % sizeof(Word4) == 0) return load_stream(from);
  const int n_bytes = has_pairs ? general_chunk / 2 : general_chunk;
  if (reinterpret_cast<uint64_t>(from) % 4 == 0) {
    KVC_UNROLL for (int i = 0; i < 4; ++i)
      if (4 * i < n_bytes) words.w[i] = reinterpret_cast<const uint32_t*>(from)[i];
    return words;
  }
  KVC_UNROLL for (int i = 0; i < general_chunk; ++i)
    if (i < n_bytes) words.w[i / 4] |= uint32_t{static_cast<uint8_t>(from[i])} << 8 * (i % 4);
  return words;
}

/// The same chunk of a row of codes. A chunk lies within one block, and where the sixteen bytes of a block of q4_0 hold two, its
/// numbers are in the same four bits of each.
KVC_DEVICE void decode_chunk(const Coding& coding, const CodedRow& row, int first,
                             float (&x)[general_chunk]) {
  if (first + general_chunk > coding.dim) {
    KVC_UNROLL for (int i = 0; i < general_chunk; ++i)
      x[i] = first + i < coding.dim ? decode_number(coding, row, first + i) : 0.0f;
    return;
  }
  const CodePlace place = place_of(coding.type, first);
  const Word4 words = load_codes(row.codes + place.byte, coding.type == StorageType::nf4);
  const float scale = scale_at(coding, row, first);
  const auto byte = [&](int i) { return words.w[i / 4] >> 8 * (i % 4) & 0xffu; };
  const auto fill = [&](auto number) {
    KVC_UNROLL for (int i = 0; i < general_chunk; ++i) x[i] = multiply_rounded(number(i), scale);
  };
  switch (coding.type) {
    case StorageType::f8_e4m3: return fill([&](int i) { return e4m3_number(byte(i)); });
    case StorageType::f8_e5m2: return fill([&](int i) { return e5m2_number(byte(i)); });
    case StorageType::q4_0:
      return fill([&](int i) { return q4_0_number(byte(i) >> place.shift & 15u); });
    case StorageType::nf4:
      return fill([&](int i) { return nf4_number(byte(i / 2) >> (i % 2 == 0 ? 4 : 0) & 15u); });
    default: return fill([&](int i) { return int8_number(byte(i)); });
  }
}

/// The rows of a KV head.
template <bool codes>
class HeadRows {
 public:
  KVC_DEVICE HeadRows(const Numbers& numbers, int head)
      : numbers_(numbers),
        data_(numbers.data + head * numbers.head_stride),
        scales_(numbers.scales + head * numbers.scale_head_stride),
        head_scale_(numbers.head_scale == nullptr ? 1.0f : numbers.head_scale[head]) {}

  KVC_DEVICE void chunk(int64_t cell, int first, float (&x)[general_chunk]) const {
    if constexpr (codes) {
      if (numbers_.element == Element::code)
        return decode_chunk(numbers_.coding, coded(cell), first, x);
    }
    load_chunk(data_ + cell * numbers_.row_stride, numbers_.element, first, numbers_.dim, x);
  }
  KVC_DEVICE float number(int64_t cell, int dim) const {
    if constexpr (codes) {
      if (numbers_.element == Element::code)
        return decode_number(numbers_.coding, coded(cell), dim);
    }
    return load_element(data_ + cell * numbers_.row_stride, numbers_.element, dim);
  }

 private:
  KVC_DEVICE CodedRow coded(int64_t cell) const {
    return {data_ + cell * numbers_.row_stride, scales_ + cell * numbers_.scale_row_stride,
            head_scale_};
  }

  const Numbers& numbers_;
  const char *data_, *scales_;
  float head_scale_;
};

}  // namespace kvc::cuda
