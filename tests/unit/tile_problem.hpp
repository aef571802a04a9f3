#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/tile.hpp"
#include "tests/unit/stored_rows.hpp"

/// A tile with everything that it reads and writes, made from a seed, and what attention over it is in double.
namespace tile_problem {

using kvc::StorageType;
using kvc::cpu::Tile;
using kvc::cpu::TileToken;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float log2_e = 1.4426950408889634f;

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
  bool scales = false;  // multiplies scores with Tile::scale
};

/// What a case is made of; everything else follows from the seed.
struct Shape {
  int32_t tokens = 8;
  int32_t group = 4;
  int32_t n_cells = 100;
  int32_t head_dim_k = 128;
  int32_t head_dim_v = 128;
  StoredAs k;
  StoredAs v;
  int32_t v_first = -1;  // from 0 on: V is this part of K
  bool cap = false;
  bool slopes = false;
  int visibility = 0;  // 0 causal, 1 windows behind a kept first part, 2 any ranges, 3 everything
  bool poison_hidden = false;
  float sharpness = 1.0f;
  float key_size = 1.0f;  // queries are as much smaller as keys are larger
  float value_size = 1.0f;
  int32_t query_bits = 0;  // significant bits of queries whose scores the kernel scales; 0: they are scaled
  int32_t parts = 3;  // Tile::parts: 2 for f16, 1 for bf16
};

inline std::string describe(const StoredAs& as) {
  return std::string(kvc::format_of(as.type).name) + " block " + std::to_string(as.block) +
         " gap " + std::to_string(as.gap) + " ";
}

