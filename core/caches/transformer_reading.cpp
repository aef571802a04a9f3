#include <algorithm>

#include "core/caches/transformer.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

constexpr int32_t cells_per_load = 256;  // of one call of the device, on the stack

}  // namespace

// ---- Views --------------------------------------------------------------------------------------------------------------

/// A view of all cells as one of all rows: [batch, columns, heads, …].
Tensor TransformerCache::by_rows(const Tensor& cells) const {
  if (cells.data == nullptr) return cells;
  const int32_t columns = book_.rules().columns;
  Tensor rows = cells;
  rows.ndim = cells.ndim + 1;
  rows.shape[0] = bounds_.max_sequences;
  rows.stride[0] = columns * cells.stride[0];
  for (int32_t d = 0; d < cells.ndim; ++d) {
    rows.shape[d + 1] = d == 0 ? columns : cells.shape[d];
    rows.stride[d + 1] = cells.stride[d];
  }
  return rows;
}

Status TransformerCache::history(int32_t layer, int32_t* first, int32_t* cells) {
  if (Status s = ready_for_layer(layer, false); s != Status::ok) return s;
  *first = 0;
  *cells = book_.rules().columns;
  return Status::ok;
}

Status TransformerCache::get(int32_t layer, Tensor* k, Tensor* v) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  if (Status s = layers_.check_lendable(k != nullptr, v != nullptr); s != Status::ok) return s;
  const LayerStorage& storage = layers_[layer].storage;
  if (k != nullptr) *k = by_rows(storage.k.view(0, bounds_.cells));
  if (v != nullptr) *v = by_rows(storage.v.view(0, bounds_.cells));
  return Status::ok;
}

Status TransformerCache::get_codes(int32_t layer, Codes* codes) {
  if (Status s = ready_for_layer(layer, true); s != Status::ok) return s;
  return view_rows(layer, codes);
}

Status TransformerCache::view_rows(int32_t layer, Codes* codes) const {
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  const Codes cells = layers_.codes(layer, 0, bounds_.cells);
  *codes = {by_rows(cells.k), by_rows(cells.k_scales), by_rows(cells.v), by_rows(cells.v_scales)};
  return Status::ok;
}

// ---- What tokens see --------------------------------------------------------------------------------------------------------

Status TransformerCache::mask(int32_t layer, const Tensor& into) {
  if (Status s = ready_for_layer(layer, false); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_mask"); s != Status::ok) return s;
  MaskParams params;
  params.into = into;
  params.all_visible = pass_.is_reserve();
  if (pass_.is_open()) {
    if (Status s = make_plan(); s != Status::ok) return s;
    params.plan = plan_.made();
  }
  return health_.after(on_device_->write_mask(params));
}

/// Columns that no token of their row sees are zeros.
Status TransformerCache::get_copy(int32_t layer, const Tensor& k, const Tensor& v) {
  if (Status s = need_no_recording("kvc_get_copy"); s != Status::ok) return s;
  if (pass_.is_reserve()) return Status::ok;
  if (Status s = make_plan(); s != Status::ok) return s;
  const AttentionPlan& plan = plan_.made();
  LoadParams load;
  load.storage = layers_[layer].storage;
  load.k = k;
  load.v = v;
  int32_t cell[cells_per_load], to[cells_per_load];
  load.cell = cell;
  load.row = to;
  const AttentionRow* row = plan.rows;
  const AttentionRow* const end = plan.rows + plan.n_rows;
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const int32_t first_cell = index * book_.rules().columns;
    const AttentionRow* behind = row;
    while (behind != end && plan.lists[behind->list].first_cell == first_cell) ++behind;
    const RowBook::Row& held = book_.sequence(index);
    const auto is_seen = [&](int32_t column) {
      int32_t after = column - book_.rules().column(held.first);  // in the row's list
      if (after < 0) after += book_.rules().columns;
      return std::any_of(row, behind, [&](const AttentionRow& r) {
        return after >= r.begin && after < r.end && !plan.hides(r.token, column);
      });
    };
    for (int32_t column = 0; column < book_.rules().columns; column += load.n_tokens) {
      load.n_tokens = std::min(cells_per_load, book_.rules().columns - column);
      for (int32_t i = 0; i < load.n_tokens; ++i) {
        to[i] = first_cell + column + i;
        cell[i] = is_seen(column + i) ? to[i] : -1;
      }
      if (Status s = health_.after(on_device_->load(load)); s != Status::ok) return s;
    }
    row = behind;
  }
  return Status::ok;
}

// ---- Copies out ---------------------------------------------------------------------------------------------------------------

Status TransformerCache::gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_gather"); s != Status::ok) return s;
  const RowBook::Row& row = book_.sequence(sequence);
  const bool missing = pass_.is_open() && !pass_.was_put(layer);  // of the open pass: zeros
  const int32_t stored = missing ? row.next - row.n_added : row.next;
  int32_t cell[cells_per_load];
  const int32_t first = book_.first_kept(row);
  for (int32_t at = first, n = 0; at < row.next; at += n) {
    n = std::min(cells_per_load, row.next - at);
    for (int32_t i = 0; i < n; ++i) cell[i] = at + i < stored ? book_.cell(sequence, at + i) : -1;
    LoadParams load;
    load.storage = layers_[layer].storage;
    load.cell = cell;
    load.n_tokens = n;
    load.k = k.from_row(at - first);
    load.v = v.from_row(at - first);
    if (Status s = health_.after(on_device_->load(load)); s != Status::ok) return s;
  }
  return Status::ok;
}

Status TransformerCache::runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs,
                              int32_t* n) const {
  if (Status s = layers_.check(layer); s != Status::ok) return s;
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  const RowBook::Row& row = book_.sequence(sequence);
  *n = 0;
  // A ring may go on at its first column.
  for (int32_t at = book_.first_kept(row), count = 0; at < row.next; at += count) {
    const int32_t left = book_.rules().columns - book_.rules().column(at);
    count = std::min(row.next - at, left);
    if (*n < capacity) runs[*n] = {book_.cell(sequence, at), count, at, 0};
    ++*n;
  }
  return Status::ok;
}

}  // namespace kvc
