/// The wide and the medium kernel of every instruction set that this machine runs, against attention in
/// double over the same tile.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/base/half.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/pages.hpp"
#include "tests/unit/storage.hpp"

namespace {

using kvc::DType;
using kvc::cpu::KernelTable;
using kvc::cpu::Tile;
using kvc::cpu::TileToken;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float log2_e = 1.4426950408889634f;
constexpr unsigned first_seed = 20240611;

/// Memory aligned to a page with a guard behind it that nothing may touch.
class Guarded {
 public:
  explicit Guarded(size_t bytes, int fill)
      : bytes_(bytes), memory_(static_cast<std::byte*>(std::aligned_alloc(4096, padded(bytes)))) {
    std::memset(memory_.get(), fill, bytes);
    std::memset(memory_.get() + bytes, guard, padded(bytes) - bytes);
  }
  std::byte* data() const { return memory_.get(); }
  float* floats() const { return reinterpret_cast<float*>(memory_.get()); }
  bool intact() const {
    for (size_t i = bytes_; i < padded(bytes_); ++i) {
      if (memory_.get()[i] != std::byte{guard}) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  static constexpr uint8_t guard = 0xa5;
  static size_t padded(size_t bytes) { return (bytes + 4096 + 4095) / 4096 * 4096; }
  size_t bytes_;
  std::unique_ptr<std::byte, Free> memory_;
};

/// One of the kernels under test.
struct Kernel {
  std::string name;
  void (*process)(const Tile& tile);
  size_t (*scratch_bytes)(int32_t head_dim_k, int32_t head_dim_v);
  int32_t rows_max;
};

/// The wide and the medium kernels that this machine runs.
std::vector<Kernel> kernels() {
  std::vector<Kernel> all;
  for (int32_t i = 0; const KernelTable* isa = kvc::cpu::runnable_kernels(i); ++i) {
    all.push_back({std::string("wide_") + isa->name, isa->process_wide_tile,
                   isa->wide_tile_scratch_bytes, kvc::cpu::tile_rows_max});
    if (isa->process_medium_tile == nullptr) continue;
    all.push_back({std::string("medium_") + isa->name, isa->process_medium_tile,
                   isa->medium_tile_scratch_bytes, kvc::cpu::medium_tile_rows_max});
  }
  return all;
}

/// What a case is made of; everything else follows from the seed.
struct Shape {
  int32_t tokens = 8;
  int32_t group = 4;
  int32_t n_cells = 100;
  int32_t head_dim_k = 128;
  int32_t head_dim_v = 128;
  DType dtype_k = DType::f16;
  DType dtype_v = DType::f16;
  bool cap = false;
  bool slopes = false;
  int visibility = 0;  // 0 causal, 1 windows behind a kept first part, 2 any ranges, 3 everything
  bool poison_hidden = false;
  float sharpness = 1.0f;
  float key_size = 1.0f;  // queries are as much smaller as keys are larger
  float value_size = 1.0f;
};

std::string describe(const Shape& s, unsigned seed, const Kernel& kernel) {
  const auto n = [](auto x) { return std::to_string(x) + " "; };
  return kernel.name + " seed " + n(seed) + "tokens " + n(s.tokens) + "group " + n(s.group) +
         "cells " + n(s.n_cells) + "dims " + n(s.head_dim_k) + n(s.head_dim_v) + "types " +
         n(static_cast<uint32_t>(s.dtype_k)) + n(static_cast<uint32_t>(s.dtype_v)) + "cap " +
         n(s.cap) + "slopes " + n(s.slopes) + "visibility " + n(s.visibility) + "poison " +
         n(s.poison_hidden);
}

/// A tile with its memory.
class Problem {
 public:
  Problem(const Shape& shape, unsigned seed)
      : shape_(shape),
        random_(seed),
        q_stride_(padded(shape.head_dim_k)),
        o_stride_(padded(shape.head_dim_v)),
        n_rows_(shape.tokens * shape.group),
        pool_(shape.n_cells + 7),
        k_(row_bytes(shape.head_dim_k, shape.dtype_k) * count(pool_), 0xff),
        v_(row_bytes(shape.head_dim_v, shape.dtype_v) * count(pool_), 0xff),
        q_(count(n_rows_ * q_stride_) * sizeof(float), 0),
        o_(count(n_rows_ * o_stride_) * sizeof(float), 0),
        max_(count(n_rows_), -infinity),
        sum_(count(n_rows_), 0.0f) {
    place_cells();
    place_tokens();
    fill();
    if (shape.poison_hidden) poison_hidden();
  }

  bool sees(int32_t row, int32_t index) const {
    const TileToken& t = token_[static_cast<size_t>(row / shape_.group)];
    return index < t.first_end || (index >= t.begin && index < t.end);
  }

  void set_key(int32_t index, int32_t d, float x) {
    kvc::store_element(k_.data(), shape_.dtype_k,
                       int64_t{cell_[count(index)]} * shape_.head_dim_k + d, x);
  }
  void set_value(int32_t index, int32_t d, float x) {
    kvc::store_element(v_.data(), shape_.dtype_v,
                       int64_t{cell_[count(index)]} * shape_.head_dim_v + d, x);
  }
  void set_query(int32_t row, int32_t d, float x) { q_.floats()[row * q_stride_ + d] = x; }
  void set_bias(const float* bias) { bias_ = bias; }
  int32_t bias_stride() const { return padded(n_rows_); }

  Tile tile(std::byte* scratch) {
    Tile t;
    t.k = rows_at(k_.data(), shape_.head_dim_k, shape_.dtype_k);
    t.v = rows_at(v_.data(), shape_.head_dim_v, shape_.dtype_v);
    t.cell = cell_.data();
    t.position = position_.data();
    t.n_cells = shape_.n_cells;
    t.q = q_.floats();
    t.token = token_.data();
    t.n_rows = n_rows_;
    t.group = shape_.group;
    t.q_stride = q_stride_;
    t.cap = shape_.cap ? 30.0f * log2_e : 0.0f;
    t.slope = shape_.slopes ? slope_.data() : nullptr;
    t.bias = bias_;
    t.bias_stride = bias_ == nullptr ? 0 : bias_stride();
    t.max = max_.data();
    t.sum = sum_.data();
    t.o = o_.floats();
    t.o_stride = o_stride_;
    t.scratch = scratch;
    return t;
  }

  /// Runs the kernel over cells [begin, end) alone, limits moved accordingly.
  void run(const Kernel& kernel, int32_t begin, int32_t end) {
    const size_t bytes = kernel.scratch_bytes(shape_.head_dim_k, shape_.head_dim_v);
    const Guarded scratch(bytes, 0xff);
    Tile t = tile(scratch.data());
    std::vector<TileToken> moved = token_;
    for (TileToken& m : moved) {
      for (int32_t* limit : {&m.first_end, &m.begin, &m.end})
        *limit = std::clamp(*limit, begin, end) - begin;
    }
    t.token = moved.data();
    t.cell += begin;
    t.position += begin;
    t.n_cells = end - begin;
    kernel.process(t);
    EXPECT_TRUE(scratch.intact());
    EXPECT_TRUE(o_.intact());
  }

  /// The largest error of any row: output relative to the row's largest, log-sum-exp absolute.
  /// Infinite when one side is NaN or infinite and the other is not.
  double error() const {
    const std::vector<float> keys = decoded(k_.data(), shape_.dtype_k, shape_.head_dim_k);
    const std::vector<float> values = decoded(v_.data(), shape_.dtype_v, shape_.head_dim_v);
    double worst = 0;
    for (int32_t row = 0; row < n_rows_; ++row)
      worst = std::max(worst, row_error(row, keys, values));
    return worst;
  }

  const std::vector<float>& max() const { return max_; }
  const std::vector<float>& sum() const { return sum_; }
  const float* o() const { return o_.floats(); }
  int32_t n_rows() const { return n_rows_; }
  size_t o_count() const { return count(n_rows_ * o_stride_); }

 private:
  static size_t count(int32_t n) { return static_cast<size_t>(n); }
  static int32_t padded(int32_t n) { return (n + 15) / 16 * 16; }
  static size_t row_bytes(int32_t dims, DType type) { return count(dims) * kvc::size_of(type); }
  static kvc::cpu::TileRows rows_at(const std::byte* data, int32_t dims, DType type) {
    kvc::cpu::TileRows rows;
    rows.codes = data;
    rows.stride = rows.bytes = row_bytes(dims, type);
    rows.type = stored_as(type);
    rows.head_dim = dims;
    return rows;
  }
  int32_t below(int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random_); }

  void place_cells() {
    std::vector<int32_t> all(count(pool_));
    for (int32_t i = 0; i < pool_; ++i) all[count(i)] = i;
    if (below(1) == 1) std::shuffle(all.begin(), all.end(), random_);
    cell_.assign(all.begin(), all.begin() + shape_.n_cells);
    int32_t position = below(1) == 1 ? 0 : 2000000000;
    for (int32_t i = 0; i < shape_.n_cells; ++i)
      position_.push_back(position += 1 + below(20) / 20);
  }

  void place_tokens() {
    const int32_t n = shape_.n_cells;
    const int32_t reach = 1 + below(n), kept = below(n / 4);
    for (int32_t i = 0; i < shape_.tokens; ++i) {
      const int32_t own = std::max(0, n - shape_.tokens + i + 1);
      TileToken t{0, 0, own, 0};
      if (shape_.visibility == 1)
        t = {std::min(kept, own), std::max(std::min(kept, own), own - reach), own, 0};
      if (shape_.visibility == 2) {
        int32_t limits[3] = {below(n), below(n), below(n)};
        std::sort(limits, limits + 3);
        t = {below(2) == 0 ? 0 : limits[0], limits[1], limits[2], 0};
        if (below(5) == 0) t = {0, 0, 0, 0};
      }
      if (shape_.visibility == 3) t = {0, 0, n, 0};
      t.position = position_[count(std::clamp(own - 1, 0, n - 1))];
      token_.push_back(t);
    }
  }

  void fill() {
    std::normal_distribution<float> normal;
    for (int32_t i = 0; i < shape_.n_cells; ++i) {
      for (int32_t d = 0; d < shape_.head_dim_k; ++d)
        set_key(i, d, normal(random_) * shape_.key_size);
      for (int32_t d = 0; d < shape_.head_dim_v; ++d)
        set_value(i, d, normal(random_) * shape_.value_size);
    }
    const float scale = shape_.sharpness * 1.442695f /
                        std::sqrt(static_cast<float>(shape_.head_dim_k)) / shape_.key_size;
    for (int32_t row = 0; row < n_rows_; ++row) {
      for (int32_t d = 0; d < shape_.head_dim_k; ++d) {
        q_.floats()[row * q_stride_ + d] = normal(random_) * (shape_.cap ? scale / 30 : scale);
      }
    }
    for (int32_t h = 0; h < shape_.group; ++h)
      slope_.push_back(1.442695f * std::exp2(-8.0f * float(h + 1) / 16));
  }

  /// NaN and infinity wherever no row looks, and where only some rows look in cells that others
  /// see.
  void poison_hidden() {
    for (int32_t i = 0; i < shape_.n_cells; ++i) {
      bool seen = false;
      for (int32_t row = 0; row < n_rows_; row += shape_.group) seen |= sees(row, i);
      if (seen && below(60) != 0) continue;
      // Seen infinities stay out: 2^−200 times infinity is infinite in double and NaN in f32.
      const float poison = seen || below(1) == 1 ? not_a_number : infinity;
      if (!seen || below(1) == 1) set_value(i, below(shape_.head_dim_v - 1), poison);
      if (!seen) set_key(i, below(shape_.head_dim_k - 1), poison);
    }
  }

  /// The rows of the tile's cells, in the order of its list.
  std::vector<float> decoded(const std::byte* rows, DType type, int32_t dims) const {
    std::vector<float> out;
    for (const int32_t cell : cell_) {
      for (int32_t d = 0; d < dims; ++d)
        out.push_back(kvc::load_element(rows, type, int64_t{cell} * dims + d));
    }
    return out;
  }

  double score(int32_t row, int32_t index, const float* key) const {
    double x = 0;
    for (int32_t d = 0; d < shape_.head_dim_k; ++d)
      x += double{q_.floats()[row * q_stride_ + d]} * key[d];
    const double cap = 30.0f * log2_e;
    if (shape_.cap) x = cap * std::tanh(x);
    if (shape_.slopes) {
      const double distance = static_cast<double>(position_[count(index)]) -
                              token_[count(row / shape_.group)].position;
      x -= double{slope_[count(row % shape_.group)]} * std::abs(distance);
    }
    return x;
  }

  double row_error(int32_t row, const std::vector<float>& keys,
                   const std::vector<float>& values) const {
    std::vector<double> scores;
    std::vector<int32_t> seen;
    double max = -infinity, sum = 0;
    for (int32_t i = 0; i < shape_.n_cells; ++i) {
      if (!sees(row, i)) continue;
      seen.push_back(i);
      scores.push_back(score(row, i, &keys[count(i * shape_.head_dim_k)]));
      if (scores.back() > max) max = scores.back();
    }
    std::vector<double> out(count(shape_.head_dim_v), 0.0);
    for (size_t i = 0; i < seen.size(); ++i) {
      const double p = std::exp2(scores[i] - (max == -infinity ? 0 : max));
      const float* value = &values[count(seen[i] * shape_.head_dim_v)];
      sum += p;
      for (int32_t d = 0; d < shape_.head_dim_v; ++d) out[count(d)] += p * value[d];
    }
    const float* o = o_.floats() + row * o_stride_;
    if (seen.empty()) {
      bool nothing = max_[count(row)] == -infinity && sum_[count(row)] == 0;
      for (int32_t d = 0; d < o_stride_; ++d) nothing &= o[d] == 0;
      return nothing ? 0 : infinity;
    }
    double scale = 0, worst = 0;
    for (const double x : out) {
      if (std::isfinite(x)) scale = std::max(scale, std::abs(x / sum));
    }
    for (int32_t d = 0; d < shape_.head_dim_v; ++d) {
      const double actual = double{o[d]} / sum_[count(row)];
      worst = std::max(worst, difference(out[count(d)] / sum, actual, scale));
    }
    const double lse = max_[count(row)] + std::log2(double{sum_[count(row)]});
    worst = std::max(worst, difference(max + std::log2(sum), lse, 1.0));
    return worst / std::max(1.0, std::abs(max) /
                                     8);  // scores are sums in f32: their rounding grows with them
  }

  static double difference(double expected, double actual, double scale) {
    if (std::isnan(expected) && std::isnan(actual)) return 0;
    if (std::isinf(expected) && expected == actual) return 0;
    const double error = std::abs(expected - actual) / scale;
    return std::isfinite(error) ? error : infinity;
  }

  Shape shape_;
  std::mt19937 random_;
  int32_t q_stride_, o_stride_, n_rows_, pool_;
  Guarded k_, v_, q_, o_;
  std::vector<int32_t> cell_, position_;
  std::vector<TileToken> token_;
  std::vector<float> slope_, max_, sum_;
  const float* bias_ = nullptr;  // 0, so that it changes nothing
};

/// Floats of value 0 behind which no memory lies.
class AtTheEdge {
 public:
  explicit AtTheEdge(size_t n_floats) {
    const size_t page = kvc::cpu::system_page();
    const size_t floats_bytes = kvc::cpu::whole_pages(n_floats * sizeof(float), page);
    bytes_ = floats_bytes + page;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory_, MAP_FAILED);
    std::byte* edge = static_cast<std::byte*>(memory_) + floats_bytes;
    EXPECT_EQ(mprotect(edge, page, PROT_NONE), 0);
    floats_ = reinterpret_cast<float*>(edge) - n_floats;
  }
  ~AtTheEdge() { munmap(memory_, bytes_); }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;
  const float* floats() const { return floats_; }

