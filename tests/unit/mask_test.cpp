// Masks against a walk over what each row sees: every element type, any strides, any cells and ranges, small and large.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "core/attention/visible.hpp"
#include "core/base/half.hpp"
#include "kernels/cpu/mask.hpp"
#include "unit/pool.hpp"

namespace {

using namespace kvc;

struct Shape {
  int32_t n_lists = 1, tokens = 1, history = 10;
  DType dtype = DType::f32;
  int64_t column_stride = 1;
  bool scattered = false;
  bool windows = false;
  int32_t n_padding = 0;
};

class Case {
 public:
  Case(const Shape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    make_lists();
    make_rows();
    params_.plan = {.rows = rows_.data(),
                    .lists = lists_.data(),
                    .tokens = {cells_.data(), cells_.data()},
                    .n_rows = static_cast<int32_t>(rows_.size()),
                    .n_lists = shape.n_lists};
    params_.first_column = 3;
    n_columns_ = static_cast<int64_t>(cells_.size()) + 2;
    n_tokens_ = static_cast<int64_t>(rows_.size()) + shape.n_padding;
    Tensor& into = params_.into;
    into.dtype = shape.dtype;
    into.ndim = 2;
    into.shape[0] = n_tokens_;
    into.shape[1] = n_columns_;
    into.stride[1] = shape.column_stride;
    into.stride[0] = n_columns_ * shape.column_stride + 1;
    bytes_.assign(static_cast<size_t>(n_tokens_ * into.stride[0]) * size_of(shape.dtype),
                  std::byte{0x5a});
    into.data = bytes_.data();
  }

  void check(ThreadPool& pool) {
    std::vector<std::byte> wanted = expected();
    cpu::write_mask(params_, pool);
    ASSERT_TRUE(wanted == bytes_) << shape_.n_lists << " lists of " << shape_.history << ", "
                                  << shape_.tokens << " tokens each";
  }

 private:
  void make_lists() {
    cells_.resize(static_cast<size_t>(shape_.n_lists * (shape_.history + shape_.tokens)));
    std::iota(cells_.begin(), cells_.end(), 4);
    for (size_t i = 0; i + 40 < cells_.size(); i += 40) {
      if (shape_.scattered)
        std::swap_ranges(cells_.begin() + static_cast<ptrdiff_t>(i),
                         cells_.begin() + static_cast<ptrdiff_t>(i) + below(20),
                         cells_.begin() + static_cast<ptrdiff_t>(i + 20));
    }
    for (int32_t l = 0; l < shape_.n_lists; ++l) {
      TokenList list;
      list.total = shape_.history + shape_.tokens;
      int64_t start = int64_t{l} * list.total;
      int32_t left = list.total;
      for (int32_t piece = 0; piece < 3; ++piece) {
        list.start[piece] = start;
        list.count[piece] = piece == 2 ? left : below(left + 1);
        start += list.count[piece];
        left -= list.count[piece];
      }
      lists_.push_back(list);
    }
  }

  void make_rows() {
    for (int32_t l = 0; l < shape_.n_lists; ++l) {
      for (int32_t t = 0; t < shape_.tokens; ++t) {
        AttentionRow row;
        row.list = l;
        row.end = shape_.history + t + 1;
        if (shape_.windows) {
          row.first_end = below(row.end + 1);
          row.begin = row.first_end + below(row.end - row.first_end + 1);
        }
        rows_.push_back(row);
      }
    }
    std::vector<int32_t> token(rows_.size() + static_cast<size_t>(shape_.n_padding));
    std::iota(token.begin(), token.end(), 0);
    std::shuffle(token.begin(), token.end(), random_);
    for (size_t r = 0; r < rows_.size(); ++r) rows_[r].token = token[r];
  }

  std::vector<std::byte> expected() const {
    std::vector<std::byte> wanted = bytes_;
    const Tensor& into = params_.into;
    const bool is_boolean = into.dtype == DType::boolean;
    const auto set = [&](int64_t token, int64_t column, bool visible) {
      const int64_t index = token * into.stride[0] + column * into.stride[1];
      if (is_boolean) {
        wanted[static_cast<size_t>(index)] = static_cast<std::byte>(visible);
      } else {
        store_element(wanted.data(), into.dtype, index, visible ? 0.0f : -INFINITY);
      }
    };
    for (int64_t token = 0; token < n_tokens_; ++token)
      for (int64_t column = 0; column < n_columns_; ++column) set(token, column, false);
    for (const AttentionRow& row : rows_) {
      for_each_visible(params_.plan, row, [&](int32_t, int32_t cell, int32_t) {
        set(row.token, cell - params_.first_column, true);
      });
    }
    return wanted;
  }

  int32_t below(int32_t limit) {
    return static_cast<int32_t>(random_() % static_cast<uint32_t>(limit));
  }

  const Shape shape_;
  std::mt19937 random_;
  std::vector<TokenList> lists_;
  std::vector<AttentionRow> rows_;
  std::vector<int32_t> cells_;
  MaskParams params_;
  int64_t n_columns_ = 0, n_tokens_ = 0;
  std::vector<std::byte> bytes_;
};

constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16, DType::boolean};

TEST(Mask, MarksWhatEachTokenSees) {
  const PoolPointer pool = make_pool(2);
  uint32_t seed = 0;
  for (const DType dtype : dtypes) {
    for (const int32_t tokens : {1, 2, 7}) {
      for (const int32_t history : {0, 1, 15, 300}) {
        for (int32_t options = 0; options < 16; ++options) {
          Case({.n_lists = 1 + options % 3,
                .tokens = tokens,
                .history = history,
                .dtype = dtype,
                .column_stride = (options & 1) != 0 ? 3 : 1,
                .scattered = (options & 2) != 0,
                .windows = (options & 4) != 0,
                .n_padding = (options & 8) != 0 ? 2 : 0},
               ++seed)
              .check(*pool);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Mask, LargeOnesOfSeveralThreadsAreTheSame) {
  const PoolPointer pool = make_pool(3);
  uint32_t seed = 1000;
  for (const DType dtype : dtypes) {
    Case({.n_lists = 2, .tokens = 300, .history = 2500, .dtype = dtype, .scattered = true, .windows = true},
         ++seed)
        .check(*pool);
  }
}

}  // namespace
