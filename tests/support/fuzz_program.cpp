#include "fuzz_program.hpp"

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <random>
#include <sstream>

#include "abi.hpp"
#include "instruction_set.hpp"
#include "simulated_device.hpp"
#include "support/interposer/interposer.hpp"

namespace fuzz {
namespace {

constexpr int32_t operations_per_episode = 500;
constexpr uint64_t least_of_a_million = 1000;  // each number of the table, in a million operations

struct Options {
  uint64_t operations = 1000000;
  uint64_t seed = 0;
  std::string setup;     // empty: all
  int64_t episode = -1;  // only this one
};

[[noreturn]] void usage(const Program& program, const char* problem) {
  std::cerr << problem << "\nusage: " << program.name << " [--operations N] [--seed S] [--setup NAME]"
            << " [--episode E]\nset-ups:";
  for (const std::string& name : program.setups) std::cerr << ' ' << name;
  std::cerr << '\n';
  std::exit(2);
}

uint64_t number(const Program& program, const char* text) {
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (*text == '\0' || *end != '\0') usage(program, "not a number");
  return value;
}

Options parse(const Program& program, int argc, char** argv) {
  Options options;
  std::random_device entropy;
  options.seed = entropy();
  if (const char* operations = std::getenv("KVC_FUZZ_OPERATIONS"))
    options.operations = number(program, operations);
  if (const char* seed = std::getenv("KVC_FUZZ_SEED")) options.seed = number(program, seed);
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 == argc) usage(program, "an option without its value");
    if (option == "--operations")
      options.operations = number(program, argv[i + 1]);
    else if (option == "--seed")
      options.seed = number(program, argv[i + 1]);
    else if (option == "--setup")
      options.setup = argv[i + 1];
    else if (option == "--episode")
      options.episode = static_cast<int64_t>(number(program, argv[i + 1]));
    else
      usage(program, "unknown option");
  }
  const std::vector<std::string>& setups = program.setups;
  if (!options.setup.empty() && std::find(setups.begin(), setups.end(), options.setup) == setups.end())
    usage(program, "unknown set-up");
  return options;
}

/// Between the return of create and destroy nothing is allocated, mapped or started.
void expect_nothing_taken() {
  const interposer::Counts taken = interposer::taken();
  if (taken.total() == 0 || support::over_simulated_device()) return;
  std::ostringstream text;
  text << "a call took from the system: " << taken.allocations << " allocations, " << taken.mappings
       << " mappings, " << taken.threads << " threads";
  throw Difference(text.str());
}

/// One cache and its operations: a function of the run's seed and its number alone.
bool run_episode(const Program& program, const Options& options, uint64_t episode, kvc_device* device) {
  support::Random random(support::derived_seed(options.seed, episode));
  const std::string setup = options.setup.empty() ? program.setups[episode % program.setups.size()]
                                                  : options.setup;
  std::string history;
  try {
    const std::unique_ptr<Steps> steps = program.begin(setup, random, device, history);
    try {
      const uint64_t until = program.counts.operations + operations_per_episode;
      expect_nothing_taken();
      while (program.counts.operations < until) {
        steps->step();
        expect_nothing_taken();
      }
      steps->finish();
      expect_nothing_taken();
    } catch (const std::exception&) {
      history = steps->history();
      throw;
    }
  } catch (const std::exception& difference) {  // or what a comparison met in what the library returned
    std::cerr << "\nDIFFERENCE: " << difference.what() << "\n"
              << history << "\nrepeat: " << program.name << " --seed " << options.seed
              << " --episode " << episode;
    if (!options.setup.empty()) std::cerr << " --setup " << options.setup;
    std::cerr << std::endl;
    return false;
  }
  return true;
}

}  // namespace

int run(const Program& program, int argc, char** argv) {
  const Options options = parse(program, argc, argv);
  Counts& counts = program.counts;
  if (const int wrong = support::wrong_instruction_set()) return wrong;
  std::cout << "seed " << options.seed << ", " << options.operations << " operations, "
            << kvc_build_info() << std::endl;
  const support::Device alone(1), helped(2);
  if (alone.status != KVC_OK || helped.status != KVC_OK) usage(program, "no cpu device");
  if (options.episode >= 0)
    return !run_episode(program, options, static_cast<uint64_t>(options.episode), alone);
  uint64_t reported = 0;
  for (uint64_t episode = 0; counts.operations < options.operations; ++episode) {
    if (!run_episode(program, options, episode, episode % 8 == 7 ? helped : alone)) return 1;
    if (counts.operations - reported >= 250000) {
      reported = counts.operations;
      std::cout << reported << " operations" << std::endl;
    }
  }
  counts.print(std::cout);
  if (!support::over_simulated_device()) {
    std::cout << interposer::watched_calls()
              << " calls watched, in which nothing was allocated, mapped or started\n";
  }
  // One set-up cannot meet everything, nor can a device that lacks storage types and operators.
  if (!options.setup.empty() || support::over_simulated_device()) return 0;
  // The few episodes of a short run differ much: it is held to a quarter of its share.
  const uint64_t wanted = options.operations < 1000000
                              ? options.operations * least_of_a_million / 4000000
                              : least_of_a_million;
  std::cout << "smallest number of the table: " << counts.least() << ", wanted " << wanted
            << std::endl;
  // In some thousand operations chance decides what is met: they are there for the comparisons.
  return options.operations >= 50000 &&
         (counts.least() < wanted || counts.rebuilt == 0 || counts.poisonings == 0);
}

}  // namespace fuzz
