#pragma once
#include <bit>
#include <cstdint>

#include "core/base/carver.hpp"

namespace kvc {

/// A set of numbers in [0, n_bits) in which the next one is found without looking through the rest: a bit each, and above
/// them, level by level up to a single word, a bit for each word that has one. Five levels reach 2^30.
class BitTree {
 public:
  static constexpr int32_t levels_max = 5;

  void carve(Carver& carver, int32_t n_bits);

  bool test(int32_t index) const { return (level_[0][word_of(index)] & bit_of(index)) != 0; }
  void set(int32_t index);
  void clear(int32_t index) { clear_if(index, true); }
  /// Called for every token of decode, with a condition that is as good as random in a pool that is nearly full: no branch
  /// depends on it.
  void clear_if(int32_t index, bool condition) {
    uint64_t& word = level_[0][word_of(index)];
    const uint64_t before = word;
    word &= ~(uint64_t{condition} << (static_cast<uint32_t>(index) % 64));
    if (word == 0 && before != 0) clear_above(index / 64);
  }

  /// The first number at or after `from`, round the end, that is in the set; −1: it is empty.
  int32_t find(int32_t from) const;

  /// Whether each level summarises the one below it correctly, and no bit is set behind the last number.
  bool sound() const;

 private:
  static uint64_t bit_of(int32_t index) {
    return uint64_t{1} << (static_cast<uint32_t>(index) % 64);
  }
  static size_t word_of(int32_t index) { return static_cast<uint32_t>(index) / 64; }
  void clear_above(int32_t index);
  int32_t find_ahead(int32_t from) const;

  uint64_t* level_[levels_max] = {};  // [n_words_] each
  int32_t n_words_[levels_max] = {};
  int32_t n_levels_ = 0;
  int32_t n_bits_ = 0;
};

}  // namespace kvc
