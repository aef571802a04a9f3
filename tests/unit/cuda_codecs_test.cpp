/// The codecs for CUDA, run on the CPU by the shim, beside those of the CPU: the same bytes, the same numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "core/base/half.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cuda/coded_rows.cuh"
#include "support/random.hpp"
#include "unit/codec_numbers.hpp"

namespace {

using namespace kvc;
using namespace kvc::cuda;
using support::Random;

/// Rows of one format, as both sides store and read them.
class Rows {
 public:
  Rows(const RowRequest& request, int32_t n_rows) : n_(n_rows) {
    EXPECT_EQ(resolve_row_format(request, &format_), Status::ok) << last_message();
    values.resize(static_cast<size_t>(format_.head_dim) * static_cast<size_t>(n_));
    for (Side* side : {&cpu_, &cuda_}) {
      side->codes.assign(format_.code_bytes() * static_cast<size_t>(n_), std::byte{0xa5});
      side->scales.assign(format_.scale_bytes() * static_cast<size_t>(n_), std::byte{0xa5});
      side->read.resize(values.size());
    }
  }

  std::vector<float> values;
  float head_scale = 1;  // of f8
  const RowFormat& format() const { return format_; }

  /// Stores the values, reads what was stored, and compares.
  void compare() {
    const cpu::KernelTable& table = cpu::portable_kernels;
    for (int32_t i = 0; i < n_; ++i) {
      std::vector<float> row(at(values, i), at(values, i) + format_.head_dim);
      if (format_.rotation != 0) table.rotate(row.data(), format_.head_dim, format_.rotation);
      table.encode(format_, cpu_.row(format_, i, head_scale), row.data());
      table.decode(format_, at(cpu_.read, i), cpu_.row(format_, i, head_scale));
      if (format_.rotation != 0)
        table.rotate_back(at(cpu_.read, i), format_.head_dim, format_.rotation);
    }
    const size_t row_bytes = static_cast<size_t>(format_.head_dim) * sizeof(float);
    simt::launch(1, 32, row_bytes, [this] { run_warp(); });
    for (int32_t i = 0; i < n_; ++i) compare_row(i);
  }

 private:
  struct Side {
    std::vector<std::byte> codes, scales;
    std::vector<float> read;

    StoredRow row(const RowFormat& format, int32_t index, float scale) {
      return {codes.data() + format.code_bytes() * static_cast<size_t>(index),
              scales.data() + format.scale_bytes() * static_cast<size_t>(index), scale};
    }
  };

  float* at(std::vector<float>& numbers, int32_t row) const {
    return numbers.data() + int64_t{row} * format_.head_dim;
  }

  void run_warp() {
    const Coding coding = coding_of(format_);
    auto* const numbers = reinterpret_cast<float*>(shared_memory());
    const int lane = thread_index();
    for (int32_t i = 0; i < n_; ++i) {
      const StoredRow row = cuda_.row(format_, i, head_scale);
      auto* const codes = reinterpret_cast<char*>(row.codes);
      auto* const scales = reinterpret_cast<char*>(row.scales);
      for (int dim = lane; dim < coding.dim; dim += warp_lanes) numbers[dim] = at(values, i)[dim];
      sync_warp();
      rotate_row(coding, numbers, false, lane);
      encode_row(coding, codes, scales, head_scale, numbers, lane);
      sync_warp();
      for (int dim = lane; dim < coding.dim; dim += warp_lanes)
        numbers[dim] = decode_number(coding, {codes, scales, head_scale}, dim);
      sync_warp();
      rotate_row(coding, numbers, true, lane);
      for (int dim = lane; dim < coding.dim; dim += warp_lanes)
        at(cuda_.read, i)[dim] = numbers[dim];
      sync_warp();
    }
  }

  void compare_row(int32_t i) {
    const StoredRow want = cpu_.row(format_, i, 1), got = cuda_.row(format_, i, 1);
    ASSERT_EQ(std::memcmp(want.codes, got.codes, format_.code_bytes()), 0) << "codes of row " << i;
    if (format_.block != 0) {
      ASSERT_EQ(std::memcmp(want.scales, got.scales, format_.scale_bytes()), 0)
          << "scales of row " << i;
    }
    for (int32_t dim = 0; dim < format_.head_dim; ++dim) {
      const float x = at(cpu_.read, i)[dim], y = at(cuda_.read, i)[dim];
      ASSERT_TRUE(std::isnan(x) ? std::isnan(y) : x == y)
          << "row " << i << " dim " << dim << ": " << x << " and " << y;
    }
  }

