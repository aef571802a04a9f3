#include "core/caches/state_cache.hpp"

#include <algorithm>
#include <cstring>

#include "core/base/carver.hpp"
#include "core/base/digest.hpp"
#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/bounds.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

constexpr int32_t default_checkpoints = 24;
constexpr int32_t default_interval = 1664;
constexpr int32_t default_min_pos = 16;

/// 0 is the default, −1 off.
int32_t or_default(int32_t value, int32_t default_value) {
  if (value < 0) return 0;
  return value == 0 ? default_value : value;
}

/// Where there is one memory for all, checkpoints share slots with states.
StateRules on_device(StateRules rules, const DeviceInfo& device) {
  if (!device.pins_memory) rules.n_checkpoint_slots = 0;
  return rules;
}

}  // namespace

// ---- Creation -------------------------------------------------------------------------------------------------------------

StateCache::StateCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const StateRules& rules, uint8_t parts, const Words& words)
    : LabelledCache(device, bounds, on_device(rules, device->info()), words.pass),
      rules_(on_device(rules, device->info())),
      parts_(parts),
      descriptor_(words.descriptor) {}

Status StateCache::check_checkpoints(const CheckpointRequest& request) {
  struct Check {
    const char* name;
    int32_t value, high;
  };
  for (const Check& check : {Check{"checkpoints", request.checkpoints, max_count},
                             Check{"checkpoint_interval", request.checkpoint_interval, INT32_MAX},
                             Check{"checkpoint_min_pos", request.checkpoint_min_pos, INT32_MAX}}) {
    if (Status s = check_range(check.name, check.value, -1, check.high); s != Status::ok) return s;
  }
  return Status::ok;
}

void StateCache::resolve_checkpoints(const CheckpointRequest& request, StateRules* rules) {
  rules->checkpoints = or_default(request.checkpoints, default_checkpoints);
  rules->checkpoint_interval = or_default(request.checkpoint_interval, default_interval);
  rules->checkpoint_min_pos = or_default(request.checkpoint_min_pos, default_min_pos);
}

int64_t StateCache::slots_for(const StateRules& rules, int64_t rows) {
  return 1 + int64_t{rules.max_sequences} * (int64_t{1} + rules.checkpoints) +
         std::min<int64_t>(rules.max_batch, rows);
}

void StateCache::place_slots(const CheckpointRequest& request, int64_t n_slots, StateRules* rules) {
  rules->n_slots = static_cast<int32_t>(n_slots);
  rules->n_checkpoint_slots = request.on_host ? rules->max_sequences * rules->checkpoints : 0;
}

Status StateCache::attach_states() {
  WorkspaceBlocks blocks(workspace_);
  blocks.has_pinned = rules_.n_checkpoint_slots > 0;
  return device_->attach({}, blocks, &on_device_);
}

// These run twice (see Carver): what they find out about sizes must not depend on a block being there.

void StateCache::carve_book(Carver& carver) {
  book_.carve(carver);
  pass_.carve(carver);
  was_put_ = carver.take<uint8_t>(static_cast<uint64_t>(bounds_.n_layers), 64);
  read_ = carver.take<std::byte>(static_cast<uint64_t>(device_info_.read_bytes), 64);
}

void StateCache::carve_workspace(Carver& carver) {
  workspace_ = carver.take<std::byte>(device_->workspace_bytes({}), page_bytes);
}

void StateCache::carve_slots(Carver& carver, CheckedSize slot) {
  slot_bytes_ = slot.value();
  // The slot of zeros ends where a page does, and nothing else lies in its pages.
  const CheckedSize zeros = slot.rounded_up(page_bytes);
  const auto others = static_cast<uint64_t>(rules_.n_state_slots() - 1);
  std::byte* block = carver.take<std::byte>(zeros + CheckedSize(others) * slot, page_bytes);
  slots_ = block == nullptr ? nullptr : block + (zeros.value() - slot_bytes_);
}

void StateCache::carve_pinned(Carver& carver) {
  const CheckedSize n(static_cast<uint64_t>(rules_.n_checkpoint_slots));
  const auto first = static_cast<uint64_t>(rules_.n_state_slots());
  const auto block = reinterpret_cast<uintptr_t>(
      carver.take<std::byte>(n * CheckedSize(slot_bytes_), page_bytes));
  checkpoints_ = block == 0 ? nullptr : reinterpret_cast<std::byte*>(block - first * slot_bytes_);
}

