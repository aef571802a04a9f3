// KVC_CPU_ISA, which chooses the kernels: read once in a process, so each question is asked in a child of its own.
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>

#include "support/abi.hpp"
#include "support/instruction_set.hpp"

namespace {

/// kvc_build_info of a process that was started with this KVC_CPU_ISA (null: without), after `prepare`.
std::string info_with(
    const char* wanted, const std::function<void()>& prepare = [] {}) {
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
  char text[512];
  const ssize_t n = read(ends[0], text, sizeof text);
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0 && n > 0 ? std::string(text, static_cast<size_t>(n)) : "a child that failed";
}

/// Which kernels such a process runs.
std::string set_with(const char* wanted) { return support::set_in(info_with(wanted)); }

TEST(InstructionSet, WithoutAWishTheBest) { EXPECT_EQ(set_with(nullptr), support::best_set()); }

TEST(InstructionSet, TheOneThatIsNamedWhereTheProcessorHasIt) {
  for (const char* set : {"portable", "avx2", "avx512", "vnni", "amx", "neon"})
    EXPECT_EQ(set_with(set), support::processor_has(set) ? set : support::best_set()) << set;
}

TEST(InstructionSet, AnUnknownNameIsNoReasonToFail) {
  for (const char* name : {"", "avx", "AVX2", "avx2 ", "avx512,avx2", "sve"}) {
    EXPECT_EQ(set_with(name), support::best_set()) << name;
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

/// What kvc_build_info appends when Linux has refused AMX; empty: nothing.
std::string refusal_in(const std::string& info) {
  const std::string before = "; AMX refused: ";
  const size_t at = info.find(before);
  return at == std::string::npos ? "" : info.substr(at + before.size());
}

TEST(InstructionSet, OneThatTheProcessMayNotUseGivesTheNextBestAndTheReason) {
  if (!support::processor_has("amx")) GTEST_SKIP() << "this processor has no AMX";
  for (const char* wanted : {"amx", static_cast<const char*>(nullptr)}) {
    const std::string info = info_with(wanted, take_a_small_signal_stack);
    EXPECT_EQ(support::set_in(info), "vnni");  // which every processor with AMX has
    EXPECT_EQ(refusal_in(info), "an alternate signal stack is too small");
  }
}

TEST(InstructionSet, NoReasonWhereNothingWasRefused) {
  EXPECT_EQ(refusal_in(info_with(nullptr)), "");
  EXPECT_EQ(refusal_in(info_with("avx512", take_a_small_signal_stack)), "") << "AMX is not wanted";
}

#if defined(__x86_64__)
/// Makes arch_prctl fail with an error, as a sandbox or an older Linux does.
void refuse_arch_prctl(int error) {
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof rules / sizeof *rules, rules};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    _exit(2);
}

TEST(InstructionSet, TheReasonIsTheOneThatLinuxGives) {
  if (!support::processor_has("amx")) GTEST_SKIP() << "this processor has no AMX";
  const struct {
    int error;
    const char* reason;
  } cases[] = {{EINVAL, "this Linux does not support it"},
               {EOPNOTSUPP, "this Linux does not support it"},
               {EPERM, "this process may not call arch_prctl"},
               {ENOSYS, "this process may not call arch_prctl"},
               {EIO, "arch_prctl failed"}};
  for (const auto& [error, reason] : cases) {
    const std::string info = info_with(nullptr, [error = error] { refuse_arch_prctl(error); });
    EXPECT_EQ(support::set_in(info), "vnni");  // which every processor with AMX has
    EXPECT_EQ(refusal_in(info), reason) << info;
  }
}
#endif

}  // namespace
