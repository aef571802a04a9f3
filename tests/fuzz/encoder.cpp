// Random operations on an encoder cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/encoder_world.hpp is where to begin reading.
#include "support/encoder_world.hpp"

int main(int argc, char** argv) {
  fuzz::EncoderCoverage coverage;
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    const fuzz::EncoderSetup setup = fuzz::draw_encoder_setup(name, random);
    description = setup.describe();
    return std::make_unique<fuzz::EncoderWorld>(device, setup, support::Random(random.bits()),
                                                coverage);
  };
  return fuzz::run({"fuzz_encoder", fuzz::encoder_setup_names(), coverage, begin}, argc, argv);
}
