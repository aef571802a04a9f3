#include <algorithm>

#include "core/caches/causal.hpp"

/// Shifts by the caller's function. It works on copies in free cells; they replace the originals only when it has
/// succeeded in every layer, so a refusal changes nothing and a cell that others share stays as it is.
namespace kvc {

Status CausalCache::bind_shift(const KeyShift& shift) {
  if (state_ != CacheState::idle)
    return fail(Status::bad_state, "a shift function is bound while no pass is open");
  if (shift.run != nullptr && has_rope_)
    return fail(Status::not_supported, "the cache has RoPE, which shifts by itself");
  if (shift.run != nullptr && settings_.position_free)
    return fail(Status::not_supported, "the cache was declared position-free");
  shift_ = shift;
  return Status::ok;
}

CausalCache::Copies::~Copies() {
  for (int32_t cell = first_; cell >= 0;) {
    const int32_t next = next_of(cell);
    cache_.pool_.drop_owners(&cell, 1, [this](int32_t freed) { cache_.release(freed); });
    cell = next;
  }
  if (cache_.flush_freed() != Status::ok) cache_.expect(false, "cells could not be cleared");
}

void CausalCache::Copies::take(int32_t count, int32_t home) {
  constexpr int32_t none[CellPool::block_cells] = {};
  while (count > 0) {
    const CellPool::Stretch stretch = cache_.pool_.take(
        last_, home, std::min(count, CellPool::block_cells), none);
    for (int32_t cell = stretch.first; cell < stretch.first + stretch.count; ++cell) {
      if (last_ >= 0)
        cache_.pool_.set_rotated_for(last_, cell);
      else
        first_ = cell;
      cache_.pool_.set_rotated_for(cell, -1);
      last_ = cell;
    }
    count -= stretch.count;
  }
}

/// Copies the tokens [first, first + …) of a sequence and has the copies' keys turned, layer by layer.
Status CausalCache::make_shifted_copies(const Sequence& sequence, int32_t first, int32_t distance,
                                        Copies& copies) {
  const int32_t n_moved = sequence.tokens.count() - first;
  if (n_moved > pool_.n_free()) {
    return fail(Status::cache_full, "%d keys would be shifted in copies, and %d cells are free",
                n_moved, pool_.n_free());
  }
  copies.take(n_moved, sequence.home);
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    int32_t cell = copies.first();
    for (int32_t done = 0; done < n_moved;) {
      // As many at a time as fit the stack.
      int32_t from[tokens_per_move], to[tokens_per_move], offset[tokens_per_move] = {};
      int32_t old_position[tokens_per_move], new_position[tokens_per_move];
      int32_t n = 0;
      for (; n < tokens_per_move && done + n < n_moved; ++n, cell = copies.next_of(cell)) {
        const Token token = sequence.tokens.at(first + done + n);
        from[n] = token.cell;
        to[n] = cell;
        old_position[n] = token.position;
        new_position[n] = token.position - distance;
      }
      const LayerStorage& storage = layers_[layer].storage;
      if (Status s = backend_->move({storage, Rope{}, from, to, offset, n}); s != Status::ok)
        return health_ = s;
      for (int32_t begin = 0; begin < n;) {
        int32_t end = begin + 1;
        while (end < n && to[end] == to[end - 1] + 1) ++end;
        const Tensor keys = storage.k.view(to[begin], end - begin);
        if (Status s = shift_.run(shift_, layer, end - begin, old_position + begin,
                                  new_position + begin, keys);
            s != Status::ok) {
          return s;
        }
        begin = end;
      }
      done += n;
    }
  }
  return Status::ok;
}

/// The copies take the places of the tokens from `first` on.
void CausalCache::use_shifted_copies(Sequence& sequence, int32_t first, int32_t distance,
                                     Copies& copies) {
  int32_t cell = copies.first();
  copies.keep();
  for (int32_t i = first; i < sequence.tokens.count(); ++i) {
    const Token token = sequence.tokens.at(i);
    const int32_t next = copies.next_of(cell);
    pool_.set_rotated_for(cell, token.position - distance);
    sequence.tokens.set_cell(i, cell);
    pool_.drop_owners(&token.cell, 1, [this](int32_t freed) { release(freed); });
    cell = next;
  }
}

}  // namespace kvc