 private:
  size_t bytes_ = 0;
  void* memory_ = nullptr;
  float* floats_ = nullptr;
};

class TileKernel : public testing::TestWithParam<Kernel> {
 protected:
  void check(const Shape& shape, unsigned seed, double bound = 1e-5) {
    SCOPED_TRACE(describe(shape, seed, kernel_));
    Problem problem(shape, seed);
    problem.run(kernel_, 0, shape.n_cells);
    EXPECT_LE(problem.error(), bound);
    worst_ = std::max(worst_, problem.error());
  }

  /// Tokens of a shape: as many, or as many as the kernel takes.
  int32_t at_most(int32_t n_tokens, int32_t group = 4) const {
    return std::min(n_tokens, kernel_.rows_max / group);
  }

  const Kernel kernel_ = GetParam();
  double worst_ = 0;
};

#ifdef KVC_SANITIZED  // products are slow there
constexpr unsigned n_random_shapes = 30;
#else
constexpr unsigned n_random_shapes = 120;
#endif

TEST_P(TileKernel, AgreesWithDoubleOverRandomShapesAndOptions) {
  std::mt19937 random(first_seed);
  const auto below = [&](int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random); };
  constexpr DType types[] = {DType::f32, DType::f16, DType::bf16};
  constexpr int32_t dims[] = {16,  32,  48,  64,  80,  96,  112, 128,
                              144, 192, 256, 512, 576, 100, 36,  8};
  constexpr int32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 64};
  for (unsigned i = 0; i < n_random_shapes; ++i) {
    Shape shape;
    shape.group = groups[below(9)];
    shape.tokens = 1 + below(kernel_.rows_max / shape.group - 1);
    shape.n_cells = 1 + below(below(3) == 0 ? 700 : 150);
    shape.head_dim_k = dims[below(15)];
    shape.head_dim_v = below(2) != 0 ? shape.head_dim_k : dims[below(15)];
    shape.dtype_k = types[below(2)];
    shape.dtype_v = below(1) == 1 ? shape.dtype_k : types[below(2)];
    shape.cap = below(3) == 0;
    shape.slopes = below(3) == 0;
    shape.visibility = below(3);
    shape.poison_hidden = below(3) == 0;
    shape.sharpness = below(3) == 0 ? 4.0f : 1.0f;
    check(shape, first_seed + i);
    if (HasFailure()) return;
  }
  RecordProperty("worst_error", std::to_string(worst_));
}

