// Random operations on an encoder cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/encoder_world.hpp is where to begin reading.
#include "support/encoder_world.hpp"
#include "support/fuzz_coverage.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::encoder_counts();
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::EncoderSetup setup = fuzz::draw_encoder_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::EncoderWorld>(device, setup, support::Random(random.bits()), counts);
  };
  return fuzz::run({"fuzz_encoder", fuzz::encoder_setup_names(), counts, begin}, argc, argv);
}
