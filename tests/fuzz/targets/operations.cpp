// libFuzzer: the random operations of fuzz_operations, chosen by the fuzzer's bytes instead of by a seed.
#include <cstdlib>
#include <iostream>

#include "support/fuzz_world.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const support::Device device(1);
  fuzz::Counts counts = fuzz::causal_counts();
  support::Random random(data, size);
  const std::vector<std::string>& names = fuzz::setup_names();
  const auto name = static_cast<size_t>(random.below(static_cast<int32_t>(names.size())));
  const fuzz::Setup setup = fuzz::draw_setup(names[name], random);
  try {
    fuzz::World world(device, setup, random, counts);
    try {
      while (world.bytes_left() > 0) world.step();
      world.finish();
    } catch (const fuzz::Difference& difference) {
      std::cerr << "\nDIFFERENCE: " << difference.what() << "\n" << world.history() << std::endl;
      std::abort();
    }
  } catch (const fuzz::Difference& difference) {
    std::cerr << "\nDIFFERENCE: " << difference.what() << "\n" << setup.describe() << std::endl;
    std::abort();
  }
  return 0;
}
