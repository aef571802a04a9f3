#pragma once
#include <algorithm>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/cells/book.hpp"

namespace kvc {

/// The tokens of one sequence of the batch that any of its rows sees, in order of position.
class SeenTokens {
 public:
  /// `row` is the sequence's first row in the plan; it becomes the next sequence's.
  SeenTokens(const CellBook::Sequence& sequence, const AttentionPlan& plan, const AttentionRow** row)
      : tokens_(sequence.tokens), kept_begin_(tokens_.count()), begin_(tokens_.count()) {
    // What any row sees, in indexes of the sequence. Its rows may have several lists, which overlap.
    for (int32_t i = 0; i < sequence.n_added; ++i, ++*row) {
      const int32_t start = tokens_.count() - plan.lists[(*row)->list].total;
      if ((*row)->first_end > 0) {
        kept_begin_ = std::min(kept_begin_, start);
        kept_end_ = std::max(kept_end_, start + (*row)->first_end);
      }
      begin_ = std::min(begin_, start + (*row)->begin);
      end_ = std::max(end_, start + (*row)->end);
    }
    index_ = std::min(kept_begin_, begin_) - 1;
  }

  /// Goes to the next token; false behind the last.
  bool next() {
    for (++index_; index_ < tokens_.count(); ++index_) {
      if ((index_ >= kept_begin_ && index_ < kept_end_) || (index_ >= begin_ && index_ < end_))
        return true;
    }
    return false;
  }
  int32_t index() const { return index_; }
  Token token() const { return tokens_.at(index_); }

 private:
  const TokenSequence& tokens_;
  int32_t kept_begin_;
  int32_t kept_end_ = 0;
  int32_t begin_;
  int32_t end_ = 0;
  int32_t index_;
};

}  // namespace kvc
