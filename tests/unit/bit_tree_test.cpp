// The tree of bits against a set of numbers: sizes on both sides of each level's, full, empty and in between.
#include "core/cells/bit_tree.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <random>
#include <set>
#include <vector>

namespace {

/// A tree with memory of its own.
class Tree : public kvc::BitTree {
 public:
  explicit Tree(int32_t n_bits) {
    kvc::Carver measured;
    carve(measured, n_bits);
    block_.resize(measured.used().value() / 8 + 8);
    auto* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(block_.data()) + 63) /
                                                 64 * 64);
    kvc::Carver carver(aligned);
    carve(carver, n_bits);
  }

 private:
  std::vector<uint64_t> block_;
};

int32_t find(const std::set<int32_t>& numbers, int32_t from) {
  const auto at = numbers.lower_bound(from);
  if (at != numbers.end()) return *at;
  return numbers.empty() ? -1 : *numbers.begin();
}

TEST(BitTree, FindsWhatASetFinds) {
  constexpr uint32_t seed = 20261128;
  std::mt19937 random(seed);
  std::cout << "seed " << seed << std::endl;
  for (const int32_t n_bits : {1, 2, 63, 64, 65, 4095, 4096, 4097, 10000, 262144, 262145, 300000}) {
    Tree tree(n_bits);
    std::set<int32_t> numbers;
    const auto any = [&] { return static_cast<int32_t>(random() % static_cast<uint32_t>(n_bits)); };
    for (int32_t step = 0; step < 4000; ++step) {
      // Numbers come in a burst at one place and go again, so that words and levels fill and empty.
      const int32_t first = any(), count = 1 + static_cast<int32_t>(random() % 130);
      const bool add = step / 500 % 2 == 0;
      for (int32_t i = first; i < std::min(n_bits, first + count); ++i) {
        if (add)
          tree.set(i), numbers.insert(i);
        else
          tree.clear(i), numbers.erase(i);
      }
      const int32_t from = any();
      ASSERT_EQ(tree.find(from), find(numbers, from)) << n_bits << " bits, from " << from;
      ASSERT_EQ(tree.test(from), numbers.contains(from));
      if (step % 500 == 499) {
        ASSERT_TRUE(tree.sound()) << n_bits << " bits";
      }
    }
    while (!numbers.empty()) {
      const int32_t from = any(), found = tree.find(from);
      ASSERT_EQ(found, find(numbers, from)) << n_bits << " bits, from " << from;
      tree.clear(found), numbers.erase(found);
    }
    ASSERT_EQ(tree.find(any()), -1);
    ASSERT_TRUE(tree.sound());
  }
}

TEST(BitTree, ReachesTheLargestPool) {
  constexpr int32_t n_bits = 1 << 25;  // blocks of 2^30 cells
  Tree tree(n_bits);
  for (const int32_t only : {0, 1, 12345678, n_bits - 1}) {
    tree.set(only);
    for (const int32_t from : {0, only, std::min(only + 1, n_bits - 1), n_bits - 1})
      EXPECT_EQ(tree.find(from), only);
    tree.clear(only);
    EXPECT_EQ(tree.find(only), -1);
  }
}

}  // namespace
