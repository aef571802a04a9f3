#include "dropout.hpp"

#include <cmath>

namespace model {
namespace {

/// Word `word` of the ten rounds over a counter of four words and a key of two.
uint32_t philox_word(const uint32_t counter[4], uint64_t key, int32_t word) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int32_t round = 0; round < 10; ++round) {
    if (round > 0) {
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const uint64_t left = uint64_t{0xD2511F53u} * c0, right = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ k1;
    c0 = n0;
    c1 = static_cast<uint32_t>(right);
    c2 = n2;
    c3 = static_cast<uint32_t>(left);
  }
  const uint32_t words[4] = {c0, c1, c2, c3};
  return words[word];
}

}  // namespace

double dropout_factor(const Weight& weight, float probability) {
  const double p = static_cast<double>(probability);
  const uint32_t counter[4] = {static_cast<uint32_t>(weight.k_position / 4),
                               static_cast<uint32_t>(weight.q_position),
                               static_cast<uint32_t>(weight.layer * 65536LL + weight.head),
                               static_cast<uint32_t>(weight.sequence)};
  const double word = philox_word(counter, weight.seed, weight.k_position % 4);
  if (word < std::floor(p * 4294967296.0)) return 0;
  return static_cast<double>(static_cast<float>(1 / (1 - p)));
}

}  // namespace model