TEST_P(TileKernel, TakesEveryNumberOfRows) {
  for (int32_t tokens = 1; tokens <= at_most(192, 1); tokens += tokens < 50 ? 1 : 7) {
    Shape shape;
    shape.tokens = tokens;
    shape.group = 1;
    shape.n_cells = 150 + tokens;
    shape.head_dim_k = shape.head_dim_v = 48;
    check(shape, first_seed + static_cast<unsigned>(tokens), 4e-6);
  }
}

TEST_P(TileKernel, CarriesTheSoftmaxOnFromTileToTile) {
  for (unsigned i = 0; i < 12; ++i) {
    Shape shape;
    shape.tokens = at_most(24);
    shape.n_cells = 400;
    shape.visibility = static_cast<int>(i % 4);
    shape.slopes = i % 3 == 0;
    shape.sharpness = 6.0f;
    SCOPED_TRACE(describe(shape, first_seed + i, kernel_));
    Problem problem(shape, first_seed + i);
    problem.run(kernel_, 0, 100);
    problem.run(kernel_, 100, 101);
    problem.run(kernel_, 101, 390);
    problem.run(kernel_, 390, 400);
    EXPECT_LE(problem.error(), 1e-5);
  }
}

TEST_P(TileKernel, KeepsErrorsSmall) {
  Shape shape;
  shape.tokens = 16;
  shape.n_cells = 1536;
  check(shape, first_seed, 2e-6);
  shape.dtype_k = shape.dtype_v = DType::bf16;
  check(shape, first_seed + 1, 2e-6);
}

