#pragma once
#include <array>
#include <cmath>
#include <cstdint>

namespace kvc {

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011): four random words that depend on counter and key alone.
using PhiloxWords = std::array<uint32_t, 4>;

inline PhiloxWords philox(PhiloxWords counter, uint32_t key_low, uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key_low, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key_high, static_cast<uint32_t>(a)};
    key_low += 0x9E3779B9;
    key_high += 0xBB67AE85;
  }
  return counter;
}

/// Which weights of a call count, and what those are multiplied with. A weight is kept or not by positions, heads, layer and
/// sequence: not by cells, blocks or threads.
struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;  // a weight is kept if its word is at least this
  float keep_factor = 1;
  float probability = 0;
  int32_t layer = 0;
  bool drops = false;  // else every weight counts, and none of this does

  /// `probability` is 0 or more and below 1.
  static Dropout of(uint64_t seed, float probability, int32_t layer) {
    const double p = static_cast<double>(probability);
    return {.seed = seed,
            .threshold = static_cast<uint32_t>(std::floor(std::ldexp(p, 32))),
            .keep_factor = static_cast<float>(1 / (1 - p)),
            .probability = probability,
            .layer = layer,
            .drops = true};
  }
};

/// Query heads of a layer whose numbers fit beside the layer's in a word of the counter.
inline constexpr int32_t dropout_heads_max = 65536;

/// The weights of one query position and head. Four neighbouring key positions share a call of Philox.
class DropoutRow {
 public:
  DropoutRow(const Dropout& dropout, int32_t sequence, int32_t position, int32_t head)
      : dropout_(dropout),
        position_(static_cast<uint32_t>(position)),
        head_(static_cast<uint32_t>(dropout.layer) << 16 | static_cast<uint32_t>(head)),
        sequence_(static_cast<uint32_t>(sequence)) {}

  bool keeps(int32_t key_position) {
    if (const auto block = static_cast<uint32_t>(key_position) / 4; block != block_) {
      block_ = block;
      words_ = philox({block, position_, head_, sequence_}, static_cast<uint32_t>(dropout_.seed),
                      static_cast<uint32_t>(dropout_.seed >> 32));
    }
    return words_[static_cast<size_t>(key_position % 4)] >= dropout_.threshold;
  }

 private:
  const Dropout& dropout_;
  const uint32_t position_, head_, sequence_;
  uint32_t block_ = UINT32_MAX;  // none: positions are below 2^31
  PhiloxWords words_ = {};
};

}  // namespace kvc
