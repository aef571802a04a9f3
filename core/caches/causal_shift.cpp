#include <algorithm>

#include "core/caches/causal.hpp"

/// Shifts by the caller's function. It works on copies in free cells; they replace the originals only when it has
/// succeeded in every layer, so a refusal changes nothing and a cell that others share stays as it is.
namespace kvc {

Status CausalCache::bind_shift(const KeyShift& shift) {
  if (Status s = pass_.need_no_pass("a shift function is bound"); s != Status::ok) return s;
  if (shift.run != nullptr && book_.keys_rotate())
    return fail(Status::not_supported,
                "the cache has RoPE (kvc_bind_rope), which moves keys without a function");
  if (shift.run != nullptr) {
    if (Status s = check_keys_may_rotate(); s != Status::ok) return s;
    if (!is_plain(bounds_.type_k) || bounds_.v_in_k) {
      return fail(Status::not_supported,
                  "a shift function rotates keys as they are stored, and %s: bind RoPE "
                  "(kvc_bind_rope), which leaves stored keys alone",
                  bounds_.v_in_k ? "with KVC_CACHE_V_IN_K a part of K is V"
                                 : "the codes of a quantised dtype_k cannot be rotated");
    }
  }
  shift_ = shift;
  return Status::ok;
}

Status CausalCache::check_shift_room(const Removal& removal) const {
  if (!removal.moves) return Status::ok;
  const TokenSequence& tokens = book_.sequence(removal.sequence).tokens;
  const int32_t n_moved = tokens.count() - tokens.rank(removal.end);
  if (n_moved <= book_.pool().n_free()) return Status::ok;
  return fail(
      Status::cache_full,
      "sequence %d: the shift function works on copies of the %d tokens that move, and %d of %d "
      "cells are free (cells that slid out in an open pass are free after kvc_commit)",
      removal.sequence, n_moved, book_.pool().n_free(), book_.rules().n_cells);
}

/// Copies the tokens behind the removed range and lets the function rotate the copies' keys, layer by layer.
Status CausalCache::make_shifted_copies(const Removal& removal) {
  const CellBook::Sequence& sequence = book_.sequence(removal.sequence);
  copies_.take(sequence.tokens.count() - sequence.tokens.rank(removal.end), sequence.home);
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    if (Status s = shift_copies(layer, removal); s != Status::ok) return s;
  }
  return Status::ok;
}

Status CausalCache::shift_copies(int32_t layer, const Removal& removal) {
  const TokenSequence& tokens = book_.sequence(removal.sequence).tokens;
  const LayerStorage& storage = layers_[layer].storage;
  const int32_t distance = removal.end - removal.begin;
  int32_t cell = copies_.first();
  for (int32_t at = tokens.rank(removal.end); at < tokens.count();) {
    // As many at a time as fit the stack.
    int32_t from[tokens_per_move], to[tokens_per_move], offset[tokens_per_move] = {};
    int32_t old_position[tokens_per_move], new_position[tokens_per_move];
    int32_t n = 0;
    for (; n < tokens_per_move && at < tokens.count(); ++n, ++at, cell = copies_.next_of(cell)) {
      const Token token = tokens.at(at);
      from[n] = token.cell;
      to[n] = cell;
      old_position[n] = token.position;
      new_position[n] = token.position - distance;
    }
    const Status moved = health_.after(on_device_->move({storage, Rope{}, from, to, offset, n}));
    if (moved != Status::ok) return moved;
    for (int32_t begin = 0; begin < n;) {
      int32_t end = begin + 1;
      while (end < n && to[end] == to[end - 1] + 1) ++end;
      const Tensor keys = storage.k.view(to[begin], end - begin);
      const Status shifted = shift_.run(shift_, layer, end - begin, old_position + begin,
                                        new_position + begin, keys);
      if (shifted != Status::ok) return shifted;
      begin = end;
    }
  }
  return Status::ok;
}

}  // namespace kvc
