// Random operations on a transformer cache and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/rows_world.hpp is where to begin reading.
#include "support/fuzz_main.hpp"
#include "support/rows_world.hpp"

int main(int argc, char** argv) {
  return fuzz::run<fuzz::RowsWorld>("fuzz_rows", fuzz::rows_setup_names(), fuzz::draw_rows_setup,
                                    fuzz::rows_counts(), argc, argv);
}
