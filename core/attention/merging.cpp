#include "core/attention/merging.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.hpp"

namespace kvc {
namespace {

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

/// Elements of the first `ndim` dimensions.
int64_t count_of(const Tensor& tensor, int32_t ndim) {
  int64_t n = 1;
  for (int32_t d = 0; d < ndim; ++d) n *= tensor.shape[d];
  return n;
}

/// Where index `index` of the first `ndim` dimensions begins, counted in row-major order.
int64_t offset_of(const Tensor& tensor, int32_t ndim, int64_t index) {
  int64_t offset = 0;
  for (int32_t d = ndim - 1; d >= 0; --d) {
    offset += index % tensor.shape[d] * tensor.stride[d];
    index /= tensor.shape[d];
  }
  return offset;
}

/// The numbers of one vector.
struct Vector {
  const Tensor& tensor;
  int64_t offset;

  Vector(const Tensor& t, int64_t index) : tensor(t), offset(offset_of(t, t.ndim - 1, index)) {}
  int64_t at(int64_t i) const { return offset + i * tensor.stride[tensor.ndim - 1]; }
  double get(int64_t i) const {
    return static_cast<double>(load_element(tensor.data, tensor.dtype, at(i)));
  }
  void set(int64_t i, double value) const {
    store_element(tensor.data, tensor.dtype, at(i), static_cast<float>(value));
  }
};

float& scalar(const Tensor& tensor, int64_t index) {
  return static_cast<float*>(tensor.data)[offset_of(tensor, tensor.ndim, index)];
}

double log_add_exp(double a, double b) {
  const double larger = a > b ? a : b;
  return std::isinf(larger) ? larger : larger + std::log1p(std::exp((a > b ? b : a) - larger));
}

}  // namespace

void merge_attention(const Tensor& o, const Tensor& lse, const Tensor& o2, const Tensor& lse2) {
  const int64_t n = lse.is_empty() ? 0 : count_of(lse, lse.ndim);
  const int64_t dim = o.shape[o.ndim - 1];
  for (int64_t row = 0; row < n; ++row) {
    const auto first = static_cast<double>(scalar(lse, row));
    const auto second = static_cast<double>(scalar(lse2, row));
    const double both = log_add_exp(first, second);
    const double keep = first == minus_infinity ? 0 : std::exp(first - both);
    const double add = second == minus_infinity ? 0 : std::exp(second - both);
    const Vector to(o, row), from(o2, row);
    for (int64_t i = 0; i < dim; ++i) {
      // What saw nothing adds nothing, whatever it holds.
      const double a = first == minus_infinity ? 0 : keep * to.get(i);
      const double b = second == minus_infinity ? 0 : add * from.get(i);
      to.set(i, a + b);
    }
    scalar(lse, row) = static_cast<float>(both);
  }
}

void apply_sinks(const Tensor& o, const Tensor& lse, const float* sinks) {
  const int64_t n = lse.is_empty() ? 0 : count_of(lse, lse.ndim);
  const int64_t dim = o.shape[o.ndim - 1], heads = lse.shape[lse.ndim - 1];
  for (int64_t row = 0; row < n; ++row) {
    const auto seen = static_cast<double>(scalar(lse, row));
    const double share = 1 / (1 + std::exp(static_cast<double>(sinks[row % heads]) - seen));
    const Vector to(o, row);
    for (int64_t i = 0; i < dim; ++i) to.set(i, seen == minus_infinity ? 0 : share * to.get(i));
  }
}

void repeat_heads(const Tensor& in, int32_t n, const Tensor& out) {
  const int64_t vectors = out.is_empty() ? 0 : count_of(out, out.ndim - 1);
  const int64_t dim = in.shape[in.ndim - 1];
  const auto bytes = static_cast<int64_t>(size_of(in.dtype));
  for (int64_t row = 0; row < vectors; ++row) {
    const Vector to(out, row), from(in, row / n);
    for (int64_t i = 0; i < dim; ++i) {
      std::memcpy(static_cast<std::byte*>(out.data) + to.at(i) * bytes,
                  static_cast<const std::byte*>(in.data) + from.at(i) * bytes,
                  static_cast<size_t>(bytes));
    }
  }
}

}  // namespace kvc
