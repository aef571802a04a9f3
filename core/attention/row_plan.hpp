#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "core/cells/row_book.hpp"

namespace kvc {

/// What the tokens of an open pass of rows see: as PassPlan, for a batch of rows.
///
/// A row of the batch is a list of its own, whose entries all rows share: the cell of column c is its first cell + c, and a ring goes
/// through its columns at most once and a half, so twice as many entries hold every list in one piece. A mask that
/// shows no range, and types whose tokens are not neighbours, need a bit per token and column besides.
class RowPlan {
 public:
  explicit RowPlan(const RowBook& book) : book_(book), rules_(book.rules()) {}
  void carve(Carver& carver);
  void reset();  // call once, after carve() over a block

  int64_t seen_words() const { return n_words_; }
  int64_t n_entries() const { return int64_t{rules_.columns} * (rules_.ring ? 2 : 1); }

  /// The pass that the book has just opened.
  void open(const RowTokens& tokens);
  void set_except(int32_t n_except, const int32_t* except);
  bool sees_later(int32_t token) const { return (except_[token / 64] >> (token % 64) & 1u) != 0; }
  bool any_sees_later() const;
  /// Whether two tokens of a row see each other because of their type.
  bool same_type(int32_t token, int32_t other) const {
    return has_types_ && type_[token] != 0 && type_[token] == type_[other];
  }

  bool is_made() const { return is_made_; }
  const AttentionPlan& make();
  const AttentionPlan& made() const { return plan_; }

 private:
  struct Range {
    int32_t begin = 0;
    int32_t end = 0;
  };
  uint64_t* bits_of(uint64_t* bits, int32_t token) const { return bits + token * n_words_; }
  void copy_mask(const Tensor& mask);
  void add_row(int32_t index);
  Range without_types(int32_t row, int32_t i) const;
  Range with_types(int32_t row, int32_t i, Range seen) const;
  bool types_are_apart() const;
  bool find_bits(int32_t row, int32_t i, Range seen, Range* all) const;

  const RowBook& book_;
  const RowRules& rules_;
  int64_t n_words_ = 0;           // of a bit per column
  int32_t* cells_ = nullptr;      // [n_entries]
  int32_t* positions_ = nullptr;  // [n_entries]; without a ring the same array
  uint64_t* except_ = nullptr;    // [tokens / 64 + 1] a bit per token
  int32_t* type_ = nullptr;       // [tokens], if has_types_
  uint64_t* shown_ = nullptr;  // [tokens][n_words_] by the mask, if has_mask_; of a row's first token where all have the same
  uint64_t* seen_ = nullptr;      // [tokens][n_words_]
  AttentionRow* rows_ = nullptr;  // [tokens]
  TokenList* lists_ = nullptr;    // [n_rows]
  int32_t* padding_ = nullptr;    // [tokens]
  AttentionPlan plan_;
  bool has_mask_ = false;
  bool mask_is_per_token_ = false;
  bool has_types_ = false;
  bool needs_bits_ = false;
  bool is_made_ = false;
};

}  // namespace kvc
