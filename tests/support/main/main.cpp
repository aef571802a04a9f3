#include <gtest/gtest.h>

#include "support/instruction_set.hpp"

/// Googletest's own main, but for KVC_CPU_ISA.
int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const int wrong = support::wrong_instruction_set()) return wrong;
  return RUN_ALL_TESTS();
}
