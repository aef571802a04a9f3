#include "core/cells/cell_pool.hpp"

#include <bit>

namespace kvc {
namespace {

constexpr int32_t words_for(int32_t n_blocks) { return (n_blocks + 63) / 64; }

void set_bit(uint64_t* words, int32_t index) { words[index / 64] |= uint64_t{1} << (index % 64); }
void clear_bit(uint64_t* words, int32_t index) { words[index / 64] &= ~(uint64_t{1} << (index % 64)); }
bool test_bit(const uint64_t* words, int32_t index) { return (words[index / 64] >> (index % 64) & 1u) != 0; }

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

void CellPool::reset() {
  for (int32_t cell = 0; cell < n_cells_; ++cell) mark_free(cell);
}

void CellPool::mark_free(int32_t cell) {
  const int32_t block = cell / block_cells;
  free_[block] |= 1u << (cell % block_cells);
  set_bit(some_free_, block);
  if (free_[block] == ~0u) set_bit(all_free_, block);  // a short last block never counts as wholly free
  ++n_free_;
}

void CellPool::mark_taken(int32_t cell) {
  const int32_t block = cell / block_cells;
  free_[block] &= ~(1u << (cell % block_cells));
  if (free_[block] == 0) clear_bit(some_free_, block);
  clear_bit(all_free_, block);
  --n_free_;
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

int32_t CellPool::take(int32_t previous, int32_t home, int32_t position) {
  int32_t cell = -1;
  int32_t from = home;
  if (previous >= 0 && previous + 1 < n_cells_) {
    const int32_t follower = previous + 1;
    const bool same_block = follower % block_cells != 0;
    if (same_block ? is_free(follower) : test_bit(all_free_, follower / block_cells)) cell = follower;
    from = follower / block_cells;
  }
  if (cell < 0) {
    int32_t block = find(all_free_, from);
    if (block < 0) block = find(some_free_, from);
    cell = block * block_cells + std::countr_zero(free_[block]);
  }
  mark_taken(cell);
  owners_[cell] = 1;
  hidden_[cell] = 0;
  rotated_for_[cell] = position;
  return cell;
}

bool CellPool::drop_owner(int32_t cell) {
  n_shared_ -= owners_[cell]-- - hidden_[cell] == 2;
  if (owners_[cell] != 0) {
    n_free_at_commit_ += owners_[cell] == hidden_[cell];
    return false;
  }
  mark_free(cell);
  return true;
}

bool CellPool::drop_hidden(int32_t cell) {
  n_free_at_commit_ -= owners_[cell] == hidden_[cell];
  --hidden_[cell];
  --owners_[cell];
  if (owners_[cell] != 0) {
    n_free_at_commit_ += owners_[cell] == hidden_[cell];
    return false;
  }
  mark_free(cell);
  return true;
}

const char* CellPool::broken_invariant() const {
  int32_t n_free = 0, n_free_at_commit = 0, n_shared = 0;
  for (int32_t cell = 0; cell < n_cells_; ++cell) {
    const int32_t in_sight = owners_[cell] - hidden_[cell];
    if (hidden_[cell] < 0 || in_sight < 0) return "a cell has fewer owners than hidden ones";
    if (is_free(cell) != (owners_[cell] == 0)) return "a cell is free and owned, or neither";
    n_free += is_free(cell);
    n_free_at_commit += owners_[cell] != 0 && in_sight == 0;
    n_shared += in_sight > 1;
  }
  if (n_free != n_free_) return "the number of free cells";
  if (n_free_at_commit != n_free_at_commit_) return "the number of cells that are free at commit";
  if (n_shared != n_shared_) return "the number of shared cells";
  for (int32_t block = 0; block < n_blocks_; ++block) {
    if (test_bit(some_free_, block) != (free_[block] != 0)) return "the bitmap of blocks with a free cell";
    if (test_bit(all_free_, block) != (free_[block] == ~0u)) return "the bitmap of wholly free blocks";
  }
  return nullptr;
}

}  // namespace kvc
