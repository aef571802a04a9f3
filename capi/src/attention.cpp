#include <utility>

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"
#include "core/base/planted.hpp"

namespace kvc::capi {

Status overlaps(const char* written, const char* other) {
  return fail(Status::invalid_argument,
              "%s overlaps %s: kvc writes to %s, which needs memory of its own", written, other,
              written);
}

/// What a call writes must not overlap what it reads or writes besides.
Status check_overlaps(const AttentionTensors& a) {
  struct Named {
    const char* name;
    const Tensor* tensor;
  };
  // Heads that stand for a group each are fewer than those that read them.
  const auto as_given = [](Tensor t, int32_t sharers) {
    if (t.data != nullptr) t.shape[t.ndim - 3] /= sharers;
    return t;
  };
  const Tensor bias = as_given(a.bias, a.bias_sharers), mask = as_given(a.mask, a.mask_sharers);
  const Named written[] = {{"out", &a.out}, {"lse", &a.lse}, {"weights", &a.weights}};
  const Named read[] = {{"q", &a.q}, {"bias", &bias}, {"mask", &mask}};
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

namespace {

// ---- Put and attention ----------------------------------------------------------------------------------------------------------

/// The rows that put() stores.
Status read_put(const LayerAttention& cache, const kvc_tensor* k, const kvc_tensor* v,
                KeysAndValues* put) {
  TokenDims tokens;
  if (Status s = dims_to_put(cache, k, &tokens); s != Status::ok) return s;
  return read_keys_and_values(cache.holder().bounds(), cache.holder().device(), tokens, k, v, put);
}

/// While put_attention() is read, and refused or done: attention counts what it will put.
class ExpectedRows {
 public:
  ExpectedRows(LayerAttention& cache, int64_t rows) : cache_(cache) { cache.expect_rows(rows); }
  ~ExpectedRows() { cache_.expect_rows(0); }
  ExpectedRows(const ExpectedRows&) = delete;
  ExpectedRows& operator=(const ExpectedRows&) = delete;

 private:
  LayerAttention& cache_;
};

Status read_queries(const LayerAttention& cache, int32_t layer, const kvc_tensor* q,
                    const kvc_tensor* out, AttentionTensors* a) {
  const CacheBounds& bounds = cache.holder().bounds();
  const TokenDims tokens = token_dims(cache.holder());
  if (q == nullptr) return is_null("q");
  int64_t heads = cache.bound_q_heads(layer);
  if (heads == 0) {
    if (q->ndim != tokens.n + 2)
      return fail(Status::shape, "q has %d dimensions, not %d (%sn_q_heads, head_dim_k)", q->ndim,
                  tokens.n + 2, tokens.names);
    heads = q->shape[tokens.n];
    if (check_q_heads(cache.holder().bounds(), tokens.are_rows() ? "q.shape[2]" : "q.shape[1]",
                      heads) != Status::ok)
      return Status::shape;
  }
  const Expected q_shape = expect_tokens(tokens, heads, bounds.head_dim_k, "n_q_heads, head_dim_k");
  const Expected out_shape = expect_tokens(tokens, heads, bounds.head_dim_v,
                                           "n_q_heads, head_dim_v");
  if (Status s = read_tensor("q", q, q_shape, Direction::in, cache.holder().device(), &a->q);
      s != Status::ok)
    return s;
  if (Status s = read_tensor("out", out, out_shape, Direction::out, cache.holder().device(), &a->out);
      s != Status::ok)
    return s;
  return overlap(a->q, a->out) ? overlaps("out", "q") : Status::ok;
}

/// Fields and flags that later versions fill in.
Status check_reserved(const kvc_attention_extra& extra) {
  constexpr uint32_t known = KVC_EXTRA_DROPOUT | KVC_EXTRA_NO_SINKS | KVC_EXTRA_BY_POSITION |
                             KVC_EXTRA_MASK_ALONE;
  if ((extra.flags & ~known) != 0)
    return unknown_bits("kvc_attention_extra.flags", extra.flags & ~known,
                        "KVC_EXTRA_DROPOUT and KVC_EXTRA_NO_SINKS");
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
       {Reserved{(extra.flags & KVC_EXTRA_BY_POSITION) != 0, "the flag KVC_EXTRA_BY_POSITION"},
        Reserved{(extra.flags & KVC_EXTRA_MASK_ALONE) != 0, "the flag KVC_EXTRA_MASK_ALONE"},
        Reserved{extra.first_position != nullptr, "kvc_attention_extra.first_position"},
        Reserved{extra.constants != nullptr, "kvc_attention_extra.constants"},
        Reserved{extra.alibi_slopes != nullptr, "kvc_attention_extra.alibi_slopes"},
        Reserved{extra.sinks != nullptr, "kvc_attention_extra.sinks"}}) {
    if (reserved.is_used) return not_implemented(reserved.name);
  }
  return Status::ok;
}

/// [n_q_heads, n_tokens, history], or [batch, n_q_heads, q_len, columns] in a pass of rows.
Expected expect_columns(const TokenDims& tokens, int64_t n_q_heads, int64_t columns, bool broadcast) {
  if (!tokens.are_rows()) {
    return {3,
            {n_q_heads, tokens.extent[0], columns},
            broadcast ? "n_q_heads, n_tokens, history; any may be 1, leading ones may be missing"
                      : "n_q_heads, n_tokens, history"};
  }
  return {4,
          {tokens.extent[0], n_q_heads, tokens.extent[1], columns},
          broadcast ? "batch, n_q_heads, q_len, columns; any may be 1, leading ones may be missing"
                    : "batch, n_q_heads, q_len, columns"};
}

/// From tensors as callers shape them to tensors as kernels read them. Behind all checks.
void fold(const TokenDims& tokens, AttentionTensors* a) {
  for (Tensor* tensor : {&a->q, &a->out, &a->lse}) fold_tokens(tokens, 0, tensor);
  for (Tensor* tensor : {&a->bias, &a->mask, &a->weights}) fold_columns(tokens, tensor);
}

/// The tensors over columns. The history is looked up for them alone: a plain call need not know it.
Status read_columns(LayerAttention& cache, int32_t layer, const kvc_attention_extra& extra,
                    AttentionTensors* a) {
  if (extra.bias == nullptr && extra.mask == nullptr && extra.weights == nullptr) return Status::ok;
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const TokenDims tokens = token_dims(cache.holder());
  const int64_t n_q_heads = a->q.shape[tokens.n];
  const Expected shape = expect_columns(tokens, n_q_heads, history, false);
  const Expected broadcast = expect_columns(tokens, n_q_heads, history, true);
  const DeviceInfo& device = cache.holder().device();
  const HeadAxis heads = {tokens.are_rows() ? 1 : 0, cache.holder().bounds().n_kv_heads};
  if (extra.bias != nullptr) {
    const Status s = read_for_heads("bias", extra.bias, broadcast, heads, device, &a->bias,
                                    &a->bias_sharers);
    if (s != Status::ok) return s;
  }
  if (extra.mask != nullptr && !(planted(Bug::mask_ignored_with_bias) && extra.bias != nullptr)) {
    const Status s = read_for_heads("mask", extra.mask, broadcast, heads, device, &a->mask,
                                    &a->mask_sharers, Elements::boolean);
    if (s != Status::ok) return s;
  }
  if (extra.weights == nullptr) return Status::ok;
  return read_tensor("weights", extra.weights, shape, Direction::out, device, &a->weights,
                     Elements::f32);
}

Status read_extra(LayerAttention& cache, int32_t layer, const kvc_attention_extra* from,
                  AttentionTensors* a) {
  if (from == nullptr) return Status::ok;
  kvc_attention_extra extra;
  if (Status s = read_descriptor("kvc_attention_extra", from, &extra); s != Status::ok) return s;
  // Columns by position have another extent than the history: their flag is refused below, not their shape here.
  if ((extra.flags & KVC_EXTRA_BY_POSITION) == 0) {
    if (Status s = read_columns(cache, layer, extra, a); s != Status::ok) return s;
  }
  if (extra.lse != nullptr) {
    const TokenDims tokens = token_dims(cache.holder());
    const Expected shape = tokens.are_rows()
                               ? Expected{3,
                                          {tokens.extent[0], tokens.extent[1], a->q.shape[2]},
                                          "batch, q_len, n_q_heads"}
                               : Expected{
                                     2, {tokens.extent[0], a->q.shape[1]}, "n_tokens, n_q_heads"};
    const Status s = read_tensor("lse", extra.lse, shape, Direction::out, cache.holder().device(),
                                 &a->lse, Elements::f32);
    if (s != Status::ok) return s;
  }
  if (Status s = check_overlaps(*a); s != Status::ok) return s;
  a->leaves_sinks_out = (extra.flags & KVC_EXTRA_NO_SINKS) != 0;
  a->drops = (extra.flags & KVC_EXTRA_DROPOUT) != 0;
  a->dropout_seed = extra.dropout_seed;
  return check_reserved(extra);
}

Status read_attention(LayerAttention& cache, int32_t layer, const kvc_tensor* q,
                      const kvc_tensor* out, const kvc_attention_extra* extra, AttentionTensors* a) {
  if (Status s = read_queries(cache, layer, q, out, a); s != Status::ok) return s;
  if (Status s = read_extra(cache, layer, extra, a); s != Status::ok) return s;
  fold(token_dims(cache.holder()), a);
  return Status::ok;
}

// ---- Reading ------------------------------------------------------------------------------------------------------------------------

Status mask(KeyValues& cache, int32_t layer, kvc_tensor* into) {
  if (Status s = cache.ready_for_layer(layer, false); s != Status::ok) return s;
  if (into == nullptr) return is_null("into");
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const TokenDims tokens = token_dims(cache.holder());
  const Expected shape = tokens.are_rows()
                             ? Expected{4,
                                        {tokens.extent[0], 1, tokens.extent[1], history},
                                        "batch, 1, q_len, columns"}
                             : Expected{2, {tokens.extent[0], history}, "n_tokens, history"};
  if (into->data == nullptr)
    return fill_in(shape, static_cast<uint32_t>(cache.mask_dtype()), cache.holder().device(), into);
  Tensor tensor;
  const Status s = read_tensor("into", into, shape, Direction::out, cache.holder().device(),
                               &tensor, Elements::mask);
  if (s != Status::ok) return s;
  if (tokens.are_rows()) {
    fold_columns(tokens, &tensor);  // [1, tokens, columns]
    tensor = tensor.first_of_all();
  }
  return cache.mask(layer, tensor);
}

Status gather(KeyValues& cache, int32_t layer, int32_t sequence, const kvc_tensor* k,
              const kvc_tensor* v) {
  const CacheBounds& bounds = cache.holder().bounds();
  SequenceInfo info = {};
  if (Status s = cache.holder().sequence_info(sequence, &info); s != Status::ok) return s;
  if (layer < 0 || layer >= bounds.n_layers) return no_index("layer", layer, bounds.n_layers);
  Tensor to_k, to_v;
  if (k != nullptr) {
    const Expected shape = {
        3, {info.count, bounds.n_kv_heads, bounds.head_dim_k}, "count, n_kv_heads, head_dim_k"};
    if (Status s = read_tensor("k", k, shape, Direction::out, cache.holder().device(), &to_k);
        s != Status::ok)
      return s;
  }
  if (v != nullptr) {
    kvc_tensor plain = *v;
    const bool transposed = v->flags == KVC_TENSOR_TRANSPOSED;
    if (transposed) plain.flags = 0;
    const Expected rows = {
        3, {info.count, bounds.value_heads, bounds.head_dim_v}, "count, n_kv_heads, head_dim_v"};
    const Expected columns = {3,
                              {bounds.value_heads, bounds.head_dim_v, info.count},
                              "n_kv_heads, head_dim_v, count with KVC_TENSOR_TRANSPOSED"};
    const Status s = read_tensor("v", &plain, transposed ? columns : rows, Direction::out,
                                 cache.holder().device(), &to_v);
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

using kvc::Cache, kvc::KeyValues, kvc::LayerAttention, kvc::Status;
using kvc::capi::When;

kvc_status kvc_put(kvc_cache* cache, int32_t layer, const kvc_tensor* k, const kvc_tensor* v) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfLayerAttention>(
      cache, layer, When::in_pass, {}, [&](LayerAttention& c, Cache&, int32_t own) -> Status {
        if (Status s = c.ready_to_put(own); s != Status::ok) return s;
        kvc::capi::KeysAndValues put;
        if (Status s = kvc::capi::read_put(c, k, v, &put); s != Status::ok) return s;
        return c.put(own, put.k, put.v);
      });
}

kvc_status kvc_attention(kvc_cache* cache, int32_t layer, const kvc_tensor* q, kvc_tensor* out,
                         const kvc_attention_extra* extra) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfLayerAttention>(
      cache, layer, When::in_pass, {}, [&](LayerAttention& c, Cache&, int32_t own) -> Status {
        if (Status s = c.ready_for_layer(own, true); s != Status::ok) return s;
        kvc::AttentionTensors a;
        if (Status s = kvc::capi::read_attention(c, own, q, out, extra, &a); s != Status::ok)
          return s;
        return c.attention(own, a);
      });
}

kvc_status kvc_put_attention(kvc_cache* cache, int32_t layer, const kvc_tensor* k,
                             const kvc_tensor* v, const kvc_tensor* q, kvc_tensor* out,
                             const kvc_attention_extra* extra) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfLayerAttention>(
      cache, layer, When::in_pass, {}, [&](LayerAttention& c, Cache&, int32_t own) -> Status {
        if (Status s = c.ready_to_put(own); s != Status::ok) return s;
        kvc::capi::KeysAndValues put;
        kvc::AttentionTensors a;
        if (Status s = kvc::capi::read_put(c, k, v, &put); s != Status::ok) return s;
        const kvc::capi::ExpectedRows expected(c, put.k.shape[0]);
        if (Status s = kvc::capi::read_attention(c, own, q, out, extra, &a); s != Status::ok)
          return s;
        return c.put_attention(own, put.k, put.v, a);
      });
}

kvc_status kvc_get(kvc_cache* cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfKeyValues>(
      cache, layer, When::in_pass, {}, [&](KeyValues& c, Cache&, int32_t own) -> Status {
        kvc::Tensor view_k, view_v;
        const Status lent = c.get(own, k == nullptr ? nullptr : &view_k,
                                  v == nullptr ? nullptr : &view_v);
        if (lent != Status::ok) return lent;
        if (k != nullptr) kvc::capi::write_view(view_k, c.holder().device(), k);
        if (v != nullptr) kvc::capi::write_view(view_v, c.holder().device(), v);
        return Status::ok;
      });
}

kvc_status kvc_history(kvc_cache* cache, int32_t layer, int32_t* first_cell,
                       int32_t* n_cells) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfKeyValues>(
      cache, layer, When::in_pass, {}, [&](KeyValues& c, Cache&, int32_t own) -> Status {
        if (Status s = c.ready_for_layer(own, false); s != Status::ok) return s;
        if (first_cell == nullptr) return kvc::is_null("first_cell");
        if (n_cells == nullptr) return kvc::is_null("n_cells");
        return c.history(own, first_cell, n_cells);
      });
}

