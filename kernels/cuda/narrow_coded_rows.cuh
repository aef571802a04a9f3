#pragma once
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/narrow_decode.cuh"

/// Where the codes of K or V lie for narrow kernels, and the scales that are stored beside them.
namespace kvc::cuda {

/// A row of stored scales, as a lane loads it.
template <StorageType type, int n>
struct ScaleRow {
  static constexpr bool are_halves = type == StorageType::q8_0 || type == StorageType::q4_0;
  static constexpr int n_bytes = n * (are_halves ? 2 : 4);
  static constexpr int n_words = n_bytes / 4;
  static_assert(n_bytes % 4 == 0);

  uint32_t words[n_words == 0 ? 1 : n_words];

  KVC_DEVICE void load(const char* from) {
    if constexpr (n_bytes % 16 == 0) {
      KVC_UNROLL for (int i = 0; i < n_words; i += 4) {
        const Word4 four = load_stream(from + 4 * i);
        KVC_UNROLL for (int j = 0; j < 4; ++j) words[i + j] = four.w[j];
      }
    } else if constexpr (n_bytes % 8 == 0) {
      KVC_UNROLL for (int i = 0; i < n_words; i += 2) {
        const Word2 two = load_stream_8(from + 4 * i);
        words[i] = two.w[0];
        words[i + 1] = two.w[1];
      }
    } else {
      KVC_UNROLL for (int i = 0; i < n_words; ++i) words[i] = load_stream_4(from + 4 * i);
    }
  }
  KVC_DEVICE float at(int block) const {
    if constexpr (!are_halves) return float_of(words[block]);
    const uint32_t pair = words[block / 2];
    return block % 2 == 0 ? F16::low(pair) : F16::high(pair);
  }
};

/// What keys and values have in common: where a lane reads, and the scales of tokens g and g + 8.
template <StorageType type, int size>
class CodedRows {
 public:
  static constexpr int dim = size;
  static constexpr int per_byte = codes_per_byte(type);
  static constexpr int block = block_of(type, dim);
  static constexpr int blocks = dim / block;
  static constexpr int steps = dim / 16;
  static constexpr int groups = dim / per_byte / 32;
  static constexpr bool has_scales = has_stored_scales(type);
  static constexpr bool trades = type == StorageType::q4_0;
  static_assert(dim % (32 * per_byte) == 0 && dim % block == 0);

 protected:
  KVC_DEVICE CodedRows(const Numbers& numbers, Lane lane) : lane_(lane), numbers_(numbers) {}

  KVC_DEVICE void begin_rows(const Task& task, int64_t first_cell, int first_byte) {
    codes_ = numbers_.data + task.kv_head * numbers_.head_stride + first_cell * numbers_.row_stride +
             first_byte;
    if (has_scales) {
      scales_ = numbers_.scales + task.kv_head * numbers_.scale_head_stride +
                first_cell * numbers_.scale_row_stride;
    }
    const bool is_scaled = !has_scales && numbers_.head_scale != nullptr;
    factor_ = (is_scaled ? numbers_.head_scale[task.kv_head] : 1.0f) * CodeWord<type>::unit;
  }

  KVC_DEVICE const char* row(int cells, int lane) const {
    return codes_ + shuffle(cells, lane) * numbers_.row_stride;
  }
  KVC_DEVICE void load_scales(int cells, int first_lane) {
    KVC_UNROLL for (int r = 0; r < 2; ++r) {
      if (has_scales) row_scales_[r].load(scales_ + shuffle(cells, first_lane + lane_.g + 8 * r) *
                                                        numbers_.scale_row_stride);
    }
  }
  KVC_DEVICE float scale(int r, int of_block) const { return row_scales_[r].at(of_block); }

  const Lane lane_;
  const CodeWord<type> word_ = {};
  float factor_;  // of all numbers of the head

 private:
  const Numbers& numbers_;
  const char *codes_, *scales_;  // of row 0
  ScaleRow<type, has_scales ? blocks : 0> row_scales_[2];
};

}  // namespace kvc::cuda
