#include <algorithm>
#include <limits>

#include "core/base/half.hpp"
#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {
namespace {

constexpr int32_t tokens_per_load = 256;  // cells and offsets of one backend call, on the stack

}  // namespace

// ---- Views ---------------------------------------------------------------------------------------------------------------

/// The range of cells that the batch may see, rounded outward to the padding.
void CausalCache::span_history() {
  if (history_spanned_) return;
  plan_attention();
  int32_t low = INT32_MAX, high = -1;
  for (int32_t r = 0; r < attention_plan_.n_rows;) {
    // Rows of one list overlap or touch, so the list is walked once, over what any of them sees.
    const int32_t list_index = rows_[r].list;
    int32_t first_end = 0, begin = INT32_MAX, end = 0;
    for (; r < attention_plan_.n_rows && rows_[r].list == list_index; ++r) {
      first_end = std::max(first_end, rows_[r].first_end);
      begin = std::min(begin, rows_[r].begin);
      end = std::max(end, rows_[r].end);
    }
    const TokenList& list = lists_[list_index];
    for (int32_t piece = 0, start = 0; piece < 3; start += list.count[piece++]) {
      for (int32_t i = 0; i < list.count[piece]; ++i) {
        const int32_t at = start + i;
        if (at >= first_end && (at < begin || at >= end)) continue;
        low = std::min(low, list.cell[piece][i]);
        high = std::max(high, list.cell[piece][i]);
      }
    }
  }
  const int32_t padding = settings_.cell_padding;
  history_begin_ = low / padding * padding;
  history_end_ = (high / padding + 1) * padding;
  history_spanned_ = true;
}

Status CausalCache::history(int32_t* first, int32_t* cells) {
  if (Status s = ready_in_pass(); s != Status::ok) return s;
  if (state_ == CacheState::reserve) {
    history_begin_ = *first = 0;
    *cells = layers_[0].storage.k.n_cells;
    return Status::ok;
  }
  span_history();
  *first = history_begin_;
  *cells = history_end_ - history_begin_;
  return health_;
}

Status CausalCache::get(int32_t index, Tensor* k, Tensor* v) {
  if (Status s = ready_for_layer(index, true); s != Status::ok) return s;
  if (Status s = pay_rotations(); s != Status::ok) return s;
  int32_t first = 0, cells = 0;
  if (Status s = history(&first, &cells); s != Status::ok) return s;
  const LayerStorage& storage = layers_[index].storage;
  if (k != nullptr) *k = storage.k.view(history_begin_, cells);
  if (v != nullptr) *v = storage.v.view(history_begin_, cells);
  return Status::ok;
}

Status CausalCache::mask(const Tensor& into) {
  int32_t first = 0, cells = 0;
  if (Status s = history(&first, &cells); s != Status::ok) return s;
  const float hidden = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < n_tokens_; ++t) {
    const int64_t row = t * into.stride[0];
    const float fill = state_ == CacheState::reserve ? 0.0f : hidden;
    for (int64_t c = 0; c < cells; ++c)
      store_element(into.data, into.dtype, row + c * into.stride[1], fill);
  }
  if (state_ == CacheState::reserve) return Status::ok;
  for (int32_t r = 0; r < attention_plan_.n_rows; ++r) {
    const AttentionRow& row = rows_[r];
    const TokenList& list = lists_[row.list];
    for (int32_t piece = 0, start = 0; piece < 3; start += list.count[piece++]) {
      for (int32_t i = 0; i < list.count[piece]; ++i) {
        const int32_t at = start + i;
        if (at >= row.end) break;
        if (at >= row.first_end && at < row.begin) continue;
        const int64_t column = list.cell[piece][i] - history_begin_;
        store_element(into.data, into.dtype, row.token * into.stride[0] + column * into.stride[1],
                      0.0f);
      }
    }
  }
  return Status::ok;
}

// ---- Rotations that are paid ------------------------------------------------------------------------------------------------

/// Calls `visit(sequence, index, token)` for every token that the batch sees and whose key owes a rotation.
template <class Visit>
void CausalCache::for_each_owing(Visit visit) {
  int32_t row = 0;
  for (int32_t t = 0; t < n_in_batch_; ++t) {
    Sequence& sequence = sequences_[touched_[t]];
    const int32_t count = sequence.tokens.count();
    int32_t kept_begin = count, kept_end = 0, begin = count,
            end = 0;  // what any row sees, in indexes of the sequence
    for (int32_t i = 0; i < sequence.n_added; ++i, ++row) {
      const int32_t start = count - lists_[rows_[row].list].total;
      if (rows_[row].first_end > 0) {
        kept_begin = std::min(kept_begin, start);
        kept_end = std::max(kept_end, start + rows_[row].first_end);
      }
      begin = std::min(begin, start + rows_[row].begin);
      end = std::max(end, start + rows_[row].end);
    }
    if (!sequence.may_owe) continue;
    for (int32_t i = 0; i < count; ++i) {
      if ((i < kept_begin || i >= kept_end) && (i < begin || i >= end)) continue;
      const Token token = sequence.tokens.at(i);
      if (offset_of(token) != 0) visit(touched_[t], i, token);
    }
  }
}

