#include "stored_bytes.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "model/formats.hpp"

namespace fuzz {

model::Oracle::Bytes draw_bytes(const model::Storage& storage, int64_t n_rows,
                                support::Random& random) {
  model::Oracle::Bytes bytes;
  const bool any = !storage.is_plain() && random.chance(0.2);
  std::vector<float> x(static_cast<size_t>(storage.dim));
  std::vector<uint8_t> codes(storage.code_bytes()), scales(storage.scale_bytes());
  for (int64_t row = 0; row < n_rows; ++row) {
    for (float& value : x) value = random.value();
    model::encode(storage, x.data(), 1, codes.data(), scales.data());
    if (any)
      for (uint8_t& code : codes) code = static_cast<uint8_t>(random.bits());
    bytes.codes.insert(bytes.codes.end(), codes.begin(), codes.end());
    bytes.scales.insert(bytes.scales.end(), scales.begin(), scales.end());
  }
  return bytes;
}

model::Oracle::Bytes nan_bytes(const model::Storage& storage, int64_t n_rows) {
  const auto rows = static_cast<size_t>(n_rows);
  model::Oracle::Bytes bytes{std::vector<uint8_t>(rows * storage.code_bytes(), 0x77),
                             std::vector<uint8_t>(rows * storage.scale_bytes())};
  if (storage.is_f8()) std::fill(bytes.codes.begin(), bytes.codes.end(), uint8_t{0x7f});
  for (int64_t i = 0; storage.is_plain() && i < n_rows * storage.dim; ++i)
    model::store(bytes.codes.data(), storage.dtype, i, std::nan(""));
  for (int64_t i = 0; i < n_rows * storage.scales_per_row(); ++i)
    model::store(bytes.scales.data(), storage.scale_dtype(), i, std::nan(""));
  return bytes;
}

const char* row_of(const kvc_tensor& view, int64_t cell, int64_t head) {
  return static_cast<const char*>(view.data) + view.byte_offset +
         (cell * view.strides[0] + head * view.strides[1]) *
             static_cast<int64_t>(model::element_bytes(view.dtype));
}

bool same_bytes(uint32_t dtype, const void* a, const void* b, int64_t elements) {
  const size_t size = model::element_bytes(dtype);
  if (std::memcmp(a, b, static_cast<size_t>(elements) * size) == 0) return true;
  if (size == 1) return false;
  for (int64_t i = 0; i < elements; ++i) {
    const auto* const left = static_cast<const char*>(a) + i * static_cast<int64_t>(size);
    const auto* const right = static_cast<const char*>(b) + i * static_cast<int64_t>(size);
    const bool nan = std::isnan(model::load(left, dtype, 0)) &&
                     std::isnan(model::load(right, dtype, 0));
    if (!nan && std::memcmp(left, right, size) != 0) return false;
  }
  return true;
}

double largest_of(const model::StoredRows& rows, size_t row) {
  const float* stored = rows.numbers(row);
  double largest = 0;
  for (int32_t d = 0; d < rows.storage().dim; ++d)
    if (const double magnitude = std::fabs(double{stored[d]}); magnitude > largest)
      largest = magnitude;
  return largest;
}

double turned_slack(double largest, uint32_t dtype, double wanted) {
  if (largest > 1e30) return HUGE_VAL;
  return 4e-6 * (1 + std::fabs(wanted) + largest) + 1.01 * model::spacing(dtype, wanted);
}

bool is_zero_row(const kvc_tensor& view, int64_t cell, int64_t head) {
  const char* const row = row_of(view, cell, head);
  const auto size = static_cast<int64_t>(model::element_bytes(view.dtype));
  return std::all_of(row, row + view.shape[2] * size, [](char byte) { return byte == 0; });
}

void double_scales(const model::Storage& storage, model::Oracle::Bytes& bytes) {
  if (storage.block == 0) return;
  const auto n = static_cast<int64_t>(bytes.scales.size() /
                                      model::element_bytes(storage.scale_dtype()));
  for (int64_t i = 0; i < n; ++i)
    model::store(bytes.scales.data(), storage.scale_dtype(), i,
                 2 * model::load(bytes.scales.data(), storage.scale_dtype(), i));
}

void append_row(model::Oracle::Bytes& bytes, const model::StoredRows& rows, size_t row) {
  const model::Storage& storage = rows.storage();
  bytes.codes.insert(bytes.codes.end(), rows.codes(row), rows.codes(row) + storage.code_bytes());
  bytes.scales.insert(bytes.scales.end(), rows.scales(row), rows.scales(row) + storage.scale_bytes());
}

namespace {

support::Array laid_out(uint32_t dtype, std::vector<int64_t> shape, int64_t last, int64_t seed) {
  support::Random layout(static_cast<uint64_t>(seed));
  shape.push_back(last);
  return support::Array(dtype, shape, layout);
}

}  // namespace

CodeArrays::CodeArrays(const model::Storage& storage, const model::Oracle::Bytes& bytes,
                       const std::vector<int64_t>& leading)
    : codes(laid_out(storage.code_dtype(), leading, storage.codes_per_row(),
                     std::accumulate(leading.begin(), leading.end(), int64_t{0}))) {
  codes.set_elements(bytes.codes);
  if (storage.block == 0) return;
  scales = laid_out(storage.scale_dtype(), leading, storage.scales_per_row(), leading[0]);
  scales->set_elements(bytes.scales);
}

}  // namespace fuzz
