#pragma once
#include <cfenv>
#include <cstdint>

namespace kvc {

/// What the library computes in, whatever its caller has set: rounding to nearest even, subnormal numbers kept, no traps.
/// An object holds for the calling thread from its construction on and restores at its end what was there before, status
/// flags included.
///
/// Callers mostly have what we want, so the register is read and compared first: to write it costs several times as much.
/// No compiler moves arithmetic on what it reads from memory across these accesses, because they clobber memory.
class FloatEnvironment {
 public:
  FloatEnvironment() noexcept : before_(read()) { establish(before_); }
  ~FloatEnvironment() {
    if (const Registers now = read(); !(now == before_)) write(before_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  // The x87 unit may stay as it is: we compute with SSE and AVX alone.
  struct Registers {
    uint32_t mxcsr;
    bool operator==(const Registers&) const = default;
  };

  static constexpr uint32_t flags = 0x3f;
  static constexpr uint32_t default_control = 0x1f80;

  static Registers read() noexcept {
    Registers now;
    asm volatile("stmxcsr %0" : "=m"(now.mxcsr) : : "memory");
    return now;
  }
  static void write(const Registers& to) noexcept {
    asm volatile("ldmxcsr %0" : : "m"(to.mxcsr) : "memory");
  }
  static void establish(const Registers& now) noexcept {
    if ((now.mxcsr & ~flags) != default_control) write({default_control | (now.mxcsr & flags)});
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

/// Around a function of the caller's: whatever it sets, in any unit of the processor, ends with the object.
class FloatEnvironmentAroundCallback {
 public:
  FloatEnvironmentAroundCallback() noexcept { std::fegetenv(&before_); }
  ~FloatEnvironmentAroundCallback() { std::fesetenv(&before_); }
  FloatEnvironmentAroundCallback(const FloatEnvironmentAroundCallback&) = delete;
  FloatEnvironmentAroundCallback& operator=(const FloatEnvironmentAroundCallback&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace kvc
