// Random operations on a causal cache and on the oracle, everything compared after each. docs/TESTING.md
// says what; support/fuzz_world.hpp is where to begin reading.
#include "support/fuzz_world.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::causal_counts();
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::Setup setup = fuzz::draw_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::World>(device, setup, support::Random(random.bits()), counts);
  };
  return fuzz::run({"fuzz_operations", fuzz::setup_names(), counts, begin}, argc, argv);
}
