#include "kernels/cpu/kernel_table.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace kvc::cpu {
namespace {

std::atomic<const KernelTable*> override_table{nullptr};

/// The instruction set that the environment names, or null.
const char* wanted_set() noexcept {
  return std::getenv("KVC_CPU_ISA");  // NOLINT(concurrency-mt-unsafe): for tests and for hunting bugs
}

#if defined(__x86_64__)
/// Reads cpuid, because clang 14's __builtin_cpu_supports does not know f16c. Only once: cpuid
/// traps into a hypervisor, which takes tens of microseconds.
bool has_f16c() noexcept {
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
  }();
  return has;
}

/// AMX with bf16 and bytes. A process has to request it from Linux, because a thread's state grows by 8 KiB,
/// and with it the stack that a signal needs. Not requested when the environment names another set.
struct AmxPermission {
  bool given = false;
  int error = 0;  // errno of the request that Linux refused

  AmxPermission() noexcept {
    for (const char* other : {"portable", "avx2", "avx512", "vnni"}) {
      if (const char* wanted = wanted_set(); wanted != nullptr && std::strcmp(wanted, other) == 0)
        return;
    }
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24, amx_int8 = 1u << 25,
                       all = amx_bf16 | amx_tile | amx_int8;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & all) != all) return;
    if (!__builtin_cpu_supports("avx512vbmi")) return;
    constexpr long request_permission = 0x1023,
                   tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    const int callers_errno = errno;
    given = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    if (!given) error = errno;
    errno = callers_errno;
  }
};

const AmxPermission& amx_permission() noexcept {
  static const AmxPermission permission;
  return permission;
}
#endif

const KernelTable& choose() noexcept {
  if (const char* wanted = wanted_set()) {
    for (int32_t i = 0; const KernelTable* table = runnable_kernels(i); ++i) {
      if (std::strcmp(table->name, wanted) == 0) return *table;
    }
  }
  return *runnable_kernels(0);
}

}  // namespace

const KernelTable* runnable_kernels(int32_t index) noexcept {
  const KernelTable* found[5] = {};
  int32_t n_found = 0;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512 && amx_permission().given) found[n_found++] = &amx_kernels;
  if (avx2 && avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi"))
    found[n_found++] = &vnni_kernels;
  if (avx2 && avx512) found[n_found++] = &avx512_kernels;
  if (avx2) found[n_found++] = &avx2_kernels;
#elif defined(__aarch64__)
  found[n_found++] = &neon_kernels;
#endif
  found[n_found++] = &portable_kernels;
  return index >= 0 && index < n_found ? found[index] : nullptr;
}

const char* amx_refusal() noexcept {
#if defined(__x86_64__)
  switch (amx_permission().error) {
    case 0: return nullptr;
    case ENOSPC: return "an alternate signal stack is too small";
    case EINVAL:  // before Linux 5.16
    case EOPNOTSUPP: return "this Linux does not support it";
    case EPERM:  // a seccomp filter
    case ENOSYS: return "this process may not call arch_prctl";
    default: return "arch_prctl failed";
  }
#else
  return nullptr;
#endif
}

const KernelTable& kernels() noexcept {
  static const KernelTable& chosen = choose();
  const KernelTable* table = override_table.load(std::memory_order_acquire);
  return table ? *table : chosen;
}

void use_kernels(const KernelTable* table) noexcept {
  override_table.store(table, std::memory_order_release);
}

}  // namespace kvc::cpu
