#include "core/cells/cell_pool.hpp"

#include <algorithm>
#include <bit>

namespace kvc {
namespace {

constexpr int32_t words_for(int32_t n_blocks) { return (n_blocks + 63) / 64; }

void set_bit(uint64_t* words, int32_t index) { words[index / 64] |= uint64_t{1} << (index % 64); }
void clear_bit(uint64_t* words, int32_t index) {
  words[index / 64] &= ~(uint64_t{1} << (index % 64));
}
bool test_bit(const uint64_t* words, int32_t index) {
  return (words[index / 64] >> (index % 64) & 1u) != 0;
}

/// The bits of a block's word from cell `first` on, `count` of them.
uint32_t bits_of(int32_t first, int32_t count) {
  const uint32_t run = count == CellPool::block_cells ? ~0u : (1u << count) - 1;
  return run << (first % CellPool::block_cells);
}

}  // namespace

void CellPool::carve(Carver& carver, int32_t n_cells) {
  n_cells_ = n_cells;
  n_blocks_ = static_cast<int32_t>((int64_t{n_cells} + block_cells - 1) / block_cells);
  const auto cells = static_cast<uint64_t>(n_cells);
  owners_ = carver.take<int32_t>(cells, 64);
  hidden_ = carver.take<int32_t>(cells, 64);
  rotated_for_ = carver.take<int32_t>(cells, 64);
  free_ = carver.take<uint32_t>(static_cast<uint64_t>(n_blocks_), 64);
  some_free_ = carver.take<uint64_t>(static_cast<uint64_t>(words_for(n_blocks_)), 64);
  all_free_ = carver.take<uint64_t>(static_cast<uint64_t>(words_for(n_blocks_)), 64);
}

void CellPool::reset() { mark_free({0, n_cells_}); }

void CellPool::mark_free(Stretch stretch) {
  n_free_ += stretch.count;
  while (stretch.count > 0) {
    const int32_t block = stretch.first / block_cells;
    const int32_t inside = std::min(stretch.count, block_cells - stretch.first % block_cells);
    free_[block] |= bits_of(stretch.first, inside);
    set_bit(some_free_, block);
    if (free_[block] == ~0u)
      set_bit(all_free_, block);  // a short last block never counts as wholly free
    stretch = {stretch.first + inside, stretch.count - inside};
  }
}

void CellPool::mark_taken(Stretch stretch) {
  const int32_t block = stretch.first / block_cells;
  free_[block] &= ~bits_of(stretch.first, stretch.count);
  if (free_[block] == 0) clear_bit(some_free_, block);
  clear_bit(all_free_, block);
  n_free_ -= stretch.count;
}

int32_t CellPool::stretch_length(const int32_t* cells, int32_t n) {
  int32_t length = 1;
  for (; length + block_cells <= n; length += block_cells) {
    int32_t differences = 0;  // without an early exit the compiler compares several at a time
    for (int32_t i = 0; i < block_cells; ++i)
      differences |= cells[length + i] ^ (cells[0] + length + i);
    if (differences != 0) break;
  }
  while (length < n && cells[length] == cells[0] + length) ++length;
  return length;
}

/// The first block at or after `from`, round the end, whose bit is set; −1: none.
int32_t CellPool::find(const uint64_t* blocks, int32_t from) const {
  const int32_t n_words = words_for(n_blocks_);
  int32_t word = from / 64;
  uint64_t bits = blocks[word] & (~uint64_t{0} << (from % 64));
  for (int32_t step = 0; step <= n_words; ++step) {
    if (bits != 0) return word * 64 + std::countr_zero(bits);
    word = word + 1 == n_words ? 0 : word + 1;
    bits = blocks[word];
  }
  return -1;
}

CellPool::Stretch CellPool::take(int32_t previous, int32_t home, int32_t wanted,
                                 const int32_t* position) {
  int32_t cell = -1;
  int32_t from = home;
  if (previous >= 0 && previous + 1 < n_cells_) {
    const int32_t follower = previous + 1;
    const bool same_block = follower % block_cells != 0;
    if (same_block ? is_free(follower) : test_bit(all_free_, follower / block_cells))
      cell = follower;
    from = follower / block_cells;
  }
  if (cell < 0) {
    int32_t block = find(all_free_, from);
    if (block < 0) block = find(some_free_, from);
    cell = block * block_cells + std::countr_zero(free_[block]);
  }
  const int32_t in_a_row = std::countr_one(free_[cell / block_cells] >> (cell % block_cells));
  const Stretch taken = {cell, std::min(wanted, in_a_row)};
  mark_taken(taken);
  for (int32_t i = 0; i < taken.count; ++i) {
    owners_[cell + i] = 1;
    rotated_for_[cell + i] = position[i];
  }
  return taken;
}

void CellPool::add_owners(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0;
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      shared += owners_[cell] - hidden_[cell] == 1;
      ++owners_[cell];
    }
    n_shared_ += shared;
  });
}

