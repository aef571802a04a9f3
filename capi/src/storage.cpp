#include "kvc/storage.h"

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"

/// Reading and putting what a cache stores. The codecs are in codecs.cpp.
namespace kvc::capi {
namespace {

/// Codes of one side, or its scales.
struct Part {
  const char* name;
  DType element;
  int32_t per_row;
  const char* axes;
};

Status read_part(const Part& part, const kvc_tensor* from, const CacheBounds& bounds,
                 const DeviceInfo& device, int64_t rows, Tensor* to) {
  if (part.per_row == 0) {
    if (from == nullptr) return Status::ok;
    return fail(Status::invalid_argument, "%s must be null: the type stores no scales", part.name);
  }
  const Expected shape = {3, {rows, bounds.n_kv_heads, part.per_row}, part.axes};
  return read_tensor(part.name, from, shape, Direction::in, device, to, elements_of(part.element));
}

Status read_codes(const CacheBounds& bounds, const DeviceInfo& device, int64_t rows,
                  const kvc_tensor* const (&given)[4], KeyValues::Codes* codes) {
  constexpr const char* code_axes = "n_tokens, n_kv_heads, codes_per_row";
  constexpr const char* scale_axes = "n_tokens, n_kv_heads, scales_per_row";
  const auto codes_of = [&](const char* name, const RowFormat& format) {
    return Part{name, format_of(format.type).code, format.n_codes(), code_axes};
  };
  const auto scales_of = [&](const char* name, const RowFormat& format) {
    return Part{name, format_of(format.type).scale, format.n_scales(), scale_axes};
  };
  const Part parts[4] = {codes_of("k", bounds.row_k), scales_of("k_scales", bounds.row_k),
                         codes_of("v", bounds.row_v), scales_of("v_scales", bounds.row_v)};
  Tensor* const to[4] = {&codes->k, &codes->k_scales, &codes->v, &codes->v_scales};
  for (int32_t i = 0; i < 4; ++i) {
    const Status s = bounds.v_in_k && i >= 2
                         ? need_no_v(parts[i].name, given[i])
                         : read_part(parts[i], given[i], bounds, device, rows, to[i]);
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

Status put_codes(KeyValues& cache, int32_t layer, const kvc_tensor* const (&given)[4]) {
  if (Status s = cache.ready_to_put(layer); s != Status::ok) return s;
  int64_t rows = 0;
  if (Status s = cache.rows_to_put(rows_of(given[0]), &rows); s != Status::ok) return s;
  KeyValues::Codes codes;
  const Status s = read_codes(cache.holder().bounds(), cache.holder().device(), rows, given, &codes);
  return s == Status::ok ? cache.put_codes(layer, codes) : s;
}

/// A tensor that receives [columns, n_kv_heads, head_dim] numbers; without data in `to` where none are wanted.
Status read_target(const Cache& holder, const char* name, const kvc_tensor* from, int64_t columns,
                   int32_t head_dim, Tensor* to) {
  if (from == nullptr || from->data == nullptr) return Status::ok;
  const Expected expected = {
      3, {columns, holder.bounds().n_kv_heads, head_dim}, "history, n_kv_heads, head_dim"};
  return read_tensor(name, from, expected, Direction::out, holder.device(), to);
}

struct Targets {
  kvc_tensor *k, *v;
  Tensor to_k, to_v;

  Status read(const Cache& holder, int64_t columns_of_k, int64_t columns_of_v) {
    const CacheBounds& bounds = holder.bounds();
    if (Status s = read_target(holder, "k", k, columns_of_k, bounds.head_dim_k, &to_k);
        s != Status::ok)
      return s;
    if (Status s = read_target(holder, "v", v, columns_of_v, bounds.head_dim_v, &to_v);
        s != Status::ok)
      return s;
    if (to_k.data == nullptr || to_v.data == nullptr || !overlap(to_k, to_v)) return Status::ok;
    return fail(Status::invalid_argument,
                "v overlaps k: kvc writes to both, and each needs memory of its own");
  }
};

/// The columns that a tensor has itself; `history` where it has no shape, which read_target() refuses.
int64_t own_columns(const kvc_tensor* tensor, int64_t history) {
  return tensor != nullptr && tensor->ndim == 3 && tensor->shape[0] >= 0 ? tensor->shape[0] : history;
}

/// A tensor without data is filled in for the caller to allocate.
Status fill_in(const Cache& holder, int64_t history, int32_t head_dim, kvc_tensor* tensor) {
  if (tensor == nullptr || tensor->data != nullptr) return Status::ok;
  const int64_t shape[] = {history, holder.bounds().n_kv_heads, head_dim};
  const auto s = static_cast<Status>(kvc_tensor_dense(nullptr, KVC_F32, 3, shape, tensor));
  if (s != Status::ok) return s;
  tensor->device_type = holder.device().type;
  tensor->device_id = holder.device().id;
  return Status::ok;
}

Status get_copy(KeyValues& cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) {
  if (Status s = cache.ready_for_layer(layer, true); s != Status::ok) return s;
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const Cache& holder = cache.holder();
  Targets targets = {k, v, {}, {}};
  // The copies may change the number of columns, so everything else that can be wrong is looked for before them.
  if (Status s = targets.read(holder, own_columns(k, history), own_columns(v, history));
      s != Status::ok)
    return s;
  if (Status s = cache.prepare_copy(layer); s != Status::ok) return s;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  if (Status s = targets.read(holder, history, history); s != Status::ok) return s;
  if (Status s = fill_in(holder, history, holder.bounds().head_dim_k, k); s != Status::ok) return s;
  if (Status s = fill_in(holder, history, holder.bounds().head_dim_v, v); s != Status::ok) return s;
  if (targets.to_k.data == nullptr && targets.to_v.data == nullptr) return Status::ok;
  return cache.get_copy(layer, targets.to_k, targets.to_v);
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::KeyValues, kvc::Status;
using kvc::capi::OfKeyValues, kvc::capi::When;

kvc_status kvc_get_codes(kvc_cache* cache, int32_t layer, kvc_tensor* k, kvc_tensor* k_scales,
                         kvc_tensor* v, kvc_tensor* v_scales) noexcept {
  return kvc::capi::with_layer<OfKeyValues>(
      cache, layer, When::in_pass, {}, [&](KeyValues& c, Cache& holder, int32_t own) -> Status {
        KeyValues::Codes codes;
        if (Status s = c.get_codes(own, &codes); s != Status::ok) return s;
        const auto lend = [&](const kvc::Tensor& view, kvc_tensor* out) {
          if (out != nullptr) kvc::capi::write_view(view, holder.device(), out);
        };
        lend(codes.k, k);
        lend(codes.k_scales, k_scales);
        lend(codes.v, v);
        lend(codes.v_scales, v_scales);
        return Status::ok;
      });
}

kvc_status kvc_get_copy(kvc_cache* cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) noexcept {
  return kvc::capi::with_layer<OfKeyValues>(
      cache, layer, When::in_pass, {},
      [&](KeyValues& c, Cache&, int32_t own) { return kvc::capi::get_copy(c, own, k, v); });
}

kvc_status kvc_put_codes(kvc_cache* cache, int32_t layer, const kvc_tensor* k,
                         const kvc_tensor* k_scales, const kvc_tensor* v,
                         const kvc_tensor* v_scales) noexcept {
  return kvc::capi::with_layer<OfKeyValues>(
      cache, layer, When::in_pass, {}, [&](KeyValues& c, Cache&, int32_t own) {
        return kvc::capi::put_codes(c, own, {k, k_scales, v, v_scales});
      });
}
