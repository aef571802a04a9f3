// Random operations on a recurrent cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/recurrent_world.hpp is where to begin reading.
#include "support/fuzz_coverage.hpp"
#include "support/recurrent_world.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::recurrent_counts();
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::RecurrentSetup setup = fuzz::draw_recurrent_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::RecurrentWorld>(device, setup, support::Random(random.bits()),
                                                  counts);
  };
  return fuzz::run({"fuzz_recurrent", fuzz::state_setup_names(), counts, begin}, argc, argv);
}
