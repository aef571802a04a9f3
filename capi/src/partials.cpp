#include <cmath>
#include <cstring>
#include <initializer_list>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "core/attention/dropout.hpp"
#include "core/attention/merging.hpp"
#include "kvc/operators.h"

/// Results over parts of the keys, dropout masks and modes: calls on tensors alone, on the host.
namespace kvc::capi {
namespace {

constexpr DeviceInfo host;

/// The shape that the caller's tensor has, if a result may have it: [..., heads, dim].
Status read_axes(const char* name, const kvc_tensor* from, Expected* shape) {
  if (from == nullptr) return is_null(name);
  if (from->ndim < 2 || from->ndim > KVC_MAX_DIMS) {
    return fail(Status::shape, "%s has %d dimensions, not 2 to %d (..., heads, dim)", name,
                from->ndim, KVC_MAX_DIMS);
  }
  *shape = {from->ndim, {}, "..., heads, dim"};
  std::memcpy(shape->shape, from->shape, sizeof shape->shape);
  for (int32_t d = 0; d < from->ndim; ++d) {
    if (from->shape[d] >= 0) continue;
    return fail(Status::shape, "%s.shape[%d] is %lld; extents are 0 or more", name, d,
                static_cast<long long>(from->shape[d]));
  }
  return Status::ok;
}

/// The shape of the log-sum-exps of such a result.
Expected heads_of(const Expected& shape) {
  Expected heads = shape;
  --heads.ndim;
  heads.axes = "..., heads";
  return heads;
}

struct Named {
  const char* name;
  const Tensor* tensor;
};

/// `written` needs memory of its own.
Status check_apart(Named written, std::initializer_list<Named> others) {
  for (const Named& other : others) {
    if (overlap(*written.tensor, *other.tensor)) return overlaps(written.name, other.name);
  }
  return Status::ok;
}

Status merge(const kvc_tensor* o, const kvc_tensor* lse, const kvc_tensor* o2, const kvc_tensor* lse2) {
  Expected shape;
  if (Status s = read_axes("o", o, &shape); s != Status::ok) return s;
  const Expected heads = heads_of(shape);
  Tensor to, to_lse, from, from_lse;
  if (Status s = read_tensor("o", o, shape, Direction::out, host, &to); s != Status::ok) return s;
  if (Status s = read_tensor("lse", lse, heads, Direction::out, host, &to_lse, Elements::f32);
      s != Status::ok)
    return s;
  if (Status s = read_tensor("o2", o2, shape, Direction::in, host, &from); s != Status::ok)
    return s;
  if (Status s = read_tensor("lse2", lse2, heads, Direction::in, host, &from_lse, Elements::f32);
      s != Status::ok)
    return s;
  const Named of_lse = {"lse", &to_lse}, of_o2 = {"o2", &from}, of_lse2 = {"lse2", &from_lse};
  if (Status s = check_apart({"o", &to}, {of_lse, of_o2, of_lse2}); s != Status::ok) return s;
  if (Status s = check_apart(of_lse, {of_o2, of_lse2}); s != Status::ok) return s;
  merge_attention(to, to_lse, from, from_lse);
  return Status::ok;
}

Status sink(const kvc_tensor* o, const kvc_tensor* lse, const float* sinks) {
  Expected shape;
  if (Status s = read_axes("o", o, &shape); s != Status::ok) return s;
  const Expected heads = heads_of(shape);
  Tensor to, seen;
  if (Status s = read_tensor("o", o, shape, Direction::out, host, &to); s != Status::ok) return s;
  if (Status s = read_tensor("lse", lse, heads, Direction::in, host, &seen, Elements::f32);
      s != Status::ok)
    return s;
  if (sinks == nullptr) return is_null("sinks");
  for (int64_t head = 0; !seen.is_empty() && head < seen.shape[seen.ndim - 1]; ++head) {
    if (std::isfinite(sinks[head])) continue;
    return fail(Status::invalid_argument, "sinks[%lld] is %g; it must be finite",
                static_cast<long long>(head), static_cast<double>(sinks[head]));
  }
  if (Status s = check_apart({"o", &to}, {{"lse", &seen}}); s != Status::ok) return s;
  apply_sinks(to, seen, sinks);
  return Status::ok;
}

Status repeat(const kvc_tensor* in, int32_t n, const kvc_tensor* out) {
  constexpr int32_t most = 65536;
  Expected shape;
  if (Status s = read_axes("in", in, &shape); s != Status::ok) return s;
  Tensor from, to;
  if (Status s = read_tensor("in", in, shape, Direction::in, host, &from, Elements::any);
      s != Status::ok)
    return s;
  if (n < 1 || n > most) return out_of_range("n", n, 1, most);
  int64_t& heads = shape.shape[shape.ndim - 2];
  if (heads > INT64_MAX / n)
    return fail(Status::overflow, "%lld heads, %d times each, are more than 2^63",
                static_cast<long long>(heads), n);
  heads *= n;
  shape.axes = "..., heads * n, dim";
  if (Status s = read_tensor("out", out, shape, Direction::out, host, &to, Elements::any);
      s != Status::ok)
    return s;
  if (to.dtype != from.dtype) return wrong_dtype("out", out->dtype, "the type of in");
  if (Status s = check_apart({"out", &to}, {{"in", &from}}); s != Status::ok) return s;
  repeat_heads(from, n, to);
  return Status::ok;
}

Status check_positions(const char* name, const int32_t* position, int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    if (position[i] >= 0) continue;
    return fail(Status::invalid_argument, "%s[%d] is %d; positions are 0 or more", name, i,
                position[i]);
  }
  return Status::ok;
}

struct Positions {
  int32_t n;
  const int32_t* position;
};

Status dropout_mask(uint64_t seed, float probability, int32_t layer, int32_t sequence,
                    const Positions& q, const Positions& k, const kvc_tensor* into) {
  if (!(probability >= 0 && probability < 1)) {
    return fail(Status::invalid_argument, "probability is %g; it must be 0 or more and below 1",
                static_cast<double>(probability));
  }
  if (layer < 0 || layer > 65535) return out_of_range("layer", layer, 0, 65535);
  if (sequence < 0) return out_of_range("sequence", sequence, 0, INT32_MAX);
  if (Status s = check_arrays("n_q", q.n, {{"q_position", q.position}}); s != Status::ok) return s;
  if (Status s = check_arrays("n_k", k.n, {{"k_position", k.position}}); s != Status::ok) return s;
  if (Status s = check_positions("q_position", q.position, q.n); s != Status::ok) return s;
  if (Status s = check_positions("k_position", k.position, k.n); s != Status::ok) return s;
  if (into == nullptr) return is_null("into");
  const int64_t n_heads = into->ndim == 3 ? into->shape[0] : 0;
  Tensor mask;
  const Expected shape = {3, {n_heads, q.n, k.n}, "n_heads, n_q, n_k"};
  if (Status s = read_tensor("into", into, shape, Direction::out, host, &mask, Elements::boolean);
      s != Status::ok)
    return s;
  if (n_heads > dropout_heads_max) {
    return fail(Status::not_supported, "into has %lld heads; dropout tells %d apart",
                static_cast<long long>(n_heads), dropout_heads_max);
  }
  const Dropout dropout = Dropout::of(seed, probability, layer);
  for (int32_t head = 0; head < n_heads; ++head) {
    for (int32_t i = 0; i < q.n; ++i) {
      DropoutRow row(dropout, sequence, q.position[i], head);
      for (int32_t j = 0; j < k.n; ++j) {
        const int64_t at = head * mask.stride[0] + i * mask.stride[1] + j * mask.stride[2];
        static_cast<uint8_t*>(mask.data)[at] = row.keeps(k.position[j]);
      }
    }
  }
  return Status::ok;
}

Status mode_of(const kvc_tensor* q, int32_t bthd, uint32_t* mode) {
  if (q == nullptr) return is_null("q");
  if (bthd != 0 && bthd != 1) return out_of_range("bthd", bthd, 0, 1);
  if (mode == nullptr) return is_null("mode");
  if (q->ndim != 4) {
    return fail(Status::shape, "q has %d dimensions, not 4 (%s)", q->ndim,
                bthd ? "batch, length, heads, dim" : "batch, heads, length, dim");
  }
  *mode = q->shape[bthd ? 1 : 2] == 1 ? KVC_MODE_AUTOREGRESSIVE : KVC_MODE_TRAIN;
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_merge_attention(kvc_tensor* o, kvc_tensor* lse, const kvc_tensor* o2,
                               const kvc_tensor* lse2) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::merge(o, lse, o2, lse2); });
}

kvc_status kvc_apply_sinks(kvc_tensor* o, const kvc_tensor* lse, const float* sinks) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::sink(o, lse, sinks); });
}

kvc_status kvc_repeat_kv_heads(const kvc_tensor* in, int32_t n, kvc_tensor* out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::repeat(in, n, out); });
}

kvc_status kvc_dropout_mask(uint64_t seed, float probability, int32_t layer, int32_t sequence,
                            int32_t n_q, const int32_t* q_position, int32_t n_k,
                            const int32_t* k_position, kvc_tensor* into) noexcept {
  return kvc::capi::guard([&] {
    return kvc::capi::dropout_mask(seed, probability, layer, sequence, {n_q, q_position},
                                   {n_k, k_position}, into);
  });
}

kvc_status kvc_mode_of(const kvc_tensor* q, int32_t bthd, uint32_t* mode) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::mode_of(q, bthd, mode); });
}
