#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"
#include "core/caches/seen_tokens.hpp"

/// What the cells hold, as codes or as numbers. Neither rewrites a stored key.
namespace kvc {
namespace {

constexpr int32_t columns_per_load = 256;  // cells and offsets of one call of the device, on the stack

}  // namespace

Status CausalCache::get_codes(int32_t layer, Codes* codes) {
  int32_t first = 0, cells = 0;
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  *codes = layers_.codes(layer, first, cells);
  return Status::ok;
}

// ---- A column is one key --------------------------------------------------------------------------------------------------

/// Calls split(sequence, index, token) for the tokens that need a cell of their own: two sequences of the batch may share a cell at
/// different positions, so that its key owes each another rotation, and the later one of the batch yields. Tokens that two
/// sequences share stand in the same order in both, because nothing reorders the tokens of a sequence: one walk over each finds
/// them. A cell is compared with the first sequence that sees it.
template <class Split>
void CausalCache::for_each_split(Split split) {
  const AttentionPlan& made = plan_.made();
  const AttentionRow* row = made.rows;
  for (int32_t a = 0; a < book_.n_in_batch(); ++a) {
    const CellBook::Sequence& holder = book_.sequence(book_.touched(a));
    const SeenTokens seen(holder, made, &row);
    for (SeenTokens own = seen; own.next();) book_.mark_current(own.token().cell);
    const AttentionRow* other_row = row;
    for (int32_t b = a + 1; b < book_.n_in_batch(); ++b) {
      const CellBook::Sequence& sharer = book_.sequence(book_.touched(b));
      SeenTokens others(sharer, made, &other_row);
      if (!holder.may_be_pending && !sharer.may_be_pending) continue;
      for (SeenTokens own = seen; others.next();) {
        const Token token = others.token();
        if (!book_.is_current(token.cell)) continue;
        while (own.next() && own.token().cell != token.cell) {
        }
        if (own.token().position != token.position) split(book_.touched(b), others.index(), token);
      }
    }
    for (SeenTokens own = seen; own.next();) book_.mark_compared(own.token().cell);
  }
  row = made.rows;
  for (int32_t a = 0; a < book_.n_in_batch(); ++a) {
    SeenTokens own(book_.sequence(book_.touched(a)), made, &row);
    while (own.next()) book_.unmark(own.token().cell);
  }
}

Status CausalCache::prepare_copy(int32_t layer) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  if (!book_.keys_rotate() || !pass_.is_open()) return Status::ok;
  if (Status s = make_plan(); s != Status::ok) return s;
  int32_t copies = 0;
  for_each_split([&](int32_t, int32_t, Token) { ++copies; });
  if (copies == 0 || planted(Bug::one_key_for_two_positions)) return Status::ok;
  if (copies > book_.pool().n_free()) {
    return fail(
        Status::cache_full,
        "%d cells are shared by sequences of the batch that need their keys turned differently, "
        "and must be copied; %d of %d cells are free: remove tokens of other sequences first, "
        "or read one sequence at a time with kvc_gather",
        copies, book_.pool().n_free(), book_.rules().n_cells);
  }
  Moves moves;
  for_each_split([&](int32_t sequence, int32_t index, Token token) {
    book_.unmark(token.cell);
    moves.from[moves.n] = token.cell;
    moves.to[moves.n] = book_.take_own_cell(sequence, index, token);
    moves.offset[moves.n++] = 0;
    book_.mark_current(token.cell);
    if (moves.n == tokens_per_move) apply(moves);
  });
  apply(moves);
  plan_.forget();
  return pass_.is_replay() && health_.ok() ? make_plan() : health_.status();
}

// ---- Numbers --------------------------------------------------------------------------------------------------------------

Status CausalCache::get_copy(int32_t layer, const Tensor& k, const Tensor& v) {
  int32_t first = 0, columns = 0;
  if (Status s = history(layer, &first, &columns); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_get_copy"); s != Status::ok) return s;
  if (pass_.is_reserve()) return Status::ok;
  const KvLayers::Layer& l = layers_[layer];
  LoadParams load;
  load.storage = l.storage;
  load.rope = l.constants.rope;
  load.k = k;
  load.v = v;
  int32_t cell[columns_per_load], offset[columns_per_load], row[columns_per_load];
  load.cell = cell;
  load.row = row;
  const auto flush = [&]() -> Status {
    if (load.n_tokens == 0) return Status::ok;
    const Status s = health_.after(on_device_->load(load));
    load.n_tokens = 0;
    return s;
  };
  const auto add = [&](int32_t of_cell, int32_t turned, int32_t to) -> Status {
    cell[load.n_tokens] = of_cell;
    offset[load.n_tokens] = turned;
    row[load.n_tokens] = to;
    return ++load.n_tokens == columns_per_load ? flush() : Status::ok;
  };
  // What no token of the batch sees is zeros.
  for (int32_t column = 0; column < columns; ++column) {
    if (Status s = add(planted(Bug::unseen_keys_copied) ? first + column : -1, 0, column);
        s != Status::ok)
      return s;
  }
  if (Status s = flush(); s != Status::ok) return s;
  if (!planted(Bug::copied_keys_not_turned)) load.offset = offset;
  const AttentionPlan& made = plan_.made();
  const AttentionRow* seen_row = made.rows;
  for (int32_t t = 0; t < book_.n_in_batch(); ++t) {
    // A call never names a column twice: its rows may be loaded side by side.
    SeenTokens seen(book_.sequence(book_.touched(t)), made, &seen_row);
    while (seen.next()) {
      const Token token = seen.token();
      const Status s = add(token.cell, book_.offset_of(token), token.cell - first);
      if (s != Status::ok) return s;
    }
    if (Status s = flush(); s != Status::ok) return s;
  }
  return Status::ok;
}

}  // namespace kvc
