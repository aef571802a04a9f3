#include "float_environment.hpp"

#include <cfenv>
#include <stdexcept>

namespace support {
namespace {

struct Named {
  const char* name;
  void (*set)();  // from the default environment
};

void flush_subnormals() {
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040u);
#elif defined(__aarch64__)
  uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  asm volatile("msr fpcr, %0" : : "r"(control | uint64_t{1} << 24) : "memory");
#endif
}

void unmask_traps() {
  feenableexcept(FE_ALL_EXCEPT);
#if defined(__x86_64__)
  __builtin_ia32_ldmxcsr(0);  // of subnormal operands, too
#endif
}

constexpr Named environments[] = {
    {"default", [] {}},
    {"flags raised", [] { std::feraiseexcept(FE_OVERFLOW | FE_DIVBYZERO); }},
    {"subnormal numbers flushed", flush_subnormals},
    {"rounding up",
     [] {
       std::fesetround(FE_UPWARD);
       std::feraiseexcept(FE_UNDERFLOW);
     }},
    {"rounding down", [] { std::fesetround(FE_DOWNWARD); }},
    {"rounding toward zero", [] { std::fesetround(FE_TOWARDZERO); }},
    {"all at once",
     [] {
       std::fesetround(FE_DOWNWARD);
       flush_subnormals();
       unmask_traps();
     }},
    {"traps", unmask_traps},
};

bool has_traps() {
  const int before = feenableexcept(FE_INVALID);
  const bool has = before != -1 && (fegetexcept() & FE_INVALID) != 0;
  std::fesetenv(FE_DFL_ENV);
  return has;
}

}  // namespace

std::vector<unsigned char> float_environment() {
  std::fenv_t now;
  std::memset(&now, 0, sizeof now);
  std::fegetenv(&now);
  std::vector<unsigned char> bytes(sizeof now);
  std::memcpy(bytes.data(), &now, sizeof now);
  return bytes;
}

bool computes_by_default() {
#if defined(__x86_64__)
  return (__builtin_ia32_stmxcsr() & ~0x3fu) == 0x1f80;
#elif defined(__aarch64__)
  uint64_t control = 0;
  asm volatile("mrs %0, fpcr" : "=r"(control));
  return control == 0;
#else
  return std::fegetround() == FE_TONEAREST;
#endif
}

InEnvironment::InEnvironment(const std::string& name) : before_(float_environment()) { set(name); }

InEnvironment::~InEnvironment() {
  std::fenv_t before;
  std::memcpy(&before, before_.data(), sizeof before);
  std::fesetenv(&before);
}

std::vector<std::string> InEnvironment::names() {
  std::vector<std::string> names;
  for (const Named& environment : environments) {
    const bool traps = environment.set == unmask_traps ||
                       environment.name == std::string("all at once");
    if (!traps || has_traps()) names.push_back(environment.name);
  }
  return names;
}

void InEnvironment::set(const std::string& name) {
  for (const Named& environment : environments) {
    if (name != environment.name) continue;
    std::fesetenv(FE_DFL_ENV);
    environment.set();
    return;
  }
  throw std::invalid_argument("no environment " + name);
}

}  // namespace support
