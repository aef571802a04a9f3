#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/cells/bit_tree.hpp"

namespace kvc {

/// The cells of a cache: who owns each, which are free, and the position that each one's key was rotated for.
///
/// An owner is an entry of a sequence that names the cell. The open pass may put entries out of sight (they slid out of
/// the window); such a cell stays owned until the pass commits, so new tokens never take it and abort can bring it back.
/// A cell all of whose owners are out of sight is free at commit.
///
/// Free cells are found through bitmaps: one bit per cell in words of 32 (a block), and two sets of blocks, "has a free
/// cell" and "is wholly free", as trees, so that a search costs the same however large the pool is. A sequence grows inside its block and into the next wholly free one, and everyone else
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
  /// Whether the counters can be true at all: cheap enough to check after every change. broken_invariant() recounts.
  bool counts_are_possible() const {
    return n_free_ >= 0 && n_free_at_commit_ >= 0 && n_shared_ >= 0 &&
           n_free_ <= n_cells_ - n_free_at_commit_ - n_shared_;
  }

  bool is_free(int32_t cell) const { return (free_[block_of(cell)] >> place_of(cell) & 1u) != 0; }
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

  /// Calls visit(0) … visit(count − 1). One alone, as in every pass of decode, is spared the vectors that the compiler
  /// makes of the loop.
  template <class Visit>
  static void for_each(int32_t count, Visit visit) {
    if (count == 1) return visit(0);
    for (int32_t n = 0; n < count; ++n) visit(n);
  }

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

  /// For counting ahead: takes an owner away and returns how many are left. Every one lent must be returned.
  int32_t lend_owner(int32_t cell) { return --owners_[cell]; }
  void return_owner(int32_t cell) { ++owners_[cell]; }

  /// Marks of a walk over what several sequences hold, in the signs of the two counts: a cell is current, and compared
  /// afterwards. All must be taken back before anything else looks at a count.
  void mark_current(int32_t cell) {
    if (owners_[cell] >= 0 && hidden_[cell] >= 0) hidden_[cell] = ~hidden_[cell];
  }
  bool is_current(int32_t cell) const { return hidden_[cell] < 0; }
  void mark_compared(int32_t cell) {
    if (!is_current(cell)) return;
    unmark(cell);
    owners_[cell] = ~owners_[cell];
  }
  void unmark(int32_t cell) {
    if (hidden_[cell] < 0) hidden_[cell] = ~hidden_[cell];
    if (owners_[cell] < 0) owners_[cell] = ~owners_[cell];
  }

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
    if (n == 1) return visit(Stretch{cells[0], 1});
    while (n > 0) {
      const int32_t count = stretch_length(cells, n);
      visit(Stretch{cells[0], count});
      cells += count;
      n -= count;
    }
  }
  static int32_t stretch_length(const int32_t* cells, int32_t n);
  template <class Visit>
  static void for_each_cell(Stretch stretch, Visit visit) {
    for_each(stretch.count, [&](int32_t n) { visit(stretch.first + n); });
  }
  template <class Freed>
  void report_free(Stretch stretch, Freed freed) const {
    for_each_cell(stretch, [&](int32_t cell) {
      if (owners_[cell] == 0) freed(cell);
    });
  }
  bool drop_owners(Stretch stretch);  // whether any of them has no owner left
  bool drop_hidden(Stretch stretch);
  bool free_unowned(Stretch stretch, int32_t unowned);
  void mark_free(Stretch stretch);
  void mark_taken(Stretch inside_block);

  /// The block that a cell lies in, and where.
  static int32_t block_of(int32_t cell) {
    return static_cast<int32_t>(static_cast<uint32_t>(cell) / block_cells);
  }
  static int32_t place_of(int32_t cell) {
    return static_cast<int32_t>(static_cast<uint32_t>(cell) % block_cells);
  }
  /// The bits of a block's word from cell `first` on, `count` of them.
  static uint32_t bits_of(int32_t first, int32_t count) {
    const uint32_t run = count == block_cells ? ~0u : (1u << count) - 1;
    return run << place_of(first);
  }

  int32_t n_cells_ = 0;
  int32_t n_blocks_ = 0;
  int32_t n_free_ = 0;
  int32_t n_free_at_commit_ = 0;
  int32_t n_shared_ = 0;
  int32_t* owners_ = nullptr;       // [n_cells] hidden ones included
  int32_t* hidden_ = nullptr;       // [n_cells]
  int32_t* rotated_for_ = nullptr;  // [n_cells]
  uint32_t* free_ = nullptr;        // [n_blocks] a bit per cell
  BitTree some_free_;               // blocks
  BitTree all_free_;
};

// What every pass of decode does for each token is small enough to be compiled into it.

inline void CellPool::mark_free(Stretch stretch) {
  n_free_ += stretch.count;
  while (stretch.count > 0) {
    const int32_t block = block_of(stretch.first);
    const int32_t inside = std::min(stretch.count, block_cells - place_of(stretch.first));
    if (free_[block] == 0) some_free_.set(block);
    free_[block] |= bits_of(stretch.first, inside);
    if (free_[block] == ~0u)
      all_free_.set(block);  // a short last block never counts as wholly free
    stretch = {stretch.first + inside, stretch.count - inside};
  }
}

inline void CellPool::mark_taken(Stretch stretch) {
  const int32_t block = block_of(stretch.first);
  free_[block] &= ~bits_of(stretch.first, stretch.count);
  some_free_.clear_if(block, free_[block] == 0);
  all_free_.clear(block);
  n_free_ -= stretch.count;
}

inline CellPool::Stretch CellPool::take(int32_t previous, int32_t home, int32_t wanted,
                                        const int32_t* position) {
  int32_t cell = -1;
  int32_t from = home;
  if (previous >= 0 && previous + 1 < n_cells_) {
    const int32_t follower = previous + 1;
    const bool same_block = place_of(follower) != 0;
    if (same_block ? is_free(follower) : all_free_.test(block_of(follower))) cell = follower;
    from = block_of(follower);
  }
  if (cell < 0) {
    int32_t block = all_free_.find(from);
    if (block < 0) block = some_free_.find(from);
    cell = block * block_cells + std::countr_zero(free_[block]);
  }
  const int32_t in_a_row = std::countr_one(free_[block_of(cell)] >> place_of(cell));
  const Stretch taken = {cell, std::min(wanted, in_a_row)};
  mark_taken(taken);
  for_each_cell(taken, [&](int32_t each) {
    owners_[each] = 1;
    rotated_for_[each] = position[each - cell];
  });
  return taken;
}

inline bool CellPool::free_unowned(Stretch stretch, int32_t unowned) {
  if (unowned == stretch.count) {
    mark_free(stretch);
  } else if (unowned > 0) {
    for_each_cell(stretch, [&](int32_t cell) {
      if (owners_[cell] == 0) mark_free({cell, 1});
    });
  }
  return unowned > 0;
}

/// What is in sight of a cell does not change, so neither does whether it is shared.
inline bool CellPool::drop_hidden(Stretch stretch) {
  int32_t unowned = 0;
  for_each_cell(stretch, [&](int32_t cell) {
    --hidden_[cell];
    unowned += --owners_[cell] == 0;
  });
  n_free_at_commit_ -= unowned;
  return free_unowned(stretch, unowned);
}

inline void CellPool::hide(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0, waiting = 0;
    for_each_cell(stretch, [&](int32_t cell) {
      shared += owners_[cell] - hidden_[cell] == 2;
      waiting += owners_[cell] == ++hidden_[cell];
    });
    n_shared_ -= shared;
    n_free_at_commit_ += waiting;
  });
}

}  // namespace kvc