StatePart StateCache::where(StatePart part, int32_t slot) const {
  if (!book_.is_checkpoints(slot)) return part;
  part.data = checkpoints_ + (part.data - slots_);
  part.is_pinned = true;
  return part;
}

StatePart StateCache::whole_slots() const {
  return {.data = slots_,
          .slot_bytes = slot_bytes_,
          .n_elements = static_cast<int64_t>(slot_bytes_ / sizeof(float)),
          .n_slots = rules_.n_state_slots(),
          .type = StorageType::f32};
}

// ---- A pass ---------------------------------------------------------------------------------------------------------------

void StateCache::note_put(int32_t layer, int32_t part) {
  was_put_[layer] |= static_cast<uint8_t>(1u << part);
  if (was_put_[layer] == parts_) pass_.note_put(layer);
}

void StateCache::open_puts(bool replays) {
  std::fill_n(was_put_, bounds_.n_layers, replays ? parts_ : uint8_t{0});
}

Status StateCache::tell_device() {
  if (!device_info_.plans_ahead) return Status::ok;
  return health_.after(on_device_->begin_pass({}, {}, stream_));
}

/// States are copied to checkpoints that lie apart, or back. With zero_on_free the slots that became free become zeros.
Status StateCache::follow_book() {
  if (Status s = copy_slots(); s != Status::ok) return s;
  for (const auto* free : {&book_.free_slots(), &book_.free_checkpoint_slots()}) {
    if (Status s = clear(*free); s != Status::ok) return s;
  }
  book_.forget_freed();
  return health_.status();
}

/// A slot that became free may be written from now on, so what is copied from it comes before.
Status StateCache::copy_slots() {
  if (rules_.n_checkpoint_slots == 0 || !health_.ok()) return health_.status();
  if (book_.free_slots().n_freed + book_.free_checkpoint_slots().n_freed > 0) {
    if (Status s = health_.after(on_device_->finish_copies()); s != Status::ok) return s;
  }
  const int32_t n = book_.n_slot_copies();
  if (n == 0) return Status::ok;
  const StatePart from = where(whole_slots(), book_.copy_from()[0]);
  const StateCopies copies = {where(whole_slots(), book_.copy_to()[0]), &from, book_.copy_from(),
                              book_.copy_to(), n};
  book_.forget_copies();
  return health_.after(on_device_->copy_states(copies, *on_device_));
}

Status StateCache::clear(const StateBook::FreeSlots& free) {
  if (!bounds_.zero_on_free || free.n_freed <= planted(Bug::one_freed_state_kept))
    return Status::ok;
  const StatePart slots = where(whole_slots(), free.freed()[0]);
  return health_.after(
      on_device_->clear_states({slots.data, slot_bytes_, slot_bytes_, free.freed(), free.n_freed}));
}

// ---- Checkpoints ------------------------------------------------------------------------------------------------------------

Status StateCache::check_checkpoint(int32_t) const {
  if (rules_.checkpoints > 0) return Status::ok;
  return fail(Status::not_supported,
              "the cache has no checkpoints: checkpoints of its %s is KVC_NONE", descriptor_);
}

Status StateCache::take_checkpoint(int32_t sequence) {
  book_.take_checkpoint(sequence);
  return follow_book();
}

Status StateCache::list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at, int32_t* n) const {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  *n = book_.list_checkpoints(sequence, capacity, at);
  return Status::ok;
}

// ---- Watching -------------------------------------------------------------------------------------------------------------

CacheStats StateCache::stats() const {
  CacheStats stats;
  stats.state = state();
  stats.cells = static_cast<uint64_t>(rules_.n_slots);
  stats.cells_used = static_cast<uint64_t>(book_.used());
  stats.cells_shared = static_cast<uint64_t>(book_.shared());
  stats.bytes = memory_.bytes();
  stats.passes = pass_.n_committed();
  return stats;
}

/// Calls per_part(part) for the parts that a layer has, until one fails.
template <class PerPart>
Status StateCache::for_each_part(PerPart per_part) const {
  for (int32_t part = 0; parts_ >> part != 0; ++part) {
    if (!has_part(part)) continue;
    if (Status s = per_part(part); s != Status::ok) return s;
  }
  return Status::ok;
}

