#pragma once
#include <cstdint>

#include "core/base/carver.hpp"

namespace kvc {

/// The cells of a cache: who owns each, which are free, and the position that each one's key was rotated for.
///
/// An owner is an entry of a sequence that names the cell. The open pass may put entries out of sight (they slid out of
/// the window); such a cell stays owned until the pass commits, so new tokens never take it and abort can bring it back.
/// A cell all of whose owners are out of sight is free at commit.
///
/// Free cells are found through bitmaps: one bit per cell in words of 32 (a block), and two bits per block, "has a free
/// cell" and "is wholly free". A sequence grows inside its block and into the next wholly free one, and everyone else
/// prefers wholly free blocks, so that a partly used block is in effect reserved for the sequence that began it.
class CellPool {
 public:
  static constexpr int32_t block_cells = 32;

  void carve(Carver& carver, int32_t n_cells);
  void reset();  // all cells free; call once, after carve() over a block

  int32_t n_cells() const { return n_cells_; }
  int32_t n_free() const { return n_free_; }
  int32_t n_free_at_commit() const { return n_free_at_commit_; }
  int32_t n_shared() const { return n_shared_; }  // cells that more than one entry in sight names

  bool is_free(int32_t cell) const { return (free_[cell / block_cells] >> (cell % block_cells) & 1u) != 0; }
  int32_t owners(int32_t cell) const { return owners_[cell]; }
  int32_t hidden(int32_t cell) const { return hidden_[cell]; }
  int32_t rotated_for(int32_t cell) const { return rotated_for_[cell]; }
  const int32_t* rotated_for() const { return rotated_for_; }
  void set_rotated_for(int32_t cell, int32_t position) { rotated_for_[cell] = position; }

  /// Takes a free cell for a token whose predecessor lies in `previous` (−1: none), searching from block `home` otherwise.
  /// The pool must not be empty. The cell then has one owner.
  int32_t take(int32_t previous, int32_t home, int32_t position);

  void add_owner(int32_t cell) {
    n_shared_ += owners_[cell]++ - hidden_[cell] == 1;
  }
  /// True when that was the last one: the cell is free now.
  bool drop_owner(int32_t cell);

  /// For counting ahead: takes an owner away and says how many are left; every one lent must be returned.
  int32_t lend_owner(int32_t cell) { return --owners_[cell]; }
  void return_owner(int32_t cell) { ++owners_[cell]; }

  void hide(int32_t cell) {
    n_shared_ -= owners_[cell] - hidden_[cell]++ == 2;
    n_free_at_commit_ += owners_[cell] == hidden_[cell];
  }
  void show(int32_t cell) {
    n_free_at_commit_ -= owners_[cell] == hidden_[cell];
    n_shared_ += owners_[cell] - --hidden_[cell] == 2;
  }
  /// The end of a hidden entry: true when the cell is free now.
  bool drop_hidden(int32_t cell);

  /// Null, or the invariant of the bitmaps and counters that is broken.
  const char* broken_invariant() const;

 private:
  int32_t find(const uint64_t* blocks, int32_t from) const;
  void mark_free(int32_t cell);
  void mark_taken(int32_t cell);

  int32_t n_cells_ = 0;
  int32_t n_blocks_ = 0;
  int32_t n_free_ = 0;
  int32_t n_free_at_commit_ = 0;
  int32_t n_shared_ = 0;
  int32_t* owners_ = nullptr;       // [n_cells] hidden ones included
  int32_t* hidden_ = nullptr;       // [n_cells]
  int32_t* rotated_for_ = nullptr;  // [n_cells]
  uint32_t* free_ = nullptr;        // [n_blocks] a bit per cell
  uint64_t* some_free_ = nullptr;   // [n_blocks / 64] a bit per block
  uint64_t* all_free_ = nullptr;    // [n_blocks / 64]
};

}  // namespace kvc
