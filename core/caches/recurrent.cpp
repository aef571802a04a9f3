#include "core/caches/recurrent.hpp"

#include <algorithm>
#include <cstring>

#include "core/base/digest.hpp"
#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/caches/bounds.hpp"

namespace kvc {
namespace {

constexpr uint64_t page_bytes = 4096;
constexpr uint64_t line_bytes = 64;
constexpr int64_t max_state_size = int64_t{1} << 40;
constexpr int32_t max_conv_channels = 1 << 24;
constexpr int32_t max_conv_dim = 65536;
constexpr int32_t max_draft_states = 65536;

constexpr int32_t default_checkpoints = 24;
constexpr int32_t default_interval = 1664;
constexpr int32_t default_min_pos = 16;

/// 0 is the default, −1 off.
int32_t or_default(int32_t value, int32_t default_value) {
  if (value < 0) return 0;
  return value == 0 ? default_value : value;
}

Status check_sizes(const CacheBounds& bounds, const RecurrentRequest& request) {
  struct Check {
    const char* name;
    int64_t value, low, high;
  };
  const Check checks[] = {{"n_layers", bounds.n_layers, 1, max_extent},
                          {"max_sequences", bounds.max_sequences, 1, max_count},
                          {"max_batch", bounds.max_batch, 1, max_count},
                          {"state_size", request.state_size, 0, max_state_size},
                          {"conv_channels", request.conv_channels, 0, max_conv_channels},
                          {"conv_dim", request.conv_dim, 0, max_conv_dim},
                          {"checkpoints", request.checkpoints, -1, max_count},
                          {"checkpoint_interval", request.checkpoint_interval, -1, INT32_MAX},
                          {"checkpoint_min_pos", request.checkpoint_min_pos, -1, INT32_MAX},
                          {"draft_states", request.draft_states, 0, max_draft_states}};
  for (const Check& check : checks) {
    if (check.value < check.low || check.value > check.high)
      return out_of_range(check.name, check.value, check.low, check.high);
  }
  if (request.state_size > 0 || (request.conv_channels > 0 && request.conv_dim > 0))
    return Status::ok;
  return fail(
      Status::invalid_argument,
      "a state would have no part: state_size is 0, and so is conv_channels %d or conv_dim %d",
      request.conv_channels, request.conv_dim);
}

}  // namespace

// ---- Creation -------------------------------------------------------------------------------------------------------------

Status RecurrentCache::resolve(CacheBounds& bounds, const RecurrentRequest& request,
                               RecurrentSettings* settings) {
  if (Status s = check_sizes(bounds, request); s != Status::ok) return s;
  const bool has_conv = request.conv_channels > 0 && request.conv_dim > 0;
  settings->conv_channels = has_conv ? request.conv_channels : 0;
  settings->conv_dim = has_conv ? request.conv_dim : 0;
  settings->state_size = request.state_size;
  settings->type_conv = request.type_conv;
  settings->type_state = request.type_state;

  StateRules& rules = settings->rules;
  rules.max_sequences = bounds.max_sequences;
  rules.max_batch = bounds.max_batch;
  rules.checkpoints = or_default(request.checkpoints, default_checkpoints);
  rules.checkpoint_interval = or_default(request.checkpoint_interval, default_interval);
  rules.checkpoint_min_pos = or_default(request.checkpoint_min_pos, default_min_pos);
  rules.max_rows = request.draft_states + 1;
  rules.approximate = request.approximate;
  rules.strict = bounds.strict;

  const int64_t in_pass = std::min(bounds.max_sequences, bounds.max_batch);
  const int64_t states = int64_t{bounds.max_sequences} * (int64_t{1} + rules.checkpoints);
  const int64_t wanted = 1 + states + std::min<int64_t>(bounds.max_batch, in_pass * rules.max_rows);
  if (wanted > max_count) {
    return fail(
        Status::overflow,
        "max_sequences %d, checkpoints %d, max_batch %d and draft_states %d need %lld slots, "
        "more than %d: lower them",
        bounds.max_sequences, rules.checkpoints, bounds.max_batch, request.draft_states,
        static_cast<long long>(wanted), max_count);
  }
  rules.n_slots = static_cast<int32_t>(wanted);
  return Status::ok;
}

RecurrentCache::RecurrentCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                               const RecurrentSettings& settings)
    : LabelledCache(
          device, bounds, settings.rules,
          {.put = "put with all of their parts", .unput = "leaves their states as they were"}),
      settings_(settings) {}

Status RecurrentCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                    const RecurrentSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<RecurrentCache>(device, bounds, settings, bytes);
}

Status RecurrentCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                              const RecurrentSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<RecurrentCache>(device, bounds, settings, out);
}

Status RecurrentCache::attach() { return device_->attach({}, workspace_, &on_device_); }