kvc_status kvc_mask(kvc_cache* cache, int32_t layer, kvc_tensor* into) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfKeyValues>(
      cache, layer, When::in_pass, {},
      [&](KeyValues& c, Cache&, int32_t own) { return kvc::capi::mask(c, own, into); });
}

kvc_status kvc_gather(kvc_cache* cache, int32_t layer, int32_t sequence, kvc_tensor* k,
                      kvc_tensor* v) noexcept {
  return kvc::capi::with_layer<kvc::capi::OfKeyValues>(
      cache, layer, When::always, {sequence},
      [&](KeyValues& c, Cache&, int32_t own) { return kvc::capi::gather(c, own, sequence, k, v); });
}

kvc_status kvc_runs(const kvc_cache* cache, int32_t layer, int32_t sequence, int32_t capacity,
                    kvc_run* runs, int32_t* n) noexcept {
  static_assert(sizeof(kvc_run) == sizeof(kvc::Run));
  return kvc::capi::with_layer<kvc::capi::OfKeyValues>(
      cache, layer, When::always, {sequence},
      [&](const KeyValues& c, const Cache&, int32_t own) -> Status {
        if (n == nullptr) return kvc::is_null("n");
        if (Status s = kvc::check_arrays("capacity", capacity, {{"runs", runs}}); s != Status::ok)
          return s;
        return c.runs(own, sequence, capacity, reinterpret_cast<kvc::Run*>(runs), n);
      });
}
