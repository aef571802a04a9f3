#include "fuzz_counts.hpp"

#include <algorithm>
#include <iomanip>
#include <ostream>

namespace fuzz {

Counts::Counts(Names names, Names headings)
    : names_(std::move(names)),
      headings_(std::move(headings)),
      table_(names_.size() * headings_.size()) {}

void Counts::record(size_t operation, std::initializer_list<bool> met) {
  uint64_t* number = &table_[operation * headings_.size()];
  for (const bool each : met) *number++ += each;
}

void Counts::print(std::ostream& out) const {
  out << std::left << std::setw(16) << "operation" << std::right;
  for (const char* heading : headings_) out << std::setw(12) << heading;
  out << '\n';
  for (size_t i = 0; i < table_.size(); ++i) {
    if (i % headings_.size() == 0)
      out << std::left << std::setw(16) << names_[i / headings_.size()] << std::right;
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
