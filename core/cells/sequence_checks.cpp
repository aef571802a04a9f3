#include "core/cells/sequence_checks.hpp"

#include "core/base/messages.hpp"

namespace kvc {

Status check_sequence(int32_t sequence, int32_t max_sequences, const char* name) {
  if (sequence >= 0 && sequence < max_sequences) return Status::ok;
  return no_index(name, sequence, max_sequences);
}

Status check_sequence_at(const char* array, int32_t at, int32_t sequence, int32_t max_sequences) {
  if (sequence >= 0 && sequence < max_sequences) return Status::ok;
  return no_index(array, at, sequence, max_sequences);
}

Status check_resume(int32_t sequence, int32_t want, int32_t max_sequences) {
  if (Status s = check_sequence(sequence, max_sequences); s != Status::ok) return s;
  if (want >= 0) return Status::ok;
  return fail(Status::invalid_argument, "want is %d; it must be 0 or more", want);
}

Status check_copy(int32_t source, int32_t destination, int32_t length, int32_t max_sequences) {
  if (Status s = check_sequence(source, max_sequences, "src"); s != Status::ok) return s;
  if (Status s = check_sequence(destination, max_sequences, "dst"); s != Status::ok) return s;
  if (source == destination) {
    return fail(Status::invalid_argument, "src and dst are both sequence %d; they must differ",
                source);
  }
  if (length >= 0) return Status::ok;
  return fail(Status::invalid_argument, "len is %d; it must be 0 or more", length);
}

Status check_range(int32_t sequence, int32_t begin, int32_t end, int32_t max_sequences) {
  if (Status s = check_sequence(sequence, max_sequences); s != Status::ok) return s;
  if (begin >= 0 && end >= begin) return Status::ok;
  return fail(
      Status::invalid_argument,
      "begin %d, end %d are no range of positions: 0 <= begin <= end (KVC_SEQ_END: to the end)",
      begin, end);
}

Status check_keep(int32_t sequence, int32_t keep) {
  if (keep >= 0) return Status::ok;
  return fail(Status::invalid_argument, "keep of sequence %d is %d; it must be 0 or more", sequence,
              keep);
}

Status check_kept_of(int32_t sequence, int32_t keep, int32_t n_added) {
  if (keep <= n_added) return Status::ok;
  return fail(Status::invalid_argument, "keep %d of sequence %d, which has %d tokens in the pass",
              keep, sequence, n_added);
}

Status too_many_named(int32_t n, int32_t max_sequences) {
  return fail(Status::invalid_argument, "n_sequences %d is above max_sequences %d", n, max_sequences);
}

Status named_twice(int32_t sequence) {
  return fail(Status::invalid_argument, "sequence %d is named twice", sequence);
}

Status destination_named_twice(int32_t at, int32_t sequence) {
  return fail(Status::invalid_argument, "dst names sequence %d twice, the second time in dst[%d]",
              sequence, at);
}

}  // namespace kvc
