#pragma once
#include <cstdlib>
#include <iostream>

#include "support/abi.hpp"

/// Ends the process where a target finds something wrong, which libFuzzer and the replay both notice.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::cerr << "\n" << what << ": " << support::last_message() << std::endl;
  std::abort();
}
