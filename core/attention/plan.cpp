#include "core/attention/plan.hpp"

#include <algorithm>

#include "core/attention/visible.hpp"
#include "core/base/planted.hpp"

namespace kvc {
namespace {

/// How many of n entries from a and from b name the same cells at the same positions, up to the first that do not. Stretches are
/// compared as bytes first, which takes a third of the time.
int32_t common_entries(const TokenArrays& tokens, int64_t a, int64_t b, int32_t n) {
  constexpr int32_t stretch = 64;
  const auto equal = [a, b](const int32_t* words, int32_t i) {
    return std::equal(words + a + i, words + a + i + stretch, words + b + i);
  };
  int32_t i = 0;
  while (n - i >= stretch && equal(tokens.cell, i) && equal(tokens.position, i)) i += stretch;
  while (i < n && tokens.cell[a + i] == tokens.cell[b + i] &&
         tokens.position[a + i] == tokens.position[b + i])
    ++i;
  return i;
}

/// How many entries at the start of two lists name the same cells at the same positions.
int32_t common_prefix(const TokenArrays& tokens, const TokenList& a, const TokenList& b) {
  int32_t length = 0, piece_a = 0, piece_b = 0, at_a = 0, at_b = 0;
  const int32_t limit = std::min(a.total, b.total);
  while (length < limit) {
    while (at_a == a.count[piece_a]) at_a = 0, ++piece_a;
    while (at_b == b.count[piece_b]) at_b = 0, ++piece_b;
    const int32_t stretch = std::min(a.count[piece_a] - at_a, b.count[piece_b] - at_b);
    const int32_t common = common_entries(tokens, a.start[piece_a] + at_a, b.start[piece_b] + at_b,
                                          stretch);
    length += common;
    if (common < stretch) break;
    at_a += stretch;
    at_b += stretch;
  }
  return length;
}

int32_t first_cell(const TokenArrays& tokens, const TokenList& list) {
  for (int piece = 0; piece < 3; ++piece) {
    if (list.count[piece] > 0) return tokens.cell[list.start[piece]];
  }
  return -1;
}

}  // namespace

void PassPlan::carve(Carver& carver) {
  const auto batch = static_cast<uint64_t>(max_batch_);
  except_ = carver.take<uint64_t>(batch / 64 + 1, 64);
  type_ = carver.take<uint16_t>(batch, 64);
  rows_ = carver.take<AttentionRow>(batch, 64);
  lists_ = carver.take<TokenList>(batch, 64);
  shared_ = carver.take<SharedPrefix>(batch, 64);
  padding_ = carver.take<int32_t>(batch, 64);
}

// ---- The except set and types -------------------------------------------------------------------------------------------

void PassPlan::open(int32_t n_tokens, const uint32_t* flags) {
  n_tokens_ = n_tokens;
  std::fill_n(except_, n_tokens / 64 + 1, uint64_t{0});
  for (int32_t i = 0; flags != nullptr && i < n_tokens; ++i) {
    if ((flags[i] & token_sees_later) != 0) except_[i / 64] |= uint64_t{1} << (i % 64);
  }
  has_types_ = flags != nullptr && std::any_of(flags, flags + n_tokens, type_of_flags);
  for (int32_t i = 0; has_types_ && i < n_tokens; ++i)
    type_[i] = static_cast<uint16_t>(type_of_flags(flags[i]));
  forget();
}

bool PassPlan::any_sees_later() const {
  return has_types_ ||
         std::any_of(except_, except_ + n_tokens_ / 64 + 1, [](uint64_t word) { return word != 0; });
}

bool PassPlan::same_block(int32_t token, int32_t other) const {
  if (!has_types_ || type_[token] == 0 || type_[token] != type_[other]) return false;
  const Visibility& visibility = book_.rules().visibility;
  const int32_t* position = book_.batch_position();
  return visibility.chunk_start(position[token]) == visibility.chunk_start(position[other]);
}

void PassPlan::set_except(int32_t n_except, const int32_t* except) {
  if (!planted(Bug::except_set_adds)) std::fill_n(except_, n_tokens_ / 64 + 1, uint64_t{0});
  for (int32_t i = 0; i < n_except; ++i) {
    if (book_.batch_sequence()[except[i]] != no_sequence)
      except_[except[i] / 64] |= uint64_t{1} << (except[i] % 64);
  }
  forget();
}

// ---- Rows ----------------------------------------------------------------------------------------------------------------

/// What token `token` of the batch sees; `order` counts the batch's tokens of its sequence. Indexes count from `skipped`.
AttentionRow PassPlan::row_of(const CellBook::Sequence& sequence, int32_t token, int32_t order,
                              int32_t skipped) const {
  const TokenSequence& tokens = sequence.tokens;
  const Visibility& visibility = book_.rules().visibility;
  const int32_t position = book_.batch_position()[token];
  AttentionRow row;
  row.token = token;
  row.position = position;
  row.sequence = planted(Bug::dropout_of_first_sequence) ? 0 : book_.batch_sequence()[token];
  row.end = sees_later(token) ? tokens.count() : tokens.count() - sequence.n_added + order + 1;
  const int32_t low = visibility.low(position) + (planted(Bug::short_window) && visibility.reach > 0) +
                      (planted(Bug::late_chunk) && visibility.chunk_start(position) > 0 &&
                       visibility.low(position) < position);
  row.begin = low > 0 ? tokens.rank(low) : 0;
  if (visibility.keep_first > 0 && row.begin > skipped) {
    // The kept-first part, as far as it lies inside the chunk (`skipped` is where the chunk begins) and before the rest.
    row.first_end = std::max(skipped, std::min(tokens.rank(visibility.keep_first), row.end));
    if (row.first_end >= row.begin) row.begin = row.first_end = skipped;
  } else {
    row.first_end = skipped;
  }
  row.first_end -= skipped;
  row.begin -= skipped;
  row.end -= skipped;
  return row;
}

/// Rows of one sequence. They share a list, except where a chunk begins inside the kept-first part: a token then sees
/// [chunk, keep_first) and its window, so its list begins with its chunk.
void PassPlan::add_sequence(const CellBook::Sequence& sequence) {
  const Visibility& visibility = book_.rules().visibility;
  const int32_t first_row = plan_.n_rows;
  int32_t list_start = -1;
  int32_t order = 0;
  book_.for_each_added(sequence, [&](int32_t token) {
    const int32_t chunk = visibility.chunk_start(book_.batch_position()[token]);
    const bool skips = visibility.keep_first > 0 && chunk > 0;
    const int32_t start = skips ? sequence.tokens.rank(chunk) : 0;
    if (start != list_start) {
      TokenList& list = lists_[plan_.n_lists++];
      list = sequence.tokens.list(start);
      list.has_pending = sequence.may_be_pending &&
                         !(planted(Bug::shift_lost_on_shared) && book_.pool().n_shared() > 0);
      list_start = start;
    }
    AttentionRow& row = rows_[plan_.n_rows++];
    row = row_of(sequence, token, order++, start);
    row.list = plan_.n_lists - 1;
  });
  if (has_types_) widen_blocks(first_row);
}

/// The rows from `first_row` on are those of one sequence, in its order. Rows of a block (tokens of one type, in one chunk) see
/// the whole block: it is next to what each of them sees anyway, so every row keeps its two ranges.
void PassPlan::widen_blocks(int32_t first_row) {
  for (int32_t begin = first_row; begin < plan_.n_rows;) {
    int32_t end = begin + 1;
    while (end < plan_.n_rows && same_block(rows_[begin].token, rows_[end].token)) ++end;
    // The pass's tokens are the last of their lists.
    const int32_t own = lists_[rows_[begin].list].total - (plan_.n_rows - begin);
    for (int32_t r = begin; r < end && end - begin > 1; ++r) {
      AttentionRow& row = rows_[r];
      row.begin = std::max(std::min(row.begin, own), row.first_end);
      if (!planted(Bug::type_stays_causal)) row.end = std::max(row.end, own + end - begin);
    }
    begin = end;
  }
}

/// Finds neighbouring lists that begin with the same cells.
void PassPlan::find_shared_prefixes(int32_t least_length) {
  for (int32_t begin = 0; begin < plan_.n_lists;) {
    int32_t end = begin + 1;
    int32_t length = 0;
    const int32_t cell = first_cell(plan_.tokens, lists_[begin]);
    if (cell >= 0 && book_.pool().owners(cell) > 1) {
      length = lists_[begin].total;
      while (end < plan_.n_lists && first_cell(plan_.tokens, lists_[end]) == cell) {
        const int32_t common = std::min(length,
                                        common_prefix(plan_.tokens, lists_[begin], lists_[end]));
        if (common < least_length || common < length / 2) {
          if (end > begin + 1 || common < least_length) break;
        }
        length = common;
        ++end;
      }
    }
    if (end > begin + 1) shared_[plan_.n_shared++] = {begin, end, length};
    begin = end;
  }
}

const AttentionPlan& PassPlan::make(int32_t least_shared_prefix) {
  if (is_made_) return plan_;
  plan_ = {};
  plan_.rows = rows_;
  plan_.lists = lists_;
  plan_.shared = shared_;
  plan_.padding = padding_;
  plan_.tokens = book_.token_arrays();
  plan_.rotated_for = book_.pool().rotated_for();
  for (int32_t i = 0; i < book_.n_in_batch(); ++i) add_sequence(book_.sequence(book_.touched(i)));
  for (int32_t token = 0; token < n_tokens_ && plan_.n_rows + plan_.n_padding < n_tokens_; ++token) {
    if (book_.batch_sequence()[token] == no_sequence) padding_[plan_.n_padding++] = token;
  }
  if (book_.pool().n_shared() > 0 && plan_.n_lists > 1) find_shared_prefixes(least_shared_prefix);
  is_made_ = true;
  return plan_;
}

PassPlan::Span PassPlan::span() {
  if (is_spanned_) return span_;
  int32_t low = INT32_MAX, high = -1;
  for (int32_t r = 0; r < plan_.n_rows;) {
    // Rows of one list overlap or touch, so the list is walked once, over what any of them sees.
    AttentionRow all = rows_[r];
    for (; r < plan_.n_rows && rows_[r].list == all.list; ++r) {
      all.first_end = std::max(all.first_end, rows_[r].first_end);
      all.begin = std::min(all.begin, rows_[r].begin);
      all.end = std::max(all.end, rows_[r].end);
    }
    all.begin = std::max(all.begin, all.first_end);
    for_each_visible(plan_, all, [&](int32_t, int32_t cell, int32_t) {
      low = std::min(low, cell);
      high = std::max(high, cell);
    });
  }
  span_ = high < 0 ? Span{} : Span{low, high + 1};
  is_spanned_ = true;
  return span_;
}

}  // namespace kvc
