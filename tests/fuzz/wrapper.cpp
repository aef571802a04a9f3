// Random operations on a wrapper of random children and on its oracle, everything compared after each. docs/TESTING.md says what;
// support/wrapper_world.hpp is where to begin reading.
#include "support/fuzz_coverage.hpp"
#include "support/wrapper_world.hpp"

int main(int argc, char** argv) {
  fuzz::Counts counts = fuzz::wrapper_counts();
  fuzz::ChildCounts of_children;
  const auto begin = [&](const std::string& name, support::Random& random, kvc_device* device,
                         std::string& description) {
    description = "a wrapper (" + name + ")";
    return std::make_unique<fuzz::WrapperWorld>(device, name, random, counts, of_children);
  };
  return fuzz::run({"fuzz_wrapper", fuzz::wrapper_setup_names(), counts, begin}, argc, argv);
}
