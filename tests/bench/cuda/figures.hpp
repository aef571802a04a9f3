#pragma once
#include <string>
#include <vector>

/// How figures are made and printed.
namespace bench_cuda {

/// What the command line chose.
struct Options {
  std::string only;    // a group; empty: all
  bool quick = false;  // fewer repeats
  bool tiny = false;  // sizes for the simulation: they prove that a figure is made, and say nothing of speed
  bool as_lines = false;  // tab-separated, for programs
};
extern Options options;

/// How often a figure is measured; as often again, a quarter of it, without counting.
inline int repeats() { return options.tiny ? 2 : options.quick ? 5 : 24; }

enum class Better { higher, lower };

struct Figure {
  std::string name;
  const char* unit = "";
  Better better = Better::higher;
  double must = 0, go_for = 0;  // 0: no target
};

/// How far a result may be from the CPU's. Both are ‖difference‖ / ‖the CPU's result‖.
struct Error {
  double is = 0, at_most = 0;
};

/// A figure from one value per repeat. A wrong result is reported as WRONG, whatever its speed, and makes the run fail.
void report(const Figure& figure, std::vector<double> values, std::vector<double> microseconds,
            Error error);

/// Whether every result was right, and any figure was made.
bool all_right();

void print_table();

}  // namespace bench_cuda
