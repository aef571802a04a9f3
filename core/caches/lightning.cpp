#include "core/caches/lightning.hpp"

#include <algorithm>
#include <new>

#include "core/base/carver.hpp"
#include "core/base/messages.hpp"
#include "core/caches/bounds.hpp"

namespace kvc {
namespace {

constexpr int32_t max_block = 1024;
constexpr int32_t max_draft_states = 65536;

Status no_softmax(const char* option) {
  return fail(Status::not_supported,
              "a lightning cache (KVC_LIGHTNING) takes no %s: its attention has no softmax", option);
}

Status check_sizes(const CacheBounds& bounds, const LightningRequest& request) {
  struct Check {
    const char* name;
    int32_t value, low, high;
  };
  const Check checks[] = {{"n_layers", bounds.n_layers, 1, max_extent},
                          {"n_kv_heads", bounds.n_kv_heads, 1, max_extent},
                          {"head_dim_k", bounds.head_dim_k, 1, max_extent},
                          {"head_dim_v", bounds.head_dim_v, 0, max_extent},
                          {"max_sequences", bounds.max_sequences, 1, max_count},
                          {"max_batch", bounds.max_batch, 1, max_count},
                          {"max_q_heads", bounds.max_q_heads, 0, max_extent * 16},
                          {"block", request.block, 0, max_block},
                          {"draft_states", request.draft_states, 0, max_draft_states}};
  for (const Check& check : checks) {
    if (Status s = check_range(check.name, check.value, check.low, check.high); s != Status::ok)
      return s;
  }
  return Status::ok;
}

}  // namespace

// ---- Creation -------------------------------------------------------------------------------------------------------------

Status LightningCache::resolve(CacheBounds& bounds, const LightningRequest& request,
                               LightningSettings* settings) {
  if (Status s = check_sizes(bounds, request); s != Status::ok) return s;
  if (Status s = check_checkpoints(request.checkpoints); s != Status::ok) return s;
  if (Status s = resolve_heads(bounds); s != Status::ok) return s;
  settings->block = request.block;
  settings->is_fused = request.is_fused;
  settings->draft_states = request.draft_states;

  StateRules& rules = settings->rules;
  rules.max_sequences = bounds.max_sequences;
  rules.max_batch = bounds.max_batch;
  resolve_checkpoints(request.checkpoints, &rules);
  rules.max_rows = 1;  // the state behind the last token that is kept
  rules.approximate = request.approximate;
  rules.approximate_flag = "KVC_LIGHTNING_APPROXIMATE";
  rules.known_flags = {token_masked, "KVC_TOKEN_MASKED"};
  rules.takes_rows = true;
  rules.strict = bounds.strict;

  const int64_t wanted = slots_for(rules, bounds.max_sequences);
  if (wanted > max_count) {
    return fail(Status::overflow,
                "max_sequences %d and checkpoints %d need %lld slots, more than %d: lower them",
                bounds.max_sequences, rules.checkpoints, static_cast<long long>(wanted), max_count);
  }
  place_slots(request.checkpoints, wanted, &rules);
  return Status::ok;
}

LightningCache::LightningCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                               const LightningSettings& settings)
    : StateCache(device, bounds, settings.rules, 1u << whole,
                 {.pass = {.put = "put", .unput = "lets their states decay"},
                  .descriptor = "kvc_lightning_desc"}),
      settings_(settings) {}

Status LightningCache::memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                    const LightningSettings& settings, uint64_t* bytes) {
  return memory_bytes_of<LightningCache>(device, bounds, settings, bytes);
}

Status LightningCache::create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                              const LightningSettings& settings, std::shared_ptr<Cache>* out) {
  return create_of<LightningCache>(device, bounds, settings, out);
}

Status LightningCache::attach() {
  for (int32_t layer = 0; layer < bounds_.n_layers; ++layer) new (&layers_[layer]) Layer();
  return attach_states();
}

LightningBounds LightningCache::lightning_bounds() const {
  return {bounds_.n_kv_heads, bounds_.max_q_heads, bounds_.head_dim_k,
          bounds_.head_dim_v, settings_.block,     bounds_.max_batch};
}

int32_t LightningCache::in_pass() const {
  return std::min(bounds_.max_sequences, bounds_.max_batch);
}

/// Tokens of a pass whose sequences have few enough for commit_prefix.
int32_t LightningCache::drafted_tokens() const {
  if (settings_.draft_states == 0) return 0;
  const int64_t most = int64_t{in_pass()} * (settings_.draft_states + 1);
  return static_cast<int32_t>(std::min<int64_t>(bounds_.max_batch, most));
}

Status LightningCache::too_large() const {
  return fail(Status::overflow,
              "%d slots of n_layers %d times n_kv_heads %d, head_dim_k %d and head_dim_v %d, and K "
              "and V of max_batch %d tokens need more bytes than the address space has",
              settings_.rules.n_slots, bounds_.n_layers, bounds_.n_kv_heads, bounds_.head_dim_k,
              bounds_.head_dim_v, bounds_.max_batch);
}

