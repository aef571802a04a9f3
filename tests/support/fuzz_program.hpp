#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fuzz_counts.hpp"
#include "kvc/kvc.h"
#include "random.hpp"

namespace fuzz {

/// A cache and its random operations. What differs from the oracle is thrown as a Difference.
class Steps {
 public:
  virtual ~Steps() = default;
  /// One operation, and all comparisons.
  virtual void step() = 0;
  /// What is compared once, at the end.
  virtual void finish() = 0;
  /// The last operations, for a reader.
  virtual std::string history() const = 0;
};

/// A program of random operations: its options, its episodes, its table. It runs under the interposer: between the return of
/// create and destroy nothing is allocated, mapped or started.
struct Program {
  const char* name;
  std::vector<std::string> setups;
  Counts& counts;
  /// Draws a set-up of the name and makes its cache. The description is there even if that fails.
  std::function<std::unique_ptr<Steps>(const std::string& setup, support::Random& random,
                                       kvc_device* device, std::string& description)>
      begin;
};

/// What main() returns.
int run(const Program& program, int argc, char** argv);

}  // namespace fuzz
