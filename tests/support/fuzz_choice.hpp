#pragma once
#include <functional>
#include <vector>

#include "random.hpp"

namespace fuzz {

/// One of several operations, and how often it is chosen beside the others.
struct Choice {
  int32_t weight;
  std::function<void()> perform;
};

inline void perform_one(support::Random& random, const std::vector<Choice>& choices) {
  int32_t total = 0;
  for (const Choice& choice : choices) total += choice.weight;
  int32_t drawn = random.below(total);
  for (const Choice& choice : choices) {
    if (drawn < choice.weight) return choice.perform();
    drawn -= choice.weight;
  }
}

}  // namespace fuzz
