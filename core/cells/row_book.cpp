#include "core/cells/row_book.hpp"

#include <new>

#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {
namespace {

constexpr int32_t highest_next = INT32_MAX - 1;  // positions are below

bool has_mask(const RowTokens& tokens) { return tokens.attention_mask.ndim != 0; }

/// Columns that a mask reaches.
int64_t reach_of(const Tensor& mask) { return mask.shape[mask.ndim - 1]; }

}  // namespace

bool mask_shows(const Tensor& mask, int32_t row, int32_t token, int32_t column) {
  const int64_t index = row * mask.stride[0] + (mask.ndim == 4 ? token * mask.stride[2] : 0) +
                        column * mask.stride[mask.ndim - 1];
  return mask.dtype == DType::boolean ? static_cast<const uint8_t*>(mask.data)[index] != 0
                                      : static_cast<const int32_t*>(mask.data)[index] != 0;
}

/// Runs twice (see Carver).
void RowBook::carve(Carver& carver) {
  const auto n_rows = static_cast<uint64_t>(rules_.n_rows);
  rows_ = carver.take<Row>(n_rows, 64);
  copies_ = carver.take<Row>(n_rows, 64);
  plans_.carve(carver);
  planned_valid_ = carver.take<int32_t>(n_rows, 64);
  batch_cell_ = carver.take<int32_t>(n_rows * static_cast<uint64_t>(rules_.q_max), 64);
}

void RowBook::reset() {
  for (int32_t row = 0; row < rules_.n_rows; ++row) new (&rows_[row]) Row();
}

void RowBook::recount() {
  used_ = 0;
  for (int32_t i = 0; i < rules_.n_rows; ++i) used_ += rows_[i].next - first_kept(rows_[i]);
}

// ---- What becomes free --------------------------------------------------------------------------------------------------

bool RowBook::holds(const Row& row, int32_t column) const {
  int32_t after = column - rules_.column(row.first);
  if (after < 0) after += rules_.columns;  // without a ring that is behind all that is stored
  return after < row.next - row.first;
}

/// Positions that a row held and may no longer hold.
void RowBook::note_freed(Row& row, int32_t begin, int32_t end) {
  if (begin >= end) return;
  const bool is_first = row.freed_first == row.freed_end;
  row.freed_first = is_first ? begin : std::min(row.freed_first, begin);
  row.freed_end = is_first ? end : std::max(row.freed_end, end);
}

/// Forgets what a row holds at and behind a position, where it then continues.
void RowBook::drop_from(Row& row, int32_t position) {
  note_freed(row, std::max(row.first, position), row.next);
  row.first = std::min(row.first, position);
  row.next = position;
  if (position == 0) row.lost_below = 0;
}

/// The row becomes another; no pass is open.
void RowBook::replace(Row& row, const Row& by) {
  note_freed(row, row.first, row.next);
  const int32_t freed_first = row.freed_first, freed_end = row.freed_end;
  row = by;
  row.n_added = 0;
  row.freed_first = freed_first;
  row.freed_end = freed_end;
}

// ---- Planning -----------------------------------------------------------------------------------------------------------

Status RowBook::check_batch(const Batch& batch) const {
  const RowTokens& tokens = *batch.rows;
  if (Status s = read_valid(tokens); s != Status::ok) return s;
  if (has_mask(tokens) && !rules_.ring) {
    if (Status s = check_mask(tokens); s != Status::ok) return s;
  }
  for (int32_t row = 0; rules_.ring && row < rules_.n_rows; ++row) {
    if (int64_t{rows_[row].next} + planned_valid_[row] <= highest_next) continue;
    return fail(Status::invalid_argument,
                "row %d continues at %d: %d more tokens would go beyond the last position %d", row,
                rows_[row].next, planned_valid_[row], highest_next - 1);
  }
  return Status::ok;
}

/// How many tokens each row takes: as the caller says, all, or as its padded mask shows.
Status RowBook::read_valid(const RowTokens& tokens) const {
  for (int32_t row = 0; row < rules_.n_rows; ++row) {
    int32_t& valid = planned_valid_[row];
    valid = tokens.valid != nullptr ? tokens.valid[row] : tokens.q_len;
    if (!tokens.postpadded) continue;
    valid = 0;
    if (rules_.ring) continue;  // a mask names columns, which check_room() refuses
    const Tensor& mask = tokens.attention_mask;
    if (mask.ndim != 2) {
      return fail(Status::shape,
                  "attention_mask has %d dimensions, not 2 ([batch, n]), which "
                  "KVC_ROWS_POSTPADDED takes alone",
                  mask.ndim);
    }
    const int32_t next = rows_[row].next;
    for (int32_t token = 0; token < tokens.q_len && next + token < reach_of(mask); ++token) {
      if (!mask_shows(mask, row, 0, next + token)) continue;
      if (valid++ == token) continue;
      return fail(Status::invalid_argument,
                  "attention_mask shows column %d of row %d behind one that it hides: with "
                  "KVC_ROWS_POSTPADDED a row's new tokens come before its padding",
                  next + token, row);
    }
  }
  return Status::ok;
}

