#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/attention/lightning.hpp"
#include "core/base/half.hpp"
#include "kernels/reference/lightning.hpp"

/// A call of linear attention with decay, and what the oracle in double says of it.
namespace lightning_case {

using namespace kvc;

inline constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int32_t n_heads = 2;
  int32_t group = 1;
  int32_t head_dim_k = 32;
  int32_t head_dim_v = 32;
  int32_t block = 0;
  std::vector<int32_t> tokens = {5};  // of each sequence
  bool gaps = false;
  bool masked = false;
  float slope = 0.0625f;
  float scale = 1;
  DType dtype = DType::f32;
  bool dense = false;          // tensors without gaps, which begin with a line
  bool crosses_lines = false;  // these begin within one
  bool in_order = false;       // tokens follow each other in the batch as in their sequences
};

/// Memory in whole lines, NaN wherever something is read before it was written.
class Floats {
 public:
  explicit Floats(int64_t n) : bytes_(static_cast<size_t>(n) * 4) {
    data_ = static_cast<float*>(std::aligned_alloc(4096, (bytes_ + 4096) / 4096 * 4096));
    std::fill_n(data_, n, not_a_number);
  }
  ~Floats() { std::free(data_); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }
  std::vector<float> copy() const { return {data_, data_ + bytes_ / 4}; }
  size_t bytes() const { return bytes_; }

 private:
  float* data_;
  size_t bytes_;
};

/// One call with everything that it reads and writes. Slot i is the state before of row i, slot n + i the one behind.
class Case {
 public:
  Case(const Shape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    const int64_t dims_k = padded_to_vectors(shape.head_dim_k);
    const int64_t dims_v = padded_to_vectors(shape.head_dim_v);
    const auto n_rows = static_cast<int64_t>(shape.tokens.size());
    int32_t total = 0;
    for (const int32_t n : shape.tokens) total += n;
    n_tokens_ = total + 1;  // and a padding token

    params.bounds.n_heads = shape.n_heads;
    params.bounds.head_dim_k = shape.head_dim_k;
    params.bounds.head_dim_v = shape.head_dim_v;
    params.bounds.block = shape.block;
    params.n_q_heads = params.bounds.max_q_heads = shape.n_heads * shape.group;
    params.scale = shape.scale;
    for (int32_t h = 0; h < shape.n_heads; ++h)
      slopes_.push_back(h == 0 ? shape.slope : shape.slope / static_cast<float>(h + 1));
    params.slopes = slopes_.data();

    const int64_t of_slot = int64_t{shape.n_heads} * shape.head_dim_k * dims_v;
    states_ = std::make_unique<Floats>(2 * n_rows * of_slot);
    params.states = {.data = reinterpret_cast<std::byte*>(states_->data()),
                     .slot_bytes = static_cast<size_t>(of_slot) * 4,
                     .n_elements = of_slot,
                     .n_slots = static_cast<int32_t>(2 * n_rows),
                     .type = StorageType::f32};
    for (int64_t i = 0; i < n_rows * of_slot; ++i)
      states_->data()[i] = i % dims_v < shape.head_dim_v ? normal() : 0.0f;

    make_tokens();
    kept_k_ = std::make_unique<Floats>(shape.n_heads * int64_t{n_tokens_} * dims_k);
    kept_v_ = std::make_unique<Floats>(shape.n_heads * int64_t{n_tokens_} * dims_v);
    params.last_layer = {reinterpret_cast<std::byte*>(kept_k_->data()),
                         reinterpret_cast<std::byte*>(kept_v_->data()), n_tokens_, shape.dtype,
                         shape.dtype};
    params.k = make_tensor(k_, shape.n_heads, shape.head_dim_k);
    params.v = make_tensor(v_, shape.n_heads, shape.head_dim_v);
    params.q = make_tensor(q_, params.n_q_heads, shape.head_dim_k);
    params.out = make_tensor(out_, params.n_q_heads, shape.head_dim_v);
    params.writes_states = true;
    padding_ = 0;
    params.padding = &padding_;
    params.n_padding = 1;
    hide(params.k, padding_), hide(params.v, padding_), hide(params.q, padding_);
    for (const LightningToken& token : tokens_) {
      if (token.is_masked) hide(params.k, token.index), hide(params.v, token.index);
    }
  }

  /// The outputs as numbers, [token][head][dim], with NaN where nothing was written.
  std::vector<float> outputs() const {
    std::vector<float> all;
    for (int64_t t = 0; t < n_tokens_; ++t) {
      for (int64_t h = 0; h < params.n_q_heads; ++h) {
        for (int64_t d = 0; d < shape_.head_dim_v; ++d)
          all.push_back(load_element(params.out.data, shape_.dtype, at(params.out, t, h, d)));
      }
    }
    return all;
  }
  std::vector<float> states() const { return states_->copy(); }
  /// K and V of all tokens but padding.
  std::vector<float> kept() const {
    std::vector<float> all;
    for (const Floats* side : {kept_k_.get(), kept_v_.get()}) {
      const std::vector<float> copy = side->copy();
      all.insert(all.end(), copy.begin(),
                 copy.begin() + static_cast<ptrdiff_t>(
                                    copy.size() / static_cast<size_t>(n_tokens_) * tokens_.size()));
    }
    return all;
  }

