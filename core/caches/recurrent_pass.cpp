#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/recurrent.hpp"

namespace kvc {

// ---- Parts ------------------------------------------------------------------------------------------------------------------

int64_t RecurrentCache::part_elements(int32_t part) const {
  return part == conv ? int64_t{settings_.conv_channels} * settings_.conv_dim : settings_.state_size;
}

StateShape RecurrentCache::part_shape(int32_t part) const {
  const StorageType type = part == conv ? settings_.type_conv : settings_.type_state;
  StateShape shape;
  shape.n_elements = part_elements(part);
  shape.dtype = format_of(type).code;
  if (part == conv) {
    shape.ndim = 2;
    shape.extent[0] = settings_.conv_channels;
    shape.extent[1] = settings_.conv_dim;
  } else {
    shape.ndim = 1;
    shape.extent[0] = settings_.state_size;
  }
  return shape;
}

StatePart RecurrentCache::part_at(int32_t layer, int32_t part) const {
  return {.data = slots_ + static_cast<uint64_t>(layer) * layer_bytes_ + part_offset_[part],
          .slot_bytes = slot_bytes_,
          .n_elements = part_elements(part),
          .n_slots = rules_.n_state_slots(),
          .type = part == conv ? settings_.type_conv : settings_.type_state};
}

Status RecurrentCache::check_part(int32_t layer, int32_t part) const {
  if (layer < 0 || layer >= bounds_.n_layers) return no_index("layer", layer, bounds_.n_layers);
  if (part != conv && part != recurrent)
    return fail(Status::invalid_argument,
                "part %d is neither KVC_PART_CONV (%d) nor KVC_PART_RECURRENT (%d)", part, conv,
                recurrent);
  if (has_part(part)) return Status::ok;
  if (part == conv) {
    return fail(Status::invalid_argument,
                "part is KVC_PART_CONV (%d); it must be KVC_PART_RECURRENT (%d): conv_channels or "
                "conv_dim of the cache is 0",
                conv, recurrent);
  }
  return fail(
      Status::invalid_argument,
      "part is KVC_PART_RECURRENT (%d); it must be KVC_PART_CONV (%d): state_size of the cache "
      "is 0",
      recurrent, conv);
}

Status RecurrentCache::ready_for_part(int32_t layer, int32_t part) const {
  if (Status s = pass_.need_pass(); s != Status::ok) return s;
  return check_part(layer, part);
}

// ---- Layout -----------------------------------------------------------------------------------------------------------------

/// A reserve pass counts token i as one of sequence i modulo the number of sequences.
StateSequence RecurrentCache::reserved_sequence(int32_t index) const {
  const int32_t n = n_batch_sequences(), tokens = pass_.n_tokens();
  const int32_t least = tokens / n, longer = tokens % n;  // the first ones have a token more
  StateSequence sequence;
  sequence.sequence = index;
  sequence.n_tokens = least + (index < longer ? 1 : 0);
  sequence.first_token = index * least + std::min(index, longer);
  sequence.n_rows = book_.rows_for(sequence.n_tokens);
  sequence.first_row = std::min(index, longer) * book_.rows_for(least + 1) +
                       std::max(index - longer, 0) * book_.rows_for(least);
  sequence.read_slot = book_.sequence(index).slot;
  return sequence;
}

int32_t RecurrentCache::n_batch_sequences() const {
  if (pass_.is_reserve()) return std::min(pass_.n_tokens(), bounds_.max_sequences);
  return book_.n_in_batch();
}

int32_t RecurrentCache::n_batch_rows() const {
  if (!pass_.is_reserve()) return book_.n_rows();
  // Of any pass that the graph may do: more tokens of a sequence may have fewer rows.
  if (recorder_ != nullptr) {
    const int64_t most = int64_t{n_batch_sequences()} * settings_.rules.max_rows;
    return static_cast<int32_t>(std::min<int64_t>(pass_.n_tokens(), most));
  }
  const StateSequence last = reserved_sequence(n_batch_sequences() - 1);
  return last.first_row + last.n_rows;
}

Status RecurrentCache::layout(int32_t capacity, StateSequence* sequences, int32_t* n,
                              int32_t* order) const {
  *n = n_batch_sequences();
  const int32_t listed = std::min(*n, capacity);
  if (pass_.is_reserve()) {
    for (int32_t i = 0; i < listed; ++i) sequences[i] = reserved_sequence(i);
    for (int32_t i = 0; i < *n && order != nullptr; ++i) {
      for (int32_t token = i; token < pass_.n_tokens(); token += *n) *order++ = token;
    }
    return Status::ok;
  }
  int32_t first_token = 0;
  for (int32_t i = 0; i < listed; ++i) {
    const StateBook::Sequence& sequence = book_.sequence(book_.in_batch(i));
    sequences[i] = {book_.in_batch(i),  sequence.n_added, first_token,
                    sequence.first_row, sequence.n_rows,  sequence.slot};
    first_token += sequence.n_added;
  }
  if (order != nullptr) std::copy_n(order_, pass_.n_tokens(), order);
  return Status::ok;
}

Status RecurrentCache::row_slots(int32_t capacity, int32_t* slot, int32_t* n) const {
  *n = n_batch_rows();
  for (int32_t row = 0; row < std::min(*n, capacity); ++row)
    slot[row] = pass_.is_reserve() ? book_.free_slot(row) : book_.row_slot(row);
  return Status::ok;
}

// ---- Begin ------------------------------------------------------------------------------------------------------------------

Status RecurrentCache::open_pass(const Batch& batch) {
  open_puts(batch.replay);
  int32_t first_token = 0, n_rows = 0;
  for (int32_t i = 0; i < book_.n_in_batch(); ++i) {
    const StateBook::Sequence& sequence = book_.sequence(book_.in_batch(i));
    read_slots_[i] = sequence.slot;
    for (int32_t row = 0; row < sequence.n_rows && has_part(conv); ++row, ++n_rows) {
      const bool is_last = row == sequence.n_rows - 1 || planted(Bug::convolution_not_rolled_back);
      conv_rows_[n_rows] = {
          .to = book_.row_slot(n_rows),
          .from = planted(Bug::convolution_starts_anew) ? StateBook::zeros : sequence.slot,
          .first_token = first_token,
          .n_tokens = is_last ? sequence.n_added : row + 1};
    }
    for (int32_t token = sequence.first_added; token >= 0; token = book_.follower(token))
      order_[first_token++] = token;
  }
  for (int32_t token = 0; token < batch.n_tokens; ++token) {
    if (batch.sequence[token] == no_sequence) order_[first_token++] = token;
  }
  pass_.open(batch.n_tokens, batch.replay || book_.n_in_batch() == 0, batch.replay);
  if (Status s = tell_device(); s != Status::ok || !batch.replay) return s;
  const StatePass pass = {.read_slot = read_slots_,
                          .n_sequences = book_.n_in_batch(),
                          .row_slot = book_.row_slots(),
                          .n_rows = book_.n_rows(),
                          .conv_row = has_part(conv) ? conv_rows_ : nullptr,
                          .width = settings_.conv_dim,
                          .order = order_,
                          .n_tokens = first_token};
  return health_.after(pass_recorder()->replay_states(pass));
}

// ---- States by copy ---------------------------------------------------------------------------------------------------------

namespace {

/// Rows of slots beside a tensor whose first dimension counts them.
StateRows rows_beside(const StatePart& part, const int32_t* slot, int32_t n_rows,
                      const Tensor& tensor) {
  StateRows rows = {.part = part, .slot = slot, .n_rows = n_rows, .row = tensor};
  rows.row_stride = n_rows > 1 ? tensor.stride[0] : 0;  // one row may name any stride
  rows.row.ndim = tensor.ndim - 1;
  std::copy_n(tensor.shape + 1, rows.row.ndim, rows.row.shape);
  std::copy_n(tensor.stride + 1, rows.row.ndim, rows.row.stride);
  return rows;
}

}  // namespace

Status RecurrentCache::get_states(int32_t layer, int32_t part, const Tensor& into) {
  if (Status s = ready_for_part(layer, part); s != Status::ok) return s;
  if (Status s = pass_.need_own_work(); s != Status::ok) return s;
  if (recorder_ != nullptr) {
    return health_.after(recorder_->record_load_states(
        rows_beside(part_at(layer, part), nullptr, n_batch_sequences(), into)));
  }
  const int32_t n = book_.n_in_batch();
  if (pass_.is_reserve() || n == 0) return Status::ok;
  return health_.after(
      on_device_->load_states(rows_beside(part_at(layer, part), read_slots_, n, into)));
}

Status RecurrentCache::put_states(int32_t layer, int32_t part, const Tensor& from) {
  if (Status s = ready_for_part(layer, part); s != Status::ok) return s;
  if (Status s = pass_.need_own_work(); s != Status::ok) return s;
  if (recorder_ != nullptr) {
    return health_.after(recorder_->record_store_states(
        rows_beside(part_at(layer, part), nullptr, n_batch_rows(), from)));
  }
  const int32_t n = book_.n_rows();
  if (pass_.is_reserve() || n == 0) return Status::ok;
  const bool in_place = planted(Bug::state_written_where_read) && n == book_.n_in_batch();
  const int32_t* to = in_place ? read_slots_ : book_.row_slots();
  const StateRows rows = rows_beside(part_at(layer, part), to, n, from);
  if (Status s = health_.after(on_device_->store_states(rows)); s != Status::ok) return s;
  note_put(layer, part);
  return Status::ok;
}

Status RecurrentCache::put_conv(int32_t layer, const Tensor& x) {
  if (Status s = ready_for_part(layer, conv); s != Status::ok) return s;
  if (Status s = pass_.need_own_work(); s != Status::ok) return s;
  const ConvRows rows = {.part = part_at(layer, conv),
                         .n_channels = settings_.conv_channels,
                         .width = settings_.conv_dim,
                         .row = conv_rows_,
                         .n_rows = n_batch_rows(),
                         .order = order_,
                         .x = x};
  if (recorder_ != nullptr) return health_.after(recorder_->record_conv(rows));
  if (pass_.is_reserve() || rows.n_rows == 0) return Status::ok;
  if (Status s = health_.after(on_device_->store_conv(rows)); s != Status::ok) return s;
  note_put(layer, conv);
  return Status::ok;
}

// ---- States in place --------------------------------------------------------------------------------------------------------

Status RecurrentCache::view_states(int32_t layer, int32_t part, const StateShape& dims, Tensor* slots) {
  if (Status s = ready_for_part(layer, part); s != Status::ok) return s;
  const StatePart at = part_at(layer, part);
  slots->data = at.data;
  slots->dtype = at.element();
  slots->ndim = dims.ndim + 1;
  slots->shape[0] = at.n_slots;
  slots->stride[0] = static_cast<int64_t>(at.slot_bytes / size_of(at.element()));
  int64_t stride = 1;
  for (int32_t d = dims.ndim; d > 0; --d) {
    slots->shape[d] = dims.extent[d - 1];
    slots->stride[d] = stride;
    stride *= dims.extent[d - 1];
  }
  return Status::ok;
}

Status RecurrentCache::states_done(int32_t layer, int32_t part) {
  if (Status s = ready_for_part(layer, part); s != Status::ok) return s;
  if (pass_.is_open()) note_put(layer, part);
  return Status::ok;
}

// ---- Reading one state ------------------------------------------------------------------------------------------------------

/// Needs a state there. In the open pass the state at next is the row, or, of a part that was not put, what it was.
int32_t RecurrentCache::slot_at(int32_t layer, int32_t part, int32_t index, int32_t at) const {
  const StateBook::Sequence& sequence = book_.sequence(index);
  if (at == 0) return StateBook::zeros;
  if (at == sequence.next)
    return sequence.n_kept > 0 && was_put(layer, part) && !planted(Bug::state_gathered_before_pass)
               ? book_.kept_slot(sequence)
               : sequence.slot;
  return book_.checkpoint_slot(index, at);
}

Status RecurrentCache::check_place(int32_t index, int32_t at) const {
  if (Status s = check_sequence(index, bounds_.max_sequences); s != Status::ok) return s;
  if (at >= 0) return Status::ok;
  return fail(Status::invalid_argument, "at is %d; it must be 0 or more", at);
}

Status RecurrentCache::find_state(int32_t index, int32_t at) const {
  if (book_.best_continuation(index, at) == at) return Status::ok;
  return fail(Status::not_found,
              "sequence %d has no state at %d: that is neither 0 nor its next, %d, nor one of its "
              "checkpoints (kvc_checkpoint_list)",
              index, at, book_.sequence(index).next);
}

Status RecurrentCache::gather_state(int32_t layer, int32_t part, int32_t index, int32_t at,
                                    const Tensor& into) {
  if (Status s = find_state(index, at); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_state_gather"); s != Status::ok) return s;
  const int32_t slot = slot_at(layer, part, index, at);
  const StatePart at_slot = where(part_at(layer, part), slot);
  const StateRows row = {.part = at_slot, .slot = &slot, .n_rows = 1, .row = into};
  return health_.after(on_device_->load_states(row));
}

// ---- The end of a pass ---------------------------------------------------------------------------------------------------------

Status RecurrentCache::check_kept_tokens(int32_t sequence, int32_t keep) const {
  return book_.check_kept(sequence, keep);
}

/// A part that was not put stays as it was: for it time has not passed.
Status RecurrentCache::settle_unput() {
  if (pass_.is_fully_put() || planted(Bug::unput_state_stale)) return Status::ok;
  int32_t n = 0;
  for (int32_t i = 0; i < book_.n_in_batch(); ++i) {
    const StateBook::Sequence& sequence = book_.sequence(book_.in_batch(i));
    if (sequence.n_kept == 0) continue;
    read_slots_[n] = sequence.slot;
    kept_slots_[n++] = book_.kept_slot(sequence);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers && n > 0; ++layer) {
    for (const int32_t part : {conv, recurrent}) {
      if (!has_part(part) || was_put(layer, part)) continue;
      const StateCopies copies = {part_at(layer, part), nullptr, read_slots_, kept_slots_, n};
      if (Status s = health_.after(on_device_->copy_states(copies, *on_device_)); s != Status::ok)
        return s;
    }
  }
  return Status::ok;
}

}  // namespace kvc