Status RowBook::check_mask(const RowTokens& tokens) const {
  const int64_t reach = reach_of(tokens.attention_mask);
  for (int32_t row = 0; row < rules_.n_rows; ++row) {
    const int32_t least = std::min(rules_.length, rows_[row].next + planned_valid_[row]);
    if (reach >= least && reach <= rules_.length) continue;
    return fail(
        Status::shape,
        "attention_mask reaches %lld columns, not %d, which row %d needs, to %d, which is capacity",
        static_cast<long long>(reach), least, row, rules_.length);
  }
  return Status::ok;
}

Status RowBook::check_room(const Batch& batch) const {
  if (rules_.ring && has_mask(*batch.rows)) {
    return fail(Status::not_supported,
                "attention_mask names columns, and in a ring columns are reused: hide padding with "
                "valid and starts (kvc_rows_set)");
  }
  for (int32_t row = 0; !rules_.ring && row < rules_.n_rows; ++row) {
    const int32_t n = planted(Bug::room_for_padding_asked) ? batch.rows->q_len : planned_valid_[row];
    if (rows_[row].next + n <= rules_.length) continue;
    return fail(Status::cache_full,
                "row %d continues at %d, and %d more tokens go beyond capacity %d: no row of the "
                "batch was changed",
                row, rows_[row].next, planned_valid_[row], rules_.length);
  }
  return Status::ok;
}

// ---- A pass ---------------------------------------------------------------------------------------------------------------

/// check_batch() has just planned it.
void RowBook::open_pass(const Batch& batch) {
  q_len_ = batch.rows->q_len;
  int32_t* to = batch_cell_;
  for (int32_t index = 0; index < rules_.n_rows; ++index) {
    Row& row = rows_[index];
    const int32_t valid = planned_valid_[index];
    const bool stores_padding = planted(Bug::padding_token_stored) && row.next + valid < rules_.length;
    for (int32_t i = 0; i < q_len_; ++i)
      *to++ = i < valid + stores_padding ? cell(index, row.next + i) : -1;
    row.n_added = valid;
    row.next += valid;
    if (!planted(Bug::ring_slides_at_begin)) continue;
    row.lost_below = lost_after(row);
    row.first = first_kept(row);
  }
  recount();
}

/// Keeps the first n tokens of those that the pass added to the row.
void RowBook::keep_added(int32_t index, int32_t n) {
  Row& row = rows_[index];
  const int32_t dropped = row.n_added - n;
  note_freed(row, row.next - dropped, row.next);
  row.next -= dropped;
  row.n_added = n;
}

void RowBook::commit_pass() {
  for (int32_t i = 0; i < rules_.n_rows; ++i) {
    Row& row = rows_[i];
    note_freed(row, row.first, first_kept(row));
    row.lost_below = lost_after(row);
    row.first = first_kept(row);
    row.n_added = 0;
  }
  recount();
}

void RowBook::abort_pass() {
  for (int32_t i = 0; i < rules_.n_rows; ++i) {
    Row& row = rows_[i];
    note_freed(row, row.next - row.n_added, row.next);
    row.next -= row.n_added;
    row.n_added = 0;
  }
  recount();
}

// ---- Rows -----------------------------------------------------------------------------------------------------------------

bool RowBook::can_continue(int32_t index, int32_t position) const {
  const Row& row = rows_[index];
  return position == 0 || (position <= row.next && rules_.low(position) >= lost_after(row));
}

int32_t RowBook::best_continuation(int32_t index, int32_t want) const {
  const int32_t best = std::min(want, rows_[index].next);
  return can_continue(index, best) ? best : 0;  // what a lower place would need is lost, too
}

/// A row that is emptied is as new.
void RowBook::cut(int32_t index, int32_t position) {
  Row& row = rows_[index];
  drop_from(row, position);
  if (position == 0 && !planted(Bug::emptied_row_keeps_starts)) row.starts = 0;
  recount();
}

void RowBook::copy_prefix(int32_t source, int32_t destination, int32_t position) {
  Row copy = rows_[source];
  copy.next = position;
  copy.first = std::min(copy.first, position);
  if (planted(Bug::copied_row_without_starts)) copy.starts = 0;
  replace(rows_[destination], position == 0 ? Row() : copy);
  recount();
}

void RowBook::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  for (int32_t i = 0; i < n; ++i) copies_[i] = rows_[source[i]];
  for (int32_t i = 0; i < n; ++i) replace(rows_[destination[i]], copies_[i]);
  recount();
}

