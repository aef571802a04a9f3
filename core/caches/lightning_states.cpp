#include <algorithm>

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/lightning.hpp"

/// States that come and go: read, written, of another position, of another cache.
namespace kvc {
namespace {

/// The i-th of a tensor of states.
Tensor state_of(const Tensor& states, int64_t i) {
  Tensor one = states.from_row(i);
  one.ndim = 3;
  std::copy_n(states.shape + 1, 3, one.shape);
  std::copy_n(states.stride + 1, 3, one.stride);
  return one;
}

}  // namespace

Status LightningCache::check_states(int32_t layer, int32_t first, int32_t n) const {
  if (layer < 0 || layer >= bounds_.n_layers) return no_index("layer", layer, bounds_.n_layers);
  if (first >= 0 && n >= 0 && n <= bounds_.max_sequences - first) return Status::ok;
  return fail(Status::invalid_argument,
              "sequence_begin %d and n %d are no range of sequences: both are 0 or more, and their "
              "sum is at most max_sequences, which is %d",
              first, n, bounds_.max_sequences);
}

/// In the open pass, a layer that was put has the state behind it already; any other decays.
Status LightningCache::read_states(int32_t layer, int32_t first, const Tensor& into) const {
  if (Status s = need_no_recording("kvc_lightning_read"); s != Status::ok) return s;
  for (int64_t i = 0; i < into.shape[0]; ++i) {
    const StateBook::Sequence& sequence = book_.sequence(first + static_cast<int32_t>(i));
    const bool is_behind = sequence.n_kept > 0 && was_put(layer, whole) &&
                           !planted(Bug::state_read_before_pass);
    LightningState state = state_at(layer, is_behind ? book_.kept_slot(sequence) : sequence.slot);
    if (sequence.n_kept > 0 && !is_behind) state.passed = sequence.next - sequence.next_before;
    state.tensor = state_of(into, i);
    if (Status s = health_.after(on_device_->load_lightning(state)); s != Status::ok) return s;
  }
  return Status::ok;
}

Status LightningCache::check_write(int32_t layer, int32_t first, int32_t n) const {
  if (Status s = pass_.need_no_pass("kvc_lightning_write"); s != Status::ok) return s;
  if (Status s = check_states(layer, first, n); s != Status::ok) return s;
  if (Status s = need_slopes(layer); s != Status::ok) return s;
  for (int32_t sequence = first; sequence < first + n; ++sequence) {
    if (book_.sequence(sequence).next > 0) continue;
    return fail(
        Status::bad_state,
        "sequence %d is empty, so its state is zeros: set the position that the state is of "
        "with kvc_rows_set first",
        sequence);
  }
  return need_no_recording("kvc_lightning_write");
}

/// A slot that nobody else reads takes the numbers; its other layers stay as they are. What is copied from it to a checkpoint, which
/// another sequence may have, comes before.
Status LightningCache::write_states(int32_t layer, int32_t first, const Tensor& from) {
  if (Status s = health_.after(on_device_->finish_copies()); s != Status::ok) return s;
  for (int64_t i = 0; i < from.shape[0]; ++i) {
    const int32_t index = first + static_cast<int32_t>(i);
    if (!planted(Bug::write_keeps_checkpoints)) book_.forget_checkpoints(index);
    if (Status s = follow_book(); s != Status::ok) return s;
    const int32_t before = book_.sequence(index).slot, slot = book_.take_own_slot(index);
    if (slot != before) {
      const StateCopies copy = {whole_slots(), nullptr, &before, &slot, 1};
      if (Status s = health_.after(on_device_->copy_states(copy, *on_device_)); s != Status::ok)
        return s;
    }
    LightningState state = state_at(layer, slot);
    state.tensor = state_of(from, i);
    if (Status s = health_.after(on_device_->store_lightning(state)); s != Status::ok) return s;
  }
  return Status::ok;
}

// ---- Rows -----------------------------------------------------------------------------------------------------------------

Status LightningCache::check_set(int32_t row_begin, int32_t n, const int32_t* index,
                                 const int32_t* starts) const {
  for (int32_t i = 0; i < n; ++i) {
    if (starts != nullptr && starts[i] != 0) {
      return fail(Status::invalid_argument,
                  "starts[%d] is %d; it must be 0: a state has no place where padding could begin",
                  i, starts[i]);
    }
    if (index == nullptr || (index[i] >= 0 && index[i] < INT32_MAX - 1)) continue;
    return fail(Status::invalid_argument, "index[%d] of row %d is %d; it must be from 0 to %d", i,
                row_begin + i, index[i], INT32_MAX - 2);
  }
  return Status::ok;
}

/// An index is a label of time: the state stays as it is.
Status LightningCache::apply_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t*) {
  for (int32_t i = 0; index != nullptr && i < n; ++i) book_.relabel(row_begin + i, index[i]);
  return follow_book();
}

