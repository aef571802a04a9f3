#pragma once
#include <functional>
#include <memory>

#include "fuzz_kind.hpp"

namespace fuzz {

/// Makes a world, performs its operations as long as its stream has bytes, and compares all at the end. What differs is
/// printed, and ends the process, as libFuzzer wants it.
void run_bytes(const std::function<std::unique_ptr<KindWorld>()>& make);

}  // namespace fuzz
