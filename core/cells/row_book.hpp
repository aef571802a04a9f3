#pragma once
#include <algorithm>
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/health.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/sequence_info.hpp"
#include "core/cells/sequence_plans.hpp"

namespace kvc {

struct RowRules {
  static constexpr int32_t no_limit = INT32_MAX;

  int32_t n_rows = 0;
  int32_t length = 0;  // positions that a row keeps
  int32_t columns = 0;  // cells of a row: its length; a ring has q_max more, for the tokens of a pass
  int32_t q_max = 0;    // tokens of a row in one pass
  int32_t reach = no_limit;
  bool ring = false;
  bool not_causal = false;  // tokens are in the except set from the start
  bool notes_freed = false;

  int32_t column(int32_t position) const { return ring ? position % columns : position; }
  /// The lowest position that a token at `position` may see.
  int32_t low(int32_t position) const { return std::max(0, position - reach); }
};

/// The book of a transformer cache: where each row of a batch continues, what it holds, and what the open pass changes about that.
/// The token at a position lies in one certain column of its row, so nothing is placed, and a row is three numbers. It holds no K
/// and V and knows no device (semantics §6).
///
/// A ring slides when a pass is committed. Until then its spare columns hold the new tokens, and abort finds the old ones.
///
/// As in CellBook, check_batch() and check_room() decide everything that can fail before open_pass() changes anything.
class RowBook {
 public:
  struct Row {
    int32_t first = 0;   // the lowest position that is stored; next: nothing is
    int32_t next = 0;    // where it continues, the open pass included
    int32_t starts = 0;  // positions below are padding: stored, never seen
    int32_t lost_below = 0;
    int32_t n_added = 0;  // tokens of the open pass
    // What may have become free: positions of before, in the columns that they had.
    int32_t freed_first = 0;
    int32_t freed_end = 0;
  };

  /// Tokens of rows carry no flags.
  static constexpr KnownFlags known_flags = {0, nullptr};

  RowBook(const RowRules& rules, const Health&)
      : rules_(rules), plans_({rules.n_rows, rules.n_rows * rules.q_max, false}) {}
  void carve(Carver& carver);
  void reset();  // call once, after carve() over a block

  const RowRules& rules() const { return rules_; }
  const Row& sequence(int32_t row) const { return rows_[row]; }
  int32_t cell(int32_t row, int32_t position) const {
    return row * rules_.columns + rules_.column(position);
  }
  /// What a commit of the open pass leaves as the lowest position.
  int32_t first_kept(const Row& row) const {
    return rules_.ring ? std::max(row.first, row.next - rules_.length) : row.first;
  }
  int32_t lost_after(const Row& row) const {
    return rules_.ring ? std::max(row.lost_below, row.next - rules_.length) : 0;
  }
  /// Positions that rows hold, as if the open pass were committed.
  int64_t used() const { return used_; }
  bool holds_column(int32_t row, int32_t column) const { return holds(rows_[row], column); }

  // ---- A pass ----
  Status check_batch(const Batch& batch) const;
  Status check_room(const Batch& batch) const;
  void open_pass(const Batch& batch);
  void keep_added(int32_t row, int32_t n);
  void commit_pass();
  void abort_pass();
  int32_t q_len() const { return q_len_; }
  /// Of each token of the batch, −1: padding.
  const int32_t* batch_cell() const { return batch_cell_; }

  // ---- Rows. No pass is open, or the call is const and returns what it would after a commit ----
  bool can_continue(int32_t row, int32_t position) const;
  int32_t best_continuation(int32_t row, int32_t want) const;
  void cut(int32_t row, int32_t position);
  void copy_prefix(int32_t source, int32_t destination, int32_t position);
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const {
    return plans_.check_reorder(n, destination, source);
  }
  void reorder(int32_t n, const int32_t* destination, const int32_t* source);
  Status check_distinct(int32_t n, const int32_t* row) const {
    return plans_.check_distinct(n, row);
  }
  Status check_removal(int32_t row, int32_t begin, int32_t end) const;
  void remove(int32_t row, int32_t begin, int32_t end);
  SequenceInfo info(int32_t row) const;
  Status check_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) const;
  void set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts);
  /// Whether the rows of another book, whose rings are as long, may take the place of those from `slot` on.
  Status check_insert(const RowBook& other, int32_t slot) const;
  void insert(const RowBook& other, int32_t slot);

  /// Calls visit(cell) for what became free since it was last called.
  template <class Visit>
  void for_each_freed(Visit visit) {
    if (!rules_.notes_freed) return;
    for (int32_t index = 0; index < rules_.n_rows; ++index) {
      Row& row = rows_[index];
      for (int32_t position = row.freed_first; position < row.freed_end; ++position) {
        if (!holds(row, rules_.column(position))) visit(cell(index, position));
      }
      row.freed_first = row.freed_end = 0;
    }
  }

  /// Names what is broken.
  Status check(bool pass_is_open) const;

 private:
  bool holds(const Row& row, int32_t column) const;
  static void note_freed(Row& row, int32_t begin, int32_t end);
  static void drop_from(Row& row, int32_t position);
  static void replace(Row& row, const Row& by);
  void recount();
  Status read_valid(const RowTokens& tokens) const;
  Status check_mask(const RowTokens& tokens) const;

  RowRules rules_;
  Row* rows_ = nullptr;    // [n_rows]
  Row* copies_ = nullptr;  // [n_rows] sources of a reorder
  SequencePlans plans_;
  int32_t* planned_valid_ = nullptr;  // [n_rows] tokens that each row of the batch in question takes
  int32_t* batch_cell_ = nullptr;     // [n_rows · q_max]
  int32_t q_len_ = 0;                 // of the open pass
  int64_t used_ = 0;
};

/// Whether an attention mask lets tokens see a column; `token` counts within the row.
bool mask_shows(const Tensor& mask, int32_t row, int32_t token, int32_t column);

}  // namespace kvc
