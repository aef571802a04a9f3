#include "core/cells/book.hpp"

namespace kvc {
namespace {

/// Scatters cell numbers over 64 bits, so that sums of them tell different multisets apart.
uint64_t mixed(int32_t cell) {
  auto value = static_cast<uint64_t>(cell);
  value = (value ^ (value >> 31)) * 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 29)) * 0xbf58476d1ce4e5b9u;
  return value ^ (value >> 32);
}

void add_mixed(void* sum, const int32_t* cells, int32_t n) {
  for (int32_t i = 0; i < n; ++i) *static_cast<uint64_t*>(sum) += mixed(cells[i]);
}

}  // namespace

Status CellBook::check_sequence_invariants(int32_t index, bool pass_is_open) const {
  const Sequence& sequence = sequences_[index];
  const TokenSequence& tokens = sequence.tokens;
  const auto broken = [index](const char* what) {
    return fail(Status::internal, "sequence %d: %s", index, what);
  };
  if (tokens.stored() > rules_.sequence_limit) return broken("stores more than its limit");
  if (!pass_is_open && tokens.n_hidden() != 0) return broken("hides tokens while no pass is open");
  int32_t previous = -1;
  for (int32_t i = 0; i < tokens.count(); ++i) {
    const Token token = tokens.at(i);
    if (token.cell < 0 || token.cell >= rules_.n_cells)
      return broken("names a cell outside the pool");
    if (token.position <= previous) return broken("positions do not ascend");
    const bool in_head = i < tokens.n_head();
    if (in_head != tokens.belongs_in_head(token.position)) return broken("kept-first tokens");
    if (!sequence.may_be_pending && keys_rotate_ && pool_.rotated_for(token.cell) != token.position)
      return broken("a key has a pending rotation that was not noted");
    previous = token.position;
  }
  if (previous >= sequence.next) return broken("holds a position at or behind its next");
  if (sequence.lost_below < 0 || sequence.lost_below > sequence.next)
    return broken("lost_below lies behind its next");
  if (!rules_.limited && sequence.lost_below != 0) return broken("lost tokens without a window");
  if (!can_continue(sequence, sequence.next)) return broken("cannot continue at its next");
  return Status::ok;
}

/// Owner counts are recounted as sums of scattered cell numbers: no memory, and no two counts that differ agree by chance.
Status CellBook::check(bool pass_is_open, const CellHolder* holder) const {
  if (const char* broken = pool_.broken_invariant(); broken != nullptr)
    return fail(Status::internal, "%s", broken);
  uint64_t owners = 0, hidden = 0;
  if (holder != nullptr) holder->for_each_held(add_mixed, &owners);
  for (int32_t index = 0; index < rules_.max_sequences; ++index) {
    if (Status s = check_sequence_invariants(index, pass_is_open); s != Status::ok) return s;
    const TokenSequence& tokens = sequences_[index].tokens;
    for (int32_t i = 0; i < tokens.count(); ++i) owners += mixed(tokens.at(i).cell);
    tokens.for_each_hidden(0, tokens.n_hidden(), [&hidden](const int32_t* cells, int32_t n) {
      add_mixed(&hidden, cells, n);
    });
  }
  for (int32_t cell = 0; cell < rules_.n_cells; ++cell) {
    const uint64_t number = mixed(cell);
    owners -= number * static_cast<uint64_t>(pool_.owners(cell) - pool_.hidden(cell));
    hidden -= number * static_cast<uint64_t>(pool_.hidden(cell));
  }
  if (owners != 0)
    return fail(Status::internal, "owner counts differ from what the sequences hold");
  if (hidden != 0)
    return fail(Status::internal, "hidden counts differ from what the sequences hide");
  if (!pass_is_open && pool_.n_free_at_commit() != 0)
    return fail(Status::internal, "cells wait for a commit while no pass is open");
  return Status::ok;
}

}  // namespace kvc
