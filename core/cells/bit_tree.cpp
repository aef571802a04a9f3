#include "core/cells/bit_tree.hpp"

namespace kvc {

void BitTree::carve(Carver& carver, int32_t n_bits) {
  int32_t n = n_bits;
  n_bits_ = n_bits;
  n_levels_ = 0;
  do {
    n = static_cast<int32_t>((int64_t{n} + 63) / 64);
    n_words_[n_levels_] = n;
    level_[n_levels_++] = carver.take<uint64_t>(static_cast<uint64_t>(n), 64);
  } while (n > 1);
}

/// The levels above change only where a word gets its first bit.
void BitTree::set(int32_t index) {
  for (int32_t level = 0; level < n_levels_; ++level, index /= 64) {
    uint64_t& word = level_[level][word_of(index)];
    const bool first = word == 0;
    word |= bit_of(index);
    if (!first) return;
  }
}

/// Or loses its last one.
void BitTree::clear_above(int32_t index) {
  for (int32_t level = 1; level < n_levels_; ++level, index /= 64) {
    uint64_t& word = level_[level][word_of(index)];
    word &= ~bit_of(index);
    if (word != 0) return;
  }
}

int32_t BitTree::find(int32_t from) const {
  // None at all, as there are wholly free blocks in a pool that is nearly full: two searches less for every token.
  if (level_[n_levels_ - 1][0] == 0) return -1;
  const int32_t ahead = find_ahead(from);
  return ahead >= 0 || from == 0 ? ahead : find_ahead(0);
}

/// Climbs until a word has a bit at or after the place, then goes down to the first bit below it.
int32_t BitTree::find_ahead(int32_t from) const {
  for (int32_t level = 0; level < n_levels_; ++level) {
    if (from / 64 >= n_words_[level]) return -1;
    const uint64_t bits = level_[level][word_of(from)] & (~uint64_t{0} << (from % 64));
    if (bits != 0) {
      int32_t found = from / 64 * 64 + std::countr_zero(bits);
      while (level-- > 0) found = found * 64 + std::countr_zero(level_[level][found]);
      return found;
    }
    from = from / 64 + 1;
  }
  return -1;
}

bool BitTree::sound() const {
  for (int32_t bit = n_bits_; bit / 64 < n_words_[0]; ++bit) {
    if (test(bit)) return false;
  }
  for (int32_t level = 1; level < n_levels_; ++level) {
    for (int32_t word = 0; word / 64 < n_words_[level]; ++word) {
      const bool some = word < n_words_[level - 1] && level_[level - 1][word] != 0;
      if (some != ((level_[level][word_of(word)] & bit_of(word)) != 0)) return false;
    }
  }
  return true;
}

}  // namespace kvc
