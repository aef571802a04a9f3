#pragma once
#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <stdexcept>
#include <vector>

namespace fuzz {

/// The library and the oracle differ.
struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a run of random operations counts: a table of operations and what each met, and the fingerprint of all that the
/// library returned.
class Counts {
 public:
  using Names = std::vector<const char*>;
  Counts(Names names, Names headings);

  void record(size_t operation, std::initializer_list<bool> met);
  void print(std::ostream& out) const;
  /// The smallest number of the table.
  uint64_t least() const;
  uint64_t operations = 0;     // performed
  uint64_t rows_compared = 0;  // attention rows that were compared with double
  uint64_t rows_wild = 0;      // left out: they see a key or value too large to compare
  uint64_t rebuilt = 0;        // states built a second time in other cells: equal digests
  uint64_t poisonings = 0;     // free cells filled with NaN

  /// Adds what the library returned to the run's fingerprint: the same seed has the same one as long as nothing that a
  /// caller can observe changes, cells and the bits of attention included.
  void trace(uint64_t value) { fingerprint_ = (fingerprint_ ^ value) * 0x100000001b3u; }
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  const Names names_, headings_;
  std::vector<uint64_t> table_;  // [operations][headings]
  uint64_t fingerprint_ = 0xcbf29ce484222325u;
};

}  // namespace fuzz
