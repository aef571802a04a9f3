#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "kvc/kvc.h"
#include "random.hpp"

namespace support {

/// Memory for a tensor, in any layout: dimensions in any order in memory, gaps between rows, a byte
/// offset. The bytes between its elements are marked, so that a write beside them is seen.
class Array {
 public:
  /// Dense, row-major.
  Array(uint32_t dtype, const std::vector<int64_t>& shape);
  /// A layout drawn at random; dense half of the time.
  Array(uint32_t dtype, const std::vector<int64_t>& shape, Random& random);

  Array(Array&&) = default;  // the bytes stay where they are
  Array& operator=(Array&&) = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  kvc_tensor* tensor() { return &tensor_; }
  const kvc_tensor* tensor() const { return &tensor_; }

  int64_t count() const;  // elements
  /// Element by its row-major index, whatever the layout. set() rounds to the element type.
  double get(int64_t index) const;
  void set(int64_t index, double value);
  void fill(double value);
  void fill(Random& random);
  std::vector<float> floats() const;
  std::vector<double> doubles() const;

  /// The bytes of an element: for codes, which are no numbers by themselves.
  unsigned char* element(int64_t index);
  /// Rows of bytes, one after the other, as the elements in row-major order.
  void set_elements(const std::vector<uint8_t>& bytes);

  /// No byte beside the elements has changed.
  bool gaps_intact() const;
  /// All bytes, the gaps included.
  const std::vector<unsigned char>& bytes() const { return bytes_; }

 private:
  void lay_out(const std::vector<int64_t>& strides, int64_t elements, uint64_t byte_offset);
  int64_t offset_of(int64_t index) const;

  kvc_tensor tensor_{};
  std::vector<unsigned char> bytes_;
};

/// Element [head, token, column] of an array that is broadcast: an extent may be 1, and leading
/// dimensions may be missing.
double broadcast_get(const Array& array, int64_t head, int64_t token, int64_t column);
/// The same of any number of dimensions.
double broadcast_get(const Array& array, std::initializer_list<int64_t> element);

/// The numbers of the vectors: each is exact in float32, between −1 and 1.
std::vector<float> wave(uint64_t salt, int64_t n);

}  // namespace support
