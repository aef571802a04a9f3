#pragma once
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"

namespace kvc {

/// A pass of rows as a list of tokens, for a book whose sequences hold no columns: row b is sequence b, and its attention mask,
/// [batch, q_len], names tokens that add nothing. It lies in scratch, as plans do.
class RowList {
 public:
  RowList(int32_t n_rows, int32_t max_batch) : n_rows_(n_rows), max_batch_(max_batch) {}
  void carve(Carver& carver);

  /// `next_of(row)` is where a row continues.
  template <class NextOf>
  Status read(const RowTokens& tokens, NextOf next_of) const {
    if (Status s = check_mask(tokens); s != Status::ok) return s;
    for (int32_t row = 0; row < n_rows_; ++row) {
      if (Status s = read_row(tokens, row, next_of(row)); s != Status::ok) return s;
    }
    return Status::ok;
  }
  /// What only the keys of tokens could give.
  static Status check_supported(const RowTokens& tokens);
  /// The batch that read() has just read.
  Batch list(const Batch& batch) const;

 private:
  Status check_mask(const RowTokens& tokens) const;
  Status read_row(const RowTokens& tokens, int32_t row, int32_t next) const;

  const int32_t n_rows_, max_batch_;
  int32_t* position_ = nullptr;  // [max_batch]
  int32_t* sequence_ = nullptr;  // [max_batch]
  uint32_t* flags_ = nullptr;    // [max_batch]
};

}  // namespace kvc
