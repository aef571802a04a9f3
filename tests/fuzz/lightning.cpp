// Random operations on a lightning cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/lightning_world.hpp is where to begin reading.
#include "support/fuzz_coverage.hpp"
#include "support/lightning_world.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::lightning_counts();
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::LightningSetup setup = fuzz::draw_lightning_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::LightningWorld>(device, setup, support::Random(random.bits()),
                                                  counts);
  };
  return fuzz::run({"fuzz_lightning", fuzz::state_setup_names(), counts, begin}, argc, argv);
}
