// Random operations on an encoder cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/encoder_world.hpp is where to begin reading.
#include "support/encoder_world.hpp"
#include "support/fuzz_main.hpp"

int main(int argc, char** argv) {
  return fuzz::run<fuzz::EncoderWorld>("fuzz_encoder", fuzz::encoder_setup_names(),
                                       fuzz::draw_encoder_setup, fuzz::encoder_counts(), argc, argv);
}
