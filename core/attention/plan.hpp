#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "core/cells/book.hpp"

namespace kvc {

/// What the tokens of the open pass see: its except set, its token types, and the AttentionPlan that kernels read. The plan is
/// made when it is first needed, and anew after the except set or the cells of a token have changed.
class PassPlan {
 public:
  PassPlan(const CellBook& book, int32_t max_batch) : book_(book), max_batch_(max_batch) {}
  void carve(Carver& carver);

  /// A pass of n tokens begins; `flags` may be null.
  void open(int32_t n_tokens, const uint32_t* flags);
  void set_except(int32_t n_except, const int32_t* except);
  bool sees_later(int32_t token) const { return (except_[token / 64] >> (token % 64) & 1u) != 0; }
  /// Whether two tokens of one sequence see each other because of their type.
  bool same_block(int32_t token, int32_t other) const;
  /// Whether some token may see a later one.
  bool any_sees_later() const;

  void forget() { is_made_ = is_spanned_ = false; }
  bool is_made() const { return is_made_; }

  /// Prefixes that lists share are named from `least_shared_prefix` tokens on.
  const AttentionPlan& make(int32_t least_shared_prefix);
  const AttentionPlan& made() const { return plan_; }

  /// Cells [first, end) that any token of the pass sees; empty when none sees any. Needs a plan that is made.
  struct Span {
    int32_t first = 0;
    int32_t end = 0;
  };
  Span span();

 private:
  AttentionRow row_of(const CellBook::Sequence& sequence, int32_t token, int32_t order,
                      int32_t skipped) const;
  void add_sequence(const CellBook::Sequence& sequence);
  void widen_blocks(int32_t first_row);
  void find_shared_prefixes(int32_t least_length);

  const CellBook& book_;
  int32_t max_batch_;
  int32_t n_tokens_ = 0;
  uint64_t* except_ = nullptr;      // [max_batch / 64 + 1] a bit per token
  uint16_t* type_ = nullptr;        // [max_batch] of each token, if has_types_
  AttentionRow* rows_ = nullptr;    // [max_batch]
  TokenList* lists_ = nullptr;      // [max_batch]
  SharedPrefix* shared_ = nullptr;  // [max_batch]
  int32_t* padding_ = nullptr;      // [max_batch]
  AttentionPlan plan_;
  Span span_;
  bool has_types_ = false;
  bool is_made_ = false;
  bool is_spanned_ = false;
};

}  // namespace kvc
