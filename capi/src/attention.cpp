#include <cmath>
#include <cstring>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "core/base/planted.hpp"

namespace kvc::capi {
namespace {

// ---- Constants of the model -------------------------------------------------------------------------------------------------

Status check_layers(const KeyValues& cache, int32_t begin, int32_t end) {
  if (begin >= 0 && begin <= end && end <= cache.bounds().n_layers) return Status::ok;
  return fail(
      Status::invalid_argument,
      "layer_begin %d, layer_end %d are no range of layers: 0 <= layer_begin <= layer_end <= "
      "n_layers, which is %d",
      begin, end, cache.bounds().n_layers);
}

Status check_q_heads(const KeyValues& cache, const char* name, int64_t n_q_heads) {
  const CacheBounds& bounds = cache.bounds();
  if (n_q_heads >= bounds.n_kv_heads && n_q_heads <= bounds.max_q_heads &&
      n_q_heads % bounds.n_kv_heads == 0)
    return Status::ok;
  return fail(Status::invalid_argument,
              "%s is %lld; it must be a multiple of n_kv_heads %d, from %d to max_q_heads %d", name,
              static_cast<long long>(n_q_heads), bounds.n_kv_heads, bounds.n_kv_heads,
              bounds.max_q_heads);
}

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

Status bind_attention(KeyValues& cache, int32_t begin, int32_t end, const kvc_attention_desc* desc,
                      const float* slopes, const float* sinks) {
  kvc_attention_desc d;
  if (Status s = read_descriptor("kvc_attention_desc", desc, &d); s != Status::ok) return s;
  if (Status s = check_layers(cache, begin, end); s != Status::ok) return s;
  if (d.flags != 0) return unknown_bits("kvc_attention_desc.flags", d.flags, nullptr);
  if (Status s = check_q_heads(cache, "n_q_heads", d.n_q_heads); s != Status::ok) return s;
  if (!std::isfinite(d.softcap) || d.softcap < 0) {
    return fail(Status::invalid_argument,
                "softcap is %g; it must be finite and not negative (0: none)",
                static_cast<double>(d.softcap));
  }
  if (Status s = check_magnitude("scale", d.scale); s != Status::ok) return s;
  if (Status s = check_magnitude("softcap", d.softcap); s != Status::ok) return s;
  if (Status s = check_slopes(slopes, d.n_q_heads); s != Status::ok) return s;
  if (Status s = check_all_finite("sinks", sinks, d.n_q_heads); s != Status::ok) return s;
  AttentionConstants constants;
  constants.n_q_heads = d.n_q_heads;
  constants.scale = d.scale;
  constants.softcap = d.softcap;
  constants.slopes = slopes;
  constants.sinks = sinks;
  return cache.bind_attention(begin, end, constants);
}

Status check_positive(const char* name, double value) {
  if (std::isfinite(value) && value > 0) return Status::ok;
  return fail(Status::invalid_argument, "%s is %g; it must be positive and finite", name, value);
}

Status bind_rope(KeyValues& cache, int32_t begin, int32_t end, const kvc_rope_desc* desc,
                 const float* factors) {
  kvc_rope_desc d;
  if (Status s = read_descriptor("kvc_rope_desc", desc, &d); s != Status::ok) return s;
  if (Status s = check_layers(cache, begin, end); s != Status::ok) return s;
  const int32_t head_dim = cache.bounds().head_dim_k;
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
  if (Status s = check_frequencies(settings); s != Status::ok) return s;
  return cache.bind_rope(begin, end, settings);
}

void write_view(const Tensor& view, const DeviceInfo& device, kvc_tensor* out) {
  *out = {};
  out->data = view.data;
  out->ndim = view.ndim;
  out->dtype = static_cast<uint32_t>(view.dtype);
  out->device_type = device.type;
  out->device_id = device.id;
  for (int32_t d = 0; d < view.ndim; ++d) {
    out->shape[d] = view.shape[d];
    out->strides[d] = view.stride[d];
  }
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

// ---- Put and attention ----------------------------------------------------------------------------------------------------------

struct PutArguments {
  Tensor k, v;
};

Status read_put(const KeyValues& cache, const kvc_tensor* k, const kvc_tensor* v, PutArguments* put) {
  const CacheBounds& bounds = cache.bounds();
  const int32_t n = cache.n_tokens();
  const Expected k_shape = {
      3, {n, bounds.n_kv_heads, bounds.head_dim_k}, "n_tokens, n_kv_heads, head_dim_k"};
  const Expected v_shape = {
      3, {n, bounds.n_kv_heads, bounds.head_dim_v}, "n_tokens, n_kv_heads, head_dim_v"};
  if (Status s = read_tensor("k", k, k_shape, Direction::in, cache.device(), &put->k); s != Status::ok)
    return s;
  return read_tensor("v", v, v_shape, Direction::in, cache.device(), &put->v);
}

Status overlaps(const char* written, const char* other) {
  return fail(Status::invalid_argument,
              "%s overlaps %s: kvc writes to %s, which needs memory of its own", written, other,
              written);
}

Status read_queries(const KeyValues& cache, int32_t layer, const kvc_tensor* q,
                    const kvc_tensor* out, AttentionTensors* a) {
  const CacheBounds& bounds = cache.bounds();
  const int32_t n = cache.n_tokens();
  if (q == nullptr) return is_null("q");
  int64_t heads = cache.bound_q_heads(layer);
  if (heads == 0) {
    if (q->ndim != 3)
      return fail(Status::shape, "q has %d dimensions, not 3 (n_tokens, n_q_heads, head_dim_k)",
                  q->ndim);
    heads = q->shape[1];
    if (check_q_heads(cache, "q.shape[1]", heads) != Status::ok) return Status::shape;
  }
  const Expected q_shape = {3, {n, heads, bounds.head_dim_k}, "n_tokens, n_q_heads, head_dim_k"};
  const Expected out_shape = {3, {n, heads, bounds.head_dim_v}, "n_tokens, n_q_heads, head_dim_v"};
  if (Status s = read_tensor("q", q, q_shape, Direction::in, cache.device(), &a->q); s != Status::ok)
    return s;
  if (Status s = read_tensor("out", out, out_shape, Direction::out, cache.device(), &a->out);
      s != Status::ok)
    return s;
  return overlap(a->q, a->out) ? overlaps("out", "q") : Status::ok;
}

/// What a call writes must not overlap what it reads or writes besides.
Status check_overlaps(const AttentionTensors& a) {
  struct Named {
    const char* name;
    const Tensor* tensor;
  };
  const Named written[] = {{"out", &a.out}, {"lse", &a.lse}, {"weights", &a.weights}};
  const Named read[] = {{"q", &a.q}, {"bias", &a.bias}, {"mask", &a.mask}};
  const auto meet = [](const Named& x, const Named& y) {
    return x.tensor->data != nullptr && y.tensor->data != nullptr && overlap(*x.tensor, *y.tensor);
  };
  for (const Named& w : written) {
    for (const Named& other : written) {
      if (other.tensor > w.tensor && meet(w, other)) return overlaps(other.name, w.name);
    }
    for (const Named& r : read) {
      if (meet(w, r)) return overlaps(w.name, r.name);
    }
  }
  return Status::ok;
}

/// Fields and flags that later versions fill in.
Status check_reserved(const kvc_attention_extra& extra) {
  constexpr uint32_t known = KVC_EXTRA_DROPOUT | KVC_EXTRA_NO_SINKS | KVC_EXTRA_BY_POSITION |
                             KVC_EXTRA_MASK_ALONE;
  if ((extra.flags & ~known) != 0)
    return unknown_bits("kvc_attention_extra.flags", extra.flags & ~known, nullptr);
  if (extra.dropout_seed != 0 && (extra.flags & KVC_EXTRA_DROPOUT) == 0) {
    return fail(
        Status::invalid_argument,
        "kvc_attention_extra.dropout_seed is %llu, but flags lack KVC_EXTRA_DROPOUT: set it to 0",
        static_cast<unsigned long long>(extra.dropout_seed));
  }
  struct Reserved {
    bool is_used;
    const char* name;
  };
  for (const Reserved& reserved :
       {Reserved{(extra.flags & KVC_EXTRA_DROPOUT) != 0, "the flag KVC_EXTRA_DROPOUT"},
        Reserved{(extra.flags & KVC_EXTRA_NO_SINKS) != 0, "the flag KVC_EXTRA_NO_SINKS"},
        Reserved{(extra.flags & KVC_EXTRA_BY_POSITION) != 0, "the flag KVC_EXTRA_BY_POSITION"},
        Reserved{(extra.flags & KVC_EXTRA_MASK_ALONE) != 0, "the flag KVC_EXTRA_MASK_ALONE"},
        Reserved{extra.first_position != nullptr, "kvc_attention_extra.first_position"},
        Reserved{extra.constants != nullptr, "kvc_attention_extra.constants"},
        Reserved{extra.alibi_slopes != nullptr, "kvc_attention_extra.alibi_slopes"},
        Reserved{extra.sinks != nullptr, "kvc_attention_extra.sinks"}}) {
    if (reserved.is_used) return not_implemented(reserved.name);
  }
  return Status::ok;
}

/// The tensors over columns. The history is looked up for them alone: a plain call need not know it.
Status read_columns(KeyValues& cache, int32_t layer, const kvc_attention_extra& extra,
                    AttentionTensors* a) {
  if (extra.bias == nullptr && extra.mask == nullptr && extra.weights == nullptr) return Status::ok;
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const Expected shape = {
      3, {a->q.shape[1], cache.n_tokens(), history}, "n_q_heads, n_tokens, history"};
  const Expected broadcast = {
      3,
      {a->q.shape[1], cache.n_tokens(), history},
      "n_q_heads, n_tokens, history; any may be 1, leading ones may be missing"};
  const DeviceInfo& device = cache.device();
  if (extra.bias != nullptr) {
    const Status s = read_broadcast("bias", extra.bias, broadcast, device, &a->bias);
    if (s != Status::ok) return s;
  }
  if (extra.mask != nullptr && !(planted(Bug::mask_ignored_with_bias) && extra.bias != nullptr)) {
    const Status s = read_broadcast("mask", extra.mask, broadcast, device, &a->mask,
                                    Elements::boolean);
    if (s != Status::ok) return s;
  }
  if (extra.weights == nullptr) return Status::ok;
  return read_tensor("weights", extra.weights, shape, Direction::out, device, &a->weights,
                     Elements::f32);
}

Status read_extra(KeyValues& cache, int32_t layer, const kvc_attention_extra* from,
                  AttentionTensors* a) {
  if (from == nullptr) return Status::ok;
  kvc_attention_extra extra;
  if (Status s = read_descriptor("kvc_attention_extra", from, &extra); s != Status::ok) return s;
  // Columns by position have another extent than the history: their flag is refused below, not their shape here.
  if ((extra.flags & KVC_EXTRA_BY_POSITION) == 0) {
    if (Status s = read_columns(cache, layer, extra, a); s != Status::ok) return s;
  }
  if (extra.lse != nullptr) {
    const Expected shape = {2, {cache.n_tokens(), a->q.shape[1]}, "n_tokens, n_q_heads"};
    const Status s = read_tensor("lse", extra.lse, shape, Direction::out, cache.device(), &a->lse,
                                 Elements::f32);
    if (s != Status::ok) return s;
  }
  if (Status s = check_overlaps(*a); s != Status::ok) return s;
  return check_reserved(extra);
}

Status read_attention(KeyValues& cache, int32_t layer, const kvc_tensor* q, const kvc_tensor* out,
                      const kvc_attention_extra* extra, AttentionTensors* a) {
  if (Status s = read_queries(cache, layer, q, out, a); s != Status::ok) return s;
  return read_extra(cache, layer, extra, a);
}

// ---- Reading ------------------------------------------------------------------------------------------------------------------------

Status mask(KeyValues& cache, int32_t layer, kvc_tensor* into) {
  if (Status s = cache.ready_for_layer(layer, false); s != Status::ok) return s;
  if (into == nullptr) return is_null("into");
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  if (into->data == nullptr) {
    const int64_t shape[] = {cache.n_tokens(), history};
    const Status s = static_cast<Status>(
        kvc_tensor_dense(nullptr, static_cast<uint32_t>(cache.mask_dtype()), 2, shape, into));
    into->device_type = cache.device().type;
    into->device_id = cache.device().id;
    return s;
  }
  Tensor tensor;
  const Expected shape = {2, {cache.n_tokens(), history}, "n_tokens, history"};
  const Status s = read_tensor("into", into, shape, Direction::out, cache.device(), &tensor,
                               Elements::mask);
  return s == Status::ok ? cache.mask(layer, tensor) : s;
}

Status gather(KeyValues& cache, int32_t layer, int32_t sequence, const kvc_tensor* k,
              const kvc_tensor* v) {
  const CacheBounds& bounds = cache.bounds();
  SequenceInfo info = {};
  if (Status s = cache.sequence_info(sequence, &info); s != Status::ok) return s;
  if (layer < 0 || layer >= bounds.n_layers) return no_index("layer", layer, bounds.n_layers);
  Tensor to_k, to_v;
  if (k != nullptr) {
    const Expected shape = {
        3, {info.count, bounds.n_kv_heads, bounds.head_dim_k}, "count, n_kv_heads, head_dim_k"};
    if (Status s = read_tensor("k", k, shape, Direction::out, cache.device(), &to_k); s != Status::ok)
      return s;
  }
  if (v != nullptr) {
    kvc_tensor plain = *v;
    const bool transposed = v->flags == KVC_TENSOR_TRANSPOSED;
    if (transposed) plain.flags = 0;
    const Expected rows = {
        3, {info.count, bounds.n_kv_heads, bounds.head_dim_v}, "count, n_kv_heads, head_dim_v"};
    const Expected columns = {3,
                              {bounds.n_kv_heads, bounds.head_dim_v, info.count},
                              "n_kv_heads, head_dim_v, count with KVC_TENSOR_TRANSPOSED"};
    const Status s = read_tensor("v", &plain, transposed ? columns : rows, Direction::out,
                                 cache.device(), &to_v);
    if (s != Status::ok) return s;
    if (transposed) {  // the same elements named in the order of rows
      const Tensor given = to_v;
      for (int d = 0; d < 3; ++d) {
        to_v.shape[d] = given.shape[(d + 2) % 3];
        to_v.stride[d] = given.stride[(d + 2) % 3];
      }
    }
  }
  if (k != nullptr && v != nullptr && overlap(to_k, to_v)) return overlaps("k", "v");
  return cache.gather(layer, sequence, to_k, to_v);
}

}  // namespace
}  // namespace kvc::capi

using kvc::KeyValues, kvc::Status;
using kvc::capi::with_key_values;

kvc_status kvc_bind_attention(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                              const kvc_attention_desc* desc, const float* alibi_slopes,
                              const float* sinks) noexcept {
  return with_key_values(cache, [&](KeyValues& c) {
    return kvc::capi::bind_attention(c, layer_begin, layer_end, desc, alibi_slopes, sinks);
  });
}

kvc_status kvc_bind_rope(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                         const kvc_rope_desc* desc, const float* frequency_factors) noexcept {
  return with_key_values(cache, [&](KeyValues& c) {
    return kvc::capi::bind_rope(c, layer_begin, layer_end, desc, frequency_factors);
  });
}

kvc_status kvc_bind_shift(kvc_cache* cache, kvc_shift_function function, void* user) noexcept {
  return with_key_values(cache, [&](KeyValues& c) {
    kvc::KeyShift shift;
    if (function != nullptr)
      shift = {kvc::capi::call_shift, reinterpret_cast<void (*)()>(function), user, c.device()};
    return c.bind_shift(shift);
  });
}

kvc_status kvc_put(kvc_cache* cache, int32_t layer, const kvc_tensor* k, const kvc_tensor* v) noexcept {
  return with_key_values(cache, [&](KeyValues& c) -> Status {
    if (Status s = c.ready_for_layer(layer, false); s != Status::ok) return s;
    kvc::capi::PutArguments put;
    if (Status s = kvc::capi::read_put(c, k, v, &put); s != Status::ok) return s;
    return c.put(layer, put.k, put.v);
  });
}

kvc_status kvc_attention(kvc_cache* cache, int32_t layer, const kvc_tensor* q, kvc_tensor* out,
                         const kvc_attention_extra* extra) noexcept {
  return with_key_values(cache, [&](KeyValues& c) -> Status {
    if (Status s = c.ready_for_layer(layer, true); s != Status::ok) return s;
    kvc::AttentionTensors a;
    if (Status s = kvc::capi::read_attention(c, layer, q, out, extra, &a); s != Status::ok)
      return s;
    return c.attention(layer, a);
  });
}

kvc_status kvc_put_attention(kvc_cache* cache, int32_t layer, const kvc_tensor* k,
                             const kvc_tensor* v, const kvc_tensor* q, kvc_tensor* out,
                             const kvc_attention_extra* extra) noexcept {
  return with_key_values(cache, [&](KeyValues& c) -> Status {
    if (Status s = c.ready_for_layer(layer, false); s != Status::ok) return s;
    kvc::capi::PutArguments put;
    kvc::AttentionTensors a;
    if (Status s = kvc::capi::read_put(c, k, v, &put); s != Status::ok) return s;
    if (Status s = kvc::capi::read_attention(c, layer, q, out, extra, &a); s != Status::ok)
      return s;
    return c.put_attention(layer, put.k, put.v, a);
  });
}

kvc_status kvc_get(kvc_cache* cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) noexcept {
  return with_key_values(cache, [&](KeyValues& c) -> Status {
    kvc::Tensor view_k, view_v;
    if (Status s = c.get(layer, &view_k, &view_v); s != Status::ok) return s;
    if (k != nullptr) kvc::capi::write_view(view_k, c.device(), k);
    if (v != nullptr) kvc::capi::write_view(view_v, c.device(), v);
    return Status::ok;
  });
}

kvc_status kvc_history(kvc_cache* cache, int32_t layer, int32_t* first_cell,
                       int32_t* n_cells) noexcept {
  return with_key_values(cache, [&](KeyValues& c) -> Status {
    if (Status s = c.ready_for_layer(layer, false); s != Status::ok) return s;
    if (first_cell == nullptr) return kvc::is_null("first_cell");
    if (n_cells == nullptr) return kvc::is_null("n_cells");
    return c.history(layer, first_cell, n_cells);
  });
}

kvc_status kvc_mask(kvc_cache* cache, int32_t layer, kvc_tensor* into) noexcept {
  return with_key_values(cache, [&](KeyValues& c) { return kvc::capi::mask(c, layer, into); });
}

kvc_status kvc_gather(kvc_cache* cache, int32_t layer, int32_t sequence, kvc_tensor* k,
                      kvc_tensor* v) noexcept {
  return with_key_values(cache,
                         [&](KeyValues& c) { return kvc::capi::gather(c, layer, sequence, k, v); });
}

kvc_status kvc_runs(const kvc_cache* cache, int32_t layer, int32_t sequence, int32_t capacity,
                    kvc_run* runs, int32_t* n) noexcept {
  static_assert(sizeof(kvc_run) == sizeof(kvc::Run));
  return with_key_values(cache, [&](const KeyValues& c) -> Status {
    if (n == nullptr) return kvc::is_null("n");
    if (Status s = kvc::check_arrays("capacity", capacity, {{"runs", runs}}); s != Status::ok)
      return s;
    return c.runs(layer, sequence, capacity, reinterpret_cast<kvc::Run*>(runs), n);
  });
}
