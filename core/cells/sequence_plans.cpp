#include "core/cells/sequence_plans.hpp"

#include "core/base/messages.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc {

void SequencePlans::begin() const {
  if (++stamp_ != 0) return;
  for (int32_t i = 0; i < bounds_.max_sequences; ++i) plans_[i].stamp = 0;
  stamp_ = 1;  // wrapped: no old stamp may look fresh
}

bool SequencePlans::mark(int32_t sequence) const {
  if (plans_[sequence].stamp == stamp_) return false;
  plans_[sequence] = {.stamp = stamp_};
  return true;
}

Status SequencePlans::check_distinct(int32_t n, const int32_t* sequence) const {
  if (n > bounds_.max_sequences) return too_many_named(n, bounds_.max_sequences);
  begin();
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_sequence_at("sequence", i, sequence[i], bounds_.max_sequences);
        s != Status::ok)
      return s;
    if (!mark(sequence[i])) return named_twice(sequence[i]);
  }
  return Status::ok;
}

Status SequencePlans::check_reorder(int32_t n, const int32_t* destination,
                                    const int32_t* source) const {
  if (Status s = check_arrays("n", n, {{"dst", destination}, {"src", source}}); s != Status::ok)
    return s;
  begin();
  for (int32_t i = 0; i < n; ++i) {
    if (Status s = check_sequence_at("dst", i, destination[i], bounds_.max_sequences); s != Status::ok)
      return s;
    if (Status s = check_sequence_at("src", i, source[i], bounds_.max_sequences); s != Status::ok)
      return s;
    if (!mark(destination[i])) return destination_named_twice(i, destination[i]);
  }
  return Status::ok;
}

}  // namespace kvc
