#include "rows_setup.hpp"

#include <sstream>

namespace fuzz {

const std::vector<std::string>& rows_setup_names() {
  static const std::vector<std::string> all = {"any", "ring", "window", "value_heads"};
  return all;
}

RowsSetup draw_rows_setup(const std::string& name, support::Random& random, const InCommon& common) {
  RowsSetup setup;
  setup.name = name;
  kvc_cache_desc& cache = setup.cache;
  cache = support::cache_desc(random.between(1, 3), random.between(1, 2),
                              random.pick({2, 3, 4, 6, 8}), random.pick({0, 1, 2, 3, 5, 8}));
  cache.kind = KVC_TRANSFORMER;
  draw_storage(random, true, cache);
  cache.max_sequences = common.sequences(random.between(1, 4));
  cache.capacity = random.chance(0.2) ? random.between(17, 40) : random.between(2, 12);
  // Not every batch is as many rows of as many tokens.
  cache.max_batch = common.batch(cache.max_sequences * random.between(1, 7) +
                                 random.below(cache.max_sequences));
  cache.max_q_heads = cache.n_kv_heads * random.between(1, 4);
  if (random.chance(0.3)) cache.flags |= KVC_CACHE_ZERO_ON_FREE;
  if (random.chance(0.1)) cache.flags |= KVC_CACHE_PREFAULT;
  setup.transformer = KVC_TRANSFORMER_DESC_INIT;
  kvc_transformer_desc& transformer = setup.transformer;
  transformer.mask_dtype = random.pick<uint32_t>({0u, KVC_F32, KVC_F16, KVC_BOOL});
  if (random.chance(0.2)) transformer.flags |= KVC_TRANSFORMER_NOT_CAUSAL;
  const bool windowed = name == "window" || (name == "ring" && random.chance(0.5));
  if (name == "ring") transformer.flags |= KVC_TRANSFORMER_RING;
  if (windowed) transformer.reach = random.between(1, cache.capacity + 2);
  if (name == "value_heads" && !(cache.flags & (KVC_CACHE_V_IN_K | KVC_CACHE_INTERLEAVED)))
    transformer.value_heads = random.between(1, 4);
  for (int32_t layer = 0; layer < cache.n_layers; ++layer)
    setup.attention.push_back(draw_layer_attention(cache, random, true));
  return setup;
}

std::string RowsSetup::describe() const {
  std::ostringstream text;
  text << name << ": layers " << cache.n_layers << " kv_heads " << cache.n_kv_heads << " value_heads "
       << transformer.value_heads << " dk " << cache.head_dim_k << " dv " << cache.head_dim_v
       << describe_storage(cache) << " rows " << cache.max_sequences << " length " << cache.capacity
       << " max_batch " << cache.max_batch << " flags " << cache.flags << " reach "
       << transformer.reach << " transformer flags " << transformer.flags;
  return text.str();
}

}  // namespace fuzz
