/// kvc_bench [--only GROUP] [--starts N] [--pairs N] [--threads N]
///
/// Prints every figure of docs/PERFORMANCE.md as median, least and greatest over all pairs of all process starts.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include <kvc/kvc.h>

#include "cases.hpp"
#include "measure.hpp"

namespace bench {
namespace {

struct Options {
  std::string only;
  int starts = 3;
  int pairs = 7;
  int threads = 0;
  bool child = false;
};
Options options;

struct Series {
  std::string group, unit;
  char better = '<';
  double must = 0, go_for = 0;
  std::vector<double> values, times;
};

}  // namespace

bool selected(const std::string& group) { return options.only.empty() || options.only == group; }
int pairs() { return options.pairs; }
int threads() { return options.threads; }

void report(const Figure& f, double value, double kernel_seconds) {
  std::printf("%s\t%s\t%s\t%c\t%g\t%g\t%.9g\t%.9g\n", f.group.c_str(), f.name.c_str(), f.unit,
              f.better == Better::higher ? '>' : '<', f.must, f.go_for, value, kernel_seconds);
  std::fflush(stdout);
}

namespace {

void run_child() {
  Limits limits(options.threads > 0 ? options.threads
                                    : static_cast<int>(std::thread::hardware_concurrency()));
  if (selected("decode")) decode_cases(limits);
  if (selected("prefill")) prefill_cases(limits);
  if (selected("shapes")) shape_cases(limits);
  if (selected("shared")) shared_cases(limits);
  if (selected("options")) option_cases(limits);
  if (selected("tokens")) token_count_cases(limits);
  if (selected("mixed")) mixed_cases(limits);
  if (selected("interrupted")) interrupted_cases(limits);
  if (selected("bookkeeping")) bookkeeping_cases();
  if (selected("limits")) {
    for (int pair = 0; pair < pairs(); ++pair) {
      report({"limits", "read", "GB/s", Better::higher, 0, 0},
             1e-9 * limits.read_rate(size_t{256} << 20), 0);
      report({"limits", "multiply-add", "GFLOP/s", Better::higher, 0, 0},
             1e-9 * limits.multiply_rate(), 0);
    }
  }
}

/// Reads a child's lines into the table; false when the child failed.
bool collect(const std::string& command, std::vector<std::string>& order,
             std::map<std::string, Series>& table) {
  FILE* child = popen(command.c_str(), "r");
  if (child == nullptr) return false;
  char line[512];
  while (std::fgets(line, sizeof line, child) != nullptr) {
    char group[64], name[160], unit[64], better = 0;
    double must = 0, go_for = 0, value = 0, time = 0;
    if (std::sscanf(line, "%63[^\t]\t%159[^\t]\t%63[^\t]\t%c\t%lf\t%lf\t%lf\t%lf", group, name,
                    unit, &better, &must, &go_for, &value, &time) != 8)
      continue;
    Series& series = table[name];
    if (series.values.empty()) {
      order.push_back(name);
      series.group = group;
      series.unit = unit;
      series.better = better;
      series.must = must;
      series.go_for = go_for;
      std::fprintf(stderr, "  %s\n", name);
    }
    series.values.push_back(value);
    series.times.push_back(time);
  }
  return pclose(child) == 0;
}

const char* verdict(const Series& s, double value) {
  if (s.must == 0) return "";
  const bool higher = s.better == '>';
  if (s.go_for != 0 && (higher ? value >= s.go_for : value <= s.go_for)) return "go";
  return (higher ? value >= s.must : value <= s.must) ? "must" : "MISSED";
}

void print(const std::vector<std::string>& order, std::map<std::string, Series>& table) {
  std::printf(
      "| figure | unit | median | min | max | pairs | time (median) | must | go for | reached "
      "|\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const std::string& name : order) {
    const Series& s = table[name];
    const double middle = median(s.values);
    std::printf("| %s | %s | %.3g | %.3g | %.3g | %zu | %.4g ms | %g | %g | %s |\n", name.c_str(),
                s.unit.c_str(), middle, *std::min_element(s.values.begin(), s.values.end()),
                *std::max_element(s.values.begin(), s.values.end()), s.values.size(),
                1e3 * median(s.times), s.must, s.go_for, verdict(s, middle));
  }
}

int run_parent(const char* self) {
  std::printf("%s, %u processors, %d process starts of %d pairs\n\n", kvc_build_info(),
              std::thread::hardware_concurrency(), options.starts, options.pairs);
  std::fflush(stdout);
  std::vector<std::string> order;
  std::map<std::string, Series> table;
  const std::string command = std::string("'") + self + "' --child --pairs " +
                              std::to_string(options.pairs) + " --threads " +
                              std::to_string(options.threads) +
                              (options.only.empty() ? "" : " --only " + options.only);
  for (int start = 0; start < options.starts; ++start) {
    std::fprintf(stderr, "process %d of %d\n", start + 1, options.starts);
    if (!collect(command, order, table)) {
      std::fprintf(stderr, "a measuring process failed\n");
      return 1;
    }
  }
  print(order, table);
  return 0;
}

int usage() {
  std::fprintf(stderr,
               "kvc_bench [--only "
               "decode|prefill|shapes|shared|options|tokens|mixed|interrupted|bookkeeping|limits] "
               "[--starts N] [--pairs N] [--threads N]\n");
  return 2;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  using bench::options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--child") {
      options.child = true;
      continue;
    }
    if (i + 1 == argc) return bench::usage();
    const char* value = argv[++i];
    if (name == "--only")
      options.only = value;
    else if (name == "--starts")
      options.starts = std::atoi(value);
    else if (name == "--pairs")
      options.pairs = std::atoi(value);
    else if (name == "--threads")
      options.threads = std::atoi(value);
    else
      return bench::usage();
  }
  if (options.starts < 1 || options.pairs < 1) return bench::usage();
  if (!options.child) return bench::run_parent(argv[0]);
  bench::run_child();
  return 0;
}