/// Calls per_piece(bytes, n) for the stored bytes of a part.
template <class PerPiece>
Status StateCache::read_slot(int32_t slot, int32_t layer, int32_t part, PerPiece per_piece) const {
  const std::lock_guard lock(reading_);
  const auto at_once = static_cast<size_t>(device_info_.read_bytes);
  const StatePart at = where(part_at(layer, part), slot);
  const Plane slots = {.data = at.data, .row_stride = at.slot_bytes, .row_bytes = at.slot_bytes};
  for (size_t first = 0; first < at.bytes(); first += at_once) {
    const size_t n = std::min(at.bytes() - first, at_once);
    const Status read = on_device_->read_rows({slots, 0, &slot, 1, first, n, read_});
    if (Status s = health_.after(read); s != Status::ok) return s;
    per_piece(read_, n);
  }
  return Status::ok;
}

Status StateCache::add_slot(int32_t slot, int32_t layer, int32_t part, Digest& digest) const {
  return read_slot(slot, layer, part,
                   [&](const std::byte* bytes, size_t n) { digest.update(bytes, n); });
}

Status StateCache::add_state(int32_t slot, Digest& digest) const {
  const int32_t n_layers = bounds_.n_layers - planted(Bug::digest_without_last_layer);
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    const Status s = for_each_part([&](int32_t part) { return add_slot(slot, layer, part, digest); });
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

/// What the open pass adds to a sequence: its tokens, and the rows of what was put.
Status StateCache::add_pass(int32_t index, Digest& digest) const {
  const StateBook::Sequence& sequence = book_.sequence(index);
  int32_t token = sequence.first_added;
  for (int32_t i = 0; i < sequence.n_added; ++i, token = book_.follower(token)) {
    const int32_t position = book_.position(token);
    digest.update(&position, sizeof position);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    digest.update(&was_put_[layer], sizeof was_put_[layer]);
    const Status s = for_each_part([&](int32_t part) {
      for (int32_t row = 0; row < sequence.n_rows && was_put(layer, part); ++row) {
        const int32_t slot = book_.row_slot(sequence.first_row + row);
        if (Status added = add_slot(slot, layer, part, digest); added != Status::ok) return added;
      }
      return Status::ok;
    });
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

/// A sum over states, so neither slots nor order matter.
Status StateCache::digest(uint64_t out[2]) const {
  DigestSum sum;
  const auto add = [&](int32_t index, int32_t at, bool is_approximate, int32_t slot, int32_t tag) {
    Digest digest;
    const int32_t header[] = {tag, index, at, is_approximate};
    digest.update(header, sizeof header);
    const Status s = add_state(slot, digest);
    sum.add(digest);
    return s;
  };
  for (int32_t index = 0; index < bounds_.max_sequences; ++index) {
    const StateBook::Sequence& sequence = book_.sequence(index);
    const int32_t next = sequence.n_added > 0 ? sequence.next_before : sequence.next;
    if (next > 0) {
      const Status s = add(index, next, sequence.is_approximate, sequence.slot, 0);
      if (s != Status::ok) return s;
    }
    const int32_t n_checkpoints = sequence.n_checkpoints * !planted(Bug::digest_without_checkpoints);
    for (int32_t i = 0; i < n_checkpoints; ++i) {
      const Checkpoint& checkpoint = book_.checkpoints(index)[i];
      const Status s = add(index, checkpoint.at, checkpoint.is_approximate != 0,
                           static_cast<int32_t>(checkpoint.slot), 1);
      if (s != Status::ok) return s;
    }
    if (sequence.n_added == 0) continue;
    const int32_t header[] = {-3, index};
    Digest digest;
    digest.update(header, sizeof header);
    if (Status s = add_pass(index, digest); s != Status::ok) return s;
    sum.add(digest);
  }
  if (pass_.is_open()) {
    const int32_t open[] = {-2};
    sum.add(Digest().update(open, sizeof open));
  }
  sum.copy_to(out);
  return Status::ok;
}

Status StateCache::check() const {
  if (Status s = book_.check(pass_.is_open()); s != Status::ok) return s;
  bool are_zeros = true;
  const auto look = [&are_zeros](const std::byte* bytes, size_t n) {
    are_zeros = are_zeros && bytes[0] == std::byte{0} && std::memcmp(bytes, bytes + 1, n - 1) == 0;
  };
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    const Status s = for_each_part(
        [&](int32_t part) { return read_slot(StateBook::zeros, layer, part, look); });
    if (s != Status::ok) return s;
  }
  if (are_zeros) return Status::ok;
  return fail(Status::internal,
              "slot 0 does not hold zeros: a caller may only read it (kvc_state_view)");
}

}  // namespace kvc
