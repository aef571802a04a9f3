#include <cmath>
#include <cstring>

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"
#include "core/caches/kv_layers.hpp"

/// The constants of the model: what kvc_bind_attention(), kvc_bind_rope(), kvc_bind_scales() and kvc_bind_shift() take.
namespace kvc::capi {
namespace {

/// `values[0, n)`; null: there are none.
Status check_all_finite(const char* name, const float* values, int32_t n) {
  for (int32_t i = 0; values != nullptr && i < n; ++i) {
    if (std::isfinite(values[i])) continue;
    return fail(Status::invalid_argument, "%s[%d] is %g; it must be finite", name, i,
                static_cast<double>(values[i]));
  }
  return Status::ok;
}

// What constants may be. Kernels compute in f32, in units of log2, so a constant must not take what it meets out of f32:
// neither the largest distance of two positions nor a score in range (attention.h, Range).
constexpr int constant_exponent = 100;  // scale and softcap: from 2^-100 to 2^100
constexpr int rate_exponent = 95;  // per position, slopes and frequencies: with a distance below 2^31 they stay below 2^126

/// 0, or a number whose magnitude is a product of f32 with room on both sides.
Status check_magnitude(const char* name, float value) {
  const float most = std::ldexp(1.0f, constant_exponent);
  const float magnitude = std::fabs(value);
  if (value == 0 || (magnitude >= 1 / most && magnitude <= most)) return Status::ok;
  return fail(Status::invalid_argument,
              "%s is %g; it must be 0 or of a magnitude from 2^-%d to 2^%d", name,
              static_cast<double>(value), constant_exponent, constant_exponent);
}

Status check_slopes(const float* slopes, int32_t n) {
  for (int32_t i = 0; slopes != nullptr && i < n; ++i) {
    if (std::fabs(slopes[i]) <= std::ldexp(1.0f, rate_exponent)) continue;
    return fail(
        Status::invalid_argument,
        "alibi_slopes[%d] is %g; its magnitude must be at most 2^%d, because distances reach "
        "2^31",
        i, static_cast<double>(slopes[i]), rate_exponent);
  }
  return Status::ok;
}

Status check_frequencies(const RopeSettings& settings) {
  for (int32_t i = 0; i < settings.n_dims / 2; ++i) {
    if (settings.frequency(i) <= std::ldexp(1.0, rate_exponent)) continue;
    return fail(
        Status::invalid_argument,
        "base %g, scale %g and the frequency factor turn pair %d by %g per position; it must be "
        "at most 2^%d, because positions reach 2^31",
        settings.base, settings.scale, i, settings.frequency(i), rate_exponent);
  }
  return Status::ok;
}

}  // namespace

Status read_constants(const kvc_attention_desc& d, const float* slopes, const float* sinks,
                      AttentionConstants* constants) {
  if (!std::isfinite(d.softcap) || d.softcap < 0) {
    return fail(Status::invalid_argument,
                "softcap is %g; it must be finite and not negative (0: none)",
                static_cast<double>(d.softcap));
  }
  if (Status s = check_magnitude("scale", d.scale); s != Status::ok) return s;
  if (Status s = check_magnitude("softcap", d.softcap); s != Status::ok) return s;
  if (Status s = check_slopes(slopes, d.n_q_heads); s != Status::ok) return s;
  if (Status s = check_all_finite("sinks", sinks, d.n_q_heads); s != Status::ok) return s;
  constants->n_q_heads = d.n_q_heads;
  constants->scale = d.scale;
  constants->softcap = d.softcap;
  constants->slopes = slopes;
  constants->sinks = sinks;
  return Status::ok;
}

namespace {

Status bind_attention(const LayerRange& layers, const kvc_attention_desc* desc, const float* slopes,
                      const float* sinks) {
  if (Status s = layers.check_facet<OfLayerAttention>(); s != Status::ok) return s;
  kvc_attention_desc d;
  if (Status s = read_descriptor("kvc_attention_desc", desc, &d); s != Status::ok) return s;
  if (Status s = layers.check(); s != Status::ok) return s;
  if (d.flags != 0) return unknown_bits("kvc_attention_desc.flags", d.flags, nullptr);
  if (!layers.has_owner()) return layers.check_idle();
  const Status heads = layers.each_owner(
      [&](const Cache& cache) { return check_q_heads(cache.bounds(), "n_q_heads", d.n_q_heads); });
  if (heads != Status::ok) return heads;
  AttentionConstants constants;
  if (Status s = read_constants(d, slopes, sinks, &constants); s != Status::ok) return s;
  const auto ask_operators = [&](auto question) {
    return layers.each_part_until([&](Cache& cache, int32_t begin, int32_t end) {
      const KvLayers* const of = cache.layer_attention()->layers_with_operators();
      return of == nullptr ? Status::ok : question(*of, begin, end);
    });
  };
  const Status scale = ask_operators([&](const KvLayers& of, int32_t begin, int32_t end) {
    return of.check_scale_for_operators(begin, end, constants);
  });
  if (scale != Status::ok) return scale;
  const Status refused = layers.each_owner(
      [&](const Cache& cache) { return cache.layer_attention()->check_binding(constants); });
  if (refused != Status::ok) return refused;
  const Status lacking = ask_operators([&](const KvLayers& of, int32_t begin, int32_t end) {
    return of.check_operators(begin, end, constants);
  });
  if (lacking != Status::ok) return lacking;
  layers.each_part([&](Cache& cache, int32_t begin, int32_t end) {
    cache.layer_attention()->bind_attention(begin, end, constants);
  });
  return Status::ok;
}

Status check_positive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return Status::ok;
  return fail(Status::invalid_argument, "%s is %g; it must be positive and finite", name, value);
}

/// For a cache whose heads have this many dimensions.
Status read_rope(const kvc_rope_desc& d, const float* factors, int32_t head_dim, RopeSettings* out) {
  if (d.pairs != KVC_ROPE_NEIGHBOURS && d.pairs != KVC_ROPE_HALVES)
    return fail(Status::invalid_argument,
                "pairs is %u, neither KVC_ROPE_NEIGHBOURS (0) nor KVC_ROPE_HALVES (1)", d.pairs);
  if (d.first_dim < 0 || d.first_dim >= head_dim)
    return no_index("first_dim", d.first_dim, head_dim);
  const int32_t dims_left = head_dim - d.first_dim;
  RopeSettings settings;
  settings.halves = d.pairs == KVC_ROPE_HALVES;
  settings.first_dim = d.first_dim;
  settings.n_dims = d.n_dims == 0 ? dims_left / 2 * 2 : d.n_dims;
  if (settings.n_dims < 2 || settings.n_dims > dims_left || settings.n_dims % 2 != 0) {
    return fail(Status::invalid_argument,
                "n_dims %d is no even number from 2 to %d, which is head_dim_k %d - first_dim %d",
                settings.n_dims, dims_left, head_dim, d.first_dim);
  }
  settings.base = d.base == 0 ? 10000.0 : static_cast<double>(d.base);
  settings.scale = d.scale == 0 ? 1.0 : static_cast<double>(d.scale);
  if (Status s = check_positive("base", settings.base); s != Status::ok) return s;
  if (Status s = check_positive("scale", settings.scale); s != Status::ok) return s;
  for (int32_t i = 0; factors != nullptr && i < settings.n_dims / 2; ++i) {
    if (std::isfinite(factors[i]) && factors[i] > 0) continue;
    return fail(Status::invalid_argument,
                "frequency_factors[%d] is %g; it must be positive and finite", i,
                static_cast<double>(factors[i]));
  }
  settings.factors = factors;
  *out = settings;
  return check_frequencies(settings);
}

Status bind_rope(const LayerRange& layers, const kvc_rope_desc* desc, const float* factors) {
  if (Status s = layers.check_facet<OfPositionedKeys>(); s != Status::ok) return s;
  kvc_rope_desc d;
  if (Status s = read_descriptor("kvc_rope_desc", desc, &d); s != Status::ok) return s;
  if (Status s = layers.check(); s != Status::ok) return s;
  if (!layers.has_owner()) return layers.check_idle();
  RopeSettings settings;
  const Status invalid = layers.each_owner([&](const Cache& cache) {
    return read_rope(d, factors, cache.bounds().head_dim_k, &settings);
  });
  if (invalid != Status::ok) return invalid;
  const Status refused = layers.each_owner([&](Cache& cache) {
    // What its dimensions come to may be the owner's; it was read above without a refusal.
    const Status read = read_rope(d, factors, cache.bounds().head_dim_k, &settings);
    return read == Status::ok ? cache.positioned_keys()->check_rope(settings) : read;
  });
  if (refused != Status::ok) return refused;
  layers.each_part([&](Cache& cache, int32_t begin, int32_t end) {
    if (read_rope(d, factors, cache.bounds().head_dim_k, &settings) == Status::ok)
      cache.positioned_keys()->bind_rope(begin, end, settings);
  });
  return Status::ok;
}

Status check_f8_scales(const char* name, const float* scales, int32_t n) {
  const float most = std::ldexp(1.0f, constant_exponent);
  for (int32_t i = 0; scales != nullptr && i < n; ++i) {
    if (scales[i] >= 1 / most && scales[i] <= most) continue;
    return fail(Status::invalid_argument, "%s[%d] is %g; it must be from 2^-%d to 2^%d", name, i,
                static_cast<double>(scales[i]), constant_exponent, constant_exponent);
  }
  return Status::ok;
}

Status bind_scales(const LayerRange& layers, const float* k_scales, const float* v_scales) {
  if (Status s = layers.check_facet<OfKeyValues>(); s != Status::ok) return s;
  if (Status s = layers.check(); s != Status::ok) return s;
  if (!layers.has_owner()) return layers.check_idle();
  int32_t heads = 0, value_heads = 0;  // of the first owner: the arrays have one length
  const Status invalid = layers.each_owner([&](const Cache& cache) {
    const int32_t n = cache.bounds().n_kv_heads;
    const int32_t n_values = cache.bounds().value_heads;
    if (heads != 0 && (n != heads || n_values != value_heads)) {
      return fail(Status::invalid_argument,
                  "n_kv_heads is %d, and %d in other layers of the range: bind the scales of "
                  "each in a call of its own",
                  n, heads);
    }
    heads = n;
    value_heads = n_values;
    if (Status s = check_f8_scales("k_scales", k_scales, n); s != Status::ok) return s;
    if (v_scales != nullptr && cache.bounds().v_in_k) {
      return fail(Status::invalid_argument,
                  "v_scales must be null: with KVC_CACHE_V_IN_K V is a part of K, with K's scales");
    }
    return check_f8_scales("v_scales", v_scales, n_values);
  });
  if (invalid != Status::ok) return invalid;
  const Status refused = layers.each_owner([&](const Cache& cache) {
    return cache.key_values()->check_scales(k_scales != nullptr, v_scales != nullptr);
  });
  if (refused != Status::ok) return refused;
  layers.each_part([&](Cache& cache, int32_t begin, int32_t end) {
    cache.key_values()->bind_scales(begin, end, k_scales, v_scales);
  });
  return Status::ok;
}

/// From the core's side of a shift function to the caller's.
Status call_shift(const KeyShift& shift, int32_t layer, int32_t n, const int32_t* from,
                  const int32_t* to, const Tensor& keys) {
  kvc_tensor k;
  write_view(keys, shift.device, &k);
  const auto function = reinterpret_cast<kvc_shift_function>(shift.function);
  const kvc_status status = [&] {
    const NoCancellation until_done;
    const FloatEnvironmentAroundCallback around;
    return function(shift.user, layer, n, from, to, &k);
  }();
  if (status == KVC_OK) return Status::ok;
  const char* name = kvc_status_name(status);
  const bool known = std::strcmp(name, "UNKNOWN") != 0;
  return fail(
      known ? static_cast<Status>(status) : Status::invalid_argument,
      "the shift function (kvc_bind_shift) returned %s (%d) for layer %d, positions %d to %d%s",
      name, status, layer, from[0], from[n - 1], known ? "" : ": no status of kvc");
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::PositionedKeys;
using kvc::capi::CacheObject, kvc::capi::LayerRange;

kvc_status kvc_bind_attention(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                              const kvc_attention_desc* desc, const float* alibi_slopes,
                              const float* sinks) noexcept {
  return kvc::capi::with_object(cache, [&](CacheObject& object, Cache&) {
    return kvc::capi::bind_attention(LayerRange(object, layer_begin, layer_end), desc, alibi_slopes,
                                     sinks);
  });
}

kvc_status kvc_bind_rope(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                         const kvc_rope_desc* desc, const float* frequency_factors) noexcept {
  return kvc::capi::with_object(cache, [&](CacheObject& object, Cache&) {
    return kvc::capi::bind_rope(LayerRange(object, layer_begin, layer_end), desc, frequency_factors);
  });
}

kvc_status kvc_bind_scales(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                           const float* k_scales, const float* v_scales) noexcept {
  return kvc::capi::with_object(cache, [&](CacheObject& object, Cache&) {
    return kvc::capi::bind_scales(LayerRange(object, layer_begin, layer_end), k_scales, v_scales);
  });
}

kvc_status kvc_bind_shift(kvc_cache* cache, kvc_shift_function function, void* user) noexcept {
  return kvc::capi::with_facet<kvc::capi::OfPositionedKeys>(cache, [&](PositionedKeys& keys, Cache& c) {
    kvc::KeyShift shift;
    if (function != nullptr)
      shift = {kvc::capi::call_shift, reinterpret_cast<void (*)()>(function), user, c.device()};
    return keys.bind_shift(shift);
  });
}
