#include "kvc/lightning.h"

#include <algorithm>
#include <cmath>

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"

namespace kvc::capi {
namespace {

// ---- Slopes -----------------------------------------------------------------------------------------------------------------

constexpr int32_t max_slopes = 1 << 20;

/// The slope of head h of H in the geometric family, H a power of two or not.
double geometric(int32_t head, int32_t n_heads) { return std::exp2(-8.0 * (head + 1) / n_heads); }

double alibi(int32_t head, int32_t n_heads) {
  int32_t power = 1;
  while (power <= n_heads / 2) power *= 2;
  return head < power ? geometric(head, power) : geometric(2 * (head - power), 2 * power);
}

Status slopes(uint32_t family, int32_t n_heads, int32_t layer, int32_t n_layers, float* out) {
  if (family < KVC_SLOPES_ALIBI || family > KVC_SLOPES_LINEAR)
    return fail(Status::invalid_argument,
                "family %u is none of KVC_SLOPES_ALIBI (%d) to KVC_SLOPES_LINEAR (%d)", family,
                KVC_SLOPES_ALIBI, KVC_SLOPES_LINEAR);
  if (n_heads < 1 || n_heads > max_slopes) return out_of_range("n_heads", n_heads, 1, max_slopes);
  if (family != KVC_SLOPES_ALIBI) {
    if (n_layers < 1) return out_of_range("n_layers", n_layers, 1, INT32_MAX);
    if (layer < 0 || layer >= n_layers) return no_index("layer", layer, n_layers);
  }
  if (out == nullptr) return is_null("out");
  const double l = layer, last = static_cast<double>(n_layers) - 1, all = n_layers;
  for (int32_t head = 0; head < n_heads; ++head) {
    double slope = 0;
    switch (family) {
      case KVC_SLOPES_ALIBI: slope = alibi(head, n_heads); break;
      case KVC_SLOPES_LIGHTNING2:
        slope = alibi(head, n_heads) * (1 - l / std::max(last, 1.0) + 1e-5);
        break;
      case KVC_SLOPES_MINIMAX:
        slope = geometric(head, n_heads) * (1 - l / (last + 1e-5) + 1e-5);
        break;
      default: slope = 8.0 * head / n_heads * (1 - l / all); break;
    }
    out[head] = static_cast<float>(slope);
  }
  return Status::ok;
}

// ---- Decay ------------------------------------------------------------------------------------------------------------------

Status check_decay_slopes(const float* slopes, int32_t n) {
  if (slopes == nullptr) return is_null("slopes");
  for (int32_t i = 0; i < n; ++i) {
    if (std::isfinite(slopes[i]) && slopes[i] >= 0) continue;
    return fail(Status::invalid_argument, "slopes[%d] is %g; it must be finite and 0 or more", i,
                static_cast<double>(slopes[i]));
  }
  return Status::ok;
}

Status bind_decay(const LayerRange& layers, const float* slopes) {
  if (Status s = layers.check_facet<OfDecayedStates>(); s != Status::ok) return s;
  if (Status s = layers.check(); s != Status::ok) return s;
  if (!layers.has_owner()) return layers.check_idle();
  int32_t heads = 0;  // of the first owner: the array has one length
  const Status invalid = layers.each_owner([&](const Cache& cache) {
    const int32_t n = cache.bounds().n_kv_heads;
    if (heads != 0 && n != heads) {
      return fail(
          Status::invalid_argument,
          "n_kv_heads is %d, and %d in other layers of the range: bind the slopes of each in "
          "a call of its own",
          n, heads);
    }
    heads = n;
    return check_decay_slopes(slopes, n);
  });
  if (invalid != Status::ok) return invalid;
  const Status refused = layers.each_owner(
      [](const Cache& cache) { return cache.decayed_states()->check_decay(); });
  if (refused != Status::ok) return refused;
  layers.each_part([&](Cache& cache, int32_t begin, int32_t end) {
    cache.decayed_states()->bind_decay(begin, end, slopes);
  });
  return Status::ok;
}

// ---- States -----------------------------------------------------------------------------------------------------------------

Expected shape_of(const CacheBounds& bounds, int32_t n) {
  return {4,
          {n, bounds.n_kv_heads, bounds.head_dim_k, bounds.head_dim_v},
          "n, n_kv_heads, head_dim_k, head_dim_v"};
}

Status read(const DecayedStates& states, int32_t layer, int32_t first, int32_t n, kvc_tensor* state) {
  if (Status s = states.check_states(layer, first, n); s != Status::ok) return s;
  if (state == nullptr) return is_null("state");
  const Expected shape = shape_of(states.holder().bounds(), n);
  const DeviceInfo& device = states.holder().device();
  if (state->data == nullptr) return fill_in(shape, KVC_F32, device, state);
  Tensor into;
  const Status s = read_tensor("state", state, shape, Direction::out, device, &into, Elements::f32);
  return s == Status::ok ? states.read_states(layer, first, into) : s;
}

Status write(DecayedStates& states, int32_t layer, int32_t first, int32_t n, const kvc_tensor* state) {
  if (Status s = states.check_write(layer, first, n); s != Status::ok) return s;
  Tensor from;
  const Status s = read_tensor("state", state, shape_of(states.holder().bounds(), n), Direction::in,
                               states.holder().device(), &from, Elements::f32);
  return s == Status::ok ? states.write_states(layer, first, from) : s;
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::DecayedStates;
using kvc::capi::CacheObject, kvc::capi::LayerRange, kvc::capi::OfDecayedStates, kvc::capi::When;

kvc_status kvc_slopes(uint32_t family, int32_t n_heads, int32_t layer, int32_t n_layers,
                      float* out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::slopes(family, n_heads, layer, n_layers, out); });
}

kvc_status kvc_bind_decay(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                          const float* slopes) noexcept {
  return kvc::capi::with_object(cache, [&](CacheObject& object, Cache&) {
    return kvc::capi::bind_decay(LayerRange(object, layer_begin, layer_end), slopes);
  });
}

kvc_status kvc_lightning_read(const kvc_cache* cache, int32_t layer, int32_t sequence_begin,
                              int32_t n, kvc_tensor* state) noexcept {
  return kvc::capi::with_layer<OfDecayedStates>(
      cache, layer, When::always, {}, [&](const DecayedStates& states, const Cache&, int32_t own) {
        return kvc::capi::read(states, own, sequence_begin, n, state);
      });
}

kvc_status kvc_lightning_write(kvc_cache* cache, int32_t layer, int32_t sequence_begin, int32_t n,
                               const kvc_tensor* state) noexcept {
  return kvc::capi::with_layer<OfDecayedStates>(
      cache, layer, When::always, {}, [&](DecayedStates& states, Cache&, int32_t own) {
        return kvc::capi::write(states, own, sequence_begin, n, state);
      });
}
