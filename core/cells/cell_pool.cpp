#include "core/cells/cell_pool.hpp"

namespace kvc {

void CellPool::carve(Carver& carver, int32_t n_cells) {
  n_cells_ = n_cells;
  n_blocks_ = static_cast<int32_t>((int64_t{n_cells} + block_cells - 1) / block_cells);
  const auto cells = static_cast<uint64_t>(n_cells);
  owners_ = carver.take<int32_t>(cells, 64);
  hidden_ = carver.take<int32_t>(cells, 64);
  rotated_for_ = carver.take<int32_t>(cells, 64);
  free_ = carver.take<uint32_t>(static_cast<uint64_t>(n_blocks_), 64);
  some_free_.carve(carver, n_blocks_);
  all_free_.carve(carver, n_blocks_);
}

void CellPool::reset() { mark_free({0, n_cells_}); }

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

void CellPool::add_owners(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0;
    for_each_cell(stretch, [&](int32_t cell) {
      shared += owners_[cell] - hidden_[cell] == 1;
      ++owners_[cell];
    });
    n_shared_ += shared;
  });
}

bool CellPool::drop_owners(Stretch stretch) {
  int32_t shared = 0, waiting = 0, unowned = 0;
  for_each_cell(stretch, [&](int32_t cell) {
    shared += owners_[cell] - hidden_[cell] == 2;
    const int32_t left = --owners_[cell];
    waiting += left == hidden_[cell];
    unowned += left == 0;
  });
  n_shared_ -= shared;
  n_free_at_commit_ += waiting - unowned;  // owned, but only by entries out of sight
  return free_unowned(stretch, unowned);
}

void CellPool::show(const int32_t* cells, int32_t n) {
  for_each_stretch(cells, n, [this](Stretch stretch) {
    int32_t shared = 0, waiting = 0;
    for_each_cell(stretch, [&](int32_t cell) {
      waiting += owners_[cell] == hidden_[cell];
      --hidden_[cell];
      shared += owners_[cell] - hidden_[cell] == 2;
    });
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
    if (some_free_.test(block) != (free_[block] != 0))
      return "the bitmap of blocks with a free cell";
    if (all_free_.test(block) != (free_[block] == ~0u)) return "the bitmap of wholly free blocks";
  }
  if (!some_free_.sound()) return "the tree over the blocks with a free cell";
  if (!all_free_.sound()) return "the tree over the wholly free blocks";
  return nullptr;
}

}  // namespace kvc
