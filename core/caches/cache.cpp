#include "core/caches/cache.hpp"

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

// ---- A pass -------------------------------------------------------------------------------------------------------------

Status Cache::begin(const Batch& batch, bool reserve) {
  if (Status s = can_begin(batch, reserve); s != Status::ok) {
    if (planted(Bug::failed_begin_commits) && s == Status::cache_full && end_pass() != Status::ok)
      return Status::internal;
    return s;
  }
  if (Status s = check_stream(batch, reserve); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return open(batch, reserve);
}

Status Cache::commit() {
  if (Status s = need_pass(); s != Status::ok) return s;
  if (Status s = check_end("kvc_commit"); s != Status::ok) return s;
  return end_pass();
}

Status Cache::commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep) {
  if (Status s = need_pass(); s != Status::ok) return s;
  if (Status s = check_arrays("n_sequences", n, {{"sequence", sequence}, {"keep", keep}});
      s != Status::ok)
    return s;
  if (Status s = check_distinct(n, sequence); s != Status::ok) return s;
  // An argument out of range comes before what a kind cannot keep, wherever in the list they stand.
  Status refused = Status::ok;
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_keep(sequence[i], keep[i]); s != Status::ok) return s;
  }
  for (int32_t i = 0; i < n; ++i) {
    const Status s = check_kept(sequence[i], keep[i]);
    if (s == Status::invalid_argument) return s;
    if (refused == Status::ok) refused = s;
  }
  if (refused != Status::ok) return refused;
  if (Status s = check_end("kvc_commit_prefix"); s != Status::ok) return s;
  for (int32_t i = 0; i < n; ++i) keep_added(sequence[i], keep[i]);
  return end_pass();
}

Status Cache::abort() {
  if (Status s = need_pass(); s != Status::ok) return s;
  if (Status s = check_end("kvc_abort"); s != Status::ok) return s;
  return drop_pass();
}

// ---- Sequences ----------------------------------------------------------------------------------------------------------

Status Cache::can_resume(int32_t sequence, int32_t want, int32_t* best) const {
  if (Status s = check_resume(sequence, want, bounds().max_sequences); s != Status::ok) return s;
  *best = best_continuation(sequence, want);
  return Status::ok;
}

Status Cache::resume(int32_t sequence, int32_t want, int32_t* got) {
  int32_t best = 0;
  if (Status s = can_resume(sequence, want, &best); s != Status::ok) return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_resume"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  if (got != nullptr) *got = best;
  return cut(sequence, best);
}

Status Cache::copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) {
  if (Status s = check_copy(source, destination, length, bounds().max_sequences); s != Status::ok)
    return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_copy_prefix"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  const int32_t best = best_continuation(source, length);
  if (got != nullptr) *got = best;
  return copy(source, destination, best);
}

Status Cache::reorder(int32_t n, const int32_t* destination, const int32_t* source) {
  if (Status s = check_reorder(n, destination, source); s != Status::ok) return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_reorder"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return apply_reorder(n, destination, source);
}

Status Cache::can_remove(int32_t sequence, int32_t begin, int32_t end) const {
  if (Status s = check_range(sequence, begin, end, bounds().max_sequences); s != Status::ok)
    return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  return check_removal(sequence, begin, end);
}

Status Cache::remove(int32_t sequence, int32_t begin, int32_t end) {
  if (Status s = check_range(sequence, begin, end, bounds().max_sequences); s != Status::ok)
    return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_remove"); s != Status::ok) {
    const Status refused = check_removal(sequence, begin, end);
    return refused == Status::ok ? need_no_recording("kvc_remove") : refused;
  }
  if (Status s = prepare_removal(sequence, begin, end); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return apply_removal();
}

Status Cache::sequence_info(int32_t sequence, SequenceInfo* out) const {
  if (Status s = check_sequence(sequence, bounds().max_sequences); s != Status::ok) return s;
  *out = info(sequence);
  return Status::ok;
}

Status Cache::take_checkpoint(int32_t sequence) {
  if (Status s = check_sequence(sequence, bounds().max_sequences); s != Status::ok) return s;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (Status s = checkpoints()->check_checkpoint(sequence); s != Status::ok) return s;
  if (Status s = need_no_recording("kvc_checkpoint_take"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return checkpoints()->take_checkpoint(sequence);
}

// ---- Rows ---------------------------------------------------------------------------------------------------------------

namespace {

Status check_rows(int32_t row_begin, int32_t n, int32_t n_rows) {
  if (n >= 0 && row_begin >= 0 && row_begin <= n_rows - n) return Status::ok;
  return fail(Status::invalid_argument,
              "row_begin %d and n %d name no rows of [0, %d), which is max_sequences", row_begin, n,
              n_rows);
}

/// Refusals that come before BAD_STATE for an open pass that is not fully put.
bool is_about_arguments(Status status) {
  return status == Status::invalid_argument || status == Status::device_mismatch;
}

}  // namespace

Status Cache::query_rows(int32_t row_begin, int32_t n, int32_t* index, int32_t* starts) const {
  if (Status s = check_rows(row_begin, n, bounds().max_sequences); s != Status::ok) return s;
  for (int32_t i = 0; i < n; ++i) {
    if (index != nullptr) index[i] = info(row_begin + i).next;
    if (starts != nullptr) starts[i] = rows()->starts(row_begin + i);
  }
  return Status::ok;
}

Status Cache::set_rows(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) {
  if (Status s = check_rows(row_begin, n, bounds().max_sequences); s != Status::ok) return s;
  const Status refused = rows()->check_set(row_begin, n, index, starts);
  if (is_about_arguments(refused)) return refused;
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (refused != Status::ok) return refused;
  if (Status s = need_no_recording("kvc_rows_set"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return rows()->apply_set(row_begin, n, index, starts);
}

Status Cache::insert(const Cache& other, int32_t slot) {
  const Status refused = rows()->check_insert(other, slot);
  if (is_about_arguments(refused)) return refused;
  if (other.stats().state == CacheState::pass) {
    return fail(Status::bad_state,
                "a pass of other is open: end it with kvc_commit or kvc_abort first");
  }
  if (Status s = need_fully_put(); s != Status::ok) return s;
  if (refused != Status::ok) return refused;
  if (Status s = need_no_recording("kvc_insert"); s != Status::ok) return s;
  if (Status s = other.need_no_recording("kvc_insert"); s != Status::ok) return s;
  if (Status s = end_pass(); s != Status::ok) return s;
  return rows()->apply_insert(other, slot);
}

}  // namespace kvc
