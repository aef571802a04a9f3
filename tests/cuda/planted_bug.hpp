#pragma once
#include <cstdlib>

/// Which bug of tests/cuda/planted_bugs.txt is on; 0: none. Included first into every file of a planted program.
inline const int kvc_planted_bug = [] {
  const char* const number = std::getenv("KVC_PLANTED_CUDA_BUG");  // NOLINT(concurrency-mt-unsafe)
  return number == nullptr ? 0 : std::atoi(number);
}();
