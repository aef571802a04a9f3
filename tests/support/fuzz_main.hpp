#pragma once
#include <memory>
#include <string>
#include <vector>

#include "fuzz_coverage.hpp"
#include "fuzz_program.hpp"
#include "fuzz_setup.hpp"

namespace fuzz {

/// What main() returns where each episode is a World of a set-up that is drawn.
template <class World, class Setup>
int run(const char* program, const std::vector<std::string>& names,
        Setup (*draw)(const std::string&, support::Random&, const InCommon&), Counts counts,
        int argc, char** argv) {
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const Setup setup = draw(name, random, {});
    description = setup.describe();
    return std::make_unique<World>(device, setup, support::Random(random.bits()), counts);
  };
  return run({program, names, counts, begin}, argc, argv);
}

}  // namespace fuzz