/// Whether states of the other cache mean here what they mean there.
Status LightningCache::check_same(const LightningCache& other) const {
  struct Field {
    const char* name;
    int32_t here, there;
  };
  for (const Field& field : {Field{"n_layers", bounds_.n_layers, other.bounds_.n_layers},
                             Field{"n_kv_heads", bounds_.n_kv_heads, other.bounds_.n_kv_heads},
                             Field{"head_dim_k", bounds_.head_dim_k, other.bounds_.head_dim_k},
                             Field{"head_dim_v", bounds_.head_dim_v, other.bounds_.head_dim_v}}) {
    if (field.here == field.there) continue;
    return fail(Status::invalid_argument,
                "%s is %d here and %d in other: states are inserted as they are stored", field.name,
                field.here, field.there);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    const float* here = slopes_ + int64_t{layer} * bounds_.n_kv_heads;
    const float* there = other.slopes_ + int64_t{layer} * bounds_.n_kv_heads;
    const bool has_slopes = layers_[layer].has_slopes;
    if (has_slopes == other.layers_[layer].has_slopes &&
        std::equal(here, here + bounds_.n_kv_heads, there))
      continue;
    return fail(Status::invalid_argument,
                "layer %d decays otherwise here than in other: bind the same slopes in both "
                "(kvc_bind_decay)",
                layer);
  }
  return Status::ok;
}

Status LightningCache::check_insert(const Cache& other, int32_t slot) const {
  const auto* const from = dynamic_cast<const LightningCache*>(&other);
  if (from == nullptr) return fail(Status::invalid_argument, "other is a cache of another kind");
  const int32_t n = from->bounds_.max_sequences;
  if (slot < 0 || slot > bounds_.max_sequences - n) {
    return fail(Status::invalid_argument,
                "slot %d and the %d rows of other are no rows of [0, %d), which is max_sequences",
                slot, n, bounds_.max_sequences);
  }
  if (Status s = check_same(*from); s != Status::ok) return s;
  const DeviceInfo& there = from->device_info_;
  if (there.type == device_info_.type && there.id == device_info_.id) return Status::ok;
  return fail(Status::device_mismatch, "other is on device %d:%d, the cache on %d:%d", there.type,
              there.id, device_info_.type, device_info_.id);
}

/// Slots go at once as far as they go from one place to another.
Status LightningCache::copy_adopted(const LightningCache& from, int32_t n) {
  const auto differs = [&](int32_t i) {
    return from.book_.is_checkpoints(slots_from_[i]) != from.book_.is_checkpoints(slots_from_[i - 1]) ||
           book_.is_checkpoints(slots_to_[i]) != book_.is_checkpoints(slots_to_[i - 1]);
  };
  for (int32_t first = 0, end = 0; first < n; first = end) {
    for (end = first + 1; end < n && !differs(end);) ++end;
    const StatePart source = from.where(from.whole_slots(), slots_from_[first]);
    const StateCopies copies = {where(whole_slots(), slots_to_[first]), &source,
                                slots_from_ + first, slots_to_ + first, end - first};
    if (Status s = health_.after(on_device_->copy_states(copies, *from.on_device_)); s != Status::ok)
      return s;
  }
  return health_.status();
}

/// Rows become empty before they take others, so there is room for each.
Status LightningCache::apply_insert(const Cache& other, int32_t slot) {
  const auto& from = static_cast<const LightningCache&>(other);
  for (int32_t row = 0; row < from.bounds_.max_sequences; ++row) {
    if (Status s = cut(slot + row, 0); s != Status::ok) return s;
    const int32_t n = book_.adopt(slot + row, from.book_, row, slots_from_, slots_to_);
    if (Status s = copy_adopted(from, n); s != Status::ok) return s;
  }
  return health_.status();
}

}  // namespace kvc
