#include "array.hpp"

#include <algorithm>
#include <numeric>

#include "model/formats.hpp"

namespace support {
namespace {

constexpr unsigned char mark = 0xA5;

}  // namespace

Array::Array(uint32_t dtype, const std::vector<int64_t>& shape) {
  kvc_tensor_dense(nullptr, dtype, static_cast<int32_t>(shape.size()), shape.data(), &tensor_);
  lay_out({tensor_.strides, tensor_.strides + tensor_.ndim}, count(), 0);
}

Array::Array(uint32_t dtype, const std::vector<int64_t>& shape, Random& random)
    : Array(dtype, shape) {
  if (random.chance(0.5)) return;
  std::vector<size_t> order(shape.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (random.chance(0.5))
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<size_t>(random.below(static_cast<int32_t>(i)))]);
  std::vector<int64_t> strides(shape.size());
  int64_t extent = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = extent;
    extent = extent * shape[order[i]] + (random.chance(0.3) ? random.below(5) : 0);
  }
  lay_out(strides, extent, static_cast<uint64_t>(random.below(4)) * model::element_bytes(dtype));
}

void Array::lay_out(const std::vector<int64_t>& strides, int64_t elements, uint64_t byte_offset) {
  std::copy(strides.begin(), strides.end(), tensor_.strides);
  tensor_.byte_offset = byte_offset;
  const size_t size = static_cast<size_t>(elements) * model::element_bytes(tensor_.dtype);
  bytes_.assign(byte_offset + size + 16, mark);
  tensor_.data = bytes_.data();
}

int64_t Array::count() const {
  return std::accumulate(tensor_.shape, tensor_.shape + tensor_.ndim, int64_t{1}, std::multiplies<>());
}

int64_t Array::offset_of(int64_t index) const {
  int64_t offset = 0;
  for (int32_t d = tensor_.ndim; d-- > 0;) {
    offset += index % tensor_.shape[d] * tensor_.strides[d];
    index /= tensor_.shape[d];
  }
  return offset;
}

double Array::get(int64_t index) const {
  return model::load(bytes_.data() + tensor_.byte_offset, tensor_.dtype, offset_of(index));
}

void Array::set(int64_t index, double value) {
  model::store(bytes_.data() + tensor_.byte_offset, tensor_.dtype, offset_of(index), value);
}

unsigned char* Array::element(int64_t index) {
  const auto size = static_cast<int64_t>(model::element_bytes(tensor_.dtype));
  return bytes_.data() + tensor_.byte_offset + offset_of(index) * size;
}

void Array::set_elements(const std::vector<uint8_t>& bytes) {
  const size_t size = model::element_bytes(tensor_.dtype);
  for (int64_t i = 0; i < count(); ++i)
    std::copy_n(bytes.data() + static_cast<size_t>(i) * size, size, element(i));
}

void Array::fill(double value) {
  for (int64_t i = 0; i < count(); ++i) set(i, value);
}

void Array::fill(Random& random) {
  for (int64_t i = 0; i < count(); ++i) set(i, random.value());
}

std::vector<float> Array::floats() const {
  std::vector<float> result(static_cast<size_t>(count()));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = static_cast<float>(get(static_cast<int64_t>(i)));
  return result;
}

std::vector<double> Array::doubles() const {
  std::vector<double> result(static_cast<size_t>(count()));
  for (size_t i = 0; i < result.size(); ++i) result[i] = get(static_cast<int64_t>(i));
  return result;
}

bool Array::gaps_intact() const {
  std::vector<char> covered(bytes_.size(), 0);
  const size_t element = model::element_bytes(tensor_.dtype);
  for (int64_t i = 0; i < count(); ++i) {
    const size_t at = tensor_.byte_offset + static_cast<size_t>(offset_of(i)) * element;
    std::fill_n(covered.begin() + static_cast<ptrdiff_t>(at), element, 1);
  }
  for (size_t i = 0; i < bytes_.size(); ++i)
    if (!covered[i] && bytes_[i] != mark) return false;
  return true;
}

double broadcast_get(const Array& array, int64_t head, int64_t token, int64_t column) {
  return broadcast_get(array, {head, token, column});
}

double broadcast_get(const Array& array, std::initializer_list<int64_t> element) {
  const kvc_tensor& t = *array.tensor();
  const int64_t* const wanted = element.end() - t.ndim;
  int64_t index = 0;
  for (int32_t d = 0; d < t.ndim; ++d)
    index = index * t.shape[d] + (t.shape[d] == 1 ? 0 : wanted[d]);
  return array.get(index);
}

std::vector<float> wave(uint64_t salt, int64_t n) {
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    const auto mixed = static_cast<uint32_t>(static_cast<uint64_t>(i + 1) * 2654435761u +
                                             salt * 2246822519u);
    values.push_back(static_cast<float>(mixed >> 16) / 32768 - 1);
  }
  return values;
}

}  // namespace support
