// Threads and recurrent caches: const calls at the same time, and two caches of one device put at the same time.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "support/recurrent_rig.hpp"

namespace {

using Rig = support::RecurrentRig;

// Const calls may overlap; each plans, counts or lists on its own.
TEST(RecurrentThreads, ConstCallsOverlap) {
  const support::Device device(2);
  Rig rig(device);
  rig.recurrent.checkpoint_interval = 1;
  rig.create();
  for (int32_t i = 0; i < 20; ++i) rig.pass({{0, i}, {1, i}});
  const auto answers = [&] {
    std::vector<int32_t> all = rig.checkpoints(0);
    const int32_t position = 20, sequence = 1;
    all.push_back(kvc_fits(rig.cache, 1, &position, &sequence, nullptr));
    all.push_back(rig.best(0, 19));
    for (const kvc_state_sequence& s : rig.layout()) all.push_back(s.read_slot);
    for (const int32_t slot : rig.slots()) all.push_back(slot);
    all.push_back(static_cast<int32_t>(support::digest(rig.cache)[0]));
    all.push_back(kvc_check(rig.cache));
    return all;
  };
  const std::vector<int32_t> alone = answers();
  std::vector<std::thread> threads;
  for (int32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int32_t repeat = 0; repeat < 200; ++repeat) EXPECT_EQ(answers(), alone);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Each cache has its states; the device's threads serve both.
TEST(RecurrentThreads, TwoCachesOfOneDeviceAreIndependent) {
  const support::Device device(2);
  const auto run = [&device](int32_t seed) {
    Rig rig(device);
    rig.recurrent.draft_states = 2;
    rig.create();
    std::vector<int32_t> values;
    for (int32_t i = 0; i < 100; ++i) {
      values.push_back((seed * 31 + i * 7) % 90);
      rig.pass({{1, values.back()}}, i % 2 == 0 ? support::Put::by_copy : support::Put::in_place);
    }
    rig.expect_state(1, 100, values);
  };
  std::thread other(run, 1);
  run(2);
  other.join();
}

}  // namespace