  const int32_t n_;
  RowFormat format_;
  Side cpu_, cuda_;
};

std::vector<RowRequest> formats() {
  std::vector<RowRequest> all;
  for (const StorageType type : {StorageType::f8_e4m3, StorageType::f8_e5m2, StorageType::q8_0,
                                 StorageType::q4_0, StorageType::int8, StorageType::nf4}) {
    all.push_back({"dtype", type, 96, 0, false});
    if (!is_f8(type)) all.push_back({"dtype", type, 96, 0, true});
  }
  all.push_back({"dtype", StorageType::int8, 41, 0, false});
  all.push_back({"dtype", StorageType::f8_e4m3, 5, 0, false});
  all.push_back({"dtype", StorageType::int8, 2, 0, true});
  all.push_back({"dtype", StorageType::nf4, 16, 0, true});
  all.push_back({"dtype", StorageType::nf4, 256, 128, true});
  all.push_back({"dtype", StorageType::q8_0, 576, 0, true});
  return all;
}

std::string name_of(const RowRequest& request) {
  return std::string(format_of(request.type).name) + " " + std::to_string(request.head_dim) +
         (request.rotate ? " rotated" : "");
}

TEST(CudaCodecs, All16BitNumbersAreStoredAsOnTheCpu) {
  for (const RowRequest& request : formats()) {
    SCOPED_TRACE(name_of(request));
    for (const bool is_f16 : {true, false}) {
      Rows rows(request, (65536 + request.head_dim - 1) / request.head_dim);
      uint32_t next = 0;
      for (float& x : rows.values) {  // magnitudes far apart, and in turn all of them
        const auto half = static_cast<uint16_t>(next & 0xffff);
        x = is_f16 ? f16_to_f32(half) : bf16_to_f32(half);
        next += is_f16 ? 1 : 2053;
      }
      rows.head_scale = is_f16 || !is_f8(request.type) ? 1.0f : 0.1f;
      rows.compare();
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CudaCodecs, RandomNumbersAreStoredAsOnTheCpu) {
  uint64_t seed = 20261130;
  std::cout << "seeds from " << seed << std::endl;
  for (const RowRequest& request : formats()) {
    for (int32_t round = 0; round < 4; ++round, ++seed) {
      SCOPED_TRACE(name_of(request) + " seed " + std::to_string(seed));
      Rows rows(request, 200);
      MixedNumbers numbers(seed);
      std::vector<float> row(static_cast<size_t>(request.head_dim));
      for (size_t i = 0; i < rows.values.size(); i += row.size()) {
        numbers.fill(row);
        std::copy(row.begin(), row.end(), rows.values.begin() + static_cast<int64_t>(i));
      }
      if (is_f8(request.type)) rows.head_scale = numbers.scale();
      rows.compare();
      if (HasFatalFailure()) return;
    }
  }
}

/// Numbers between two neighbours that a format has, or a hair's breadth from there, where a rounding that comes from elsewhere shows.
void fill_with_ties(const RowFormat& format, float head_scale, Random& random,
                    std::vector<float>& row) {
  const int32_t block = format.block == 0 ? format.head_dim : format.block;
  const int32_t n_codes = format.type == StorageType::q4_0 || format.type == StorageType::nf4 ? 15
                                                                                              : 255;
  const auto number = [&](int32_t code) {
    return number_of(format.type, static_cast<uint32_t>(code));
  };
  const std::map<StorageType, float> largest = {{StorageType::q8_0, 127.0f},
                                                {StorageType::int8, 127.0f},
                                                {StorageType::q4_0, 8.0f},
                                                {StorageType::nf4, 1.0f}};
  for (int32_t begin = 0; begin < format.head_dim; begin += block) {
    const float top = std::ldexp(1 + std::fabs(random.value()), random.between(-9, 9));
    const float unit = format.block == 0 ? head_scale : top / largest.at(format.type);
    for (int32_t i = begin; i < begin + block; ++i) {
      const int32_t code = random.below(n_codes);
      const float tie = (number(code) + number(code + 1)) / 2 * unit;
      const int32_t away = random.between(-2, 2);
      row[static_cast<size_t>(i)] = float_of(bits_of(tie) + static_cast<uint32_t>(away));
    }
    if (format.block != 0)
      row[static_cast<size_t>(begin)] = format.type == StorageType::q4_0 ? -top : top;
  }
}

TEST(CudaCodecs, NumbersBetweenTwoCodesAreStoredAsOnTheCpu) {
  Random random(20261130);
  for (const RowRequest& request : formats()) {
    if (request.rotate) continue;
    SCOPED_TRACE(name_of(request));
    Rows rows(request, 400);
    if (is_f8(request.type)) rows.head_scale = std::ldexp(1.3f, random.between(-9, 9));
    std::vector<float> row(static_cast<size_t>(request.head_dim));
    for (size_t i = 0; i < rows.values.size(); i += row.size()) {
      fill_with_ties(rows.format(), rows.head_scale, random, row);
      std::copy(row.begin(), row.end(), rows.values.begin() + static_cast<int64_t>(i));
    }
    rows.compare();
    if (HasFatalFailure()) return;
  }
}

}  // namespace
