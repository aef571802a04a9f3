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

  bool is_free(int32_t cell) const {
    return (free_[cell / block_cells] >> (cell % block_cells) & 1u) != 0;
  }
  int32_t owners(int32_t cell) const { return owners_[cell]; }
  int32_t hidden(int32_t cell) const { return hidden_[cell]; }
  int32_t rotated_for(int32_t cell) const { return rotated_for_[cell]; }
  const int32_t* rotated_for() const { return rotated_for_; }
  void set_rotated_for(int32_t cell, int32_t position) { rotated_for_[cell] = position; }

  /// Cells next to each other.
  struct Stretch {
    int32_t first;
    int32_t count;
  };

  /// Takes up to `wanted` free cells in a row, inside one block, for tokens whose predecessor lies in `previous` (−1: none),
  /// searching from block `home` when it cannot be followed. The pool must not be empty. Each then has one owner.
  Stretch take(int32_t previous, int32_t home, int32_t wanted, const int32_t* position);

  void add_owners(const int32_t* cells, int32_t n);

  /// Takes an owner of each cell away; calls `freed(cell)` for those that have none left and are free now.
  template <class Freed>
  void drop_owners(const int32_t* cells, int32_t n, Freed freed) {
    for_each_stretch(cells, n, [&](Stretch stretch) {
      if (drop_owners(stretch)) report_free(stretch, freed);
    });
  }

  /// For counting ahead: takes an owner away and says how many are left; every one lent must be returned.
  int32_t lend_owner(int32_t cell) { return --owners_[cell]; }
  void return_owner(int32_t cell) { ++owners_[cell]; }

  void hide(const int32_t* cells, int32_t n);
  void show(const int32_t* cells, int32_t n);

  /// The end of hidden entries; calls `freed(cell)` for those cells that nobody owns any more.
  template <class Freed>
  void drop_hidden(const int32_t* cells, int32_t n, Freed freed) {
    for_each_stretch(cells, n, [&](Stretch stretch) {
      if (drop_hidden(stretch)) report_free(stretch, freed);
    });
  }

  /// Null, or the invariant of the bitmaps and counters that is broken.
  const char* broken_invariant() const;

 private:
  /// Long rows of cells are what the cache aims at, so counts are changed a stretch at a time.
  template <class Visit>
  static void for_each_stretch(const int32_t* cells, int32_t n, Visit visit) {
    while (n > 0) {
      const int32_t count = n == 1 ? 1 : stretch_length(cells, n);
      visit(Stretch{cells[0], count});
      cells += count;
      n -= count;
    }
  }
  static int32_t stretch_length(const int32_t* cells, int32_t n);
  int32_t find(const uint64_t* blocks, int32_t from) const;
  template <class Freed>
  void report_free(Stretch stretch, Freed freed) const {
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      if (owners_[cell] == 0) freed(cell);
    }
  }
  bool drop_owners(Stretch stretch);  // whether any of them has no owner left
  bool drop_hidden(Stretch stretch);
  bool free_unowned(Stretch stretch, int32_t unowned);
  void mark_free(Stretch stretch);
  void mark_taken(Stretch inside_block);

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
