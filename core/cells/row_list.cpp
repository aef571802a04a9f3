#include "core/cells/row_list.hpp"

#include "core/cells/row_book.hpp"

namespace kvc {

void RowList::carve(Carver& carver) {
  const auto batch = static_cast<uint64_t>(max_batch_);
  position_ = carver.take<int32_t>(batch, 64);
  sequence_ = carver.take<int32_t>(batch, 64);
  flags_ = carver.take<uint32_t>(batch, 64);
}

Status RowList::check_mask(const RowTokens& tokens) const {
  const Tensor& mask = tokens.attention_mask;
  if (mask.ndim == 0 || (mask.ndim == 2 && mask.shape[1] == tokens.q_len)) return Status::ok;
  return fail(Status::shape,
              "attention_mask has %d dimensions, the last of extent %lld; a lightning cache takes "
              "[%d, %d], [batch, q_len]: which of the pass's tokens add to the states",
              mask.ndim, static_cast<long long>(mask.shape[mask.ndim - 1]), n_rows_, tokens.q_len);
}

Status RowList::read_row(const RowTokens& tokens, int32_t row, int32_t next) const {
  const bool has_mask = tokens.attention_mask.ndim != 0;
  int32_t valid = tokens.valid != nullptr ? tokens.valid[row] : tokens.q_len;
  if (tokens.postpadded) {
    valid = 0;
    while (valid < tokens.q_len && mask_shows(tokens.attention_mask, row, 0, valid)) ++valid;
  }
  for (int32_t i = 0; i < tokens.q_len; ++i) {
    const int32_t token = row * tokens.q_len + i;
    const bool is_shown = !has_mask || mask_shows(tokens.attention_mask, row, 0, i);
    if (tokens.postpadded && i >= valid && is_shown) {
      return fail(Status::invalid_argument,
                  "attention_mask shows token %d of row %d behind one that it hides: with "
                  "KVC_ROWS_POSTPADDED a row's tokens come before its padding",
                  i, row);
    }
    const bool counts = i < valid;
    if (counts && next > INT32_MAX - 1 - valid) {
      return fail(Status::invalid_argument,
                  "row %d continues at %d: %d more tokens would go beyond the last position %d",
                  row, next, valid, INT32_MAX - 2);
    }
    position_[token] = counts ? next + i : 0;
    sequence_[token] = counts ? row : no_sequence;
    flags_[token] = counts && !is_shown ? token_masked : 0;
  }
  return Status::ok;
}

Status RowList::check_supported(const RowTokens& tokens) {
  const char* option = tokens.types != nullptr ? "token_types" : "KVC_ROWS_NOT_CAUSAL";
  if (tokens.types == nullptr && !tokens.not_causal) return Status::ok;
  return fail(Status::not_supported,
              "a lightning cache (KVC_LIGHTNING) takes no %s: no token sees a later one", option);
}

Batch RowList::list(const Batch& batch) const {
  Batch list = batch;
  list.rows = nullptr;
  list.position = position_;
  list.sequence = sequence_;
  list.flags = flags_;
  return list;
}

}  // namespace kvc
