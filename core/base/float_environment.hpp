#pragma once
#include <cstdint>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <cfenv>
#endif

namespace kvc {

/// What the library computes in, whatever its caller has set: rounding to nearest even, subnormal numbers kept, no traps.
/// An object holds for the calling thread from its construction on and restores at its end what was there before, status
/// flags included.
///
/// Callers mostly have what we want, so registers are read and compared first: writing one costs several times as much.
/// No compiler moves arithmetic on what it reads from memory across these accesses, because they clobber memory.
class FloatEnvironment {
 public:
  FloatEnvironment() noexcept : before_(read()) { establish(before_); }
  ~FloatEnvironment() {
    if (const Registers now = read(); !(now == before_)) write(before_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

  /// Once more, after a function of the caller's that may have set another one.
  static void establish() noexcept { establish(read()); }

 private:
#if defined(__x86_64__)
  // We compute with SSE and AVX alone, so no flag of the x87 unit changes. Its control word goes along, because the C library
  // reads the rounding mode there.
  struct Registers {
    uint32_t mxcsr;
    uint16_t x87_control;
    bool operator==(const Registers&) const = default;
  };

  static constexpr uint32_t flags = 0x3f;
  static constexpr uint32_t default_mxcsr = 0x1f80;
  static constexpr uint16_t default_x87 = 0x37f;

  static Registers read() noexcept {
    Registers now;
    asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(now.mxcsr), "=m"(now.x87_control) : : "memory");
    return now;
  }
  static void write(const Registers& to) noexcept {
    asm volatile("ldmxcsr %0\n\tfldcw %1" : : "m"(to.mxcsr), "m"(to.x87_control) : "memory");
  }
  static void establish(const Registers& now) noexcept {
    if ((now.mxcsr & ~flags) != default_mxcsr || now.x87_control != default_x87)
      write({default_mxcsr | (now.mxcsr & flags), default_x87});
  }
#elif defined(__aarch64__)
  struct Registers {
    uint64_t control, status;
    bool operator==(const Registers&) const = default;
  };

  static Registers read() noexcept {
    Registers now;
    asm volatile("mrs %0, fpcr" : "=r"(now.control) : : "memory");
    asm volatile("mrs %0, fpsr" : "=r"(now.status) : : "memory");
    return now;
  }
  static void write(const Registers& to) noexcept {
    asm volatile("msr fpcr, %0" : : "r"(to.control) : "memory");
    asm volatile("msr fpsr, %0" : : "r"(to.status) : "memory");
  }
  static void establish(const Registers& now) noexcept {
    if (now.control != 0) write({0, now.status});
  }
#else
  struct Registers {
    std::fenv_t environment;
    bool operator==(const Registers&) const { return false; }  // its padding need not be the same
  };

  static Registers read() noexcept {
    Registers now;
    std::fegetenv(&now.environment);
    return now;
  }
  static void write(const Registers& to) noexcept { std::fesetenv(&to.environment); }
  static void establish(const Registers&) noexcept { std::fesetenv(FE_DFL_ENV); }
#endif

  Registers before_;
};

}  // namespace kvc
