#include "core/caches/recurrent.hpp"

#include <algorithm>

#include "core/base/messages.hpp"
#include "core/caches/bounds.hpp"

namespace kvc {
namespace {

constexpr uint64_t line_bytes = 64;
constexpr int64_t max_state_size = int64_t{1} << 40;
constexpr int32_t max_conv_channels = 1 << 24;
constexpr int32_t max_conv_dim = 65536;
constexpr int32_t max_draft_states = 65536;

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

/// A bit for each part that a layer has.
uint8_t parts_of(const RecurrentSettings& settings) {
  uint32_t parts = settings.conv_channels > 0 ? 1u << RecurrentCache::conv : 0;
  if (settings.state_size > 0) parts |= 1u << RecurrentCache::recurrent;
  return static_cast<uint8_t>(parts);
}

}  // namespace

// ---- Creation -------------------------------------------------------------------------------------------------------------

Status RecurrentCache::resolve(CacheBounds& bounds, const RecurrentRequest& request,
                               RecurrentSettings* settings) {
  if (Status s = check_sizes(bounds, request); s != Status::ok) return s;
  if (Status s = check_checkpoints(request.checkpoints); s != Status::ok) return s;
  const bool has_conv = request.conv_channels > 0 && request.conv_dim > 0;
  settings->conv_channels = has_conv ? request.conv_channels : 0;
  settings->conv_dim = has_conv ? request.conv_dim : 0;
  settings->state_size = request.state_size;
  settings->type_conv = request.type_conv;
  settings->type_state = request.type_state;

  StateRules& rules = settings->rules;
  rules.max_sequences = bounds.max_sequences;
  rules.max_batch = bounds.max_batch;
  resolve_checkpoints(request.checkpoints, &rules);
  rules.max_rows = request.draft_states + 1;
  rules.approximate = request.approximate;
  rules.approximate_flag = "KVC_RECURRENT_APPROXIMATE";
  rules.strict = bounds.strict;

  const int64_t in_pass = std::min(bounds.max_sequences, bounds.max_batch);
  const int64_t wanted = slots_for(rules, in_pass * rules.max_rows);
  if (wanted > max_count) {
    return fail(
        Status::overflow,
        "max_sequences %d, checkpoints %d, max_batch %d and draft_states %d need %lld slots, "
        "more than %d: lower them",
        bounds.max_sequences, rules.checkpoints, bounds.max_batch, request.draft_states,
        static_cast<long long>(wanted), max_count);
  }
  place_slots(request.checkpoints, wanted, &rules);
  return Status::ok;
}

RecurrentCache::RecurrentCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                               const RecurrentSettings& settings)
    : StateCache(device, bounds, settings.rules, parts_of(settings),
                 {.pass = {.put = "put with all of their parts",
                           .unput = "leaves their states as they were"},
                  .descriptor = "kvc_recurrent_desc"}),
      settings_(settings) {}

Status RecurrentCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                    const RecurrentSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<RecurrentCache>(device, bounds, settings, bytes);
}

Status RecurrentCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                              const RecurrentSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<RecurrentCache>(device, bounds, settings, out);
}

Status RecurrentCache::attach() {
  if (Status s = attach_states(); s != Status::ok) return s;
  if (PassRecorder* const recorder = pass_recorder(); recorder != nullptr)
    recorder->place_states(replayed_, bounds_.max_batch);
  return Status::ok;
}

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
  carve_book(carver);
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
  carve_workspace(carver);
  replayed_ = carver.take<std::byte>(device_->replayed_states_bytes(bounds_.max_batch), 256);
  carve_slots(carver,
              CheckedSize(layer_bytes_) * CheckedSize(static_cast<uint64_t>(bounds_.n_layers)));
}

}  // namespace kvc
