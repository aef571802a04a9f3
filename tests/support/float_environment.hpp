#pragma once
#include <array>
#include <cstring>
#include <string>
#include <vector>

namespace support {

/// The calling thread's floating-point environment as bytes: control and status of all units.
std::vector<unsigned char> float_environment();

/// Rounds to nearest, keeps subnormal numbers and does not trap; what the flags say does not matter.
bool computes_by_default();

/// An environment that a program may have set. While an object exists, the thread that made it is in it; arithmetic there is
/// kvc's affair alone, because a trap may end the program.
class InEnvironment {
 public:
  /// Of names().
  explicit InEnvironment(const std::string& name);
  ~InEnvironment();
  InEnvironment(const InEnvironment&) = delete;
  InEnvironment& operator=(const InEnvironment&) = delete;

  /// "default" first. Those that this processor lacks (traps, on most of ARM's) are missing.
  static std::vector<std::string> names();

  static void set(const std::string& name);

 private:
  std::vector<unsigned char> before_;
};

}  // namespace support