// Both run twice (see Carver): what they find out about sizes must not depend on a block being there.

void LightningCache::carve_host(Carver& carver) {
  const auto batch = static_cast<uint64_t>(bounds_.max_batch);
  const auto layers = static_cast<uint64_t>(bounds_.n_layers);
  const auto sequences = static_cast<uint64_t>(in_pass());
  carve_book(carver);
  layers_ = carver.take<Layer>(layers, 64);
  slopes_ = carver.take<float>(layers * static_cast<uint64_t>(bounds_.n_kv_heads), 64);
  const auto of_sequence = static_cast<uint64_t>(settings_.rules.checkpoints) + 1;
  slots_from_ = carver.take<int32_t>(of_sequence, 64);
  slots_to_ = carver.take<int32_t>(of_sequence, 64);
  tokens_ = carver.take<LightningToken>(batch, 64);
  rows_ = carver.take<LightningRow>(sequences, 64);
  settled_ = carver.take<LightningRow>(sequences, 64);
  padding_ = carver.take<int32_t>(batch, 64);
}

/// Room for the largest type that a put takes.
KeptTokens LightningCache::carve_kept(Carver& carver, int64_t layers, int64_t n_tokens) const {
  const auto take = [&](int32_t head_dim) {
    const CheckedSize rows = CheckedSize(static_cast<uint64_t>(layers * bounds_.n_kv_heads)) *
                             CheckedSize(static_cast<uint64_t>(n_tokens));
    const int64_t row_bytes = KeptTokens::row_bytes(head_dim, DType::f32);
    return carver.take<std::byte>(rows * CheckedSize(static_cast<uint64_t>(row_bytes)), 64);
  };
  KeptTokens kept;
  kept.k = take(bounds_.head_dim_k);
  kept.v = take(bounds_.head_dim_v);
  kept.n_tokens = n_tokens;
  return kept;
}

void LightningCache::carve_device(Carver& carver) {
  const auto matrix = static_cast<uint64_t>(int64_t{bounds_.head_dim_k} *
                                            padded_to_vectors(bounds_.head_dim_v));
  const CheckedSize layer = CheckedSize(matrix * sizeof(float)) *
                            CheckedSize(static_cast<uint64_t>(bounds_.n_kv_heads));
  layer_bytes_ = layer.value();
  carve_workspace(carver);
  decay_workspace_ = carver.take<std::byte>(device_->lightning_workspace_bytes(lightning_bounds()),
                                            page_bytes);
  kept_ = carve_kept(carver, 1, bounds_.max_batch);
  drafted_ = carve_kept(carver, bounds_.n_layers, drafted_tokens());
  carve_slots(carver, layer * CheckedSize(static_cast<uint64_t>(bounds_.n_layers)));
}

StatePart LightningCache::part_at(int32_t layer, int32_t) const {
  return {.data = slots_ + static_cast<uint64_t>(layer) * layer_bytes_,
          .slot_bytes = slot_bytes_,
          .n_elements = static_cast<int64_t>(layer_bytes_ / sizeof(float)),
          .n_slots = rules_.n_state_slots(),
          .type = StorageType::f32};
}

// ---- Constants ------------------------------------------------------------------------------------------------------------

Status LightningCache::check_binding(const AttentionConstants& constants) const {
  if (Status s = pass_.need_no_pass("kvc_bind_attention"); s != Status::ok) return s;
  struct Option {
    bool is_given;
    const char* name;
  };
  for (const Option& option : {Option{constants.softcap != 0, "softcap"},
                               Option{constants.slopes != nullptr, "alibi_slopes"},
                               Option{constants.sinks != nullptr, "sinks"}}) {
    if (option.is_given) return no_softmax(option.name);
  }
  return Status::ok;
}

void LightningCache::bind_attention(int32_t layer_begin, int32_t layer_end,
                                    const AttentionConstants& constants) {
  for (int32_t layer = layer_begin; layer < layer_end; ++layer) {
    layers_[layer].n_q_heads = constants.n_q_heads;
    layers_[layer].scale = constants.scale == 0 ? 1 : constants.scale;
  }
}

Status LightningCache::check_decay() const {
  if (Status s = pass_.need_no_pass("kvc_bind_decay"); s != Status::ok) return s;
  return need_empty("kvc_bind_decay");
}

void LightningCache::bind_decay(int32_t layer_begin, int32_t layer_end, const float* slopes) {
  for (int32_t layer = layer_begin; layer < layer_end; ++layer) {
    std::copy_n(slopes, bounds_.n_kv_heads, slopes_ + int64_t{layer} * bounds_.n_kv_heads);
    layers_[layer].has_slopes = true;
  }
}

Status LightningCache::need_slopes(int32_t layer) const {
  if (layers_[layer].has_slopes) return Status::ok;
  return fail(Status::bad_state,
              "layer %d has no slopes, so nobody knows how its states decay: call kvc_bind_decay "
              "while the cache is empty",
              layer);
}

}  // namespace kvc
