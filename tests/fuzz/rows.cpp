// Random operations on a transformer cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/rows_world.hpp is where to begin reading.
#include "support/fuzz_coverage.hpp"
#include "support/rows_world.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::rows_counts();
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::RowsSetup setup = fuzz::draw_rows_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::RowsWorld>(device, setup, support::Random(random.bits()), counts);
  };
  return fuzz::run({"fuzz_rows", fuzz::rows_setup_names(), counts, begin}, argc, argv);
}
