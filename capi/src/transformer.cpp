#include "kvc/transformer.h"

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"

/// Whole rows of a transformer cache.
namespace kvc::capi {
namespace {

constexpr const char* axes_before = "n, c, ";

/// K or V of a filling, as the caller hands it in.
struct FilledSide {
  const char* name;
  const char* scales_name;
  const kvc_tensor* given;
  const kvc_tensor* scales;
  int32_t n_heads;
  RowFormat format;
};

bool are_numbers(const kvc_tensor& tensor) {
  return tensor.dtype == KVC_F32 || tensor.dtype == KVC_F16 || tensor.dtype == KVC_BF16;
}

Status read_scales(const FilledSide& side, const TokenDims& columns, const DeviceInfo& device,
                   Tensor* scales) {
  const bool has_scales = side.given != nullptr && !are_numbers(*side.given) && side.format.block > 0;
  if (!has_scales) {
    if (side.scales == nullptr) return Status::ok;
    return fail(Status::invalid_argument, "%s must be null: %s has no codes with stored scales",
                side.scales_name, side.name);
  }
  Expected shape = expect_tokens(columns, side.n_heads, side.format.n_scales(),
                                 "n_kv_heads, scales_per_row");
  shape.leading = axes_before;
  return read_tensor(side.scales_name, side.scales, shape, Direction::in, device, scales,
                     elements_of(format_of(side.format.type).scale));
}

/// Numbers are of any float type; anything else must be the codes that the cache stores.
Status read_side(const FilledSide& side, const TokenDims& columns, const DeviceInfo& device,
                 Tensor* numbers, Tensor* codes, Tensor* scales) {
  if (Status s = read_scales(side, columns, device, scales); s != Status::ok) return s;
  if (side.given == nullptr) return Status::ok;
  const bool has_numbers = are_numbers(*side.given);
  Expected shape = expect_tokens(columns, side.n_heads,
                                 has_numbers ? side.format.head_dim : side.format.n_codes(),
                                 has_numbers ? "n_kv_heads, head_dim" : "n_kv_heads, codes_per_row");
  shape.leading = axes_before;
  const Elements elements = has_numbers ? Elements::floats
                                        : elements_of(format_of(side.format.type).code);
  return read_tensor(side.name, side.given, shape, Direction::in, device,
                     has_numbers ? numbers : codes, elements);
}

/// Columns that a tensor has for each row.
int64_t columns_of(const kvc_tensor* k, const kvc_tensor* v) {
  const kvc_tensor* given = k != nullptr ? k : v;
  return given != nullptr && given->ndim == 4 ? given->shape[1] : 0;
}

Status fill(RowStorage& rows, const Cache& cache, int32_t layer, int32_t row_begin, int32_t n,
            const kvc_tensor* k, const kvc_tensor* k_scales, const kvc_tensor* v,
            const kvc_tensor* v_scales) {
  if (Status s = rows.check_fill(layer, row_begin, n); s != Status::ok) return s;
  const CacheBounds& bounds = cache.bounds();
  const int64_t columns = columns_of(k, v);
  if (columns < 0 || columns > rows.n_columns()) {
    return fail(Status::shape, "%s.shape[1] is %lld, not at most the %d columns of a row",
                k != nullptr ? "k" : "v", static_cast<long long>(columns), rows.n_columns());
  }
  RowStorage::Filling filling;
  filling.columns = static_cast<int32_t>(columns);
  const TokenDims dims = TokenDims::rows(n, columns);
  const FilledSide of_k = {"k", "k_scales", k, k_scales, bounds.n_kv_heads, bounds.row_k};
  KeyValues::Codes& codes = filling.codes;
  if (Status s = read_side(of_k, dims, cache.device(), &filling.k, &codes.k, &codes.k_scales);
      s != Status::ok)
    return s;
  if (bounds.v_in_k) {
    if (Status s = need_no_v("v", v); s != Status::ok) return s;
    if (Status s = need_no_v("v_scales", v_scales); s != Status::ok) return s;
  } else {
    const FilledSide of_v = {"v", "v_scales", v, v_scales, bounds.value_heads, bounds.row_v};
    if (Status s = read_side(of_v, dims, cache.device(), &filling.v, &codes.v, &codes.v_scales);
        s != Status::ok)
      return s;
  }
  return rows.fill_rows(layer, row_begin, n, filling);
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::RowStorage, kvc::Status;
using kvc::capi::OfRowStorage, kvc::capi::When;

kvc_status kvc_rows_view(const kvc_cache* cache, int32_t layer, kvc_tensor* k, kvc_tensor* k_scales,
                         kvc_tensor* v, kvc_tensor* v_scales) noexcept {
  return kvc::capi::with_layer<OfRowStorage>(
      cache, layer, When::always, {},
      [&](const RowStorage& rows, const Cache& c, int32_t own) -> Status {
        kvc::KeyValues::Codes codes;
        if (Status s = rows.view_rows(own, &codes); s != Status::ok) return s;
        kvc::capi::write_codes(codes, c.device(), k, k_scales, v, v_scales);
        return Status::ok;
      });
}

kvc_status kvc_rows_fill(kvc_cache* cache, int32_t layer, int32_t row_begin, int32_t n,
                         const kvc_tensor* k, const kvc_tensor* k_scales, const kvc_tensor* v,
                         const kvc_tensor* v_scales) noexcept {
  return kvc::capi::with_layer<OfRowStorage>(
      cache, layer, When::always, {}, [&](RowStorage& rows, Cache& c, int32_t own) {
        return kvc::capi::fill(rows, c, own, row_begin, n, k, k_scales, v, v_scales);
      });
}
