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

/// A tensor that receives [history, n_kv_heads, head_dim] numbers. One without data is filled in for the caller to allocate, and
/// stays without data in `to`.
Status read_target(const Cache& holder, const char* name, kvc_tensor* from, int32_t history,
                   int32_t head_dim, Tensor* to) {
  if (from == nullptr) return Status::ok;
  const int64_t shape[] = {history, holder.bounds().n_kv_heads, head_dim};
  if (from->data == nullptr) {
    const Status s = static_cast<Status>(kvc_tensor_dense(nullptr, KVC_F32, 3, shape, from));
    from->device_type = holder.device().type;
    from->device_id = holder.device().id;
    return s;
  }
  const Expected expected = {3, {shape[0], shape[1], shape[2]}, "history, n_kv_heads, head_dim"};
  return read_tensor(name, from, expected, Direction::out, holder.device(), to);
}

Status get_copy(KeyValues& cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) {
  if (Status s = cache.prepare_copy(layer); s != Status::ok) return s;
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const Cache& holder = cache.holder();
  const CacheBounds& bounds = holder.bounds();
  Tensor to_k, to_v;
  if (Status s = read_target(holder, "k", k, history, bounds.head_dim_k, &to_k); s != Status::ok)
    return s;
  if (Status s = read_target(holder, "v", v, history, bounds.head_dim_v, &to_v); s != Status::ok)
    return s;
  if (to_k.data != nullptr && to_v.data != nullptr && overlap(to_k, to_v)) {
    return fail(Status::invalid_argument,
                "v overlaps k: kvc writes to both, and each needs memory of its own");
  }
  if (to_k.data == nullptr && to_v.data == nullptr) return Status::ok;
  return cache.get_copy(layer, to_k, to_v);
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