Status RowBook::check_removal(int32_t index, int32_t begin, int32_t end) const {
  const Row& row = rows_[index];
  if (begin == end || begin >= row.next) return Status::ok;
  if (end < row.next) {
    return fail(
        Status::not_supported,
        "positions %d to %d lie in the middle of row %d, which continues at %d: a "
        "transformer cache never moves a token to another column; remove to KVC_SEQ_END, and "
        "feed the rest again",
        begin, end - 1, index, row.next);
  }
  if (can_continue(index, begin)) return Status::ok;
  return fail(Status::window_lost,
              "row %d cannot continue at %d: positions below %d are lost, and a token there sees "
              "from %d on",
              index, begin, lost_after(row), rules_.low(begin));
}

void RowBook::remove(int32_t index, int32_t begin, int32_t end) {
  if (begin == end || begin >= rows_[index].next) return;
  cut(index, begin);
}

SequenceInfo RowBook::info(int32_t index) const {
  const Row& row = rows_[index];
  const int32_t first = first_kept(row);
  return {first, row.next, row.next - first,
          (rules_.ring ? highest_next : rules_.length) - row.next, lost_after(row)};
}

Status RowBook::check_set(int32_t row_begin, int32_t n, const int32_t* index,
                          const int32_t* starts) const {
  const int32_t furthest = rules_.ring ? highest_next - 1 : rules_.length;
  for (int32_t i = 0; i < n; ++i) {
    const Row& row = rows_[row_begin + i];
    if (starts != nullptr && (starts[i] < 0 || starts[i] > furthest)) {
      return fail(Status::invalid_argument, "starts[%d] is %d; it must be from 0 to %d", i,
                  starts[i], furthest);
    }
    if (index == nullptr) continue;
    const bool anywhere = rules_.ring && row.next == 0;
    if (index[i] < 0 || index[i] > (anywhere ? furthest : row.next)) {
      return fail(Status::invalid_argument,
                  "index[%d] is %d, and row %d continues at %d: an index goes back only%s", i,
                  index[i], row_begin + i, row.next,
                  rules_.ring ? ", or, of an empty row of a ring, anywhere" : "");
    }
  }
  for (int32_t i = 0; index != nullptr && i < n; ++i) {
    const Row& row = rows_[row_begin + i];
    if (row.next == 0 || can_continue(row_begin + i, index[i])) continue;
    return fail(Status::window_lost,
                "row %d cannot continue at index[%d], which is %d: positions below %d are lost",
                row_begin + i, i, index[i], lost_after(row));
  }
  return Status::ok;
}

void RowBook::set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) {
  for (int32_t i = 0; i < n; ++i) {
    Row& row = rows_[row_begin + i];
    if (index != nullptr && row.next == 0) {  // of a ring, over a gap
      row.first = row.next = index[i];
      row.lost_below = lost_after(row);
    } else if (index != nullptr) {
      drop_from(row, index[i]);
    }
    if (starts != nullptr) row.starts = starts[i];
  }
  recount();
}

Status RowBook::check_insert(const RowBook& other, int32_t slot) const {
  for (int32_t i = 0; i < other.rules_.n_rows; ++i) {
    const Row& row = other.rows_[i];
    if (rules_.ring || (row.next <= rules_.length && row.starts <= rules_.length)) continue;
    return fail(Status::cache_full,
                "row %d of other continues at %d and starts at %d: row %d has capacity %d", i,
                row.next, row.starts, slot + i, rules_.length);
  }
  return Status::ok;
}

void RowBook::insert(const RowBook& other, int32_t slot) {
  for (int32_t i = 0; i < other.rules_.n_rows; ++i) replace(rows_[slot + i], other.rows_[i]);
  recount();
}

// ---- Watching -------------------------------------------------------------------------------------------------------------

Status RowBook::check(bool pass_is_open) const {
  int64_t used = 0;
  for (int32_t index = 0; index < rules_.n_rows; ++index) {
    const Row& row = rows_[index];
    const auto broken = [index](const char* what) {
      return fail(Status::internal, "row %d: %s", index, what);
    };
    if (row.first < 0 || row.first > row.next)
      return broken("its first position is behind its next");
    if (row.n_added < 0 || row.n_added > rules_.q_max || row.n_added > row.next - row.first)
      return broken("the open pass added more tokens than it holds");
    if (row.n_added > 0 && !pass_is_open) return broken("waits for a commit, and no pass is open");
    if (row.next - row.n_added - row.first > rules_.length || row.next - row.first > rules_.columns)
      return broken("holds more positions than it may");
    if (!rules_.ring && (row.first != 0 || row.lost_below != 0 || row.next > rules_.length))
      return broken("has lost positions without a ring, or goes beyond capacity");
    if (row.lost_below < 0 || row.lost_below > row.first)
      return broken("holds positions that are lost");
    if (row.starts < 0) return broken("starts below 0");
    used += row.next - first_kept(row);
  }
  if (used != used_) return fail(Status::internal, "positions in use are miscounted");
  return Status::ok;
}

}  // namespace kvc
