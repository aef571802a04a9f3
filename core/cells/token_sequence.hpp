#pragma once
#include <algorithm>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/checked.hpp"

namespace kvc {

/// One token of a sequence: the cell that holds it and its position now.
struct Token {
  int32_t cell;
  int32_t position;
};

/// The tokens of one sequence in order of position: a head for those that are kept for ever (only where memory is limited
/// and keep_first > 0: exactly the positions below keep_first) and a ring for the rest, so that sliding moves nothing.
///
/// Index i counts the visible tokens. The open pass may hide tokens at the start of the ring; they stay stored until
/// it ends. Counts and order only: who owns a cell is the book's business.
///
/// All sequences share two arrays, one of cells and one of positions; each has a part of both. Which entries of its part have
/// changed is noted as one range, so that a device can follow.
class TokenSequence {
 public:
  /// How many entries a sequence has. Each of its tokens lies in a cell of its own, so neither part can need more than there
  /// are cells.
  struct Extent {
    int32_t head_end;  // positions below it go to the head
    int32_t head;
    int32_t ring;

    int64_t entries() const { return int64_t{head} + ring; }
  };

  /// Gives it entries [offset, offset + extent.entries()) of the arrays: the head, then the ring.
  void attach(int32_t* cells, int32_t* positions, int64_t offset, const Extent& extent);

  int32_t count() const { return n_head_ + n_ring_ - n_hidden_; }
  int32_t n_hidden() const { return n_hidden_; }
  int32_t stored() const { return n_head_ + n_ring_; }
  /// Tokens that the head or the ring can still take.
  int32_t room(bool in_head) const {
    return in_head ? head_capacity_ - n_head_ : ring_capacity_ - n_ring_;
  }
  bool belongs_in_head(int32_t position) const { return position < head_end_; }
  int32_t n_head() const { return n_head_; }

  Token at(int32_t index) const {
    if (index < n_head_) return {head_cell_[index], head_position_[index]};
    const int32_t slot = ring_slot(index - n_head_ + n_hidden_);
    return {ring_cell_[slot], ring_position_[slot]};
  }
  int32_t hidden_position(int32_t index) const { return ring_position_[ring_slot(index)]; }
  void set_cell(int32_t index, int32_t cell) {
    const int32_t slot = index < n_head_ ? index
                                         : head_capacity_ + ring_slot(index - n_head_ + n_hidden_);
    head_cell_[slot] = cell;  // the ring lies behind the head
    note_changed(slot, slot + 1);
  }
  int32_t last_cell() const {  // −1: none
    if (n_ring_ > 0) return ring_cell_[ring_slot(n_ring_ - 1)];
    return n_head_ > 0 ? head_cell_[n_head_ - 1] : -1;
  }

  /// How many visible tokens have a position below `position`: the index where it would stand.
  int32_t rank(int32_t position) const;
  /// How many tokens at the start of the ring, hidden ones included, have a position below `position`.
  int32_t ring_rank(int64_t position) const;

  /// Adds n tokens in cells next to each other, all to the head or all to the ring.
  void append(int32_t first_cell, const int32_t* position, int32_t n, bool to_head);
  void hide(int32_t n) { n_hidden_ = n; }  // the first n of the ring
  void drop_hidden();                      // forget them
  void truncate(int32_t new_count);        // keep the first new_count visible tokens
  void clear();

  /// Removes the visible tokens at [begin, end) and moves the positions of later ones down by `distance`; then those
  /// whose position came below `keep_first` move into the head. Nothing may be hidden.
  void erase(int32_t begin, int32_t end, int32_t distance, int32_t keep_first);

  /// Becomes a copy of the first `n` visible tokens of `source`, which hides none.
  void assign(const TokenSequence& source, int32_t n);

  /// The visible tokens from index `from` on, as kernels read them.
  TokenList list(int32_t from) const;

  /// The entries of the arrays that have changed since forget_changes(), and perhaps some between them.
  TokenRange changes() const {
    if (changed_begin_ >= changed_end_) return {offset_, offset_};
    return {offset_ + changed_begin_, offset_ + changed_end_};
  }
  void forget_changes() {
    changed_begin_ = INT32_MAX;
    changed_end_ = 0;
  }

