#pragma once
#include <cstdint>

/// The fake device lends views of memory that the host cannot read where it is. The same bytes can be read and written this far below.
/// A program that runs over the library with the fake device has KVC_FAKE_DEVICE in its environment.
namespace fake {

inline constexpr uintptr_t host_distance = uintptr_t{1} << 40;

}  // namespace fake
