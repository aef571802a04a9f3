// KVC_CPU_ISA, which chooses the kernels: read once in a process, so each question is asked in a child of its own.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "support/abi.hpp"
#include "support/instruction_set.hpp"

namespace {

/// Which kernels a process runs that was started with this KVC_CPU_ISA (null: without), after `prepare`.
std::string set_with(
    const char* wanted, void (*prepare)() = [] {}) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    prepare();
    wanted ? setenv("KVC_CPU_ISA", wanted, 1) : unsetenv("KVC_CPU_ISA");
    const std::string info = kvc_build_info();
    _exit(write(ends[1], info.data(), info.size()) == static_cast<ssize_t>(info.size()) ? 0 : 1);
  }
  close(ends[1]);
  char text[256];
  const ssize_t n = read(ends[0], text, sizeof text);
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0 && n > 0 ? support::set_in(std::string(text, static_cast<size_t>(n)))
                              : "a child that failed";
}

/// The best that the processor can run.
std::string best() {
  for (const char* set : {"amx", "avx512", "avx2", "neon"}) {
    if (support::processor_has(set)) return set;
  }
  return "portable";
}

TEST(InstructionSet, WithoutAWishTheBest) { EXPECT_EQ(set_with(nullptr), best()); }

TEST(InstructionSet, TheOneThatIsNamedWhereTheProcessorHasIt) {
  for (const char* set : {"portable", "avx2", "avx512", "amx", "neon"})
    EXPECT_EQ(set_with(set), support::processor_has(set) ? set : best()) << set;
}

TEST(InstructionSet, AnUnknownNameIsNoReasonToFail) {
  for (const char* name : {"", "avx", "AVX2", "avx2 ", "avx512,avx2", "sve"}) {
    EXPECT_EQ(set_with(name), best()) << name;
  }
}

/// Linux refuses AMX to a process whose stack for signals has no room for its registers (docs/THREADING.md).
void take_a_small_signal_stack() {
  static char room[2048];
  stack_t stack{};
  stack.ss_sp = room;
  stack.ss_size = sizeof room;
  sigaltstack(&stack, nullptr);
}

TEST(InstructionSet, OneThatTheProcessMayNotUseGivesTheNextBest) {
  if (!support::processor_has("amx")) GTEST_SKIP() << "this processor has no AMX";
  for (const char* wanted : {"amx", static_cast<const char*>(nullptr)})
    EXPECT_EQ(set_with(wanted, take_a_small_signal_stack), "avx512");
}

}  // namespace
