/// The CPU's linear attention with decay against the oracle in double, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/attention/lightning.hpp"
#include "core/base/half.hpp"
#include "kernels/cpu/lightning.hpp"
#include "kernels/reference/lightning.hpp"
#include "unit/kernel_tables.hpp"
#include "unit/pool.hpp"

namespace {

using namespace kvc;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

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
  bool dense = false;  // tensors without gaps; those of f32 begin with a line, those of f16 within one
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

  void run(int32_t n_threads) {
    const PoolPointer pool = make_pool(n_threads);
    Floats workspace(
        static_cast<int64_t>(cpu::lightning_workspace_bytes(params.bounds, n_threads) / 4));
    params.workspace = reinterpret_cast<std::byte*>(workspace.data());
    cpu::lightning(params, *pool);
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
        token.index = n_tokens_ - 1 - (first + i);  // the batch need not be in order
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
      t.data = memory.data() + (64 - past_line) % 64 / 4 + (shape_.dtype == DType::f32 ? 0 : 3);
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

class LightningKernels : public testing::TestWithParam<const cpu::KernelTable*> {
 protected:
  void SetUp() override { cpu::use_kernels(GetParam()); }
  void TearDown() override { cpu::use_kernels(nullptr); }
};

std::string words(const Shape& s) {
  std::ostringstream text;
  text << "heads " << s.n_heads << " * " << s.group << ", dims " << s.head_dim_k << ", "
       << s.head_dim_v << ", block " << s.block << ", slope " << s.slope << ", tokens";
  for (const int32_t n : s.tokens) text << " " << n;
  if (s.gaps) text << ", gaps";
  return text.str();
}

TEST_P(LightningKernels, AgreeWithTheOracle) {
  std::vector<Shape> shapes;
  for (const int32_t n : {1, 2, 3, 5, 6, 7, 13, 17, 31, 47, 64, 65, 100})
    shapes.push_back({.tokens = {n, 1, n / 2 + 1}});
  for (const int32_t dim : {1, 2, 3, 8, 15, 16, 17, 33, 48, 64, 80, 96, 112, 128, 160}) {
    shapes.push_back({.head_dim_k = dim, .head_dim_v = 24, .tokens = {1, 9}});
    shapes.push_back({.head_dim_k = 20, .head_dim_v = dim, .tokens = {1, 9}});
  }
  for (const int32_t group : {2, 3, 4, 5, 8}) shapes.push_back({.group = group, .tokens = {1, 10}});
  for (const int32_t block : {1, 2, 5, 16, 33, 100})
    shapes.push_back({.block = block, .tokens = {70}});
  for (const float slope : {0.0f, 1e-7f, 0.01f, 1.0f, 20.0f, 1e4f})
    shapes.push_back({.tokens = {1, 30}, .slope = slope});
  for (const DType dtype : {DType::f16, DType::bf16})
    shapes.push_back({.tokens = {1, 20}, .scale = 0.125f, .dtype = dtype});
#ifdef KVC_SANITIZED  // products are slow there
  const std::vector<bool> with_gaps = {true};
  std::erase_if(shapes, [](const Shape& shape) { return shape.tokens[0] > 70; });
#else
  const std::vector<bool> with_gaps = {false, true};
#endif
  uint32_t seed = 1;
  for (Shape shape : shapes) {
    for (const bool gaps : with_gaps) {
      shape.gaps = shape.masked = gaps;
      Case one(shape, seed++);
      one.run(2);
      one.compare(words(shape));
      if (HasFatalFailure()) return;
    }
  }
}

/// Of a long pass outputs, and K and V that are kept, go past the caches: the bits are those of short ones.
TEST_P(LightningKernels, GiveTheSameBitsInALongPassAndInShortOnes) {
  constexpr int32_t n = 8200, part = n / 4, block = part / 41;
  for (const DType dtype : {DType::f32, DType::f16}) {
    const Shape shape = {.n_heads = 1,
                         .group = 16,
                         .head_dim_k = 16,
                         .head_dim_v = 16,
                         .block = block,
                         .tokens = {n},
                         .dtype = dtype,
                         .dense = true};
    Case whole(shape, 11), parts(shape, 11);
    whole.run(2);
    LightningRow row = *parts.params.row;
    parts.params.row = &row;
    row.n_tokens = part;
    for (int32_t first = 0; first < n; first += part) {
      row.first_token = row.first_kept = first;
      parts.run(2);
      row.from = row.to;
      row.next = parts.params.token[first + part - 1].position + 1;
    }
    EXPECT_EQ(whole.states(), parts.states());
    EXPECT_EQ(whole.outputs(), parts.outputs());
    const std::vector<float> kept = whole.kept(), kept_in_parts = parts.kept();
    EXPECT_EQ(std::memcmp(kept.data(), kept_in_parts.data(), 4 * kept.size()),
              0);  // NaN behind short rows
  }
}

TEST_P(LightningKernels, GiveTheSameBitsForAnyNumberOfThreads) {
  const Shape shape = {
      .n_heads = 5, .group = 2, .head_dim_k = 33, .head_dim_v = 40, .tokens = {1, 100, 7}, .gaps = true};
  Case one(shape, 7), three(shape, 7);
  one.run(1);
  three.run(3);
  EXPECT_EQ(std::memcmp(one.states().data(), three.states().data(), 4 * one.states().size()), 0);
  EXPECT_EQ(one.outputs(), three.outputs());
}

/// What put() keeps serves attention later, and a state alone: the bits are those of both at once.
TEST_P(LightningKernels, GiveTheSameBitsInOneCallAndInTwo) {
  for (const int32_t n : {1, 2, 90}) {
    const Shape shape = {
        .head_dim_k = 24, .head_dim_v = 40, .tokens = {n, 3}, .gaps = true, .masked = true};
    Case both(shape, 3), apart(shape, 3);
    both.run(1);
    const Tensor q = apart.params.q;
    apart.params.q = {};
    apart.run(1);
    const std::vector<float> states = apart.states();
    EXPECT_EQ(std::memcmp(both.states().data(), states.data(), 4 * states.size()), 0) << n;
    apart.params.q = q;
    apart.params.input = LightningInput::kept;
    apart.params.writes_states = false;
    apart.run(1);
    EXPECT_EQ(std::memcmp(apart.states().data(), states.data(), 4 * states.size()), 0) << n;
    EXPECT_EQ(both.outputs(), apart.outputs()) << n;
  }
}

/// A decay that a float rounds must not be wrong in the same direction in every step.
TEST_P(LightningKernels, StayExactOverManySteps) {
  constexpr int32_t n = 3000;
  for (const float slope : {0.0001f, 0.003f, 0.05f}) {
    const Shape one_by_one = {
        .n_heads = 1, .head_dim_k = 4, .head_dim_v = 16, .tokens = {n}, .slope = slope};
    Case all(one_by_one, 5);
    Case steps(one_by_one, 5);
    const LightningRow whole = *steps.params.row;
    LightningRow row = whole;
    steps.params.row = &row;
    for (int32_t i = 0; i < n; ++i) {
      row.first_token = row.first_kept = i;
      row.n_tokens = 1;
      steps.run(1);
      row.from = row.to;
      row.next = steps.params.token[i].position + 1;
    }
    all.params.q = {};  // the state alone
    ReferenceNumbers out, state;
    reference_lightning(all.params, *all.params.row, &out, &state);
    const auto* slot = reinterpret_cast<const float*>(steps.params.states.slot(whole.to));
    for (size_t i = 0; i < state.value.size(); ++i)
      ASSERT_NEAR(static_cast<double>(slot[i]), state.value[i], 1e-5 * state.magnitude[i]) << slope;
  }
}

/// Later tokens do not reach earlier outputs, whatever they hold.
TEST_P(LightningKernels, HideLaterTokens) {
  const Shape shape = {.n_heads = 1, .tokens = {40}};
  Case clean(shape, 11), poisoned(shape, 11);
  const LightningToken& last = poisoned.params.token[39];
  for (const Tensor* t : {&poisoned.params.k, &poisoned.params.v}) {
    for (int64_t d = 0; d < t->shape[2]; ++d)
      store_element(t->data, t->dtype, last.index * t->stride[0] + d * t->stride[2], not_a_number);
  }
  clean.run(1);
  poisoned.run(1);
  const std::vector<float> expected = clean.outputs(), got = poisoned.outputs();
  for (int32_t i = 0; i < 39; ++i) {
    const auto first = static_cast<size_t>(poisoned.params.token[i].index * shape.head_dim_v);
    EXPECT_EQ(std::memcmp(&expected[first], &got[first], 4 * 32), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Sets, LightningKernels, testing::ValuesIn(tables()),
                         [](const auto& set) { return std::string(set.param->name); });

}  // namespace
