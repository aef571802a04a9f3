#pragma once

/// Bugs on purpose, so that the tests can prove that they would find such a bug (docs/TESTING.md numbers them). Only a test
/// build knows them; in the library `planted(n)` is false at compile time and leaves nothing behind.
namespace kvc {

#ifdef KVC_PLANTED_BUGS
bool planted(int bug) noexcept;  // the one that the environment's KVC_PLANTED_BUG names
#else
constexpr bool planted(int) noexcept { return false; }
#endif

}  // namespace kvc
