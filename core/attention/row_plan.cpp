#include "core/attention/row_plan.hpp"

#include <algorithm>
#include <bit>
#include <numeric>

#include "core/base/planted.hpp"

namespace kvc {
namespace {

/// Sets bits [begin, end), word by word.
void set_bits(uint64_t* words, int32_t begin, int32_t end) {
  for (int32_t at = begin; at < end;) {
    const int32_t first = at % 64, n = std::min(64 - first, end - at);
    words[at / 64] |= ~uint64_t{0} >> (64 - n) << first;
    at += n;
  }
}

}  // namespace

void RowPlan::carve(Carver& carver) {
  const CheckedSize tokens(static_cast<uint64_t>(rules_.n_rows) * static_cast<uint64_t>(rules_.q_max));
  const auto entries = static_cast<uint64_t>(n_entries());
  n_words_ = (int64_t{rules_.columns} + 63) / 64;
  const CheckedSize bits = tokens * CheckedSize(static_cast<uint64_t>(n_words_));
  cells_ = carver.take<int32_t>(entries, 64);
  positions_ = rules_.ring ? carver.take<int32_t>(entries, 64) : cells_;
  except_ = carver.take<uint64_t>(tokens.value() / 64 + 1, 64);
  type_ = carver.take<int32_t>(tokens, 64);
  shown_ = carver.take<uint64_t>(bits, 64);
  seen_ = carver.take<uint64_t>(bits, 64);
  rows_ = carver.take<AttentionRow>(tokens, 64);
  lists_ = carver.take<TokenList>(static_cast<uint64_t>(rules_.n_rows), 64);
  padding_ = carver.take<int32_t>(tokens, 64);
}

void RowPlan::reset() {
  std::iota(positions_, positions_ + n_entries(), 0);
  for (int64_t i = 0; rules_.ring && i < n_entries(); ++i)
    cells_[i] = static_cast<int32_t>(i % rules_.columns);
}

// ---- The except set, types and the mask ---------------------------------------------------------------------------------

void RowPlan::open(const RowTokens& tokens) {
  const int32_t n_tokens = rules_.n_rows * tokens.q_len;
  std::fill_n(except_, n_tokens / 64 + 1, uint64_t{0});
  for (int32_t token = 0; (tokens.not_causal || rules_.not_causal) && token < n_tokens; ++token) {
    if (book_.batch_cell()[token] >= 0) except_[token / 64] |= uint64_t{1} << (token % 64);
  }
  has_types_ = tokens.types != nullptr || (planted(Bug::types_of_last_pass) && has_types_);
  if (tokens.types != nullptr) std::copy_n(tokens.types, n_tokens, type_);
  has_mask_ = tokens.attention_mask.ndim != 0;
  if (has_mask_) copy_mask(tokens.attention_mask);
  needs_bits_ = has_mask_ || types_are_apart();
  is_made_ = false;
}

/// The caller's mask ends with the call. Columns that it does not reach hold nothing.
void RowPlan::copy_mask(const Tensor& mask) {
  mask_is_per_token_ = mask.ndim == 4;
  const auto reach = static_cast<int32_t>(mask.shape[mask.ndim - 1]);
  const int32_t n_masks = mask_is_per_token_ ? book_.q_len() : 1;
  for (int32_t row = 0; row < rules_.n_rows; ++row) {
    for (int32_t i = 0; i < n_masks; ++i) {
      uint64_t* const shown = bits_of(shown_, row * book_.q_len() + i);
      std::fill_n(shown, n_words_, uint64_t{0});
      for (int32_t column = 0; column < reach; ++column)
        shown[column / 64] |= uint64_t{mask_shows(mask, planted(Bug::mask_of_first_row) ? 0 : row,
                                                  i, column)}
                              << (column % 64);
    }
  }
}

/// Whether tokens of a type stand in several places of a row, so that what one of them sees may be no range.
bool RowPlan::types_are_apart() const {
  for (int32_t row = 0; has_types_ && row < rules_.n_rows; ++row) {
    const int32_t* type = type_ + static_cast<size_t>(row) * static_cast<size_t>(book_.q_len());
    const int32_t n = book_.sequence(row).n_added;
    for (int32_t i = 1; i < n; ++i) {
      if (type[i] == 0 || type[i] == type[i - 1]) continue;
      if (std::find(type, type + i - 1, type[i]) != type + i - 1) return true;
    }
  }
  return false;
}

void RowPlan::set_except(int32_t n_except, const int32_t* except) {
  std::fill_n(except_, rules_.n_rows * book_.q_len() / 64 + 1, uint64_t{0});
  for (int32_t i = 0; i < n_except; ++i) {
    if (book_.batch_cell()[except[i]] >= 0)
      except_[except[i] / 64] |= uint64_t{1} << (except[i] % 64);
  }
  is_made_ = false;
}

bool RowPlan::any_sees_later() const {
  const int32_t n_words = rules_.n_rows * book_.q_len() / 64 + 1;
  return has_types_ ||
         std::any_of(except_, except_ + n_words, [](uint64_t word) { return word != 0; });
}

// ---- Rows ---------------------------------------------------------------------------------------------------------------

/// Positions that token i of a row sees, its type and the mask aside.
RowPlan::Range RowPlan::without_types(int32_t index, int32_t i) const {
  const RowBook::Row& row = book_.sequence(index);
  const int32_t position = row.next - row.n_added + i;
  const bool later = sees_later(index * book_.q_len() + i);
  const int32_t starts = planted(Bug::padding_rows_seen) ? 0 : row.starts;
  const int32_t low = planted(Bug::except_row_past_window) && later ? 0 : rules_.low(position);
  const int32_t begin = std::max({row.first, starts, low});
  const int32_t end = later ? row.next : position + 1;
  return {begin, std::max(begin, end)};
}

/// The range that also holds the tokens of its type: just those, where they are neighbours.
RowPlan::Range RowPlan::with_types(int32_t index, int32_t i, Range seen) const {
  const RowBook::Row& row = book_.sequence(index);
  const int32_t token = index * book_.q_len(), position = row.next - row.n_added;
  if (!has_types_ || type_[token + i] == 0) return seen;
  int32_t first = 0, last = row.n_added - 1;
  while (!same_type(token + i, token + first)) ++first;
  while (!same_type(token + i, token + last)) --last;
  const int32_t low = planted(Bug::type_ends_at_window) ? rules_.low(position + i) : 0;
  const int32_t begin = std::max({position + first, row.first, row.starts, low});
  const int32_t end = position + last + 1;
  if (begin >= end) return seen;
  if (seen.begin >= seen.end) return {begin, end};
  return {std::min(seen.begin, begin), std::max(seen.end, end)};
}

/// Finds which columns a token sees. `all` becomes the range that holds all of them; true: they are just that range.
bool RowPlan::find_bits(int32_t index, int32_t i, Range seen, Range* all) const {
  const RowBook::Row& row = book_.sequence(index);
  const int32_t token = index * book_.q_len(), before = row.next - row.n_added;
  uint64_t* const bits = bits_of(seen_, token + i);
  std::fill_n(bits, n_words_, uint64_t{0});
  const auto see = [&](int32_t begin, int32_t end) {
    const int32_t column = rules_.column(begin), n = end - begin;
    const int32_t behind = std::min(n, rules_.columns - column);
    set_bits(bits, column, column + behind);
    set_bits(bits, 0, n - behind);
  };
  if (seen.begin < seen.end) see(seen.begin, seen.end);
  for (int32_t other = 0; has_types_ && other < row.n_added; ++other) {
    if (same_type(token + i, token + other) && before + other >= row.starts)
      see(before + other, before + other + 1);
  }
  if (rules_.ring) return false;
  int32_t n_seen = 0, first = 0, last = -1;
  const uint64_t* const shown = bits_of(shown_, token + (mask_is_per_token_ ? i : 0));
  for (int32_t word = 0; word < n_words_; ++word) {
    if (has_mask_) bits[word] &= shown[word];
    if (bits[word] == 0) continue;
    if (n_seen == 0) first = word * 64 + std::countr_zero(bits[word]);
    last = word * 64 + 63 - std::countl_zero(bits[word]);
    n_seen += std::popcount(bits[word]);
  }
  *all = {first, last + 1};
  return n_seen == last + 1 - first;
}

/// The tokens of one row of the batch.
void RowPlan::add_row(int32_t index) {
  const RowBook::Row& row = book_.sequence(index);
  const int32_t list = plan_.n_lists, n_before = plan_.n_rows;
  for (int32_t i = 0; i < book_.q_len(); ++i) {
    const int32_t token = index * book_.q_len() + i;
    Range seen = i < row.n_added ? without_types(index, i) : Range{};
    if (i < row.n_added) {
      const Range plain = seen;
      seen = with_types(index, i, plain);
      if (needs_bits_ && !find_bits(index, i, plain, &seen)) plan_.seen = seen_;
    }
    if (seen.begin >= seen.end) {
      padding_[plan_.n_padding++] = token;
      continue;
    }
    rows_[plan_.n_rows++] = {.token = token,
                             .list = list,
                             .position = row.next - row.n_added + i,
                             .first_end = 0,
                             .begin = seen.begin - row.first,
                             .end = seen.end - row.first,
                             .sequence = index};
  }
  if (plan_.n_rows == n_before) return;
  TokenList& made = lists_[plan_.n_lists++] = {};
  made.start[0] = rules_.column(row.first);
  made.count[0] = made.total = row.next - row.first;
  made.first_cell = index * rules_.columns;
  made.first_position = row.first - rules_.column(row.first);
}

const AttentionPlan& RowPlan::make() {
  plan_ = {};
  plan_.rows = rows_;
  plan_.lists = lists_;
  plan_.padding = padding_;
  plan_.tokens = {cells_, positions_};
  plan_.seen_words = n_words_;
  plan_.columns_by_list = true;
  plan_.batch = rules_.n_rows;
  for (int32_t index = 0; index < rules_.n_rows; ++index) add_row(index);
  is_made_ = true;
  return plan_;
}

}  // namespace kvc
