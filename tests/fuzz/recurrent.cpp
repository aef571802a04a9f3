// Random operations on a recurrent cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/recurrent_world.hpp is where to begin reading.
#include "support/fuzz_main.hpp"
#include "support/recurrent_world.hpp"

int main(int argc, char** argv) {
  return fuzz::run<fuzz::RecurrentWorld>("fuzz_recurrent", fuzz::state_setup_names(),
                                         fuzz::draw_recurrent_setup, fuzz::recurrent_counts(), argc,
                                         argv);
}
