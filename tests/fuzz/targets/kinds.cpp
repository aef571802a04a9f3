// libFuzzer: the random operations of fuzz_encoder, fuzz_recurrent, fuzz_rows and fuzz_wrapper, chosen by the fuzzer's bytes instead
// of by a seed.
#include "support/encoder_world.hpp"
#include "support/fuzz_bytes.hpp"
#include "support/fuzz_coverage.hpp"
#include "support/recurrent_world.hpp"
#include "support/rows_world.hpp"
#include "support/wrapper_world.hpp"

namespace {

struct Tables {
  fuzz::Counts encoder = fuzz::encoder_counts(), recurrent = fuzz::recurrent_counts(),
               rows = fuzz::rows_counts(), wrapper = fuzz::wrapper_counts();
  fuzz::ChildCounts of_children;
};

const std::string& some(const std::vector<std::string>& names, support::Random& random) {
  return names[static_cast<size_t>(random.below(static_cast<int32_t>(names.size())))];
}

std::unique_ptr<fuzz::KindWorld> draw_world(kvc_device* device, support::Random& random,
                                            Tables& tables) {
  const int32_t kind = random.below(4);
  if (kind == 0) {
    const auto setup = fuzz::draw_encoder_setup(some(fuzz::encoder_setup_names(), random), random);
    return std::make_unique<fuzz::EncoderWorld>(device, setup, random, tables.encoder);
  }
  if (kind == 1) {
    const auto setup = fuzz::draw_recurrent_setup(some(fuzz::state_setup_names(), random), random);
    return std::make_unique<fuzz::RecurrentWorld>(device, setup, random, tables.recurrent);
  }
  if (kind == 3) {
    const auto setup = fuzz::draw_rows_setup(some(fuzz::rows_setup_names(), random), random);
    return std::make_unique<fuzz::RowsWorld>(device, setup, random, tables.rows);
  }
  return std::make_unique<fuzz::WrapperWorld>(device, some(fuzz::wrapper_setup_names(), random),
                                              random, tables.wrapper, tables.of_children);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const support::Device device(1);
  Tables tables;
  support::Random random(data, size);
  fuzz::run_bytes([&] { return draw_world(device, random, tables); });
  return 0;
}
