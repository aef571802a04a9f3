#include "core/cells/token_sequence.hpp"

#include <algorithm>
#include <cstring>

namespace kvc {

void TokenSequence::attach(int32_t* cells, int32_t* positions, int64_t offset, const Extent& extent) {
  cells_ = cells;
  positions_ = positions;
  offset_ = offset;
  head_end_ = extent.head_end;
  head_capacity_ = extent.head;
  ring_capacity_ = extent.ring;
  head_cell_ = cells + offset;
  head_position_ = positions + offset;
  ring_cell_ = head_cell_ + head_capacity_;
  ring_position_ = head_position_ + head_capacity_;
}

int32_t TokenSequence::rank(int32_t position) const {
  if (n_head_ > 0 && position <= head_position_[n_head_ - 1]) {
    return static_cast<int32_t>(
        std::lower_bound(head_position_, head_position_ + n_head_, position) - head_position_);
  }
  return n_head_ + std::max(0, ring_rank(position) - n_hidden_);
}

void TokenSequence::truncate(int32_t new_count) {
  if (new_count <= n_head_) {
    n_head_ = new_count;
    n_ring_ = n_hidden_;
  } else {
    n_ring_ = new_count - n_head_ + n_hidden_;
  }
}

void TokenSequence::clear() { n_head_ = ring_start_ = n_ring_ = n_hidden_ = 0; }

void TokenSequence::erase(int32_t begin, int32_t end, int32_t distance, int32_t keep_first) {
  const int32_t head = n_head_;
  note_changed(0, head_capacity_ + ring_capacity_);
  erase_from_ring(std::max(0, begin - head), std::max(0, end - head), distance);
  if (begin < head) erase_from_head(begin, std::min(end, head), distance);
  while (n_ring_ > 0 && n_head_ < head_capacity_ && ring_position_[ring_start_] < keep_first) {
    head_cell_[n_head_] = ring_cell_[ring_start_];
    head_position_[n_head_++] = ring_position_[ring_start_];
    ring_start_ = ring_slot(1);
    --n_ring_;
  }
}

void TokenSequence::erase_from_head(int32_t begin, int32_t end, int32_t distance) {
  for (int32_t i = end; i < n_head_; ++i) {
    head_cell_[begin + i - end] = head_cell_[i];
    head_position_[begin + i - end] = head_position_[i] - distance;
  }
  n_head_ -= end - begin;
}

void TokenSequence::copy_in_ring(int32_t from, int32_t to) {
  ring_cell_[ring_slot(to)] = ring_cell_[ring_slot(from)];
  ring_position_[ring_slot(to)] = ring_position_[ring_slot(from)];
}

/// Positions behind the gap change in place; then the shorter side moves to close it.
void TokenSequence::erase_from_ring(int32_t begin, int32_t end, int32_t distance) {
  for (int32_t at = end; at < n_ring_;) {
    const int32_t slot = ring_slot(at);
    const int32_t n = std::min(n_ring_ - at, ring_capacity_ - slot);
    for (int32_t i = 0; i < n; ++i) ring_position_[slot + i] -= distance;
    at += n;
  }
  const int32_t removed = end - begin;
  if (removed == 0) return;
  if (begin < n_ring_ - end) {
    for (int32_t i = begin - 1; i >= 0; --i) copy_in_ring(i, i + removed);
    ring_start_ = ring_slot(removed);
  } else {
    for (int32_t i = end; i < n_ring_; ++i) copy_in_ring(i, i - removed);
  }
  n_ring_ -= removed;
}

void TokenSequence::assign(const TokenSequence& source, int32_t n) {
  clear();
  n_head_ = std::min(n, source.n_head_);
  note_changed(0, head_capacity_ + n - n_head_);
  if (n_head_ > 0) {
    std::memcpy(head_cell_, source.head_cell_, static_cast<size_t>(n_head_) * sizeof(int32_t));
    std::memcpy(head_position_, source.head_position_, static_cast<size_t>(n_head_) * sizeof(int32_t));
  }
  source.for_each_piece(
      n_head_, n, [this](const int32_t* cell, const int32_t* position, int32_t length) {
        std::memcpy(ring_cell_ + n_ring_, cell, static_cast<size_t>(length) * sizeof(int32_t));
        std::memcpy(ring_position_ + n_ring_, position, static_cast<size_t>(length) * sizeof(int32_t));
        n_ring_ += length;
      });
}

TokenList TokenSequence::list(int32_t from) const {
  TokenList list;
  const int32_t from_head = std::min(from, n_head_);
  list.start[0] = offset_ + from_head;
  list.count[0] = n_head_ - from_head;
  const int32_t skipped = n_hidden_ + (from - from_head);
  const int32_t start = ring_slot(skipped);
  const int32_t in_ring = n_ring_ - skipped;
  list.start[1] = offset_ + head_capacity_ + start;
  list.count[1] = std::min(in_ring, ring_capacity_ - start);
  list.start[2] = offset_ + head_capacity_;
  list.count[2] = in_ring - list.count[1];
  list.total = count() - from;
  return list;
}

}  // namespace kvc