  /// Calls `visit(cells, n)` for each piece of memory that the hidden tokens [begin, end) lie in.
  template <class Visit>
  void for_each_hidden(int32_t begin, int32_t end, Visit visit) const {
    if (end - begin == 1) return visit(ring_cell_ + ring_slot(begin), 1);
    while (begin < end) {
      const int32_t slot = ring_slot(begin);
      const int32_t n = end - begin < ring_capacity_ - slot ? end - begin : ring_capacity_ - slot;
      visit(ring_cell_ + slot, n);
      begin += n;
    }
  }

  /// Calls `visit(cells, positions, n)` for each piece of memory that the tokens [begin, end) in sight lie in.
  template <class Visit>
  void for_each_piece(int32_t begin, int32_t end, Visit visit) const {
    const TokenList tokens = list(0);
    int32_t start = 0;
    for (int piece = 0; piece < 3; ++piece) {
      const int32_t stop = start + tokens.count[piece];
      const int32_t first = begin > start ? begin : start;
      const int32_t last = end < stop ? end : stop;
      if (first < last)
        visit(cells_ + tokens.start[piece] + (first - start),
              positions_ + tokens.start[piece] + (first - start), last - first);
      start = stop;
    }
  }

 private:
  void erase_from_head(int32_t begin, int32_t end, int32_t distance);
  void erase_from_ring(int32_t begin, int32_t end, int32_t distance);
  void copy_in_ring(int32_t from, int32_t to);
  int32_t ring_slot(int32_t index) const {
    const int32_t slot = ring_start_ + index;  // both below ring_capacity_ <= 2^30: no overflow
    return slot >= ring_capacity_ ? slot - ring_capacity_ : slot;
  }

  /// Entries of the part, counted from its start.
  void note_changed(int32_t begin, int32_t end) {
    changed_begin_ = std::min(changed_begin_, begin);
    changed_end_ = std::max(changed_end_, end);
  }

  int32_t* cells_ = nullptr;  // of all sequences
  int32_t* positions_ = nullptr;
  int64_t offset_ = 0;                // of this one's part
  int32_t* head_cell_ = nullptr;      // [head_capacity]
  int32_t* head_position_ = nullptr;  // [head_capacity]
  int32_t* ring_cell_ = nullptr;      // [ring_capacity]
  int32_t* ring_position_ = nullptr;  // [ring_capacity]
  int32_t head_end_ = 0;
  int32_t head_capacity_ = 0;
  int32_t ring_capacity_ = 0;
  int32_t n_head_ = 0;
  int32_t ring_start_ = 0;
  int32_t n_ring_ = 0;    // hidden ones included
  int32_t n_hidden_ = 0;  // at the start of the ring
  int32_t changed_begin_ = INT32_MAX;
  int32_t changed_end_ = 0;
};

// What every pass of decode does for each token is small enough to be compiled into it.

/// Every pass searches for what slides, which is little, so the search gallops from the start.
inline int32_t TokenSequence::ring_rank(int64_t position) const {
  if (n_ring_ == 0 || ring_position_[ring_start_] >= position) return 0;
  int32_t low = 1, high = 2;
  while (high <= n_ring_ && ring_position_[ring_slot(high - 1)] < position) {
    low = high;
    high = high <= n_ring_ / 2 ? high * 2 : n_ring_ + 1;  // twice 2^30 would not fit
  }
  high = std::min(high - 1, n_ring_);
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (ring_position_[ring_slot(middle)] < position)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

inline void TokenSequence::append(int32_t first_cell, const int32_t* position, int32_t n,
                                  bool to_head) {
  int32_t* const cell_at = to_head ? head_cell_ : ring_cell_;
  int32_t* const position_at = to_head ? head_position_ : ring_position_;
  int32_t slot = to_head ? n_head_ : ring_slot(n_ring_);
  const int32_t part = to_head ? 0 : head_capacity_;
  if (to_head || slot + n <= ring_capacity_)
    note_changed(part + slot, part + slot + n);
  else  // round the end of the ring
    note_changed(part, part + ring_capacity_);
  for (int32_t i = 0; i < n; ++i, ++slot) {
    if (!to_head && slot == ring_capacity_) slot = 0;
    cell_at[slot] = first_cell + i;
    position_at[slot] = position[i];
  }
  (to_head ? n_head_ : n_ring_) += n;
}

inline void TokenSequence::drop_hidden() {
  ring_start_ = ring_slot(n_hidden_);
  n_ring_ -= n_hidden_;
  n_hidden_ = 0;
}

}  // namespace kvc
