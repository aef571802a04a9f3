/// Measures the CUDA backend against what the same GPU can do at most; see usage() for the options. Every figure's result is compared
/// with the CPU's. Over the simulation (--tiny) it proves that every figure is made and right.
#include <cstdio>
#include <cstring>
#include <string>

#include <kvc/kvc.h>

#include "tests/bench/cuda/cases.hpp"
#include "tests/bench/cuda/figures.hpp"

namespace bench_cuda {
namespace {

struct Group {
  const char* name;
  void (*measure)(const Roofs& roofs);
};

constexpr Group groups[] = {
    {"limits", [](const Roofs& roofs) { roofs.report(); }},
    {"decode", decode_cases},
    {"prefill", prefill_cases},
    {"storage", storage_cases},
    {"shared", shared_cases},
    {"put", put_cases},
    {"states", state_cases},
    {"host", host_cases},
};

void usage(FILE* to) {
  std::string names;
  for (const Group& group : groups)
    names += names.empty() ? group.name : std::string("|") + group.name;
  std::fprintf(to,
               "usage: kvc_bench_cuda [--only GROUP] [--quick] [--lines] [--tiny]\n"
               "  --only GROUP   one of %s; default: all\n"
               "  --quick        5 measurements of each figure, not 24\n"
               "  --lines        figures as lines with tabs, for programs: name, unit, median, "
               "least, greatest,\n"
               "                 microseconds, error, verdict\n"
               "  --tiny         sizes for the simulation\n",
               names.c_str());
}

int refuse(const std::string& reason) {
  std::fprintf(stderr, "kvc_bench_cuda: %s\n", reason.c_str());
  usage(stderr);
  return 2;
}

bool known_group(const char* name) {
  for (const Group& group : groups)
    if (std::strcmp(group.name, name) == 0) return true;
  return false;
}

int measure() {
  const Roofs roofs;
  if (!options.as_lines)
    std::printf("%s; %s, %d multiprocessors; %d measurements of each figure\n\n", kvc_build_info(),
                roofs.device().name, roofs.device().n_multiprocessors, repeats());
  for (const Group& group : groups)
    if (options.only.empty() || options.only == group.name) group.measure(roofs);
  print_table();
  if (all_right()) return 0;
  std::fprintf(stderr, "kvc_bench_cuda: a result is wrong\n");
  return 1;
}

int run(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") return usage(stdout), 0;
    if (name == "--quick") {
      options.quick = true;
    } else if (name == "--lines") {
      options.as_lines = true;
    } else if (name == "--tiny") {
      options.tiny = true;
    } else if (name == "--only") {
      if (i + 1 == argc) return refuse("--only needs a value");
      if (!known_group(argv[++i]))
        return refuse(std::string("--only ") + argv[i] + ": no such group");
      options.only = argv[i];
    } else {
      return refuse("unknown option " + name);
    }
  }
  return measure();
}

}  // namespace
}  // namespace bench_cuda

int main(int argc, char** argv) { return bench_cuda::run(argc, argv); }
