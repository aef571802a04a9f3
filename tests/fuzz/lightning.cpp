// Random operations on a lightning cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/lightning_world.hpp is where to begin reading.
#include "support/fuzz_main.hpp"
#include "support/lightning_world.hpp"

int main(int argc, char** argv) {
  return fuzz::run<fuzz::LightningWorld>("fuzz_lightning", fuzz::state_setup_names(),
                                         fuzz::draw_lightning_setup, fuzz::lightning_counts(), argc,
                                         argv);
}
