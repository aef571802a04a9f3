#pragma once
#include <optional>
#include <vector>

#include "array.hpp"
#include "model/oracle.hpp"

/// Codes and scales as bytes: drawn, given to kvc_put_codes(), and compared with what kvc_get_codes() lends.
namespace fuzz {

/// Random numbers as the storage holds them; now and then any codes at all, with the scales of those numbers.
model::Oracle::Bytes draw_bytes(const model::Storage& storage, int64_t n_rows,
                                support::Random& random);
/// Numbers that are NaN, or codes that are not zero under scales that are NaN.
model::Oracle::Bytes nan_bytes(const model::Storage& storage, int64_t n_rows);
void double_scales(const model::Storage& storage, model::Oracle::Bytes& bytes);
void append_row(model::Oracle::Bytes& bytes, const model::StoredRows& rows, size_t row);

/// Tensors of rows of bytes, [n, heads, …] or of other leading extents, in some layout.
struct CodeArrays {
  CodeArrays(const model::Storage& storage, const model::Oracle::Bytes& bytes, int64_t n, int64_t heads)
      : CodeArrays(storage, bytes, {n, heads}) {}
  CodeArrays(const model::Storage& storage, const model::Oracle::Bytes& bytes,
             const std::vector<int64_t>& leading);
  const kvc_tensor* scales_or_null() { return scales ? scales->tensor() : nullptr; }

  support::Array codes;
  std::optional<support::Array> scales;  // where some are stored
};

/// The first byte of a view's row.
const char* row_of(const kvc_tensor& view, int64_t cell, int64_t head);
/// The same bytes; of numbers one NaN is as good as another.
bool same_bytes(uint32_t dtype, const void* a, const void* b, int64_t elements);
/// The largest magnitude of a row's numbers, NaN left out.
double largest_of(const model::StoredRows& rows, size_t row);
/// How far a number may be off that was rotated back or turned, in a row of numbers up to `largest`. Infinity: it may be anything,
/// because f32 overflows on the way.
double turned_slack(double largest, uint32_t dtype, double wanted);
bool is_zero_row(const kvc_tensor& view, int64_t cell, int64_t head);

}  // namespace fuzz