/// Of any size: matrix registers know no denormal numbers, which the later parts of small ones would be.
TEST_P(TileKernel, KeepsErrorsSmallForSmallAndLargeNumbers) {
  unsigned seed = first_seed;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const float key_size : {0x1p-120f, 0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p100f}) {
      for (const float value_size : {0x1p-120f, 0x1p-100f, 0x1p-60f, 0x1p60f, 0x1p100f}) {
        Shape shape;
        shape.dtype_k = shape.dtype_v = dtype;
        shape.head_dim_k = shape.head_dim_v = 64;
        shape.key_size = key_size;
        shape.value_size = value_size;
        SCOPED_TRACE(std::to_string(std::log2(key_size)) + " " +
                     std::to_string(std::log2(value_size)));
        check(shape, ++seed, 4e-6);
      }
    }
  }
}

/// One row sees small values alone, beside others that see ordinary ones in the same block.
TEST_P(TileKernel, KeepsErrorsSmallInARowOfSmallValues) {
  Shape shape;
  shape.dtype_k = shape.dtype_v = DType::f32;
  shape.group = 1;
  shape.tokens = shape.n_cells = 60;
  Problem problem(shape, first_seed);  // causal: the first token sees the first cell alone
  for (int32_t d = 0; d < shape.head_dim_v; ++d)
    problem.set_value(0, d, std::ldexp(1.0f + static_cast<float>(d) * 0.007f, -120));
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.error(), 4e-6) << kernel_.name;
}

