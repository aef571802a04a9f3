// Random operations on a cache and on the oracle, everything compared after each. docs/TESTING.md
// says what; support/fuzz_world.hpp is where to begin reading.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <iostream>
#include <random>
#include <sstream>
#include <string>

#include "support/fuzz_world.hpp"
#include "support/instruction_set.hpp"
#include "support/interposer/interposer.hpp"

namespace {

constexpr int32_t operations_per_episode = 500;
constexpr uint64_t least_of_a_million = 1000;  // each number of the table, in a million operations

struct Options {
  uint64_t operations = 1000000;
  uint64_t seed = 0;
  std::string setup;     // empty: all
  int64_t episode = -1;  // only this one
};

[[noreturn]] void usage(const char* problem) {
  std::cerr << problem << "\nusage: operations [--operations N] [--seed S] [--setup NAME]"
            << " [--episode E]\nset-ups:";
  for (const std::string& name : fuzz::setup_names()) std::cerr << ' ' << name;
  std::cerr << '\n';
  std::exit(2);
}

uint64_t number(const char* text) {
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (*text == '\0' || *end != '\0') usage("not a number");
  return value;
}

Options parse(int argc, char** argv) {
  Options options;
  std::random_device entropy;
  options.seed = entropy();
  if (const char* operations = std::getenv("KVC_FUZZ_OPERATIONS"))
    options.operations = number(operations);
  if (const char* seed = std::getenv("KVC_FUZZ_SEED")) options.seed = number(seed);
  for (int i = 1; i < argc; i += 2) {
    const std::string option = argv[i];
    if (i + 1 == argc) usage("an option without its value");
    if (option == "--operations")
      options.operations = number(argv[i + 1]);
    else if (option == "--seed")
      options.seed = number(argv[i + 1]);
    else if (option == "--setup")
      options.setup = argv[i + 1];
    else if (option == "--episode")
      options.episode = static_cast<int64_t>(number(argv[i + 1]));
    else
      usage("unknown option");
  }
  const std::vector<std::string>& setups = fuzz::setup_names();
  if (!options.setup.empty() && std::find(setups.begin(), setups.end(), options.setup) == setups.end())
    usage("unknown set-up");
  return options;
}

/// Between the return of create and destroy nothing is allocated, mapped or started.
void expect_nothing_taken() {
  const interposer::Counts taken = interposer::taken();
  if (taken.total() == 0) return;
  std::ostringstream text;
  text << "a call took from the system: " << taken.allocations << " allocations, " << taken.mappings
       << " mappings, " << taken.threads << " threads";
  throw fuzz::Difference(text.str());
}

/// One cache and its operations: a function of the run's seed and its number alone.
bool run_episode(const Options& options, uint64_t episode, kvc_device* device,
                 fuzz::Coverage& coverage) {
  support::Random random(support::derived_seed(options.seed, episode));
  const std::vector<std::string>& names = fuzz::setup_names();
  const std::string setup_name = options.setup.empty() ? names[episode % names.size()]
                                                       : options.setup;
  const fuzz::Setup setup = fuzz::draw_setup(setup_name, random);
  std::string history = setup.describe() + "\n";
  try {
    fuzz::World world(device, setup, support::Random(random.bits()), coverage);
    try {
      const uint64_t until = coverage.operations + operations_per_episode;
      expect_nothing_taken();
      while (coverage.operations < until) {
        world.step();
        expect_nothing_taken();
      }
      world.finish();
      expect_nothing_taken();
    } catch (const fuzz::Difference&) {
      history = world.history();
      throw;
    }
  } catch (const fuzz::Difference& difference) {
    std::cerr << "\nDIFFERENCE: " << difference.what() << "\n"
              << history << "repeat: fuzz_operations --seed " << options.seed << " --episode "
              << episode;
    if (!options.setup.empty()) std::cerr << " --setup " << options.setup;
    std::cerr << std::endl;
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  if (const int wrong = support::wrong_instruction_set()) return wrong;
  std::cout << "seed " << options.seed << ", " << options.operations << " operations, "
            << kvc_build_info() << std::endl;
  fuzz::Coverage coverage;
  const support::Device alone(1), helped(2);
  if (alone.status != KVC_OK || helped.status != KVC_OK) usage("no cpu device");
  if (options.episode >= 0)
    return !run_episode(options, static_cast<uint64_t>(options.episode), alone, coverage);
  uint64_t reported = 0;
  for (uint64_t episode = 0; coverage.operations < options.operations; ++episode) {
    if (!run_episode(options, episode, episode % 8 == 7 ? helped : alone, coverage)) return 1;
    if (coverage.operations - reported >= 250000) {
      reported = coverage.operations;
      std::cout << reported << " operations" << std::endl;
    }
  }
  coverage.print(std::cout);
  std::cout << interposer::watched_calls()
            << " calls watched, in which nothing was allocated, mapped or started\n";
  if (!options.setup.empty()) return 0;  // one set-up cannot meet everything
  // The few episodes of a short run differ much: it is held to a quarter of its share.
  const uint64_t wanted = options.operations < 1000000
                              ? options.operations * least_of_a_million / 4000000
                              : least_of_a_million;
  std::cout << "smallest number of the table: " << coverage.least() << ", wanted " << wanted
            << std::endl;
  if (coverage.poisonings == 0) return 1;
  // In some thousand operations chance decides what else is met: they are there for the comparisons.
  return options.operations >= 50000 && (coverage.least() < wanted || coverage.rebuilt == 0);
}
