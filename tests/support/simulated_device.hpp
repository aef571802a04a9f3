#pragma once
#include <cstdlib>

namespace support {

/// Whether the library is the one over the simulated CUDA device (tests/simt/simt_device.cpp): KVC_SIMT is in the environment.
/// That device stores numbers alone, f32, f16 or bf16, so tests that choose among storage types choose among those; and
/// what has been given to it takes memory until it is done.
inline bool over_simulated_device() { return std::getenv("KVC_SIMT") != nullptr; }

}  // namespace support
