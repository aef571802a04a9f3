#include "fuzz_coverage.hpp"

#include <algorithm>
#include <iomanip>
#include <ostream>

namespace fuzz {
namespace {

// clang-format off
constexpr const char* names[] = {
    "begin", "begin_reserve", "fits", "put", "attention", "attention_extra", "put_attention", "get",
    "mask", "history", "gather", "set_causal", "commit", "commit_prefix", "abort", "can_resume", "resume", "copy_prefix",
    "reorder", "remove_tail", "remove_middle", "can_remove", "runs", "sequence_query", "stats", "digest", "check",
    "bind_attention", "bind_rope", "bind_shift"};
// clang-format on
static_assert(std::size(names) == static_cast<size_t>(Op::count));

constexpr const char* headings[] = {"succeeded", "shared", "slid", "full", "pass open"};

}  // namespace

const char* name(Op op) { return names[static_cast<size_t>(op)]; }

void Coverage::record(Op op, bool succeeded, const Circumstances& met) {
  std::array<uint64_t, columns>& row = table_[static_cast<size_t>(op)];
  row[0] += succeeded;
  row[1] += met.shared;
  row[2] += met.slid;
  row[3] += met.full;
  row[4] += met.open;
}

void Coverage::print(std::ostream& out) const {
  out << std::left << std::setw(16) << "operation" << std::right;
  for (const char* heading : headings) out << std::setw(12) << heading;
  out << '\n';
  for (size_t op = 0; op < table_.size(); ++op) {
    out << std::left << std::setw(16) << names[op] << std::right;
    for (const uint64_t number : table_[op]) out << std::setw(12) << number;
    out << '\n';
  }
  out << "attention rows compared with double: " << rows_compared << " (" << rows_wild
      << " too large to compare), states built a second time in other cells: " << rebuilt
      << ", poisonings of free cells: " << poisonings << "\nfingerprint of the run: " << std::hex
      << fingerprint_ << std::dec << '\n';
}

uint64_t Coverage::least() const {
  // Every operation can meet everything, so nothing is left out: `begin` meets a full pool by
  // answering CACHE_FULL, calls that are illegal while a pass is open by saying BAD_STATE.
  uint64_t result = UINT64_MAX;
  for (const auto& row : table_)
    result = std::min(result, *std::min_element(row.begin(), row.end()));
  return result;
}

}  // namespace fuzz
