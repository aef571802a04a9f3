#include <algorithm>
#include <array>
#include <sstream>

#include "fuzz_setup.hpp"
#include "model/storage.hpp"

/// The storage types that random operations run on.
namespace fuzz {
namespace {

using support::Random;

struct Side {
  uint32_t dtype;
  int32_t dim, block;
  bool rotates;
};

bool quantised(uint32_t dtype) {
  return dtype == KVC_Q8_0 || dtype == KVC_Q4_0 || dtype == KVC_INT8 || dtype == KVC_NF4;
}

uint32_t plain_type(Random& random) {
  return random.pick<uint32_t>({0u, KVC_F32, KVC_F16, KVC_BF16, KVC_F16});
}

Side draw_side(Random& random) {
  Side side{random.pick<uint32_t>({KVC_F16, KVC_F8_E4M3, KVC_F8_E5M2, KVC_Q8_0, KVC_Q4_0, KVC_INT8,
                                   KVC_INT8, KVC_NF4, KVC_NF4, KVC_Q8_0}),
            random.pick({2, 3, 4, 6, 7, 8, 12, 20}), 0, false};
  if (side.dtype == KVC_Q8_0 || side.dtype == KVC_Q4_0)
    side.dim = 32 * random.pick({1, 1, 1, 2, 3});
  if (side.dtype == KVC_NF4) {
    side.block = random.pick({0, 16, 32, 64, 128});
    side.dim = side.block == 0 ? 16 * random.between(1, 4) : side.block;
    if (side.block == 16 || side.block == 32) side.dim *= random.pick({1, 1, 2, 3});
  }
  side.rotates = quantised(side.dtype) && side.dim % 2 == 0 && random.chance(0.5);
  return side;
}

/// V is a part of K that cuts no block, of storage or of rotation, in two.
void draw_v_in_k(Random& random, kvc_cache_desc& cache) {
  const model::Storage k(cache.dtype_k, cache.head_dim_k, cache.block_k,
                         cache.flags & KVC_CACHE_ROTATE_K);
  const int32_t block = cache.dtype_k == KVC_INT8 ? 0 : k.block;
  const int32_t step = std::max({1, block, k.rotation});
  const int32_t parts = cache.head_dim_k / step, first = random.below(parts);
  cache.flags |= KVC_CACHE_V_IN_K;
  cache.v_first = first * step;
  cache.head_dim_v = random.between(1, parts - first) * step;
  cache.dtype_v = 0;
  cache.block_v = 0;
}

}  // namespace

void draw_storage(Random& random, bool causal, kvc_cache_desc& cache) {
  cache.dtype_k = plain_type(random);
  cache.dtype_v = plain_type(random);
  if (causal && random.chance(0.1)) {
    cache.flags |= KVC_CACHE_INTERLEAVED;
    cache.dtype_v = cache.dtype_k;
    return;
  }
  const bool v_in_k = causal && random.chance(0.15);
  if (random.chance(0.6)) {
    const Side k = draw_side(random);
    cache.dtype_k = k.dtype;
    cache.head_dim_k = k.dim;
    cache.block_k = k.block;
    if (k.rotates) cache.flags |= KVC_CACHE_ROTATE_K;
  }
  if (v_in_k) return draw_v_in_k(random, cache);
  if (cache.head_dim_v == 0) cache.head_dim_v = std::min(cache.head_dim_k, 8);
  if (!random.chance(0.6)) return;
  const Side v = draw_side(random);
  cache.dtype_v = v.dtype;
  cache.head_dim_v = v.dim;
  cache.block_v = v.block;
  if (v.rotates) cache.flags |= KVC_CACHE_ROTATE_V;
}

std::vector<float> draw_scales(Random& random, int32_t n) {
  std::vector<float> scales;
  for (int32_t i = 0; i < n; ++i) scales.push_back(random.pick({1.0f, 0.25f, 0.01f, 0.3f, 3.0f}));
  return scales;
}

std::string describe_storage(const kvc_cache_desc& cache) {
  std::ostringstream text;
  text << std::hex << " dtype_k 0x" << cache.dtype_k << " dtype_v 0x" << cache.dtype_v << std::dec
       << " block_k " << cache.block_k << " block_v " << cache.block_v << " v_first "
       << cache.v_first;
  constexpr std::array<std::pair<uint64_t, const char*>, 4> flags = {
      {{KVC_CACHE_ROTATE_K, " rotate_k"},
       {KVC_CACHE_ROTATE_V, " rotate_v"},
       {KVC_CACHE_INTERLEAVED, " interleaved"},
       {KVC_CACHE_V_IN_K, " v_in_k"}}};
  for (const auto& [flag, name] : flags)
    if (cache.flags & flag) text << name;
  return text.str();
}

}  // namespace fuzz
