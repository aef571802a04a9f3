#pragma once
#include <cstdint>
#include <vector>

#include "kvc/kvc.h"

/// Storage types, worked out from the bytes that docs/SEMANTICS.md §9 promises. Scalar, one number after the other, every operation
/// rounded to f32 by itself; nothing here is shared with the library's codecs.
namespace model {

/// How the vectors of K, or of V, are stored.
struct Storage {
  uint32_t dtype = KVC_F32;
  int32_t dim = 0;
  int32_t block = 0;     // values that share a stored scale; 0: none is stored
  int32_t rotation = 0;  // values that are rotated together; 0: not rotated

  Storage() = default;
  /// `asked`: the block of the descriptor, 0: the type's own.
  Storage(uint32_t dtype, int32_t dim, int32_t asked, bool rotate);

  bool is_plain() const { return dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BF16; }
  bool is_f8() const { return dtype == KVC_F8_E4M3 || dtype == KVC_F8_E5M2; }
  uint32_t code_dtype() const;
  uint32_t scale_dtype() const;  // 0: none is stored
  int64_t codes_per_row() const;
  int64_t scales_per_row() const { return block == 0 ? 0 : dim / block; }
  size_t code_bytes() const;   // of a row
  size_t scale_bytes() const;  // of a row
};

/// How a cache stores K and V. Fills in what its descriptor leaves to the library.
void resolve_storage(kvc_cache_desc& cache, Storage* k, Storage* v);

/// The largest power of two that divides n.
int32_t power_of_two_in(int32_t n);

/// y = H (s * x) / sqrt(b) for each b values, in f32 as a codec does it, and exactly, as the numbers mean it; and back.
void rotate(const Storage& storage, std::vector<float>& x);
void rotate(const Storage& storage, double* x);
void rotate_back(const Storage& storage, double* x);

/// One vector. `bound`: the scale of an f8 head.
void encode(const Storage& storage, const float* x, float bound, uint8_t* codes, uint8_t* scales);
/// What the codes read as, before anything is rotated back.
void decode(const Storage& storage, const uint8_t* codes, const uint8_t* scales, float bound,
            float* x);

/// Rows of codes, of scales, and what they read as. They begin as zero bytes.
class StoredRows {
 public:
  StoredRows() = default;
  StoredRows(const Storage& storage, size_t n_rows);

  void put(size_t row, const float* x, float bound);
  void put_codes(size_t row, const uint8_t* codes, const uint8_t* scales, float bound);

  const uint8_t* codes(size_t row) const { return codes_.data() + row * storage_.code_bytes(); }
  const uint8_t* scales(size_t row) const { return scales_.data() + row * storage_.scale_bytes(); }
  /// As stored: rotated where the storage rotates.
  const float* numbers(size_t row) const {
    return numbers_.data() + row * static_cast<size_t>(storage_.dim);
  }
  /// Rotated back.
  std::vector<double> values(size_t row) const;
  const Storage& storage() const { return storage_; }

 private:
  Storage storage_;
  std::vector<uint8_t> codes_, scales_;
  std::vector<float> numbers_;
};

/// What §8 allows an attention to be off, before its result is rounded. `t`: the largest scale * sum |q_i k_i| + |ALiBi| + |bias| over
/// what a row sees, as multiplied; `v`: the largest magnitude of a value that it sees. `runtime_dtype` is that of the operator; 0: f32.
double attention_error(double t, double v, uint32_t runtime_dtype = KVC_F32);
double log_sum_exp_error(double t, uint32_t runtime_dtype = KVC_F32);

}  // namespace model