bool CellPool::free_unowned(Stretch stretch, int32_t unowned) {
  if (unowned == stretch.count) {
    mark_free(stretch);
  } else if (unowned > 0) {
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      if (owners_[cell] == 0) mark_free({cell, 1});
    }
  }
  return unowned > 0;
}

bool CellPool::drop_owners(Stretch stretch) {
  int32_t shared = 0, waiting = 0, unowned = 0;
  for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
    shared += owners_[cell] - hidden_[cell] == 2;
    const int32_t left = --owners_[cell];
    waiting += left == hidden_[cell];
    unowned += left == 0;
  }
  n_shared_ -= shared;
  n_free_at_commit_ += waiting - unowned;  // owned, but only by entries out of sight
  return free_unowned(stretch, unowned);
}

/// What is in sight of a cell does not change, so neither does whether it is shared.
bool CellPool::drop_hidden(Stretch stretch) {
  int32_t unowned = 0;
  for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
    --hidden_[cell];
    unowned += --owners_[cell] == 0;
  }
  n_free_at_commit_ -= unowned;
  return free_unowned(stretch, unowned);
}

void CellPool::hide(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0, waiting = 0;
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      shared += owners_[cell] - hidden_[cell] == 2;
      waiting += owners_[cell] == ++hidden_[cell];
    }
    n_shared_ -= shared;
    n_free_at_commit_ += waiting;
  });
}

void CellPool::show(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0, waiting = 0;
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      waiting += owners_[cell] == hidden_[cell];
      --hidden_[cell];
      shared += owners_[cell] - hidden_[cell] == 2;
    }
    n_free_at_commit_ -= waiting;
    n_shared_ += shared;
  });
}

const char* CellPool::broken_invariant() const {
  int32_t n_free = 0, n_free_at_commit = 0, n_shared = 0;
  for (int32_t cell = 0; cell < n_cells_; ++cell) {
    if (hidden_[cell] < 0 || owners_[cell] < hidden_[cell])
      return "a cell has fewer owners than hidden ones";
    const int32_t in_sight = owners_[cell] - hidden_[cell];
    if (is_free(cell) != (owners_[cell] == 0)) return "a cell is free and owned, or neither";
    n_free += is_free(cell);
    n_free_at_commit += owners_[cell] != 0 && in_sight == 0;
    n_shared += in_sight > 1;
  }
  if (n_free != n_free_) return "the number of free cells";
  if (n_free_at_commit != n_free_at_commit_) return "the number of cells that are free at commit";
  if (n_shared != n_shared_) return "the number of shared cells";
  for (int32_t block = 0; block < n_blocks_; ++block) {
    if (test_bit(some_free_, block) != (free_[block] != 0))
      return "the bitmap of blocks with a free cell";
    if (test_bit(all_free_, block) != (free_[block] == ~0u))
      return "the bitmap of wholly free blocks";
  }
  return nullptr;
}

}  // namespace kvc