TEST_P(TileKernel, WhatIsSeenPropagatesAndWhatIsHiddenDoesNot) {
  for (const float poison : {not_a_number, infinity, -infinity}) {
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
      Shape shape;
      shape.tokens = at_most(40);
      shape.n_cells = 200;
      shape.dtype_k = shape.dtype_v = type;
      SCOPED_TRACE(describe(shape, first_seed, kernel_) + std::to_string(poison));
      Problem values(shape, first_seed);
      for (const int32_t index : {170, 185, 199}) values.set_value(index, index % 128, poison);
      values.run(kernel_, 0, shape.n_cells);
      EXPECT_EQ(values.error(), std::min(values.error(), 1e-5));
      if (poison == poison) continue;  // an infinite key may give either sign of infinity, or NaN
      Problem keys(shape, first_seed);
      for (const int32_t index : {175, 199}) keys.set_key(index, index % 128, poison);
      keys.run(kernel_, 0, shape.n_cells);
      EXPECT_EQ(keys.error(), std::min(keys.error(), 1e-5));
    }
  }
}

/// Kernels compute whole groups of cells, but the bias of those that are not there is nobody's memory, or another's.
TEST_P(TileKernel, ReadsNoBiasBehindTheLastCell) {
  for (const int32_t n_cells : {1, 5, 26, 33, 64, 95}) {
    for (const int32_t tokens : {8, at_most(40)}) {
      Shape shape;
      shape.tokens = tokens;
      shape.n_cells = n_cells;
      shape.visibility = 3;
      SCOPED_TRACE(describe(shape, first_seed, kernel_));
      Problem problem(shape, first_seed);
      const AtTheEdge bias(static_cast<size_t>(n_cells * problem.bias_stride()));
      problem.set_bias(bias.floats());
      problem.run(kernel_, 0, n_cells);
      EXPECT_LE(problem.error(), 1e-5);
    }
  }
}