Status RecurrentCache::too_large() const {
  return fail(
      Status::overflow,
      "%d slots of n_layers %d times state_size %lld and conv_channels %d times conv_dim %d "
      "need more bytes than the address space has",
      settings_.rules.n_slots, bounds_.n_layers, static_cast<long long>(settings_.state_size),
      settings_.conv_channels, settings_.conv_dim);
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void RecurrentCache::carve_host(Carver& carver) {
  const auto batch = static_cast<uint64_t>(bounds_.max_batch);
  const auto in_pass = static_cast<uint64_t>(std::min(bounds_.max_sequences, bounds_.max_batch));
  book_.carve(carver);
  pass_.carve(carver);
  was_put_ = carver.take<uint8_t>(static_cast<uint64_t>(bounds_.n_layers), 64);
  read_slots_ = carver.take<int32_t>(in_pass, 64);
  kept_slots_ = carver.take<int32_t>(in_pass, 64);
  order_ = carver.take<int32_t>(batch, 64);
  conv_rows_ = carver.take<ConvRow>(has_part(conv) ? batch : 0, 64);
}

void RecurrentCache::carve_device(Carver& carver) {
  layer_bytes_ = 0;
  for (const int32_t part : {conv, recurrent}) {
    part_offset_[part] = layer_bytes_;
    const size_t element = size_of(part_shape(part).dtype);
    const CheckedSize bytes(static_cast<uint64_t>(part_elements(part)) * element);
    layer_bytes_ += bytes.rounded_up(line_bytes).value();
  }
  slot_bytes_ = layer_bytes_ * static_cast<uint64_t>(bounds_.n_layers);
  workspace_ = carver.take<std::byte>(0, page_bytes);
  // The slot of zeros ends where a page does, and nothing else lies in its pages.
  const CheckedSize zeros = CheckedSize(slot_bytes_).rounded_up(page_bytes);
  const auto others = static_cast<uint64_t>(settings_.rules.n_slots - 1);
  std::byte* block = carver.take<std::byte>(zeros + CheckedSize(others) * CheckedSize(slot_bytes_),
                                            page_bytes);
  slots_ = block == nullptr ? nullptr : block + (zeros.value() - slot_bytes_);
}

// ---- Checkpoints ------------------------------------------------------------------------------------------------------------

Status RecurrentCache::check_checkpoint(int32_t) const {
  if (settings_.rules.checkpoints > 0) return Status::ok;
  return fail(Status::not_supported,
              "the cache has no checkpoints: checkpoints of its kvc_recurrent_desc is KVC_NONE");
}

Status RecurrentCache::take_checkpoint(int32_t sequence) {
  book_.take_checkpoint(sequence);
  return clear_freed();
}

Status RecurrentCache::list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at,
                                        int32_t* n) const {
  if (Status s = check_sequence(sequence, bounds_.max_sequences); s != Status::ok) return s;
  *n = book_.list_checkpoints(sequence, capacity, at);
  return Status::ok;
}

// ---- Watching -------------------------------------------------------------------------------------------------------------

CacheStats RecurrentCache::stats() const {
  CacheStats stats;
  stats.state = state();
  stats.cells = static_cast<uint64_t>(settings_.rules.n_slots);
  stats.cells_used = static_cast<uint64_t>(book_.used());
  stats.cells_shared = static_cast<uint64_t>(book_.shared());
  stats.bytes = memory_.bytes();
  stats.passes = pass_.n_committed();
  return stats;
}

/// Calls per_piece(bytes, n) for the stored bytes of a part, which come through a buffer on the stack: const calls may overlap.
template <class PerPiece>
Status RecurrentCache::read_slot(int32_t slot, int32_t layer, int32_t part, PerPiece per_piece) const {
  std::byte buffer[4096];
  const StatePart at = part_at(layer, part);
  const Plane slots = {.data = at.data, .row_stride = at.slot_bytes, .row_bytes = at.slot_bytes};
  for (size_t first = 0; first < at.bytes(); first += sizeof buffer) {
    const size_t n = std::min(at.bytes() - first, sizeof buffer);
    const Status read = on_device_->read_rows({slots, 0, &slot, 1, first, n, buffer});
    if (Status s = health_.after(read); s != Status::ok) return s;
    per_piece(buffer, n);
  }
  return Status::ok;
}

Status RecurrentCache::add_state(int32_t slot, Digest& digest) const {
  const int32_t n_layers = bounds_.n_layers - planted(Bug::digest_without_last_layer);
  for (int32_t layer = 0; layer < n_layers; ++layer) {
    for (const int32_t part : {conv, recurrent}) {
      const Status s = read_slot(
          slot, layer, part, [&](const std::byte* bytes, size_t n) { digest.update(bytes, n); });
      if (s != Status::ok) return s;
    }
  }
  return Status::ok;
}

/// What the open pass adds to a sequence: its tokens, and the rows of what was put.
Status RecurrentCache::add_pass(int32_t index, Digest& digest) const {
  const StateBook::Sequence& sequence = book_.sequence(index);
  int32_t token = sequence.first_added;
  for (int32_t i = 0; i < sequence.n_added; ++i, token = book_.follower(token)) {
    const int32_t position = book_.position(token);
    digest.update(&position, sizeof position);
  }
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    digest.update(&was_put_[layer], sizeof was_put_[layer]);
    for (const int32_t part : {conv, recurrent}) {
      for (int32_t row = 0; row < sequence.n_rows && was_put(layer, part); ++row) {
        const int32_t slot = book_.row_slot(sequence.first_row + row);
        const Status s = read_slot(
            slot, layer, part, [&](const std::byte* bytes, size_t n) { digest.update(bytes, n); });
        if (s != Status::ok) return s;
      }
    }
  }
  return Status::ok;
}

/// A sum over states, so neither slots nor order matter.
Status RecurrentCache::digest(uint64_t out[2]) const {
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

Status RecurrentCache::check() const {
  if (Status s = book_.check(pass_.is_open()); s != Status::ok) return s;
  bool are_zeros = true;
  const auto look = [&are_zeros](const std::byte* bytes, size_t n) {
    are_zeros = are_zeros && bytes[0] == std::byte{0} && std::memcmp(bytes, bytes + 1, n - 1) == 0;
  };
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) {
    for (const int32_t part : {conv, recurrent}) {
      if (Status s = read_slot(StateBook::zeros, layer, part, look); s != Status::ok) return s;
    }
  }
  if (are_zeros) return Status::ok;
  return fail(Status::internal,
              "slot 0 does not hold zeros: something was written to it through kvc_state_view");
}

}  // namespace kvc
