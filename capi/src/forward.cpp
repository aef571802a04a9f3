#include "core/attention/forward.hpp"

#include <cmath>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "capi/src/objects.hpp"
#include "kvc/operators.h"

/// Attention without a cache: kvc_operator_forward().
namespace kvc::capi {
namespace {

struct ForwardArguments {
  const kvc_tensor *q, *k, *v;
  const float *slopes, *sinks;
  const kvc_attention_extra* extra;
  const kvc_tensor* out;
};

Status read_desc(const kvc_forward_desc* from, kvc_forward_desc* d) {
  *d = KVC_FORWARD_DESC_INIT;
  if (from != nullptr) {
    if (Status s = read_descriptor("kvc_forward_desc", from, d); s != Status::ok) return s;
  }
  constexpr uint32_t known = KVC_FORWARD_CAUSAL | KVC_FORWARD_DROPOUT | KVC_FORWARD_NO_SINKS;
  if ((d->flags & ~known) != 0)
    return unknown_bits("kvc_forward_desc.flags", d->flags & ~known, "KVC_FORWARD_…");
  if (d->dropout_seed != 0 && (d->flags & KVC_FORWARD_DROPOUT) == 0)
    return fail(Status::invalid_argument,
                "dropout_seed is set, but flags lack KVC_FORWARD_DROPOUT: set it to 0");
  constexpr int32_t most = 1 << 30;
  if (d->reach < 0 || d->reach > most) return out_of_range("reach", d->reach, 0, most);
  if (d->chunk < 0 || d->chunk > most) return out_of_range("chunk", d->chunk, 0, most);
  if (d->query_offset < KVC_NONE || d->query_offset > most)
    return out_of_range("query_offset", d->query_offset, KVC_NONE, most);
  if (d->layer < 0 || d->layer > 65535) return out_of_range("layer", d->layer, 0, 65535);
  if (d->reserved != 0)
    return fail(Status::invalid_argument, "kvc_forward_desc.reserved is %d; it must be 0",
                d->reserved);
  return Status::ok;
}

/// One extent of a tensor against its bound.
Status check_extent(const char* name, const kvc_tensor* tensor, int32_t dim, const char* what,
                    int64_t most) {
  if (tensor == nullptr) return is_null(name);
  if (tensor->ndim != 4)
    return fail(Status::shape, "%s has %d dimensions, not 4 (rows, length, heads, head_dim)", name,
                tensor->ndim);
  const int64_t extent = tensor->shape[dim];
  if (extent >= 1 && extent <= most) return Status::ok;
  return fail(Status::shape, "%s.shape[%d] is %lld; it must be from 1 to %lld, the operator's %s",
              name, dim, static_cast<long long>(extent), static_cast<long long>(most), what);
}

Status read_sizes(const ForwardBounds& bounds, const ForwardArguments& given, ForwardCall* call,
                  int32_t* n_q_heads) {
  const kvc_tensor* const q = given.q;
  if (Status s = check_extent("q", q, 0, "max_rows", bounds.max_rows); s != Status::ok) return s;
  if (Status s = check_extent("q", q, 1, "max_q_len", bounds.max_q_len); s != Status::ok) return s;
  if (Status s = check_extent("q", q, 2, "max_q_heads", bounds.max_q_heads); s != Status::ok)
    return s;
  if (Status s = check_extent("k", given.k, 1, "max_kv_len", bounds.max_kv_len); s != Status::ok)
    return s;
  if (q->shape[2] % bounds.n_kv_heads != 0)
    return fail(Status::shape, "q.shape[2] is %lld, no multiple of n_kv_heads %d",
                static_cast<long long>(q->shape[2]), bounds.n_kv_heads);
  call->n_rows = static_cast<int32_t>(q->shape[0]);
  call->q_len = static_cast<int32_t>(q->shape[1]);
  call->kv_len = static_cast<int32_t>(given.k->shape[1]);
  *n_q_heads = static_cast<int32_t>(q->shape[2]);
  return Status::ok;
}

/// The tensors of an extra, whose other fields are those of kvc_attention() alone.
Status read_extra(const DeviceInfo& device, const ForwardCall& call, int64_t heads,
                  int32_t n_kv_heads, const kvc_attention_extra* from, AttentionTensors* a) {
  if (from == nullptr) return Status::ok;
  kvc_attention_extra extra;
  if (Status s = read_descriptor("kvc_attention_extra", from, &extra); s != Status::ok) return s;
  if (extra.flags != 0 || extra.dropout_seed != 0 || extra.first_position != nullptr ||
      extra.constants != nullptr || extra.alibi_slopes != nullptr || extra.sinks != nullptr) {
    return fail(
        Status::invalid_argument,
        "extra brings bias, mask, weights and lse to kvc_operator_forward; its other fields "
        "must be 0: kvc_forward_desc and the arguments have them");
  }
  const Expected columns = {
      4, {call.n_rows, heads, call.q_len, call.kv_len}, "rows, n_q_heads, q_len, kv_len"};
  if (extra.bias != nullptr) {
    const Status s = read_for_heads("bias", extra.bias, columns, {1, n_kv_heads}, device, &a->bias,
                                    &a->bias_sharers);
    if (s != Status::ok) return s;
  }
  if (extra.mask != nullptr) {
    const Status s = read_for_heads("mask", extra.mask, columns, {1, n_kv_heads}, device, &a->mask,
                                    &a->mask_sharers, Elements::boolean);
    if (s != Status::ok) return s;
  }
  if (extra.weights != nullptr) {
    const Status s = read_tensor("weights", extra.weights, columns, Direction::out, device,
                                 &a->weights, Elements::f32);
    if (s != Status::ok) return s;
  }
  if (extra.lse == nullptr) return Status::ok;
  const Expected sums = {3, {call.n_rows, call.q_len, heads}, "rows, q_len, n_q_heads"};
  return read_tensor("lse", extra.lse, sums, Direction::out, device, &a->lse, Elements::f32);
}

Status read_tensors(const DeviceInfo& device, const ForwardBounds& bounds,
                    const ForwardArguments& given, int64_t heads, ForwardCall* call) {
  const Expected q = {4,
                      {call->n_rows, call->q_len, heads, bounds.head_dim_k},
                      "rows, q_len, n_q_heads, head_dim_k"};
  const Expected k = {4,
                      {call->n_rows, call->kv_len, bounds.n_kv_heads, bounds.head_dim_k},
                      "rows, kv_len, n_kv_heads, head_dim_k"};
  const Expected v = {4,
                      {call->n_rows, call->kv_len, bounds.n_kv_heads, bounds.head_dim_v},
                      "rows, kv_len, n_kv_heads, head_dim_v"};
  const Expected out = {4,
                        {call->n_rows, call->q_len, heads, bounds.head_dim_v},
                        "rows, q_len, n_q_heads, head_dim_v"};
  AttentionTensors& a = call->tensors;
  if (Status s = read_tensor("q", given.q, q, Direction::in, device, &a.q); s != Status::ok)
    return s;
  if (Status s = read_tensor("k", given.k, k, Direction::in, device, &call->k); s != Status::ok)
    return s;
  if (Status s = read_tensor("v", given.v, v, Direction::in, device, &call->v); s != Status::ok)
    return s;
  if (Status s = read_tensor("out", given.out, out, Direction::out, device, &a.out); s != Status::ok)
    return s;
  if (Status s = read_extra(device, *call, heads, bounds.n_kv_heads, given.extra, &a); s != Status::ok)
    return s;
  return check_overlaps(a);
}

/// From tensors as callers shape them to tensors as kernels read them.
void fold(ForwardCall* call) {
  const TokenDims queries = TokenDims::rows(call->n_rows, call->q_len);
  const TokenDims keys = TokenDims::rows(call->n_rows, call->kv_len);
  AttentionTensors& a = call->tensors;
  for (Tensor* tensor : {&a.q, &a.out, &a.lse}) fold_tokens(queries, 0, tensor);
  for (Tensor* tensor : {&call->k, &call->v}) fold_tokens(keys, 0, tensor);
  for (Tensor* tensor : {&a.bias, &a.mask, &a.weights}) fold_columns(queries, tensor);
}

Status forward(OperatorObject& object, const kvc_forward_desc* desc, const ForwardArguments& given) {
  if (!object.forward) {
    return fail(Status::not_supported,
                "op was created without bounds: set max_rows and the fields behind it in "
                "kvc_operator_desc");
  }
  const ChosenOperator& op = *object.chosen;
  const ForwardBounds& bounds = object.forward->bounds();
  const DeviceInfo device = object.device->info();
  kvc_forward_desc d;
  ForwardCall call;
  kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
  if (Status s = read_desc(desc, &d); s != Status::ok) return s;
  if (Status s = read_sizes(bounds, given, &call, &constants.n_q_heads); s != Status::ok) return s;
  constants.softcap = d.softcap;
  if (Status s = read_constants(constants, given.slopes, given.sinks, &call.constants);
      s != Status::ok)
    return s;
  if (Status s = read_tensors(device, bounds, given, constants.n_q_heads, &call); s != Status::ok)
    return s;
  fold(&call);
  call.constants.scale = op.scale != 0 ? op.scale
                                       : static_cast<float>(
                                             1 / std::sqrt(static_cast<double>(bounds.head_dim_k)));
  if ((d.flags & KVC_FORWARD_NO_SINKS) != 0) call.constants.sinks = nullptr;
  call.causal = (d.flags & KVC_FORWARD_CAUSAL) != 0;
  call.visibility.reach = d.reach;
  call.visibility.chunk = d.chunk;
  call.first_position = d.query_offset == 0          ? call.kv_len - call.q_len
                        : d.query_offset == KVC_NONE ? 0
                                                     : d.query_offset;
  call.tensors.drops = (d.flags & KVC_FORWARD_DROPOUT) != 0;
  call.tensors.dropout_seed = d.dropout_seed;
  call.layer = d.layer;
  return object.forward->run(op, call);
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_operator_forward(kvc_operator* op, const kvc_forward_desc* desc, const kvc_tensor* q,
                                const kvc_tensor* k, const kvc_tensor* v, const float* alibi_slopes,
                                const float* sinks, const kvc_attention_extra* extra,
                                kvc_tensor* out) noexcept {
  using namespace kvc::capi;
  return guard([&]() -> kvc::Status {
    void* object = nullptr;
    if (kvc::Status s = handles::enter(op, Kind::op, Access::exclusive, &object); s != kvc::Status::ok)
      return s;
    const kvc::Status status = forward(*static_cast<OperatorObject*>(object), desc,
                                       {q, k, v, alibi_slopes, sinks, extra, out});
    handles::leave(op, Access::exclusive);
    return status;
  });
}
