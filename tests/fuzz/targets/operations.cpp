// libFuzzer: the random operations of fuzz_operations, chosen by the fuzzer's bytes instead of by a seed.
#include "support/fuzz_bytes.hpp"
#include "support/fuzz_world.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const support::Device device(1);
  fuzz::Counts counts = fuzz::causal_counts();
  support::Random random(data, size);
  const std::vector<std::string>& names = fuzz::setup_names();
  const auto name = static_cast<size_t>(random.below(static_cast<int32_t>(names.size())));
  fuzz::run_bytes([&] {
    return std::make_unique<fuzz::World>(device, fuzz::draw_setup(names[name], random), random,
                                         counts);
  });
  return 0;
}
