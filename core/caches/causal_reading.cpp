#include <algorithm>

#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"
#include "core/caches/planted_scales.hpp"
#include "core/caches/seen_tokens.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

constexpr int32_t tokens_per_load = 256;  // cells and offsets of one backend call, on the stack

}  // namespace

// ---- Views ---------------------------------------------------------------------------------------------------------------

/// The range of cells that the batch may see, rounded outward to the padding.
Status CausalCache::span(PassPlan::Span* range) {
  if (Status s = make_plan(); s != Status::ok) return s;
  const PassPlan::Span seen = plan_.span();
  const int32_t padding = settings_.cell_padding;
  *range = {seen.first / padding * padding, (seen.end + padding - 1) / padding * padding};
  return Status::ok;
}

Status CausalCache::history(int32_t layer, int32_t* first, int32_t* cells) {
  if (Status s = ready_for_layer(layer, false); s != Status::ok) return s;
  PassPlan::Span range = {0, layers_[0].storage.k.n_cells};
  if (!pass_.is_reserve() && !pass_.is_replay()) {
    if (Status s = span(&range); s != Status::ok) return s;
  }
  *first = range.first;
  *cells = range.end - range.first;
  return Status::ok;
}

Status CausalCache::get(int32_t layer, Tensor* k, Tensor* v) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  if (Status s = layers_.check_lendable(k != nullptr, v != nullptr); s != Status::ok) return s;
  if (book_.keys_rotate()) {
    if (Status s = need_no_recording("kvc_get of keys that rotate"); s != Status::ok) return s;
  }
  if (is_plain(bounds_.type_k) || planted(Bug::quantised_keys_split)) {
    if (Status s = rotate_pending(); s != Status::ok) return s;
  }
  int32_t first = 0, cells = 0;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  const LayerStorage& storage = layers_[layer].storage;
  if (k != nullptr) *k = storage.k.view(first, cells);
  if (v != nullptr) *v = storage.v.view(first, cells);
  return Status::ok;
}

Status CausalCache::mask(int32_t layer, const Tensor& into) {
  int32_t first = 0, cells = 0;
  if (Status s = history(layer, &first, &cells); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_mask"); s != Status::ok) return s;
  MaskParams params;
  params.into = into;
  params.first_column = first;
  params.all_visible = pass_.is_reserve();
  if (pass_.is_open()) params.plan = plan_.made();
  return health_.after(on_device_->write_mask(params));
}

// ---- Pending rotations of keys that are handed out -----------------------------------------------------------------------

/// Calls visit(sequence, index, token) for every token that the batch sees and whose key has a pending rotation.
template <class Visit>
void CausalCache::for_each_pending(Visit visit) {
  const AttentionRow* row = plan_.made().rows;
  for (int32_t t = 0; t < book_.n_in_batch(); ++t) {
    const CellBook::Sequence& sequence = book_.sequence(book_.touched(t));
    SeenTokens seen(sequence, plan_.made(), &row);
    if (!sequence.may_be_pending) continue;
    while (seen.next()) {
      if (book_.offset_of(seen.token()) != 0) visit(book_.touched(t), seen.index(), seen.token());
    }
  }
}

/// get() hands stored keys out, so those with a pending rotation are rewritten, once, in every layer. A cell that has another
/// owner too, a hidden one included, is copied first; the last of several owners rewrites it in place.
Status CausalCache::rotate_pending() {
  if (!book_.keys_rotate() || !pass_.is_open()) return Status::ok;
  if (Status s = make_plan(); s != Status::ok) return s;
  int32_t copies = 0, pending = 0;
  for_each_pending([&](int32_t, int32_t, Token token) {
    ++pending;
    copies += book_.lend_owner(token.cell) > 0;
  });
  for_each_pending([&](int32_t, int32_t, Token token) { book_.return_owner(token.cell); });
  if (pending == 0) return Status::ok;
  if (copies > book_.pool().n_free()) {
    return fail(
        Status::cache_full,
        "%d shared cells have a pending rotation and must be copied, and %d of %d cells are free: "
        "remove tokens of other sequences first",
        copies, book_.pool().n_free(), book_.rules().n_cells);
  }
  Moves moves;
  for_each_pending([&](int32_t sequence, int32_t index, Token token) {
    const bool is_shared = book_.pool().owners(token.cell) > 1;
    const int32_t to = is_shared && !planted(Bug::shared_cell_rewritten)
                           ? book_.take_own_cell(sequence, index, token)
                           : token.cell;
    moves.from[moves.n] = token.cell;
    moves.to[moves.n] = to;
    moves.offset[moves.n++] = book_.offset_of(token);
    book_.set_rotated_for(to, token.position);
    if (moves.n == tokens_per_move) apply(moves);
  });
  apply(moves);
  plan_.forget();
  return pass_.is_replay() && health_.ok() ? make_plan() : health_.status();
}

void CausalCache::apply(Moves& moves) {
  for (int32_t layer = 0; layer < bounds_.n_layers && moves.n > 0; ++layer) {
    const KvLayers::Layer& l = layers_[layer];
    (void)health_.after(
        on_device_->move({with_scales_unless(Bug::scales_left_behind, l.storage), l.constants.rope,
                          moves.from, moves.to, moves.offset, moves.n}));
  }
  moves.n = 0;
}

// ---- Copies out ---------------------------------------------------------------------------------------------------------------

Status CausalCache::gather(int32_t index, int32_t sequence_index, const Tensor& k, const Tensor& v) {
  if (Status s = check_sequence(sequence_index, bounds_.max_sequences); s != Status::ok) return s;
  if (Status s = layers_.check(index); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_gather"); s != Status::ok) return s;
  const CellBook::Sequence& sequence = book_.sequence(sequence_index);
  const KvLayers::Layer& layer = layers_[index];
  const int32_t count = sequence.tokens.count();
  const bool missing = pass_.is_open() && !pass_.was_put(index);  // of the open pass: zeros
  const int32_t stored = missing ? count - sequence.n_added : count;
  int32_t cell[tokens_per_load], offset[tokens_per_load];
  for (int32_t start = 0; start < count; start += tokens_per_load) {
    const int32_t n = std::min(tokens_per_load, count - start);
    for (int32_t i = 0; i < n; ++i) {
      const Token token = sequence.tokens.at(start + i);
      cell[i] = start + i < stored ? token.cell : -1;
      offset[i] = book_.offset_of(token);
    }
    const LoadParams load{layer.storage,     layer.constants.rope, cell, offset, nullptr, n,
                          k.from_row(start), v.from_row(start)};
    if (Status s = health_.after(on_device_->load(load)); s != Status::ok) return s;
  }
  return Status::ok;
}

Status CausalCache::runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs,
                         int32_t* n) const {
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  *n = book_.runs(sequence, capacity, runs);
  return Status::ok;
}

}  // namespace kvc
