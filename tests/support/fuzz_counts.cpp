#include "fuzz_counts.hpp"

#include <algorithm>
#include <iomanip>
#include <iterator>
#include <ostream>

namespace fuzz {
namespace {

// clang-format off
constexpr const char* names[] = {
    "begin", "begin_reserve", "fits", "rows_set", "insert", "rows_view", "rows_fill", "put", "encoder_put", "put_attention", "encoder_share", "attention", "attention_extra", "get",
    "get_codes", "get_copy", "put_codes", "mask", "history", "gather", "state_layout", "state_get", "state_put", "state_conv", "state_in_place", "state_gather",
    "lightning_read", "lightning_write", "checkpoint_take", "checkpoint_list", "set_causal", "commit", "commit_prefix", "abort", "can_resume", "resume", "copy_prefix",
    "reorder", "remove_tail", "remove_middle", "can_remove", "bind_attention", "bind_rope", "bind_scales", "bind_shift", "lacking", "of_child",
    "refused", "runs", "sequence_query", "stats", "digest", "check"};
// clang-format on
static_assert(std::size(names) == static_cast<size_t>(Op::count));

}  // namespace

const char* name(Op op) { return names[static_cast<size_t>(op)]; }

Counts::Counts(const std::vector<Op>& rows, const std::vector<const char*>& met)
    : rows_(rows), headings_(met) {
  headings_.insert(headings_.begin(), "succeeded");
  table_.resize(rows_.size() * headings_.size());
  for (size_t row = 0; row < rows_.size(); ++row) row_of_[static_cast<size_t>(rows_[row])] = row;
}

void Counts::record(Op op, bool succeeded, const Met& met) {
  uint64_t* number = &table_.at(row_of_[static_cast<size_t>(op)] * headings_.size());
  *number += succeeded;
  for (const char each : met) *++number += each != 0;
}

void Counts::print(std::ostream& out) const {
  out << std::left << std::setw(16) << "operation" << std::right;
  for (const char* heading : headings_) out << std::setw(12) << heading;
  out << '\n';
  for (size_t i = 0; i < table_.size(); ++i) {
    if (i % headings_.size() == 0)
      out << std::left << std::setw(16) << name(rows_[i / headings_.size()]) << std::right;
    out << std::setw(12) << table_[i] << ((i + 1) % headings_.size() == 0 ? "\n" : "");
  }
  out << "attention rows compared with double: " << rows_compared << " (" << rows_wild
      << " too large to compare), states built a second time in other cells: " << rebuilt
      << ", poisonings of free cells: " << poisonings << "\nfingerprint of the run: " << std::hex
      << fingerprint_ << std::dec << '\n';
}

uint64_t Counts::least() const {
  // Every operation can meet everything, so nothing is left out: `begin` meets a full pool by
  // answering CACHE_FULL, calls that are illegal while a pass is open by saying BAD_STATE.
  return *std::min_element(table_.begin(), table_.end());
}

}  // namespace fuzz