  /// Every output and every state within 1e-5 of the sum of the magnitudes of its terms, or of what floats lose
  /// beneath their smallest normal number.
  void compare(const std::string& what) const {
    const std::vector<float> got = outputs(), got_states = states();
    const int64_t dims_v = padded_to_vectors(shape_.head_dim_v);
    for (int64_t i = 0; i < params.n_q_heads * shape_.head_dim_v; ++i)
      ASSERT_EQ(got[static_cast<size_t>(i)], 0) << what << ": the padding token";
    for (int32_t r = 0; r < params.n_rows; ++r) {
      ReferenceNumbers out, state;
      reference_lightning(params, rows_[static_cast<size_t>(r)], &out, &state);
      size_t i = 0;
      for (int32_t t = 0; t < rows_[static_cast<size_t>(r)].n_tokens; ++t) {
        const int64_t
            token = tokens_[static_cast<size_t>(rows_[static_cast<size_t>(r)].first_token + t)].index;
        for (int64_t j = 0; j < params.n_q_heads * shape_.head_dim_v; ++j, ++i) {
          const auto value = static_cast<double>(
              got[static_cast<size_t>(token * params.n_q_heads * shape_.head_dim_v + j)]);
          const double rounding = shape_.dtype == DType::f32
                                      ? beneath_floats
                                      : std::fabs(out.value[i]) * 0x1p-8 + 0x1p-24;
          ASSERT_NEAR(value, out.value[i], 1e-5 * out.magnitude[i] + rounding)
              << what << ": output " << j << " of token " << t << " of row " << r;
        }
      }
      const auto* slot = reinterpret_cast<const float*>(
          params.states.slot(rows_[static_cast<size_t>(r)].to));
      for (i = 0; i < state.value.size(); ++i) {
        const size_t row = i / static_cast<size_t>(shape_.head_dim_v),
                     d = i % static_cast<size_t>(shape_.head_dim_v);
        ASSERT_NEAR(static_cast<double>(slot[row * static_cast<size_t>(dims_v) + d]),
                    state.value[i], 1e-5 * state.magnitude[i] + beneath_floats)
            << what << ": state " << i << " of row " << r;
      }
      for (size_t row = 0; row < state.value.size() / static_cast<size_t>(shape_.head_dim_v); ++row) {
        for (int64_t d = shape_.head_dim_v; d < dims_v; ++d)
          ASSERT_EQ(slot[row * static_cast<size_t>(dims_v) + static_cast<size_t>(d)], 0)
              << what << ": zeros that pad the state";
      }
    }
  }

  LightningParams params;

 private:
  static constexpr double beneath_floats = 0x1p-120;

  float normal() { return std::normal_distribution<float>()(random_); }

  void make_tokens() {
    int32_t first = 0;
    for (size_t r = 0; r < shape_.tokens.size(); ++r) {
      LightningRow row;
      row.from = static_cast<int32_t>(r);
      row.to = static_cast<int32_t>(shape_.tokens.size() + r);
      row.next = static_cast<int32_t>(random_() % 7);
      row.first_token = row.first_kept = first;
      row.n_tokens = shape_.tokens[r];
      int32_t position = row.next;
      for (int32_t i = 0; i < row.n_tokens; ++i) {
        if (shape_.gaps && random_() % 4 == 0) position += static_cast<int32_t>(random_() % 9);
        LightningToken token;
        token.index = shape_.in_order ? 1 + first + i : n_tokens_ - 1 - (first + i);
        token.position = position++;
        token.is_masked = shape_.masked && random_() % 3 == 0;
        tokens_.push_back(token);
      }
      rows_.push_back(row);
      first += row.n_tokens;
    }
    params.row = rows_.data();
    params.n_rows = static_cast<int32_t>(rows_.size());
    params.token = tokens_.data();
  }

  /// Unless it is dense, rows lie apart, and elements of every other case too.
  Tensor make_tensor(std::vector<float>& memory, int64_t heads, int64_t dim) {
    const int64_t step = shape_.dense ? 1 : 1 + static_cast<int64_t>(random_() % 2);
    const int64_t gap = shape_.dense ? 0 : 1;
    Tensor t;
    t.ndim = 3;
    t.dtype = shape_.dtype;
    t.shape[0] = n_tokens_, t.shape[1] = heads, t.shape[2] = dim;
    t.stride[2] = step, t.stride[1] = dim * step + gap, t.stride[0] = heads * t.stride[1] + 3 * gap;
    memory.resize(static_cast<size_t>(n_tokens_ * t.stride[0]) + 32);
    const auto past_line = reinterpret_cast<uintptr_t>(memory.data()) % 64;
    t.data = memory.data();
    if (shape_.dense)
      t.data = memory.data() + (64 - past_line) % 64 / 4 + (shape_.crosses_lines ? 3 : 0);
    for (int64_t i = 0; i < n_tokens_ * t.stride[0]; ++i)
      store_element(t.data, t.dtype, i, normal());
    return t;
  }
  static int64_t at(const Tensor& t, int64_t token, int64_t head, int64_t d) {
    return token * t.stride[0] + head * t.stride[1] + d * t.stride[2];
  }
  static void hide(const Tensor& t, int64_t token) {
    for (int64_t h = 0; h < t.shape[1]; ++h) {
      for (int64_t d = 0; d < t.shape[2]; ++d)
        store_element(t.data, t.dtype, at(t, token, h, d), not_a_number);
    }
  }

  const Shape shape_;
  std::mt19937 random_;
  int32_t n_tokens_ = 0;
  int32_t padding_ = 0;
  std::vector<float> slopes_;
  std::vector<LightningRow> rows_;
  std::vector<LightningToken> tokens_;
  std::unique_ptr<Floats> states_, kept_k_, kept_v_;
  std::vector<float> k_, v_, q_, out_;
};

inline std::string words(const Shape& s) {
  std::ostringstream text;
  text << "heads " << s.n_heads << " * " << s.group << ", dims " << s.head_dim_k << ", "
       << s.head_dim_v << ", block " << s.block << ", slope " << s.slope << ", tokens";
  for (const int32_t n : s.tokens) text << " " << n;
  if (s.gaps) text << ", gaps";
  return text.str();
}

}  // namespace lightning_case
