#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

/// How a figure is made: each measurement is taken in pairs, limit and kernel call after call, because a shared machine's
/// memory speed drifts within minutes. A process takes a few pairs per figure; the parent starts several processes, since
/// where memory happens to lie counts too, and prints the median of all pairs with the least and the greatest.
namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds that one call takes.
template <class Call>
double seconds(Call call) {
  const double start = now();
  call();
  return now() - start;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

/// What a figure is judged by: a share of the limit should be high, everything else low.
enum class Better { higher, lower };

struct Figure {
  std::string group;  // "decode", "prefill", …: what --only selects
  std::string name;
  const char* unit;  // "%", "µs", "x", …
  Better better;
  double must;  // 0: no target
  double go_for;
};

/// One pair's outcome, printed by a child process and read by its parent: "name<TAB>value<TAB>seconds".
void report(const Figure& figure, double value, double kernel_seconds);

/// Whether this child measures the group at all.
bool selected(const std::string& group);

/// Pairs that one process takes of each figure.
int pairs();

/// Threads of the devices and of the limits, unless a case says otherwise; 0: all processors.
int threads();

}  // namespace bench