/// get() hands stored keys out, so those that owe a rotation are rewritten, once, in every layer. A cell that another
/// entry holds too, one out of sight included, is copied first; the last of several to pay rewrites in place.
Status CausalCache::pay_rotations() {
  if (!has_rope_ || state_ != CacheState::pass) return Status::ok;
  plan_attention();
  int32_t copies = 0, owing = 0;
  for_each_owing([&](int32_t, int32_t, Token token) {
    ++owing;
    copies += pool_.lend_owner(token.cell) > 0;
  });
  for_each_owing([&](int32_t, int32_t, Token token) { pool_.return_owner(token.cell); });
  if (owing == 0) return Status::ok;
  if (copies > pool_.n_free()) {
    return fail(Status::cache_full, "%d shared cells owe a rotation and %d are free to copy them to",
                copies, pool_.n_free());
  }
  Payment payment;
  for_each_owing([&](int32_t sequence, int32_t index, Token token) {
    const int32_t to = pool_.owners(token.cell) > 1 && !planted(Bug::shared_cell_rewritten)
                           ? own_copy(sequence, index, token)
                           : token.cell;
    payment.from[payment.n] = token.cell;
    payment.to[payment.n] = to;
    payment.offset[payment.n++] = offset_of(token);
    pool_.set_rotated_for(to, token.position);
    if (payment.n == tokens_per_move) settle(payment);
  });
  settle(payment);
  attention_planned_ = history_spanned_ = false;
  return health_;
}

/// Gives a sequence a cell of its own for a token whose cell it shares.
int32_t CausalCache::own_copy(int32_t sequence, int32_t index, Token token) {
  const int32_t rotated_for = pool_.rotated_for(token.cell);
  const CellPool::Stretch copy = pool_.take(token.cell, sequences_[sequence].home, 1, &rotated_for);
  pool_.drop_owners(&token.cell, 1, [](int32_t) {});  // it is shared: somebody still holds it
  sequences_[sequence].tokens.set_cell(index, copy.first);
  return copy.first;
}

void CausalCache::settle(Payment& payment) {
  for (int32_t layer = 0; layer < bounds_.n_layers && payment.n > 0; ++layer) {
    const Layer& l = layers_[layer];
    const Status status = backend_->move(
        {l.storage, l.constants.rope, payment.from, payment.to, payment.offset, payment.n});
    if (status != Status::ok) health_ = status;
  }
  payment.n = 0;
}

// ---- Copies out ---------------------------------------------------------------------------------------------------------------

Status CausalCache::gather(int32_t index, int32_t sequence_index, const Tensor& k, const Tensor& v) {
  if (Status s = check_sequence(sequence_index); s != Status::ok) return s;
  if (Status s = check_layer(index); s != Status::ok) return s;
  const Sequence& sequence = sequences_[sequence_index];
  const Layer& layer = layers_[index];
  const int32_t count = sequence.tokens.count();
  const bool missing = state_ == CacheState::pass &&
                       !layer.put;  // the open pass has not put this layer: zeros
  const int32_t stored = missing ? count - sequence.n_added : count;
  int32_t cell[tokens_per_load], offset[tokens_per_load];
  for (int32_t start = 0; start < count; start += tokens_per_load) {
    const int32_t n = std::min(tokens_per_load, count - start);
    for (int32_t i = 0; i < n; ++i) {
      const Token token = sequence.tokens.at(start + i);
      cell[i] = start + i < stored ? token.cell : -1;
      offset[i] = offset_of(token);
    }
    LoadParams load{layer.storage, layer.constants.rope, cell, offset, n, k, v};
    const auto advance = [start](Tensor& tensor) {
      if (tensor.data == nullptr) return;
      tensor.data = static_cast<std::byte*>(tensor.data) +
                    start * tensor.stride[0] * static_cast<int64_t>(size_of(tensor.dtype));
    };
    advance(load.k);
    advance(load.v);
    if (Status s = backend_->load(load); s != Status::ok) return health_ = s;
  }
  return Status::ok;
}

Status CausalCache::runs(int32_t index, int32_t capacity, Run* runs, int32_t* n) const {
  if (Status s = check_sequence(index); s != Status::ok) return s;
  const Sequence& sequence = sequences_[index];
  int32_t found = 0;
  Run run = {};
  for (int32_t i = 0; i < sequence.tokens.count(); ++i) {
    const Token token = sequence.tokens.at(i);
    const int32_t offset = offset_of(token);
    if (found > 0 && token.cell == run.cell + run.length &&
        token.position == run.position + run.length && offset == run.offset) {
      ++run.length;
    } else {
      run = {token.cell, 1, token.position, offset};
      ++found;
    }
    if (found <= capacity) runs[found - 1] = run;
  }
  *n = found;
  return Status::ok;
}

}  // namespace kvc
