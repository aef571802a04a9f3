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
  int32_t n_heads;
  int32_t per_row;
  const char* axes;
};

Status read_part(const Part& part, const kvc_tensor* from, const DeviceInfo& device,
                 const TokenDims& tokens, Tensor* to) {
  if (part.per_row == 0) {
    if (from == nullptr) return Status::ok;
    return fail(Status::invalid_argument, "%s must be null: the type stores no scales", part.name);
  }
  const Expected shape = expect_tokens(tokens, part.n_heads, part.per_row, part.axes);
  const Status s = read_tensor(part.name, from, shape, Direction::in, device, to,
                               elements_of(part.element));
  if (s == Status::ok) fold_tokens(tokens, 0, to);
  return s;
}

Status read_codes(const CacheBounds& bounds, const DeviceInfo& device, const TokenDims& tokens,
                  const kvc_tensor* const (&given)[4], KeyValues::Codes* codes) {
  constexpr const char* code_axes = "n_kv_heads, codes_per_row";
  constexpr const char* scale_axes = "n_kv_heads, scales_per_row";
  const auto codes_of = [&](const char* name, const RowFormat& format, int32_t n_heads) {
    return Part{name, format_of(format.type).code, n_heads, format.n_codes(), code_axes};
  };
  const auto scales_of = [&](const char* name, const RowFormat& format, int32_t n_heads) {
    return Part{name, format_of(format.type).scale, n_heads, format.n_scales(), scale_axes};
  };
  const int32_t of_k = bounds.n_kv_heads, of_v = bounds.value_heads;
  const Part parts[4] = {
      codes_of("k", bounds.row_k, of_k), scales_of("k_scales", bounds.row_k, of_k),
      codes_of("v", bounds.row_v, of_v), scales_of("v_scales", bounds.row_v, of_v)};
  Tensor* const to[4] = {&codes->k, &codes->k_scales, &codes->v, &codes->v_scales};
  for (int32_t i = 0; i < 4; ++i) {
    const Status s = bounds.v_in_k && i >= 2 ? need_no_v(parts[i].name, given[i])
                                             : read_part(parts[i], given[i], device, tokens, to[i]);
    if (s != Status::ok) return s;
  }
  return Status::ok;
}

Status put_codes(KeyValues& cache, int32_t layer, const kvc_tensor* const (&given)[4]) {
  if (Status s = cache.ready_to_put(layer); s != Status::ok) return s;
  TokenDims tokens;
  if (Status s = dims_to_put(cache, given[0], &tokens); s != Status::ok) return s;
  KeyValues::Codes codes;
  const Status s = read_codes(cache.holder().bounds(), cache.holder().device(), tokens, given, &codes);
  return s == Status::ok ? cache.put_codes(layer, codes) : s;
}

/// What kvc_get_copy() writes of one side.
struct Side {
  const char* name;
  kvc_tensor* given;
  int32_t n_heads, head_dim;
  Tensor to;  // without data where none is wanted

  bool is_wanted() const { return given != nullptr && given->data != nullptr; }

  /// [history, n_kv_heads, head_dim], or [batch, columns, …] of rows.
  Expected expected(const TokenDims& columns) const {
    Expected shape = expect_tokens(columns, n_heads, head_dim, "n_kv_heads, head_dim");
    shape.leading = columns.are_rows() ? "batch, columns, " : "history, ";
    return shape;
  }
  Status read(const DeviceInfo& device, const TokenDims& columns) {
    if (!is_wanted()) return Status::ok;
    to = {};
    return read_tensor(name, given, expected(columns), Direction::out, device, &to);
  }
  /// The columns that the tensor has itself, which copies may yet bring about. Those of rows are always as many.
  TokenDims own(const TokenDims& columns) const {
    const bool has_shape = given != nullptr && given->ndim == 3 && given->shape[0] >= 0;
    return columns.are_rows() || !has_shape ? columns : TokenDims::list(given->shape[0]);
  }
  Status fill_in(const DeviceInfo& device, const TokenDims& columns) const {
    const bool is_asked = given != nullptr && given->data == nullptr;
    return is_asked ? capi::fill_in(expected(columns), KVC_F32, device, given) : Status::ok;
  }
};

/// Columns of a copy: the history, or all of every row.
Status copy_columns(KeyValues& cache, int32_t layer, TokenDims* columns) {
  int32_t first = 0, history = 0;
  if (Status s = cache.history(layer, &first, &history); s != Status::ok) return s;
  const TokenDims tokens = token_dims(cache.holder());
  *columns = tokens.are_rows() ? TokenDims::rows(tokens.extent[0], history)
                               : TokenDims::list(history);
  return Status::ok;
}

Status get_copy(KeyValues& cache, int32_t layer, kvc_tensor* k, kvc_tensor* v) {
  if (Status s = cache.ready_for_layer(layer, true); s != Status::ok) return s;
  TokenDims columns;
  if (Status s = copy_columns(cache, layer, &columns); s != Status::ok) return s;
  const CacheBounds& bounds = cache.holder().bounds();
  const DeviceInfo& device = cache.holder().device();
  Side sides[] = {{"k", k, bounds.n_kv_heads, bounds.head_dim_k, {}},
                  {"v", v, bounds.value_heads, bounds.head_dim_v, {}}};
  // The copies may change the number of columns, so everything else that can be wrong is looked for before them.
  for (Side& side : sides) {
    if (Status s = side.read(device, side.own(columns)); s != Status::ok) return s;
  }
  if (sides[0].is_wanted() && sides[1].is_wanted() && overlap(sides[0].to, sides[1].to))
    return fail(Status::invalid_argument,
                "v overlaps k: kvc writes to both, and each needs memory of its own");
  if (Status s = cache.prepare_copy(layer); s != Status::ok) return s;
  if (Status s = copy_columns(cache, layer, &columns); s != Status::ok) return s;
  for (Side& side : sides) {
    if (Status s = side.read(device, columns); s != Status::ok) return s;
  }
  for (const Side& side : sides) {
    if (Status s = side.fill_in(device, columns); s != Status::ok) return s;
  }
  for (Side& side : sides) fold_tokens(columns, 0, &side.to);
  if (sides[0].to.data == nullptr && sides[1].to.data == nullptr) return Status::ok;
  return cache.get_copy(layer, sides[0].to, sides[1].to);
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
        kvc::capi::write_codes(codes, holder.device(), k, k_scales, v, v_scales);
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
