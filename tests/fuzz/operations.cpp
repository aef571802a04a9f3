// Random operations on a causal cache and on the oracle, everything compared after each. docs/TESTING.md
// says what; support/fuzz_world.hpp is where to begin reading.
#include "support/fuzz_main.hpp"
#include "support/fuzz_world.hpp"

int main(int argc, char** argv) {
  return fuzz::run<fuzz::World>("fuzz_operations", fuzz::setup_names(), fuzz::draw_setup,
                                fuzz::causal_counts(), argc, argv);
}