TEST_P(TileKernel, ARowThatSawOnlyNanIsNan) {
  Shape shape;
  shape.tokens = 16;
  shape.n_cells = 16;
  Problem problem(shape, first_seed);
  problem.set_key(0, 3, not_a_number);
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.error(), 1e-5);
  EXPECT_TRUE(std::isnan(problem.sum()[0]));
  EXPECT_NE(problem.max()[0], -infinity);
}

TEST_P(TileKernel, ANanQueryStaysInItsRow) {
  Shape shape;
  shape.tokens = at_most(20);
  shape.cap = shape.slopes = true;
  Problem problem(shape, first_seed);
  problem.set_query(17, 5, not_a_number);
  problem.run(kernel_, 0, shape.n_cells);
  EXPECT_LE(problem.error(), 1e-5);
  for (int32_t row = 0; row < problem.n_rows(); ++row) {
    EXPECT_EQ(std::isnan(problem.sum()[static_cast<size_t>(row)]), row == 17) << row;
  }
}

TEST_P(TileKernel, RepeatsItselfBitForBit) {
  Shape shape;
  shape.group = 5;
  shape.tokens = at_most(37, shape.group);
  shape.n_cells = 333;
  shape.slopes = shape.cap = true;
  Problem one(shape, first_seed), two(shape, first_seed);
  one.run(kernel_, 0, shape.n_cells);
  two.run(kernel_, 0, shape.n_cells);
  EXPECT_EQ(one.sum(), two.sum());
  EXPECT_EQ(std::memcmp(one.o(), two.o(), one.o_count() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Kernels, TileKernel, testing::ValuesIn(kernels()),
                         [](const auto& index) { return index.param.name; });

}  // namespace