inline std::string describe(const Shape& s, unsigned seed, const Kernel& kernel) {
  const auto n = [](auto x) { return std::to_string(x) + " "; };
  return kernel.name + " seed " + n(seed) + "tokens " + n(s.tokens) + "group " + n(s.group) +
         "cells " + n(s.n_cells) + "dims " + n(s.head_dim_k) + n(s.head_dim_v) + "types " +
         describe(s.k) + describe(s.v) + "V in K " + n(s.v_first) + "cap " + n(s.cap) + "slopes " +
         n(s.slopes) + "visibility " + n(s.visibility) + "poison " + n(s.poison_hidden);
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
        k_(shape.k, shape.head_dim_k, pool_),
        v_(shape.v, shape.head_dim_v, shape.v_first < 0 ? pool_ : 1),
        q_(count(n_rows_ * q_stride_) * sizeof(float), 0),
        o_(count(n_rows_ * o_stride_) * sizeof(float), 0),
        max_(count(padded(n_rows_)), -infinity),
        sum_(count(padded(n_rows_)), 0.0f) {
    place_cells();
    place_tokens();
    fill();
    if (shape.poison_hidden) poison_hidden();
  }

  bool sees(int32_t row, int32_t index) const {
    const TileToken& t = token_[static_cast<size_t>(row / shape_.group)];
    return index < t.first_end || (index >= t.begin && index < t.end);
  }

  void set_key(int32_t index, int32_t d, float x) { k_.set(cell_[count(index)], d, x); }
  void set_value(int32_t index, int32_t d, float x) {
    if (shape_.v_first < 0) {
      v_.set(cell_[count(index)], d, x);
    } else {
      k_.set(cell_[count(index)], shape_.v_first + d, x);
    }
  }
  void set_query(int32_t row, int32_t d, float x) { q_.floats()[row * q_stride_ + d] = x; }
  void set_bias(const float* bias) { bias_ = bias; }
  int32_t bias_stride() const { return padded(n_rows_); }

  Tile tile(std::byte* scratch) {
    Tile t;
    t.k = k_.tile_rows(0, shape_.head_dim_k);
    t.v = shape_.v_first < 0 ? v_.tile_rows(0, shape_.head_dim_v)
                             : k_.tile_rows(shape_.v_first, shape_.head_dim_v);
    t.k.cell = t.v.cell = cell_.data();
    t.position = position_.data();
    t.n_cells = shape_.n_cells;
    t.q = q_.floats();
    t.token = token_.data();
    t.n_rows = n_rows_;
    t.group = shape_.group;
    t.q_stride = q_stride_;
    t.scale = scale_;
    t.parts = shape_.parts;
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
    t.k.cell += begin;
    t.v.cell += begin;
    t.position += begin;
    t.n_cells = end - begin;
    kernel.process(t);
    EXPECT_TRUE(scratch.intact());
    EXPECT_TRUE(o_.intact());
  }

  /// Runs the kernel with queries that change from run to run, and with keys that make up for that: which queries a cell meets
  /// then shows in its scores. Runs are of up to `longest` cells.
  void run_in_runs(const Kernel& kernel, int32_t longest) {
    const std::vector<float> keys = decoded(k_, 0, shape_.head_dim_k);
    std::vector<int32_t> run_of_cell;
    std::vector<float> factors;
    while (run_of_cell.size() < count(shape_.n_cells)) {
      run_of_cell.insert(run_of_cell.end(), count(1 + below(longest - 1)),
                         static_cast<int32_t>(factors.size()));
      factors.push_back((factors.size() % 2 == 0 ? -1.0f : 1.0f) * static_cast<float>(1 << below(3)));
    }
    for (int32_t i = 0; i < shape_.n_cells; ++i) {
      for (int32_t d = 0; d < shape_.head_dim_k; ++d)
        set_key(i, d, keys[count(i * shape_.head_dim_k + d)] * factors[count(run_of_cell[count(i)])]);
    }
    const size_t n_q = count(n_rows_ * q_stride_);
    const Guarded queries(factors.size() * n_q * sizeof(float), 0);
    for (size_t i = 0; i < factors.size() * n_q; ++i)
      queries.floats()[i] = q_.floats()[i % n_q] / factors[i / n_q];
    const Guarded scratch(kernel.scratch_bytes(shape_.head_dim_k, shape_.head_dim_v), 0xff);
    Tile t = tile(scratch.data());
    t.q = queries.floats();
    t.run = run_of_cell.data();
    kernel.process(t);
    EXPECT_TRUE(scratch.intact());
    EXPECT_TRUE(o_.intact());
  }

  /// Runs the kernel over the rows of one token alone; what they had before is lost.
  void run_alone(const Kernel& kernel, int32_t token) {
    const Guarded scratch(kernel.scratch_bytes(shape_.head_dim_k, shape_.head_dim_v), 0xff);
    Tile t = tile(scratch.data());
    alignas(64) float max[16 * 4], sum[16 * 4] = {};
    std::fill(std::begin(max), std::end(max), -infinity);
    const int32_t first = token * shape_.group;
    t.q += first * q_stride_;
    t.o += first * o_stride_;
    t.token += token;
    t.n_rows = shape_.group;
    t.max = max;
    t.sum = sum;
    std::fill_n(t.o, shape_.group * o_stride_, 0.0f);
    kernel.process(t);
    std::copy_n(max, shape_.group, max_.begin() + first);
    std::copy_n(sum, shape_.group, sum_.begin() + first);
  }

  /// The errors of all rows, the largest of each kind.
  struct Errors {
    double relative = 0;  // output relative to the row's largest, log-sum-exp absolute; infinite when
                          // one side is NaN or infinite and the other is not
    double of_bound = 0;  // share of what docs/SEMANTICS.md, section 8, allows
  };
  Errors errors() const {
    const std::vector<float> keys = decoded(k_, 0, shape_.head_dim_k);
    const std::vector<float> values = shape_.v_first < 0
                                          ? decoded(v_, 0, shape_.head_dim_v)
                                          : decoded(k_, shape_.v_first, shape_.head_dim_v);
    Errors worst;
    for (int32_t row = 0; row < n_rows_; ++row) {
      const Errors of_row = row_errors(row, keys, values);
      worst.relative = std::max(worst.relative, of_row.relative);
      worst.of_bound = std::max(worst.of_bound, of_row.of_bound);
    }
    return worst;
  }
  double error() const { return errors().relative; }

  const std::vector<float>& sum() const { return sum_; }
  const float* o() const { return o_.floats(); }
  int32_t n_rows() const { return n_rows_; }
  size_t o_count() const { return count(n_rows_ * o_stride_); }

 private:
  static size_t count(int32_t n) { return static_cast<size_t>(n); }
  static int32_t padded(int32_t n) { return (n + 15) / 16 * 16; }
  int32_t below(int32_t n) { return std::uniform_int_distribution<int32_t>(0, n)(random_); }

  void place_cells() {
    std::vector<int32_t> all(count(pool_));
    for (int32_t i = 0; i < pool_; ++i) all[count(i)] = (i + 7) % pool_;  // the last cell is used
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
      k_.fill(cell_[count(i)], shape_.key_size, random_);
      if (shape_.v_first < 0) v_.fill(cell_[count(i)], shape_.value_size, random_);
    }
    const float scale = shape_.sharpness * 1.442695f /
                        std::sqrt(static_cast<float>(shape_.head_dim_k)) / shape_.key_size;
    const float factor = shape_.cap ? scale / 30 : scale;
    if (shape_.query_bits != 0) scale_ = factor;
    for (int32_t row = 0; row < n_rows_; ++row) {
      for (int32_t d = 0; d < shape_.head_dim_k; ++d) {
        const float x = normal(random_);
        q_.floats()[row * q_stride_ + d] = shape_.query_bits == 0 ? x * factor
                                                                  : cut(x, shape_.query_bits);
      }
    }
    for (int32_t h = 0; h < shape_.group; ++h)
      slope_.push_back(1.442695f * std::exp2(-8.0f * float(h + 1) / 16));
  }

  static float cut(float x, int32_t bits) {
    return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & (~0u << (24 - bits)));
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
  std::vector<float> decoded(const StoredRows& rows, int32_t first, int32_t n) const {
    std::vector<float> out;
    for (const int32_t cell : cell_) {
      for (int32_t d = first; d < first + n; ++d) out.push_back(rows.value(cell, d));
    }
    return out;
  }

  struct Score {
    double score = 0;
    double terms = 0;  // the sum of the magnitudes of what it is made of, as section 8 has it
  };
  Score score(int32_t row, int32_t index, const float* key) const {
    Score result;
    for (int32_t d = 0; d < shape_.head_dim_k; ++d) {
      const double product = double{q_.floats()[row * q_stride_ + d]} * key[d] * double{scale_};
      result.score += product;
      result.terms += std::abs(product);
    }
    const double cap = 30.0f * log2_e;
    if (shape_.cap) result = {cap * std::tanh(result.score), cap * result.terms};
    if (shape_.slopes) {
      const double distance = static_cast<double>(position_[count(index)]) -
                              token_[count(row / shape_.group)].position;
      const double subtracted = double{slope_[count(row % shape_.group)]} * std::abs(distance);
      result.score -= subtracted;
      result.terms += subtracted;
    }
    return result;
  }

  Errors row_errors(int32_t row, const std::vector<float>& keys,
                    const std::vector<float>& values) const {
    std::vector<double> scores;
    std::vector<int32_t> seen;
    double max = -infinity, sum = 0, terms = 0, largest_value = 0;
    for (int32_t i = 0; i < shape_.n_cells; ++i) {
      if (!sees(row, i)) continue;
      seen.push_back(i);
      const Score x = score(row, i, &keys[count(i * shape_.head_dim_k)]);
      scores.push_back(x.score);
      if (x.score > max) max = x.score;
      terms = std::max(terms, x.terms / double{log2_e});
    }
    std::vector<double> out(count(shape_.head_dim_v), 0.0);
    for (size_t i = 0; i < seen.size(); ++i) {
      const double p = std::exp2(scores[i] - (max == -infinity ? 0 : max));
      const float* value = &values[count(seen[i] * shape_.head_dim_v)];
      sum += p;
      for (int32_t d = 0; d < shape_.head_dim_v; ++d) {
        out[count(d)] += p * value[d];
        largest_value = std::max(largest_value, std::abs(double{value[d]}));
      }
    }
    const float* o = o_.floats() + row * o_stride_;
    if (seen.empty()) {
      bool nothing = max_[count(row)] == -infinity && sum_[count(row)] == 0;
      for (int32_t d = 0; d < o_stride_; ++d) nothing &= o[d] == 0;
      return nothing ? Errors{} : Errors{infinity, infinity};
    }
    double scale = 0, worst = 0, absolute = 0;
    for (const double x : out) {
      if (std::isfinite(x)) scale = std::max(scale, std::abs(x / sum));
    }
    for (int32_t d = 0; d < shape_.head_dim_v; ++d) {
      const double actual = double{o[d]} / sum_[count(row)];
      worst = std::max(worst, difference(out[count(d)] / sum, actual, scale));
      absolute = std::max(absolute, difference(out[count(d)] / sum, actual, 1.0));
    }
    const double lse = max_[count(row)] + std::log2(double{sum_[count(row)]});
    const double lse_error = difference(max + std::log2(sum), lse, 1.0);
    worst = std::max(worst, lse_error);
    const double rounding = shape_.parts == 1 ? 0x1p-8 : 0x1p-11;
    const double of_score = shape_.parts == 3 ? 0x1p-22 : 2 * rounding;
    const double of_value = shape_.parts == 3 ? 0x1p-20 : rounding;
    const double allowed = (of_value + of_score * terms) * largest_value;
    const double lse_allowed = 0x1p-20 * (1 + terms) + (shape_.parts == 3 ? 0 : of_score * terms);
    Errors errors;
    // Scores are sums in f32: their rounding grows with them.
    errors.relative = worst / std::max(1.0, std::abs(max) / 8);
    if (absolute > 0) errors.of_bound = absolute / allowed;
    if (lse_error > 0)
      errors.of_bound = std::max(errors.of_bound, lse_error / double{log2_e} / lse_allowed);
    return errors;
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
  StoredRows k_, v_;
  Guarded q_, o_;
  float scale_ = 1;
  std::vector<int32_t> cell_, position_;
  std::vector<TileToken> token_;
  std::vector<float> slope_, max_, sum_;
  const float* bias_ = nullptr;  // 0, so that it changes nothing
};

}  // namespace tile_problem
