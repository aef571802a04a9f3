/// Prints every figure of docs/PERFORMANCE.md as median, least and greatest over all pairs of all process starts; see
/// usage() for the options.
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <kvc/kvc.h>

#include "cases.hpp"
#include "measure.hpp"

namespace bench {
namespace {

/// What --only takes, and what each group measures, in the order of measuring.
struct Group {
  const char* name;
  void (*measure)(Limits& limits);
};

void measure_limits(Limits& limits) {
  for (int pair = 0; pair < pairs(); ++pair) {
    report({"limits", "read", "GB/s", Better::higher, 0, 0},
           1e-9 * limits.read_rate(size_t{256} << 20), 0);
    report({"limits", "multiply-add", "GFLOP/s", Better::higher, 0, 0},
           1e-9 * limits.multiply_rate(), 0);
  }
}

constexpr Group groups[] = {
    {"decode", decode_cases},
    {"prefill", prefill_cases},
    {"shapes", shape_cases},
    {"shared", shared_cases},
    {"shifted", shifted_cases},
    {"options", option_cases},
    {"tokens", token_count_cases},
    {"mixed", mixed_cases},
    {"interrupted", interrupted_cases},
    {"bookkeeping", [](Limits&) { bookkeeping_cases(); }},
    {"encoder", encoder_cases},
    {"recurrent", recurrent_cases},
    {"lightning", lightning_cases},
    {"rows", rows_cases},
    {"operators", [](Limits&) { operator_cases(); }},
    {"storage", storage_cases},
    {"wrapper", wrapper_cases},
    {"limits", measure_limits},
};

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
  for (const Group& group : groups)
    if (selected(group.name)) group.measure(limits);
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
  const std::string threads = options.threads > 0 ? " --threads " + std::to_string(options.threads)
                                                  : "";
  const std::string command = std::string("'") + self + "' --child --pairs " +
                              std::to_string(options.pairs) + threads +
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

void usage(FILE* to) {
  std::string names;
  for (const Group& group : groups)
    names += names.empty() ? group.name : std::string("|") + group.name;
  std::fprintf(to,
               "usage: kvc_bench [--only GROUP] [--starts N] [--pairs N] [--threads N]\n"
               "  --only GROUP   one of %s; default: all\n"
               "  --starts N     measuring processes; default: %d\n"
               "  --pairs N      measurements per figure and process; default: %d\n"
               "  --threads N    threads of a device; default: one per processor\n",
               names.c_str(), Options().starts, Options().pairs);
}

int refuse(const std::string& reason) {
  std::fprintf(stderr, "kvc_bench: %s\n", reason.c_str());
  usage(stderr);
  return 2;
}

bool known_group(const std::string& name) {
  for (const Group& group : groups)
    if (name == group.name) return true;
  return false;
}

/// A whole decimal number of at least 1; false for anything else.
bool read_count(const char* text, int& count) {
  const char* end = text + std::strlen(text);
  return std::from_chars(text, end, count) == std::from_chars_result{end, std::errc()} && count >= 1;
}

int run(int argc, char** argv) {
  const std::map<std::string, int*> counts = {
      {"--starts", &options.starts}, {"--pairs", &options.pairs}, {"--threads", &options.threads}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      usage(stdout);
      return 0;
    }
    if (name == "--child") {
      options.child = true;
      continue;
    }
    const auto count = counts.find(name);
    if (name != "--only" && count == counts.end()) return refuse("unknown option " + name);
    if (i + 1 == argc) return refuse(name + " needs a value");
    const char* value = argv[++i];
    if (count != counts.end()) {
      if (!read_count(value, *count->second))
        return refuse(name + " " + value + ": not a number from 1 on");
    } else if (known_group(value)) {
      options.only = value;
    } else {
      return refuse(name + " " + value + ": no such group");
    }
  }
  if (!options.child) return run_parent(argv[0]);
  run_child();
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) { return bench::run(argc, argv); }
