#pragma once
#include <cstddef>
#include <cstdint>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace kvc {

/// A running 128-bit hash (XXH3, github.com/Cyan4973/xxHash; header only, nothing to link).
class Digest {
 public:
  Digest() { XXH3_128bits_reset(&state_); }

  Digest& update(const void* data, size_t bytes) {
    XXH3_128bits_update(&state_, data, bytes);
    return *this;
  }
  XXH128_hash_t value() const { return XXH3_128bits_digest(&state_); }

 private:
  XXH3_state_t state_;
};

/// A sum of hashes modulo 2^128: the same for the same things in any order.
class DigestSum {
 public:
  void add(const Digest& digest) {
    const XXH128_hash_t hash = digest.value();
    low_ += hash.low64;
    high_ += hash.high64 + (low_ < hash.low64 ? 1u : 0u);
  }
  void copy_to(uint64_t out[2]) const {
    out[0] = low_;
    out[1] = high_;
  }

 private:
  uint64_t low_ = 0;
  uint64_t high_ = 0;
};

}  // namespace kvc
