#include "encoder_setup.hpp"

#include <algorithm>
#include <sstream>

namespace fuzz {

const std::vector<std::string>& encoder_setup_names() {
  static const std::vector<std::string> all = {"any", "few", "strict"};
  return all;
}

EncoderSetup draw_encoder_setup(const std::string& name, support::Random& random,
                                const InCommon& common) {
  EncoderSetup setup;
  setup.name = name;
  kvc_cache_desc& cache = setup.cache;
  cache = support::cache_desc(random.between(1, 3), random.between(1, 2),
                              random.pick({2, 3, 4, 6, 8}), random.pick({0, 1, 2, 3, 5, 8}));
  cache.kind = KVC_ENCODER;
  draw_storage(random, false, cache);
  cache.max_sequences = common.sequences(random.between(1, 4));
  // The library reads contents for digests 16 positions at a time, and 256 for gather.
  const int32_t size = random.below(100);
  cache.capacity = size < 2    ? random.between(257, 270)
                   : size < 20 ? random.between(17, 40)
                               : random.between(1, 9);
  cache.max_batch = common.batch(random.between(1, 8));
  cache.max_q_heads = cache.n_kv_heads * random.between(1, 4);
  if (name == "strict") cache.flags |= KVC_CACHE_STRICT;
  if (random.chance(0.3)) cache.flags |= KVC_CACHE_ZERO_ON_FREE;
  if (random.chance(0.1)) cache.flags |= KVC_CACHE_PREFAULT;
  setup.encoder = KVC_ENCODER_DESC_INIT;
  setup.encoder.mask_dtype = random.pick<uint32_t>({0u, KVC_F32, KVC_F16});
  if (name == "few") setup.encoder.inputs = random.between(1, cache.max_sequences);
  for (int32_t layer = 0; layer < cache.n_layers; ++layer)
    setup.attention.push_back(draw_layer_attention(cache, random, false));
  return setup;
}

std::string EncoderSetup::describe() const {
  std::ostringstream text;
  text << name << ": layers " << cache.n_layers << " kv_heads " << cache.n_kv_heads << " dk "
       << cache.head_dim_k << " dv " << cache.head_dim_v << describe_storage(cache) << " sequences "
       << cache.max_sequences << " capacity " << cache.capacity << " max_batch " << cache.max_batch
       << " inputs " << encoder.inputs << " flags " << cache.flags;
  return text.str();
}

}  // namespace fuzz
